//! Which store a command is about: that of a running sidecar, or a stopped one's directories.

use crate::admin::Admin;
use anyhow::{Context, Result, bail};
use clap::Args;
use refrain_client::Address;
use refrain_store::directory::DirectoryError;
use refrain_store::drive::{OpenError, Opening};
use std::path::{Path, PathBuf};

/// Names the sidecar where no flag does.
const ADDRESS_VARIABLE: &str = "REFRAIN_ADDRESS";
const DEFAULT_ADDRESS: &str = "unix:/run/refrain/refrain.sock";
/// Within a store directory: where the sidecar that holds it listens.
const ADDRESS_FILE: &str = "address";

/// The store to ask about. With neither flag: the sidecar that `REFRAIN_ADDRESS` names, else
/// the one at `unix:/run/refrain/refrain.sock`.
#[derive(Args, Clone, Debug, Default)]
pub struct TargetArgs {
    /// Socket of a running sidecar; without it and `--dir`, `REFRAIN_ADDRESS` names it, or else it
    /// is `unix:/run/refrain/refrain.sock`
    #[arg(long, value_name = "unix:PATH", conflicts_with = "dir")]
    pub addr: Option<Address>,
    /// Store directory, once for each drive: read itself while its sidecar is stopped, else the
    /// sidecar is asked
    #[arg(long, value_name = "DIR")]
    pub dir: Vec<PathBuf>,
}

/// Where the answers come from.
#[derive(Debug)]
pub enum Target {
    Running(Box<Admin>),
    Stopped(Vec<Opening>),
}

/// Opens one directory of a stopped store.
pub type Open = fn(&Path) -> Result<Opening, OpenError>;

impl TargetArgs {
    /// The store, to be looked at.
    pub fn open(&self) -> Result<Target> {
        self.open_with(Opening::open_read_only)
    }

    /// The store; `open` is for directories that no sidecar holds.
    pub fn open_with(&self, open: Open) -> Result<Target> {
        if self.dir.is_empty() {
            return Ok(Target::Running(Box::new(Admin::connect(&self.address()?)?)));
        }
        let (mut stopped, mut served) = (Vec::new(), Vec::new());
        for path in &self.dir {
            match open(path) {
                Ok(opening) => stopped.push(opening),
                Err(OpenError::Directory(DirectoryError::InUse { holder, .. })) => {
                    served.push((path, holder));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let Some(((path, holder), others)) = served.split_first() else {
            return Ok(Target::Stopped(stopped));
        };
        if let Some(opening) = stopped.first() {
            let (served, stopped) = (path.display(), opening.path().display());
            bail!("{served} is in use by {holder}, {stopped} is not: ask for one at a time");
        }
        let address = address_in(path, holder)?;
        for (other, holder) in others {
            if address_in(other, holder)? != address {
                let (one, other) = (path.display(), other.display());
                bail!("{one} and {other} are held by two sidecars: ask for one at a time");
            }
        }
        Ok(Target::Running(Box::new(Admin::connect(&address)?)))
    }

    /// The sidecar, for what only a running one can do.
    pub fn sidecar(&self, what: &str) -> Result<Box<Admin>> {
        match self.open()? {
            Target::Running(sidecar) => Ok(sidecar),
            Target::Stopped(_) => bail!("no sidecar runs on this store: start it to {what}"),
        }
    }

    fn address(&self) -> Result<Address> {
        if let Some(address) = &self.addr {
            return Ok(address.clone());
        }
        match std::env::var(ADDRESS_VARIABLE) {
            Ok(text) => text.parse().with_context(|| format!("read {ADDRESS_VARIABLE}")),
            Err(std::env::VarError::NotPresent) => Ok(DEFAULT_ADDRESS.parse()?),
            Err(error) => Err(error).with_context(|| format!("read {ADDRESS_VARIABLE}")),
        }
    }
}

/// Where the sidecar that holds `directory` says it listens.
pub fn address_in(directory: &Path, holder: &str) -> Result<Address> {
    let path = directory.join(ADDRESS_FILE);
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "{} is in use by {holder}, which does not say where it listens: wait until it has \
             started or ended, or give its --addr",
            directory.display()
        )
    })?;
    text.trim_end().parse().with_context(|| format!("read {}", path.display()))
}
