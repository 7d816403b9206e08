//! The secret that sequence hashes are keyed with: who lacks it cannot name, nor guess, a prompt.
//!
//! A file that others may read is refused, as what it holds is no secret. One that is made here is
//! written under another name, synced and renamed: a crash leaves a whole secret or none. A secret
//! that is lost or replaced costs every block of the store, as nothing is found under its name: each
//! drive has a copy.

use crate::config::Config;
use crate::private_file::{self, PrivateFileError};
use rustix::fs::OFlags;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;
use tracing::warn;

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
    #[error(
        "no drive that is there holds the secret: put the missing one back, or name a secret file"
    )]
    Missing,
}

impl Config {
    /// Reads the secret. The default one lies in every store directory, and is made where none has
    /// it: `directories` are of stores that are open, so that nobody else makes one meanwhile. While a
    /// drive is missing, none is made: that one may have it.
    pub fn secret<'d>(
        &self,
        directories: impl Iterator<Item = &'d Path>,
        is_whole: bool,
    ) -> Result<[u8; SECRET_BYTES], SecretError> {
        if let Some(path) = &self.secret_file {
            // A link is followed where an operator names it: mounted secrets are links.
            return read(path, OFlags::empty());
        }
        let paths: Vec<_> = directories.map(|directory| directory.join("secret")).collect();
        let first = paths.first().ok_or(SecretError::NoPlace)?;
        let (mut secret, mut without, mut unread) = (None, Vec::new(), None);
        for path in &paths {
            match (read(path, OFlags::NOFOLLOW), secret) {
                (Ok(found), None) => secret = Some(found),
                (Ok(found), Some(secret)) if found == secret => {}
                (Ok(_), Some(_)) => warn!(path = %path.display(), "another secret: not used"),
                (Err(SecretError::File(PrivateFileError::Read { source, .. })), _)
                    if source.kind() == io::ErrorKind::NotFound =>
                {
                    without.push(path);
                }
                // Another drive may tell it.
                (Err(error @ SecretError::File(PrivateFileError::Read { .. })), _) => {
                    unread = Some(error);
                }
                (Err(error), _) => return Err(error),
            }
        }
        let secret = match (secret, unread) {
            (Some(secret), _) => secret,
            (None, Some(unread)) => return Err(unread),
            (None, None) if is_whole => make(first)?,
            (None, None) => return Err(SecretError::Missing),
        };
        for path in without {
            if let Err(error) = keep(path, &secret) {
                warn!(error = &error as &dyn std::error::Error, "secret not kept on every drive");
            }
        }
        Ok(secret)
    }
}

fn read(path: &Path, flags: OFlags) -> Result<[u8; SECRET_BYTES], SecretError> {
    let bytes = private_file::read(path, flags, MOST)?;
    decode(&bytes).ok_or_else(|| SecretError::Content { path: path.into() })
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
    keep(path, &secret)?;
    Ok(secret)
}

fn keep(path: &Path, secret: &[u8; SECRET_BYTES]) -> Result<(), SecretError> {
    private_file::replace(path, secret)
        .map_err(|source| SecretError::Write { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    //! Proves that a secret outlives a restart, and that a file which keeps none is refused.

    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";

    /// Of a node with these drives.
    fn of<const N: usize>(
        drives: [&Path; N],
        is_whole: bool,
    ) -> Result<[u8; SECRET_BYTES], SecretError> {
        Config::default().secret(drives.into_iter(), is_whole)
    }

    fn of_file(content: &[u8], mode: u32) -> Result<[u8; SECRET_BYTES], String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let config = Config { secret_file: Some(path), ..Config::default() };
        let shown = directory.path().display().to_string();
        config.secret([].into_iter(), true).map_err(|error| error.to_string().replace(&shown, ""))
    }

    #[test]
    fn first_start_makes_a_secret_for_its_owner_alone_and_later_ones_find_it() {
        let directory = tempfile::tempdir().unwrap();
        let secret = of([directory.path()], true).unwrap();
        assert_ne!(secret, [0; SECRET_BYTES]);
        let metadata = directory.path().join("secret").metadata().unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.len()), (0o600, 32));
        assert_eq!(of([directory.path()], true).unwrap(), secret);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(of([other.path()], true).unwrap(), secret);
    }

    #[test]
    fn each_drive_keeps_the_secret_and_none_makes_another_while_one_is_missing() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (first, second) = (first.path(), second.path());
        assert!(matches!(of([second], false), Err(SecretError::Missing)));
        let secret = of([first], true).unwrap();
        assert_eq!(of([second, first], true).unwrap(), secret, "whichever has it tells it");
        assert_eq!(of([second], false).unwrap(), secret);
        std::fs::remove_file(first.join("secret")).unwrap();
        assert_eq!(of([first, second], true).unwrap(), secret, "a new drive is given it");
        assert_eq!(of([first], false).unwrap(), secret);
        let third = tempfile::tempdir().unwrap();
        let another = of([third.path()], true).unwrap();
        assert_eq!(of([first, third.path()], true).unwrap(), secret, "the first one counts");
        assert_eq!(of([third.path()], true).unwrap(), another, "and none is written over");
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
        assert!(unread(named.secret([].into_iter(), true)));
        assert!(!missing.exists());

        std::os::unix::fs::symlink("/dev/zero", directory.path().join("secret")).unwrap();
        assert!(unread(of([directory.path()], true)));
        assert!(matches!(of([], true), Err(SecretError::NoPlace)));
    }
}
