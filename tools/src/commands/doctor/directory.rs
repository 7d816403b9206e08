//! What a sidecar asks of a drive.

use super::Check;
use crate::admin::Admin;
use crate::rows::size;
use crate::target::address_in;
use refrain_client::v1::DriveStats;
use refrain_store::directory::{Directory, DirectoryError};
use refrain_store::drive::IoEngine;
use refrain_store::files;
use refrain_store::geometry::SegmentId;
use refrain_store::probe::Probe;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Written and read to measure a drive.
const PROBE_BLOCK: u64 = 1 << 20;
const PROBE_BLOCKS: u64 = 128;
const PROBE_DEPTH: u32 = 16;
/// Below this a drive is hardly faster than computing anew.
const RATE_WANTED: f64 = 1.0;
/// What a sidecar says of a drive.
const SERVICE: &str = "service";

pub(super) fn check(path: &Path) -> Vec<Check> {
    let mut checks = Vec::new();
    let named = path.display();
    // A store that is not yet there is made in its parent.
    let place = match path.metadata() {
        Ok(metadata) if metadata.is_dir() => path.to_path_buf(),
        Ok(_) => {
            let found = format!("{named} is no directory");
            return vec![Check::wrong("directory", found, "give the directory of a store")];
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => parent_of(path),
        Err(error) => {
            let found = format!("{named}: {error}");
            return vec![Check::wrong("directory", found, "run as the user of the sidecar")];
        }
    };
    let exists = place == path;
    if exists {
        checks.push(permissions(path));
        checks.push(times(path));
    } else if place.is_dir() {
        let found = format!("{named} is not there yet");
        checks.push(Check::ok("directory", format!("{found}; a sidecar makes it")));
    } else {
        let found = format!("neither {named} nor its parent is there");
        return vec![Check::wrong("directory", found, "make the parent, or mount the drive")];
    }
    let (store, held) = if exists { store(path) } else { (None, None) };
    checks.extend(held);
    let in_use = matches!(store, Some(Err(())));
    if in_use {
        checks.extend(served(path));
        // A drive that hangs would hang whoever looks at it.
        if checks.iter().any(|check| check.name == SERVICE && check.state == super::State::Wrong) {
            return checks;
        }
    }
    let direct = direct(&place);
    let works = direct.state != super::State::Wrong;
    checks.push(direct);
    checks.push(space(&place, store.and_then(Result::ok).as_ref()));
    if in_use {
        checks.push(Check::ok("disk rate", "not measured beside a running sidecar"));
    } else if works {
        checks.push(rate(&place));
    }
    checks
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn permissions(path: &Path) -> Check {
    const NAME: &str = "permissions";
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) => {
            return Check::wrong(NAME, error.to_string(), "run as the user of the sidecar");
        }
    };
    let mode = metadata.permissions().mode() & 0o777;
    let found = format!("{mode:04o}, owner {}", metadata.uid());
    if mode & 0o077 != 0 && path.join("superblock").exists() {
        let advice = format!("chmod 0700 {}: prompts can be told from a cache", path.display());
        return Check::warning(NAME, found, advice);
    }
    Check::ok(NAME, found)
}

/// A file from the future was written before the clock was set back.
fn times(path: &Path) -> Check {
    const NAME: &str = "file times";
    let ahead = ["superblock", "lock"].iter().find_map(|name| {
        let written = path.join(name).metadata().ok()?.modified().ok()?;
        let ahead = written.duration_since(SystemTime::now()).ok()?;
        (ahead > Duration::from_mins(1)).then_some((name, ahead.as_secs()))
    });
    match ahead {
        None => Check::ok(NAME, "none is in the future"),
        Some((name, seconds)) => Check::warning(
            NAME,
            format!("{name} was written {seconds} s from now: the clock was set back"),
            "let one time service keep it (chrony, systemd-timesyncd)",
        ),
    }
}

/// The store, if there is one that can be opened; `Err` while a sidecar holds it.
fn store(path: &Path) -> (Option<Result<Directory, ()>>, Option<Check>) {
    const NAME: &str = "store";
    match Directory::open_read_only(path) {
        Ok(directory) => {
            let capacity = size(directory.superblock().capacity_bytes);
            let check = Check::ok(NAME, format!("{capacity} of capacity, no sidecar holds it"));
            (Some(Ok(directory)), Some(check))
        }
        Err(DirectoryError::NoStore { .. }) => {
            (None, Some(Check::ok(NAME, "none yet; a sidecar makes it")))
        }
        Err(DirectoryError::InUse { holder, .. }) => {
            let check = match address_in(path, &holder) {
                Ok(address) => Check::ok(NAME, format!("held by {holder}, at {address}")),
                Err(_) => Check::warning(
                    NAME,
                    format!("held by {holder}, which does not say where it listens"),
                    "wait until it has started or ended",
                ),
            };
            (Some(Err(())), Some(check))
        }
        Err(error) => {
            let advice = if matches!(error, DirectoryError::Superblock { .. }) {
                "use the build that wrote it, or give another directory"
            } else {
                "see the kernel's log for the drive, or run as the user of the sidecar"
            };
            let found = format!("{:#}", anyhow::Error::new(error));
            (None, Some(Check::wrong(NAME, found, advice)))
        }
    }
}

/// What the sidecar that holds the store says of the drive, and of those that it has to do without.
fn served(path: &Path) -> Vec<Check> {
    let Ok(address) = address_in(path, "a sidecar") else { return Vec::new() };
    let stats = Admin::connect(&address).and_then(|mut sidecar| sidecar.stats());
    let (Ok(stats), Ok(real)) = (stats, path.canonicalize()) else { return Vec::new() };
    let is_this = |drive: &DriveStats| {
        let at = Path::new(&drive.path);
        // One that hangs would hang whoever looks where its path leads.
        let leads_here =
            || drive.withdrawn.is_empty() && at.canonicalize().is_ok_and(|at| at == real);
        at == path || at == real || leads_here()
    };
    let (this, others): (Vec<_>, Vec<_>) = stats.drives.into_iter().partition(is_this);
    let others = others.iter().filter(|drive| !drive.withdrawn.is_empty());
    let mut checks: Vec<_> = others.map(beside).collect();
    let Some(drive) = this.first() else { return checks };
    let check = if !drive.withdrawn.is_empty() {
        Check::wrong(
            SERVICE,
            format!("withdrawn, it {}", drive.withdrawn),
            "see the kernel's log for the drive; it is back as soon as it answers",
        )
    } else if drive.writable {
        Check::ok(SERVICE, "reads and writes")
    } else {
        Check::wrong(
            SERVICE,
            "a write or sync failed: it takes no more",
            "see the kernel's log for the drive, then start the sidecar again",
        )
    };
    checks.push(check);
    checks
}

/// Another drive of the same sidecar, which is asked for nothing.
fn beside(drive: &DriveStats) -> Check {
    let found = format!("{}: withdrawn, it {}", drive.path, drive.withdrawn);
    let advice = "see the kernel's log for that drive; it is back as soon as it answers";
    Check::wrong("other drive", found, advice)
}

/// Whether files can be made here, and read past the page cache.
fn direct(place: &Path) -> Check {
    const NAME: &str = "O_DIRECT";
    let path = place.join(format!("refrain-doctor-{}", std::process::id()));
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::DIRECT;
    let opened = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600));
    // Some kernels make the file and refuse the flag afterwards.
    let _ = std::fs::remove_file(&path);
    match opened {
        Ok(_) => Check::ok(NAME, "works"),
        Err(Errno::INVAL) => Check::wrong(
            NAME,
            format!("the file system of {} does not offer it", place.display()),
            "use a directory on ext4 or XFS on a local drive",
        ),
        Err(errno) => Check::wrong(
            "writable",
            format!("{} takes no new file: {}", place.display(), io::Error::from(errno)),
            "run as the user of the sidecar, or mount the file system for writing",
        ),
    }
}

/// Whether what a store still has to reserve is there.
fn space(place: &Path, store: Option<&Directory>) -> Check {
    const NAME: &str = "free space";
    let free = match rustix::fs::statvfs(place) {
        Ok(disk) => disk.f_bavail * disk.f_frsize,
        Err(errno) => {
            let advice = "mount the drive";
            return Check::wrong(NAME, io::Error::from(errno).to_string(), advice);
        }
    };
    let Some(store) = store else { return Check::ok(NAME, size(free)) };
    let superblock = store.superblock();
    let count = superblock.capacity_bytes / superblock.segment_bytes;
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let blocks = (0..count).map_while(|id| {
        let path = store.path().join(files::name(SegmentId(id)));
        path.symlink_metadata().ok().map(|metadata| metadata.blocks())
    });
    let reserved = blocks.sum::<u64>() * 512;
    let missing = (u64::from(count) * superblock.segment_bytes).saturating_sub(reserved);
    let found = format!("{} free, {} of the store to be reserved", size(free), size(missing));
    if missing <= free {
        return Check::ok(NAME, found);
    }
    Check::wrong(NAME, found, "free space on the drive, or start with a smaller --capacity")
}

fn rate(place: &Path) -> Check {
    const NAME: &str = "disk rate";
    let order: Vec<_> = (0..PROBE_BLOCKS).collect();
    let engine = match refrain_store::uring::support() {
        Ok(_) => IoEngine::Auto,
        Err(_) => IoEngine::Blocking,
    };
    let measured = Probe::new(place, PROBE_BLOCK, PROBE_DEPTH, PROBE_BLOCKS, engine)
        .and_then(|probe| Ok((probe.write()?, probe.read(&order)?)));
    match measured {
        Ok((write, read)) => {
            let (write, read) = (write.gigabytes_per_second(), read.gigabytes_per_second());
            let found = format!("{read:.2} GB/s read, {write:.2} GB/s written");
            if read >= RATE_WANTED {
                Check::ok(NAME, found)
            } else {
                let advice = "use a local NVMe drive: below 1 GB/s a prefill is often as fast";
                Check::warning(NAME, found, advice)
            }
        }
        Err(error) => Check::wrong(NAME, error.to_string(), "see the kernel's log for the drive"),
    }
}
