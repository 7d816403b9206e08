//! The bounds of every value, and what is said of one that lies outside.

use super::{Config, DriveEntry, ListenError};
use bytesize::ByteSize;
use refrain_store::geometry::PAGE_SIZE;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// Drives of one sidecar.
const DRIVES_MAX: usize = 64;
const SEGMENT_MIN: u64 = 1 << 20;
const SEGMENT_MAX: u64 = 16 << 30;
/// The smallest segment that a new store takes by itself.
const SEGMENT_USUAL_MIN: u64 = 16 << 20;
const MEMORY_MIN: u64 = 1 << 20;
/// Beyond any machine: a slip of a unit.
const MEMORY_MAX: u64 = 1 << 44;
const SESSIONS_MAX: u32 = 1 << 16;
const WAIT_MIN: Duration = Duration::from_millis(1);
const LEASE_MAX: Duration = Duration::from_hours(1);
const WAIT_MAX: Duration = Duration::from_mins(10);
/// A lookup that waits for longer has cost more than it can bring.
const PEERS_WAIT_MAX: Duration = Duration::from_secs(10);
/// Each is asked at every lookup that is not answered here: a larger fleet has a directory.
const PEERS_MAX: usize = 16;

/// A value that no sidecar can be started with. Keys are written as in `drives[0].capacity`.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Invalid {
    #[error("no drive: give the directory and the capacity of at least one")]
    NoDrive,
    #[error("drives: {found} of them, at most {DRIVES_MAX} fit")]
    ManyDrives { found: usize },
    #[error("drives[{index}].path: {} is drives[{first}] already", path.display())]
    SamePath { index: usize, first: usize, path: PathBuf },
    #[error("drives[{index}].path: empty: give a directory")]
    NoPath { index: usize },
    #[error(
        "drives[{index}].capacity: {} ({capacity} bytes) holds fewer than two segments of {}",
        ByteSize(*capacity), ByteSize(*segment)
    )]
    Capacity { index: usize, capacity: u64, segment: u64 },
    #[error("{key}: {} ({bytes} bytes) is not within {} and {}", ByteSize(*bytes), ByteSize(*min), ByteSize(*max))]
    Size { key: String, bytes: u64, min: u64, max: u64 },
    #[error(
        "{key}: {bytes} bytes are not whole pages of {PAGE_SIZE}: write KiB, MiB or GiB, not KB, MB or GB"
    )]
    Pages { key: String, bytes: u64 },
    #[error("load_arena: {bytes} bytes are more than the {memory} of this machine's memory")]
    Memory { bytes: u64, memory: u64 },
    #[error("{key}: {found:?} is not within {min:?} and {max:?}")]
    Wait { key: &'static str, found: Duration, min: Duration, max: Duration },
    #[error("lease_default: {default:?} is longer than lease_max, {max:?}")]
    LeaseOrder { default: Duration, max: Duration },
    #[error("sessions_max: {found} is not within 1 and {SESSIONS_MAX}")]
    Sessions { found: u32 },
    #[error(
        "socket_mode: 0o{mode:o} are no permissions of a socket that its owner may use: write 0o600 or 0o660"
    )]
    Mode { mode: u32 },
    #[error("listen: {error}")]
    Listen { error: ListenError },
    #[error("{missing}: missing, as mutual TLS needs an authority, a certificate and its key")]
    Tls { missing: &'static str },
    #[error(
        "{key}: {address} is beyond this machine, where whoever listens could read every prompt's KV: give peers.tls_ca, peers.tls_certificate and peers.tls_key, or say peers.plain_text = true"
    )]
    PlainText { key: &'static str, address: IpAddr },
    #[error("peers.data_listen: given without peers.listen, at which peers would ask for it")]
    DataAlone,
    #[error("peers.ask: {found} peers, at most {PEERS_MAX} can be asked at each lookup")]
    Peers { found: usize },
    #[error("directory.{key}: {reason}")]
    Directory { key: &'static str, reason: &'static str },
}

impl Invalid {
    /// Keys that a file may have said it with, the likeliest first.
    pub(super) fn keys(&self) -> Vec<String> {
        let drive = |index: &usize, key: &str| vec![format!("drives[{index}].{key}")];
        match self {
            Self::NoDrive | Self::ManyDrives { .. } => vec!["drives".into()],
            Self::SamePath { index, .. } | Self::NoPath { index } => drive(index, "path"),
            Self::Capacity { index, .. } => drive(index, "capacity"),
            Self::Size { key, .. } | Self::Pages { key, .. } => vec![key.clone()],
            Self::Wait { key, .. } | Self::PlainText { key, .. } => vec![(*key).into()],
            Self::LeaseOrder { .. } => vec!["lease_default".into(), "lease_max".into()],
            Self::Memory { .. } => vec!["load_arena".into()],
            Self::Sessions { .. } => vec!["sessions_max".into()],
            Self::Mode { .. } => vec!["socket_mode".into()],
            // The default address lies in the first drive's directory.
            Self::Directory { key, .. } => vec![format!("directory.{key}"), "directory".into()],
            Self::Listen { .. } => vec!["listen".into(), "drives[0].path".into()],
            Self::Tls { .. } => vec!["peers".into()],
            Self::DataAlone => vec!["peers.data_listen".into()],
            Self::Peers { .. } => vec!["peers.ask".into()],
        }
    }
}

impl Config {
    /// All bounds but that of at least one drive.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        self.check_drives()?;
        size("load_arena", self.load_arena, MEMORY_MIN, MEMORY_MAX)?;
        pages("load_arena", self.load_arena)?;
        size("session_arena_max", self.session_arena_max, MEMORY_MIN, MEMORY_MAX)?;
        size("save_queue", self.save_queue, MEMORY_MIN, MEMORY_MAX)?;
        if !(1..=SESSIONS_MAX).contains(&self.sessions_max) {
            return Err(Invalid::Sessions { found: self.sessions_max });
        }
        wait("lease_max", self.lease_max, WAIT_MIN, LEASE_MAX)?;
        wait("lease_default", self.lease_default, WAIT_MIN, LEASE_MAX)?;
        if self.lease_default > self.lease_max {
            let (default, max) = (self.lease_default, self.lease_max);
            return Err(Invalid::LeaseOrder { default, max });
        }
        wait("load_deadline", self.load_deadline, WAIT_MIN, WAIT_MAX)?;
        wait("drive_patience", self.drive_patience, Duration::from_millis(100), WAIT_MAX)?;
        wait("start_patience", self.start_patience, Duration::from_secs(1), WAIT_MAX)?;
        wait("drain", self.drain, Duration::ZERO, WAIT_MAX)?;
        // Decimal digits that were meant as octal ones never pass: 600 and 660 have other bits.
        if self.socket_mode & !0o777 != 0 || self.socket_mode & 0o600 != 0o600 {
            return Err(Invalid::Mode { mode: self.socket_mode });
        }
        self.check_peers()?;
        if let Some(directory) = &self.directory {
            directory.check().map_err(|(key, reason)| Invalid::Directory { key, reason })?;
        }
        self.listen()
            .map_or(Ok(()), |listen| listen.check().map_err(|error| Invalid::Listen { error }))
    }

    fn check_peers(&self) -> Result<(), Invalid> {
        let peers = &self.peers;
        wait("peers.lookup_deadline", peers.lookup_deadline, WAIT_MIN, PEERS_WAIT_MAX)?;
        if let Some(missing) = peers.tls_missing() {
            return Err(Invalid::Tls { missing });
        }
        if let Some((key, address)) = peers.exposed() {
            return Err(Invalid::PlainText { key, address });
        }
        if peers.data_listen.is_some() && peers.listen.is_none() {
            return Err(Invalid::DataAlone);
        }
        if peers.ask.len() > PEERS_MAX {
            return Err(Invalid::Peers { found: peers.ask.len() });
        }
        Ok(())
    }

    fn check_drives(&self) -> Result<(), Invalid> {
        if self.drives.len() > DRIVES_MAX {
            return Err(Invalid::ManyDrives { found: self.drives.len() });
        }
        let paths: Vec<_> = self.drives.iter().map(|drive| plain(&drive.path)).collect();
        for (index, drive) in self.drives.iter().enumerate() {
            if drive.path.as_os_str().is_empty() {
                return Err(Invalid::NoPath { index });
            }
            if let Some(first) = paths[..index].iter().position(|path| *path == paths[index]) {
                return Err(Invalid::SamePath { index, first, path: drive.path.clone() });
            }
            check_sizes(index, drive)?;
        }
        Ok(())
    }
}

fn check_sizes(index: usize, drive: &DriveEntry) -> Result<(), Invalid> {
    if let Some(segment) = drive.segment {
        let key = format!("drives[{index}].segment");
        size(&key, segment, SEGMENT_MIN, SEGMENT_MAX)?;
        pages(&key, segment)?;
    }
    let segment = drive.segment.unwrap_or(SEGMENT_USUAL_MIN);
    if drive.capacity / 2 < segment {
        return Err(Invalid::Capacity { index, capacity: drive.capacity, segment });
    }
    Ok(())
}

/// Absolute, without `.` and doubled slashes. Links are not followed: a directory reached by two
/// names is found by its lock.
fn plain(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.into())
}

fn size(key: &str, bytes: u64, min: u64, max: u64) -> Result<(), Invalid> {
    if (min..=max).contains(&bytes) {
        return Ok(());
    }
    Err(Invalid::Size { key: key.into(), bytes, min, max })
}

fn pages(key: &str, bytes: u64) -> Result<(), Invalid> {
    if bytes.is_multiple_of(PAGE_SIZE) {
        return Ok(());
    }
    Err(Invalid::Pages { key: key.into(), bytes })
}

fn wait(key: &'static str, found: Duration, min: Duration, max: Duration) -> Result<(), Invalid> {
    if (min..=max).contains(&found) { Ok(()) } else { Err(Invalid::Wait { key, found, min, max }) }
}
