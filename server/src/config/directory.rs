//! The fleet's directory: where it is, how to be let in, and who this node is there.

use super::PeerAddress;
use crate::private_file::{self, PrivateFileError};
use refrain_index::directory::{BUCKET_BITS_MAX, NodeId, Settings, Tls, User};
use rustix::fs::OFlags;
use serde::Deserialize;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A server's name is no longer than a host's, with its port.
const SERVER_BYTES_MAX: usize = 262;
/// Of a file with a name and a password, or with keys of TLS.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a sidecar is told of its fleet.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct DirectoryConfig {
    /// `HOST:PORT` of at least one server of the Redis or Valkey cluster; the others are learned.
    pub servers: Vec<String>,
    /// This node's number, which no other node of the fleet has.
    pub node: u16,
    /// Where peers reach this node, as `HOST:PORT`.
    pub address: String,
    /// File with `NAME:PASSWORD`, which its owner alone may read. Default: no login.
    #[serde(default)]
    pub user_file: Option<PathBuf>,
    /// PEM files of mutual TLS: all three, or none for plain text.
    #[serde(default)]
    pub tls_ca: Option<PathBuf>,
    #[serde(default)]
    pub tls_certificate: Option<PathBuf>,
    #[serde(default)]
    pub tls_key: Option<PathBuf>,
    /// Buckets of each of the 16,384 slots, as a power of two, at most 18. Of a new directory alone:
    /// one that is there keeps its own. Default 10, good for a thousand million blocks.
    #[serde(default = "usual_bucket_bits")]
    pub bucket_bits: u8,
}

/// Why the directory's files are of no use.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DirectoryFileError {
    #[error(transparent)]
    Private(#[from] PrivateFileError),
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} holds no NAME:PASSWORD in one line", path.display())]
    User { path: PathBuf },
}

fn usual_bucket_bits() -> u8 {
    10
}

impl DirectoryConfig {
    /// What flags alone say.
    pub fn of(servers: Vec<String>, node: u16, address: String) -> Self {
        Self {
            servers,
            node,
            address,
            user_file: None,
            tls_ca: None,
            tls_certificate: None,
            tls_key: None,
            bucket_bits: usual_bucket_bits(),
        }
    }

    /// The key that is wrong, and what is.
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.servers.is_empty() {
            return Err(("servers", "empty: give HOST:PORT of at least one server"));
        }
        if !self.servers.iter().all(|server| is_host_and_port(server)) {
            return Err(("servers", "write each as HOST:PORT"));
        }
        // What other nodes cannot read as a peer's, they leave out without a word.
        if !is_host_and_port(&self.address) || self.address.parse::<PeerAddress>().is_err() {
            return Err((
                "address",
                "write HOST:PORT, as peers reach this node, an IPv6 in brackets",
            ));
        }
        if self.bucket_bits > BUCKET_BITS_MAX {
            return Err(("bucket_bits", "at most 18"));
        }
        let tls = [&self.tls_ca, &self.tls_certificate, &self.tls_key];
        match tls.iter().filter(|file| file.is_some()).count() {
            0 | 3 => Ok(()),
            _ => Err(("tls_ca", "mutual TLS takes tls_ca, tls_certificate and tls_key, or none")),
        }
    }

    pub(crate) fn node_id(&self) -> NodeId {
        NodeId(self.node)
    }

    /// Reads the files that it names.
    pub(crate) fn settings(&self) -> Result<Settings, DirectoryFileError> {
        let user = self.user_file.as_deref().map(read_user).transpose()?;
        let tls = match (&self.tls_ca, &self.tls_certificate, &self.tls_key) {
            (Some(ca), Some(certificate), Some(key)) => Some(Tls {
                authority: read(ca)?,
                certificate: read(certificate)?,
                key: private_file::read(key, OFlags::empty(), FILE_BYTES_MAX)?,
            }),
            _ => None,
        };
        Ok(Settings { seeds: self.servers.clone(), user, tls })
    }
}

fn is_host_and_port(text: &str) -> bool {
    let parts = text.rsplit_once(':');
    let is_plain = |host: &str| !host.is_empty() && !host.contains(char::is_whitespace);
    text.len() <= SERVER_BYTES_MAX
        && parts.is_some_and(|(host, port)| {
            is_plain(host) && port.parse::<u16>().is_ok_and(|port| port != 0)
        })
}

fn read(path: &Path) -> Result<Vec<u8>, DirectoryFileError> {
    std::fs::read(path).map_err(|source| DirectoryFileError::Read { path: path.into(), source })
}

fn read_user(path: &Path) -> Result<User, DirectoryFileError> {
    let wrong = || DirectoryFileError::User { path: path.into() };
    let text = String::from_utf8(private_file::read(path, OFlags::empty(), FILE_BYTES_MAX)?)
        .map_err(|_| wrong())?;
    let mut lines = text.lines();
    let (Some(line), None) = (lines.next(), lines.next()) else { return Err(wrong()) };
    let (name, password) = line.split_once(':').ok_or_else(wrong)?;
    if name.is_empty() || password.is_empty() {
        return Err(wrong());
    }
    Ok(User { name: name.into(), password: password.into() })
}

#[cfg(test)]
mod tests {
    //! Proves which tables are refused, and that a password lies in a file of its own.

    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn config() -> DirectoryConfig {
        DirectoryConfig::of(vec!["10.0.0.1:6379".into()], 7, "10.0.0.7:9470".into())
    }

    #[test]
    fn tables_that_no_node_can_join_with_are_refused() {
        assert_eq!(config().check(), Ok(()));
        let refused = |change: fn(&mut DirectoryConfig)| {
            let mut config = config();
            change(&mut config);
            config.check().map_err(|(key, _)| key)
        };
        assert_eq!(refused(|config| config.servers.clear()), Err("servers"));
        assert_eq!(refused(|config| config.servers.push("10.0.0.2".into())), Err("servers"));
        assert_eq!(refused(|config| config.servers.push(":6379".into())), Err("servers"));
        assert_eq!(refused(|config| config.address = "here:0".into()), Err("address"));
        assert_eq!(refused(|config| config.address = "a b:1".into()), Err("address"));
        assert_eq!(refused(|config| config.address = "fd00::7:9470".into()), Err("address"));
        assert_eq!(refused(|config| config.address = "[fd00::7]:9470".into()), Ok(()));
        assert_eq!(refused(|config| config.bucket_bits = 19), Err("bucket_bits"));
        assert_eq!(refused(|config| config.tls_key = Some("key.pem".into())), Err("tls_ca"));
    }

    #[test]
    fn user_file_is_one_line_that_nobody_else_may_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("user");
        let user = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            read_user(&path).ok()
        };
        let expected = User { name: "refrain".into(), password: "a:b".into() };
        assert_eq!(user("refrain:a:b\n", 0o600), Some(expected));
        assert_eq!(user("refrain:a:b\n", 0o640), None);
        for wrong in ["", "refrain", ":a", "refrain:", "a:b\nc:d\n"] {
            assert_eq!(user(wrong, 0o600), None, "{wrong:?}");
        }
    }
}
