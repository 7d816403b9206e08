//! Where a sidecar listens.

use refrain_proto::session;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use thiserror::Error;

/// The kernel's bound on the path of a Unix socket, its closing zero not counted.
const SOCKET_PATH_MAX: usize = 107;

/// The socket of a sidecar on this node; written `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    path: PathBuf,
}

impl Address {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Why a text is no address.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressError {
    #[error("{text:?} is no address: write unix:PATH, as in unix:/run/refrain.sock")]
    Form { text: String },
    #[error("{text:?} has no path: write unix:PATH, as in unix:/run/refrain.sock")]
    NoPath { text: String },
    #[error("socket path {path:?} has {bytes} bytes; with its session socket at most {max} fit")]
    Long { path: PathBuf, bytes: usize, max: usize },
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let Some(path) = text.strip_prefix("unix:") else {
            return Err(AddressError::Form { text: text.to_owned() });
        };
        if path.is_empty() || path.contains('\0') {
            return Err(AddressError::NoPath { text: text.to_owned() });
        }
        let path = PathBuf::from(path);
        let bytes = path.as_os_str().len();
        let suffix = session::socket_path(&path).as_os_str().len() - bytes;
        let max = SOCKET_PATH_MAX - suffix;
        if bytes > max {
            return Err(AddressError::Long { path, bytes, max });
        }
        Ok(Self { path })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "unix:{}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    //! Proves which texts are addresses, and that a refusal says what is accepted.

    use super::*;

    fn check(text: &str, expected: Result<&str, &str>) {
        match (text.parse::<Address>(), expected) {
            (Ok(address), Ok(path)) => assert_eq!(address.path(), Path::new(path)),
            (Err(error), Err(message)) => {
                assert!(error.to_string().contains(message), "{text}: {error}");
            }
            (outcome, expected) => panic!("{text}: {outcome:?}, not {expected:?}"),
        }
    }

    #[test]
    fn path_of_a_unix_socket_is_an_address() {
        check("unix:/run/refrain.sock", Ok("/run/refrain.sock"));
        check("unix:refrain.sock", Ok("refrain.sock"));
        check("unix:///run/refrain.sock", Ok("///run/refrain.sock"));
        check(&format!("unix:/{}", "x".repeat(98)), Ok(&format!("/{}", "x".repeat(98))));
    }

    #[test]
    fn anything_else_is_refused_with_what_is_accepted() {
        check("/run/refrain.sock", Err("write unix:PATH"));
        check("tcp://127.0.0.1:5000", Err("write unix:PATH"));
        check("", Err("write unix:PATH"));
        check("unix:", Err("has no path"));
        check("unix:a\0b", Err("has no path"));
        check(&format!("unix:/{}", "x".repeat(99)), Err("at most 99 fit"));
    }

    #[test]
    fn address_is_written_as_it_is_read() {
        let address: Address = "unix:/run/refrain.sock".parse().unwrap();
        assert_eq!(address.to_string().parse(), Ok(address));
    }
}
