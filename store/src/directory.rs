//! A store directory: its permissions, its lock, its superblock.
//!
//! The lock is `flock` on a file that names its holder; the kernel drops it with the process, so
//! that a killed sidecar leaves nothing to clean up. Nothing here follows a symbolic link.

use crate::superblock::{COPIES, Superblock, SuperblockError};
use rustix::fs::{self, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// What a new store is made with.
#[derive(Clone, Copy, Debug)]
pub struct NewStore {
    pub segment_bytes: u64,
    pub capacity_bytes: u64,
}

/// Why a directory is not opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DirectoryError {
    #[error("create store directory {}", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("open {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("store directory {} is in use by {holder}: stop it, or give another directory", path.display())]
    InUse { path: PathBuf, holder: String },
    #[error("write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("open store {}", path.display())]
    Superblock { path: PathBuf, source: SuperblockError },
    #[error("{} holds no store: give the directory of one", path.display())]
    NoStore { path: PathBuf },
    #[error("capacity of {capacity} bytes does not hold one segment of {segment}")]
    Capacity { capacity: u64, segment: u64 },
}

/// An open, locked store directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    superblock: Superblock,
    handle: OwnedFd,
    /// Held for its lock.
    _lock: File,
}

const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o700);
const FILE_FLAGS: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::RDWR);

impl Directory {
    /// Opens the store that is at `path`, and makes nothing.
    pub fn open_existing(path: &Path) -> Result<Self, DirectoryError> {
        let (handle, lock) = enter(path)?;
        match read_superblock(path, &handle)? {
            Some(superblock) => Ok(Self { path: path.into(), superblock, handle, _lock: lock }),
            None => Err(DirectoryError::NoStore { path: path.into() }),
        }
    }

    /// Opens the store at `path`, or makes one of `new`; its parent must exist. A store that is
    /// there takes the capacity of `new` and keeps its segment size.
    pub fn open(path: &Path, new: NewStore) -> Result<Self, DirectoryError> {
        if new.segment_bytes == 0 || new.capacity_bytes < new.segment_bytes {
            let (capacity, segment) = (new.capacity_bytes, new.segment_bytes);
            return Err(DirectoryError::Capacity { capacity, segment });
        }
        match fs::mkdir(path, DIRECTORY_MODE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => {
                let (path, source) = (path.into(), errno.into());
                return Err(DirectoryError::Create { path, source });
            }
        }
        let (handle, lock) = enter(path)?;
        let superblock = match read_superblock(path, &handle)? {
            Some(superblock) => resize(path, &handle, superblock, new)?,
            None => make(path, &handle, new)?,
        };
        Ok(Self { path: path.into(), superblock, handle, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    pub fn handle(&self) -> &OwnedFd {
        &self.handle
    }
}

fn lock(path: &Path, handle: &OwnedFd) -> Result<File, DirectoryError> {
    let name = path.join("lock");
    let open = |source: Errno| DirectoryError::Open { path: name.clone(), source: source.into() };
    let file = fs::openat(handle, "lock", FILE_FLAGS | OFlags::CREATE, FILE_MODE).map_err(open)?;
    let mut file = File::from(file);
    match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            // Empty in the moment between another's lock and its signature.
            let mut holder = String::new();
            let _ = (&mut file).take(256).read_to_string(&mut holder);
            let holder = if holder.is_empty() { "another process".into() } else { holder };
            return Err(DirectoryError::InUse { path: path.into(), holder });
        }
        Err(errno) => return Err(open(errno)),
    }
    let write = |source| DirectoryError::Write { path: name.clone(), source };
    file.set_len(0).map_err(write)?;
    file.rewind().map_err(write)?;
    write!(file, "process {}", std::process::id()).map_err(write)?;
    Ok(file)
}

fn enter(path: &Path) -> Result<(OwnedFd, File), DirectoryError> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = fs::open(path, flags, Mode::empty())
        .map_err(|errno| DirectoryError::Open { path: path.into(), source: errno.into() })?;
    let lock = lock(path, &handle)?;
    Ok((handle, lock))
}

fn read_superblock(path: &Path, handle: &OwnedFd) -> Result<Option<Superblock>, DirectoryError> {
    let name = path.join("superblock");
    match fs::openat(handle, "superblock", FILE_FLAGS, Mode::empty()) {
        Ok(file) => {
            let mut bytes = Vec::new();
            let read = |source| DirectoryError::Read { path: name.clone(), source };
            File::from(file).take(1 << 16).read_to_end(&mut bytes).map_err(read)?;
            let superblock = Superblock::decode(&bytes);
            superblock
                .map(Some)
                .map_err(|source| DirectoryError::Superblock { path: path.into(), source })
        }
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(DirectoryError::Open { path: name, source: errno.into() }),
    }
}

fn make(path: &Path, handle: &OwnedFd, new: NewStore) -> Result<Superblock, DirectoryError> {
    let superblock = Superblock {
        store_id: random_id(),
        segment_bytes: new.segment_bytes,
        capacity_bytes: new.capacity_bytes,
        sequence: 1,
    };
    create_superblock(handle, &superblock)
        .map_err(|source| DirectoryError::Write { path: path.join("superblock"), source })?;
    Ok(superblock)
}

fn resize(
    path: &Path,
    handle: &OwnedFd,
    old: Superblock,
    new: NewStore,
) -> Result<Superblock, DirectoryError> {
    let (capacity, segment) = (new.capacity_bytes, old.segment_bytes);
    if capacity < segment {
        return Err(DirectoryError::Capacity { capacity, segment });
    }
    if capacity == old.capacity_bytes {
        return Ok(old);
    }
    let superblock = Superblock { capacity_bytes: capacity, sequence: old.sequence + 1, ..old };
    create_superblock(handle, &superblock)
        .map_err(|source| DirectoryError::Write { path: path.join("superblock"), source })?;
    Ok(superblock)
}

/// Written under another name, synced, renamed, and the directory synced: a crash leaves no
/// superblock, and thus an empty directory to start over with, or a whole one, old or new.
fn create_superblock(handle: &OwnedFd, superblock: &Superblock) -> io::Result<()> {
    const NEW: &str = "superblock.new";
    let flags = FILE_FLAGS | OFlags::CREATE | OFlags::TRUNC;
    let mut file = File::from(fs::openat(handle, NEW, flags, FILE_MODE)?);
    for _ in 0..COPIES {
        file.write_all(&superblock.encode()[..])?;
    }
    file.sync_all()?;
    fs::renameat(handle, NEW, handle, "superblock")?;
    Ok(fs::fsync(handle)?)
}

fn random_id() -> [u8; 16] {
    let mut id = [0; 16];
    let filled = rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty());
    assert_eq!(filled, Ok(id.len()), "up to 256 bytes come whole, once the kernel is seeded");
    id
}

#[cfg(test)]
mod tests;
