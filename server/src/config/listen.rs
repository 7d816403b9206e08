//! The address of a sidecar: `unix:PATH`.

use refrain_proto::session;
use serde::Deserialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use thiserror::Error;

/// The kernel's bound on the path of a Unix socket, its closing zero not counted.
const SOCKET_PATH_MAX: usize = 107;

/// Where gRPC is served.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct Listen {
    path: PathBuf,
}

/// Why a text is no address to listen on.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListenError {
    #[error("{text:?} is no address: write unix:PATH, as in unix:/run/refrain.sock")]
    Form { text: String },
    #[error("{text:?} has no path: write unix:PATH, as in unix:/run/refrain.sock")]
    NoPath { text: String },
    #[error(
        "socket path {} has {bytes} bytes; beside its session socket at most {max} fit: listen on a shorter one",
        path.display()
    )]
    Long { path: PathBuf, bytes: usize, max: usize },
}

impl Listen {
    /// Unchecked: the bound is on the path that is used, which a default may make.
    pub(super) fn of(path: PathBuf) -> Self {
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn check(&self) -> Result<(), ListenError> {
        let path = self.path.clone();
        let bytes = path.as_os_str().len();
        let suffix = session::socket_path(&path).as_os_str().len() - bytes;
        let max = SOCKET_PATH_MAX - suffix;
        if bytes > max { Err(ListenError::Long { path, bytes, max }) } else { Ok(()) }
    }
}

impl FromStr for Listen {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        let Some(path) = text.strip_prefix("unix:") else {
            return Err(ListenError::Form { text: text.into() });
        };
        if path.is_empty() || path.contains('\0') {
            return Err(ListenError::NoPath { text: text.into() });
        }
        let listen = Self { path: path.into() };
        listen.check()?;
        Ok(listen)
    }
}

impl TryFrom<String> for Listen {
    type Error = ListenError;

    fn try_from(text: String) -> Result<Self, ListenError> {
        text.parse()
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "unix:{}", self.path.display())
    }
}
