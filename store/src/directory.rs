//! A store directory: its permissions, its lock, its superblock.
//!
//! The lock is `flock` on a file that names its holder; the kernel drops it with the process, so
//! that a killed sidecar leaves nothing to clean up. Who only looks takes it shared: several may
//! look at once, none while a sidecar runs, and not one byte changes. Nothing here follows a
//! symbolic link.

use crate::answers::Answers;
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

/// What this process may do with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It looks, and leaves every byte as it is.
    ReadOnly,
    ReadWrite,
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
    access: Access,
    /// Held for its lock. Only a store that nobody has ever opened for writing has none.
    _lock: Option<Lock>,
}

/// The file that holds the lock. It is given back in so many words, as closing the file is not always the
/// end of it: a child that another thread forks has it too, until it runs a program.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::flock(&self.0, FlockOperation::Unlock);
    }
}

const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o700);
const LOOK_FLAGS: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC);
const FILE_FLAGS: OFlags = LOOK_FLAGS.union(OFlags::RDWR);

impl Directory {
    /// Opens the store that is at `path`, and makes nothing.
    pub fn open_existing(path: &Path) -> Result<Self, DirectoryError> {
        Self::open_as(path, Access::ReadWrite)
    }

    /// Opens the store that is at `path` to look at it.
    pub fn open_read_only(path: &Path) -> Result<Self, DirectoryError> {
        Self::open_as(path, Access::ReadOnly)
    }

    fn open_as(path: &Path, access: Access) -> Result<Self, DirectoryError> {
        let handle = enter(path)?;
        // Asked first, so that a directory of something else does not get a lock of ours.
        if read_superblock(path, &handle)?.is_none() {
            return Err(DirectoryError::NoStore { path: path.into() });
        }
        let lock = lock(path, &handle, access)?;
        match read_superblock(path, &handle)? {
            Some(superblock) => {
                Ok(Self { path: path.into(), superblock, handle, access, _lock: lock })
            }
            None => Err(DirectoryError::NoStore { path: path.into() }),
        }
    }

    /// Opens the store at `path`, or makes one of `new`; its parent must exist. A store that is
    /// there takes the capacity of `new` and keeps its segment size.
    pub fn open(path: &Path, new: NewStore) -> Result<Self, DirectoryError> {
        Self::open_or_make(path, new, &Answers::default())
    }

    /// As `open`, and tells of what was answered. Once that was given up, no store is made.
    pub fn open_or_make(
        path: &Path,
        new: NewStore,
        answers: &Answers,
    ) -> Result<Self, DirectoryError> {
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
        answers.note();
        let handle = enter(path)?;
        answers.note();
        let access = Access::ReadWrite;
        let lock = lock(path, &handle, access)?;
        answers.note();
        let superblock = match read_superblock(path, &handle)? {
            Some(superblock) => resize(path, &handle, superblock, new)?,
            None if answers.is_given_up() => {
                return Err(DirectoryError::NoStore { path: path.into() });
            }
            None => make(path, &handle, new)?,
        };
        answers.note();
        Ok(Self { path: path.into(), superblock, handle, access, _lock: lock })
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

    pub fn access(&self) -> Access {
        self.access
    }
}

fn lock(path: &Path, handle: &OwnedFd, access: Access) -> Result<Option<Lock>, DirectoryError> {
    let name = path.join("lock");
    let open = |source: Errno| DirectoryError::Open { path: name.clone(), source: source.into() };
    let (flags, operation) = match access {
        Access::ReadOnly => (LOOK_FLAGS, FlockOperation::NonBlockingLockShared),
        Access::ReadWrite => {
            (FILE_FLAGS | OFlags::CREATE, FlockOperation::NonBlockingLockExclusive)
        }
    };
    let mut file = match fs::openat(handle, "lock", flags, FILE_MODE) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) if access == Access::ReadOnly => return Ok(None),
        Err(errno) => return Err(open(errno)),
    };
    match fs::flock(&file, operation) {
        Ok(()) if access == Access::ReadOnly => return Ok(Some(Lock(file))),
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            return Err(DirectoryError::InUse { path: path.into(), holder: holder(&mut file) });
        }
        Err(errno) => return Err(open(errno)),
    }
    let write = |source| DirectoryError::Write { path: name.clone(), source };
    file.set_len(0).map_err(write)?;
    file.rewind().map_err(write)?;
    write!(file, "process {}", std::process::id()).map_err(write)?;
    Ok(Some(Lock(file)))
}

/// Who holds the lock, as far as its text still tells: it is empty in the moment between another's
/// lock and its signature, and names the holder before while somebody only looks.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let _ = file.take(256).read_to_string(&mut text);
    let process = text.strip_prefix("process ").and_then(|id| id.parse().ok());
    let process = process.and_then(rustix::process::Pid::from_raw);
    let lives = process.is_none_or(|id| rustix::process::test_kill_process(id) != Err(Errno::SRCH));
    if text.is_empty() || !lives { "another process".into() } else { text }
}

fn enter(path: &Path) -> Result<OwnedFd, DirectoryError> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::open(path, flags, Mode::empty())
        .map_err(|errno| DirectoryError::Open { path: path.into(), source: errno.into() })
}

fn read_superblock(path: &Path, handle: &OwnedFd) -> Result<Option<Superblock>, DirectoryError> {
    let name = path.join("superblock");
    match fs::openat(handle, "superblock", LOOK_FLAGS, Mode::empty()) {
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
