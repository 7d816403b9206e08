//! The secret that sequence hashes are keyed with: who lacks it cannot name, nor guess, a prompt.
//!
//! A file that others may read is refused, as what it holds is no secret. One that is made here is
//! written under another name, synced and renamed: a crash leaves a whole secret or none. A secret
//! that is lost or replaced costs every block of the store, as nothing is found under its name.

use crate::config::Config;
use crate::private_file::{self, PrivateFileError};
use rustix::fs::OFlags;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

pub const SECRET_BYTES: usize = 32;
/// Bytes that are read of a file: more than any secret takes.
const MOST: u64 = 128;

/// Why there is no secret.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SecretError {
    #[error(transparent)]
    File(#[from] PrivateFileError),
    #[error("write secret file {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("secret file {} holds neither {SECRET_BYTES} bytes nor {} hex digits", path.display(), 2 * SECRET_BYTES)]
    Content { path: PathBuf },
    #[error("no drive to keep a secret on: give one, or a secret file")]
    NoPlace,
}

impl Config {
    /// Reads the secret. The default one, in the first drive's directory, is made where it is
    /// missing: its store must be open, so that nobody else makes one meanwhile.
    pub fn secret(&self) -> Result<[u8; SECRET_BYTES], SecretError> {
        let path = self.secret_path().ok_or(SecretError::NoPlace)?;
        if self.secret_file.is_some() {
            // A link is followed where an operator names it: mounted secrets are links.
            return decoded(&path, &private_file::read(&path, OFlags::empty(), MOST)?);
        }
        match private_file::read(&path, OFlags::NOFOLLOW, MOST) {
            Err(PrivateFileError::Read { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                make(&path)
            }
            outcome => decoded(&path, &outcome?),
        }
    }
}

fn decoded(path: &Path, bytes: &[u8]) -> Result<[u8; SECRET_BYTES], SecretError> {
    decode(bytes).ok_or_else(|| SecretError::Content { path: path.into() })
}

fn decode(bytes: &[u8]) -> Option<[u8; SECRET_BYTES]> {
    if let Ok(raw) = bytes.try_into() {
        return Some(raw);
    }
    let digits = bytes.trim_ascii();
    if digits.len() != 2 * SECRET_BYTES {
        return None;
    }
    let mut secret = [0; SECRET_BYTES];
    for (byte, pair) in secret.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: u8| char::from(at).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(secret)
}

fn make(path: &Path) -> Result<[u8; SECRET_BYTES], SecretError> {
    let mut secret = [0; SECRET_BYTES];
    let filled = rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty());
    assert_eq!(filled, Ok(secret.len()), "up to 256 bytes come whole, once the kernel is seeded");
    private_file::replace(path, &secret)
        .map_err(|source| SecretError::Write { path: path.into(), source })?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    //! Proves that a secret outlives a restart, and that a file which keeps none is refused.

    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";

    fn of_file(content: &[u8], mode: u32) -> Result<[u8; SECRET_BYTES], String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let config = Config { secret_file: Some(path), ..Config::default() };
        let shown = directory.path().display().to_string();
        config.secret().map_err(|error| error.to_string().replace(&shown, ""))
    }

    #[test]
    fn first_start_makes_a_secret_for_its_owner_alone_and_later_ones_find_it() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config::default_for(directory.path(), 1 << 30);
        let secret = config.secret().unwrap();
        assert_ne!(secret, [0; SECRET_BYTES]);
        let metadata = directory.path().join("secret").metadata().unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.len()), (0o600, 32));
        assert_eq!(config.secret().unwrap(), secret);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(Config::default_for(other.path(), 1 << 30).secret().unwrap(), secret);
    }

    #[test]
    fn bytes_and_hex_digits_name_the_same_secret() {
        let raw: Vec<u8> = (0..32).collect();
        assert_eq!(of_file(&raw, 0o600).unwrap()[..], raw);
        assert_eq!(of_file(HEX.as_bytes(), 0o400).unwrap()[..], raw);
        assert_eq!(of_file(format!("{HEX}\n").as_bytes(), 0o600).unwrap()[..], raw);
    }

    #[test]
    fn file_that_others_may_use_is_refused() {
        let refused = |mode: &str| {
            Err(format!("secret file /key may be used by others (mode {mode}): chmod 600 it"))
        };
        assert_eq!(of_file(HEX.as_bytes(), 0o604), refused("0604"));
        assert_eq!(of_file(HEX.as_bytes(), 0o640), refused("0640"));
        assert_eq!(of_file(HEX.as_bytes(), 0o620), refused("0620"));
    }

    #[test]
    fn file_of_another_length_is_refused() {
        let refused = Err("secret file /key holds neither 32 bytes nor 64 hex digits".to_owned());
        assert_eq!(of_file(b"", 0o600), refused);
        assert_eq!(of_file(&[7; 33], 0o600), refused);
        assert_eq!(of_file(&HEX.as_bytes()[1..], 0o600), refused);
        assert_eq!(of_file(HEX.replace('9', "g").as_bytes(), 0o600), refused);
    }

    #[test]
    fn named_secret_is_never_made_and_the_default_one_never_reached_by_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let named = Config { secret_file: Some(missing.clone()), ..Config::default() };
        let unread =
            |secret| matches!(secret, Err(SecretError::File(PrivateFileError::Read { .. })));
        assert!(unread(named.secret()));
        assert!(!missing.exists());

        std::os::unix::fs::symlink("/dev/zero", directory.path().join("secret")).unwrap();
        let config = Config::default_for(directory.path(), 1 << 30);
        assert!(unread(config.secret()));
        assert!(matches!(Config::default().secret(), Err(SecretError::NoPlace)));
    }
}
