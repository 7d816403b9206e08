//! What a sidecar is told: one TOML file, parsed once, checked whole, passed down.
//!
//! Defaults stand in [`Config::default`] and nowhere else. An unknown key and a value out of its
//! bounds are refused with file, line and column; nothing is corrected in silence. What follows
//! from other values (the address, the secret's place) is derived by methods, so that a flag that
//! overrides the file changes it too.

use refrain_store::drive::{DriveConfig, IoEngine};
use refrain_store::engine::Durability;
use serde::Deserialize;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

mod bounds;
mod directory;
mod listen;
mod peers;
mod place;
mod units;

pub use bounds::Invalid;
pub use directory::{DirectoryConfig, DirectoryFileError};
pub use listen::{Listen, ListenError};
pub(crate) use peers::TlsFiles;
pub use peers::{Keep, PeerAddress, PeerAddressError, PeersConfig};
pub use place::Place;
pub use units::{UnitError, parse_durability, parse_duration, parse_io_engine, parse_size};

use place::Source;

/// Everything a sidecar can be told; `docs/refrain.toml` shows each key with its default.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where gRPC is served, as `unix:PATH`; sessions are opened beside it, at `PATH.session`.
    /// Default: `refrain.sock` in the directory of the first drive that is there.
    pub listen: Option<Listen>,
    /// Permissions of both sockets: whoever may write to them may read every tenant's KV.
    /// Default `0o600`, this user alone.
    pub socket_mode: u32,
    /// Where `/metrics` and `/healthz` are served, as `IP:PORT`. Default: nowhere.
    pub metrics: Option<SocketAddr>,
    /// A store directory a drive, 1 to 64 of them.
    pub drives: Vec<DriveEntry>,
    /// How drives are driven: `auto` (io_uring, or the thread pool where it is refused), `uring`
    /// (or nothing) or `blocking` (the thread pool). Default `auto`.
    #[serde(deserialize_with = "units::io_engine")]
    pub io_engine: IoEngine,
    /// What a save waits for: `none`, `group` (one sync for many saves) or `sync`. Default `group`.
    #[serde(deserialize_with = "units::durability")]
    pub durability: Durability,
    /// Bytes of the load arena, which the host tier lives in; whole pages, at least 1 MiB.
    /// Default 1 GiB, but no more than a quarter of the machine's memory.
    #[serde(deserialize_with = "units::size")]
    pub load_arena: u64,
    /// The largest session arena that a worker may bring, in bytes, at least 1 MiB. Default 4 GiB.
    #[serde(deserialize_with = "units::size")]
    pub session_arena_max: u64,
    /// Sessions at once; more are refused. 1 to 65,536, default 256.
    pub sessions_max: u32,
    /// Bytes of saves that may wait for the drives before more are refused; at least 1 MiB.
    /// Default 256 MiB.
    #[serde(deserialize_with = "units::size")]
    pub save_queue: u64,
    /// A lease that asks for no time gets this; 1 ms to `lease_max`, default 10 s.
    #[serde(deserialize_with = "units::duration")]
    pub lease_default: Duration,
    /// A lease that asks for more gets this; at most 1 h, default 60 s.
    #[serde(deserialize_with = "units::duration")]
    pub lease_max: Duration,
    /// A load that names no deadline gets this; 1 ms to 10 min, default 5 s.
    #[serde(deserialize_with = "units::duration")]
    pub load_deadline: Duration,
    /// A drive that has not ended an operation for this long is withdrawn until it has: its blocks
    /// are misses. One that was not there at the start is looked for this often. 100 ms to 10 min,
    /// default 10 s.
    #[serde(deserialize_with = "units::duration")]
    pub drive_patience: Duration,
    /// A drive that has answered nothing for this long while the sidecar starts hangs: of several it
    /// is left out until it answers; without another, the start is refused. 1 s to 10 min, default
    /// 30 s: about as long as kernels wait for a disk before they make an error of it.
    #[serde(deserialize_with = "units::duration")]
    pub start_patience: Duration,
    /// File with the secret that sequence hashes are keyed with: 32 bytes, or 64 hex digits. Only
    /// its owner may read it. Nodes that share hashes share the secret.
    /// Default: `secret` in the directory of each drive, made at the first start.
    pub secret_file: Option<PathBuf>,
    /// How long a stop waits for what runs; at most 10 min, default 10 s.
    #[serde(deserialize_with = "units::duration")]
    pub drain: Duration,
    /// Other sidecars, and clients of other machines.
    pub peers: PeersConfig,
    /// The fleet's directory, and this node's part in it. Default: none, this node is alone.
    pub directory: Option<DirectoryConfig>,
}

/// One drive as it is configured.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct DriveEntry {
    /// The store directory; made where it is missing, its parent must exist.
    pub path: PathBuf,
    /// Bytes of all its segments together, reserved at the start; at least two segments.
    #[serde(deserialize_with = "units::size")]
    pub capacity: u64,
    /// Bytes of a segment of a new store, whole pages from 1 MiB to 16 GiB; an existing store keeps
    /// its own. Default: a sixteenth of the capacity, within 16 MiB and 1 GiB.
    #[serde(default, deserialize_with = "units::optional_size")]
    pub segment: Option<u64>,
}

/// Why there is no config.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    #[error("read config {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// Not TOML, an unknown key, or a value of the wrong kind; `reason` names the key.
    #[error("{place}: {reason}")]
    Malformed { place: Place, reason: String },
    /// A value of a file out of its bounds.
    #[error("{place}: {invalid}")]
    Refused { place: Place, invalid: Invalid },
    /// A value that no file says, out of its bounds.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: None,
            socket_mode: 0o600,
            metrics: None,
            drives: Vec::new(),
            io_engine: IoEngine::Auto,
            durability: Durability::Group,
            load_arena: usual_load_arena(total_memory()),
            session_arena_max: 4 << 30,
            sessions_max: 256,
            save_queue: 256 << 20,
            lease_default: Duration::from_secs(10),
            lease_max: Duration::from_mins(1),
            load_deadline: Duration::from_secs(5),
            drive_patience: Duration::from_secs(10),
            start_patience: Duration::from_secs(30),
            secret_file: None,
            drain: Duration::from_secs(10),
            peers: PeersConfig::default(),
            directory: None,
        }
    }
}

impl Config {
    /// The defaults over one drive.
    pub fn default_for(directory: impl Into<PathBuf>, capacity: u64) -> Self {
        let drive = DriveEntry { path: directory.into(), capacity, segment: None };
        Self { drives: vec![drive], ..Self::default() }
    }

    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Self::parse(&text, path)
    }

    /// Takes the text of the file at `path`. Drives may still be missing: flags can name them.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let source = Source::new(text, path);
        let config: Self = toml::from_str(text).map_err(|error| source.malformed(&error))?;
        match config.check() {
            Ok(()) => Ok(config),
            Err(invalid) => Err(source.refused(invalid)),
        }
    }

    /// Refuses what no sidecar can be started with. Whoever changes a parsed config asks again.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.drives.is_empty() {
            return Err(Invalid::NoDrive.into());
        }
        let (bytes, memory) = (self.load_arena, total_memory());
        if bytes > memory {
            return Err(Invalid::Memory { bytes, memory }.into());
        }
        Ok(self.check()?)
    }

    /// Where gRPC is served; a config without drives has an address only if it says one.
    pub fn listen(&self) -> Option<Listen> {
        self.listen_beside(self.drives.first().map(|drive| &*drive.path))
    }

    /// The same where `drive` is the first one that is there.
    pub(crate) fn listen_beside(&self, drive: Option<&Path>) -> Option<Listen> {
        let beside_store = || drive.map(|drive| Listen::of(drive.join("refrain.sock")));
        self.listen.clone().or_else(beside_store)
    }

    /// The drives as the store takes them.
    pub fn drive_configs(&self) -> Vec<DriveConfig> {
        let config = |drive: &DriveEntry| DriveConfig {
            path: drive.path.clone(),
            capacity_bytes: drive.capacity,
            segment_bytes: drive.segment,
            io_engine: self.io_engine,
            durability: self.durability,
        };
        self.drives.iter().map(config).collect()
    }
}

/// Whole huge pages, so that the arena can be made of them.
fn usual_load_arena(memory: u64) -> u64 {
    const HUGE_PAGE: u64 = 2 << 20;
    let quarter = memory / 4;
    (quarter - quarter % HUGE_PAGE).clamp(HUGE_PAGE, 1 << 30)
}

fn total_memory() -> u64 {
    let info = rustix::system::sysinfo();
    // The kernel's `unsigned long` is narrower on some machines.
    #[expect(clippy::useless_conversion, reason = "not on all targets")]
    let total = u64::from(info.totalram);
    total.saturating_mul(u64::from(info.mem_unit.max(1)))
}

#[cfg(test)]
mod tests;
