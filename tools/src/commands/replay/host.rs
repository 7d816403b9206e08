//! The sidecar that a replay talks to: its own, or one that runs anyway.

use super::Args;
use crate::sidecar::{Sidecar, SidecarConfig, SidecarError};
use anyhow::{Context, Result};
use refrain_client::Address;
use std::ffi::OsString;
use std::path::Path;
use tempfile::TempDir;

pub(super) enum Host {
    /// Its directory is removed after it where it is a temporary one.
    Own {
        sidecar: Box<Sidecar>,
        _directory: Option<TempDir>,
    },
    Other {
        address: Address,
    },
}

impl Host {
    pub(super) fn start(args: &Args) -> Result<Self> {
        if let Some(address) = &args.addr {
            return Ok(Self::Other { address: address.clone() });
        }
        let temporary = match args.dir {
            Some(_) => None,
            // A path without the directory that we are in: what a socket may have is short.
            None => Some(
                tempfile::Builder::new()
                    .prefix(".tmp-refrain-replay-")
                    .tempdir_in("")
                    .context("make a temporary directory here; --dir names another place")?,
            ),
        };
        let directory = match (&args.dir, &temporary) {
            (Some(directory), _) => directory.as_path(),
            (None, Some(temporary)) => temporary.path(),
            (None, None) => Path::new("."),
        };
        let capacity = args.capacity.context("--capacity says how much the sidecar may store")?;
        let mut config = SidecarConfig::new(directory, capacity)?;
        let flags = [
            ("--io-engine", &args.io_engine),
            ("--durability", &args.durability),
            ("--load-arena", &args.load_arena),
        ];
        for (flag, value) in flags {
            if let Some(value) = value {
                config.flags.extend([OsString::from(flag), value.into()]);
            }
        }
        Ok(Self::Own { sidecar: Box::new(Sidecar::start(config)?), _directory: temporary })
    }

    pub(super) fn address(&self) -> &Address {
        match self {
            Self::Own { sidecar, .. } => sidecar.address(),
            Self::Other { address } => address,
        }
    }

    pub(super) fn is_own(&self) -> bool {
        match self {
            Self::Own { .. } => true,
            Self::Other { .. } => false,
        }
    }

    pub(super) fn own(&mut self) -> Option<&mut Sidecar> {
        match self {
            Self::Own { sidecar, .. } => Some(sidecar),
            Self::Other { .. } => None,
        }
    }

    /// Stops our own sidecar and removes its directory; `abandoned` waits for nothing.
    pub(super) fn end(mut self, abandoned: bool) -> Result<(), SidecarError> {
        match self.own() {
            Some(sidecar) if !abandoned && sidecar.pid().is_some() => sidecar.stop(),
            // Dropping it kills it.
            Some(_) | None => Ok(()),
        }
    }
}
