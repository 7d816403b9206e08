//! The segment files of a drive: made, reserved in full, opened past the page cache.
//!
//! Who only looks gets them as they are: a file cut short stays so, and an absent one is empty.

use crate::answers::Answers;
use crate::directory::{Access, Directory};
use crate::geometry::SegmentId;
use rustix::fs::{self, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Left on a file system beside a store, so that its neighbours and its own metadata fit.
const SPARE_BYTES: u64 = 64 << 20;

/// Why the segment files are not there.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FilesError {
    #[error(
        "capacity of {capacity} bytes is larger than the disk: {} has room for {available}",
        path.display()
    )]
    DiskTooSmall { path: PathBuf, capacity: u64, available: u64 },
    #[error("reserve {bytes} bytes in {}", path.display())]
    Reserve { path: PathBuf, bytes: u64, source: io::Error },
    #[error(
        "open {} with O_DIRECT: the file system does not offer it, choose another",
        path.display()
    )]
    NoDirect { path: PathBuf },
    #[error("open {}", path.display())]
    Open { path: PathBuf, source: io::Error },
}

/// A segment file that was shorter than it should be; unless the store is only looked at, it has
/// been made whole with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated {
    pub id: SegmentId,
    pub found: u64,
}

/// Opens every segment of the store. What may be changed is put right: files that are missing are
/// made and reserved, those beyond the capacity removed.
pub fn open_all(
    directory: &Directory,
    answers: &Answers,
) -> Result<(Vec<File>, Vec<Truncated>), FilesError> {
    raise_open_files();
    let superblock = directory.superblock();
    let count = superblock.capacity_bytes / superblock.segment_bytes;
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let access = directory.access();
    if access == Access::ReadWrite {
        check_space(directory, count)?;
    }
    let (mut files, mut truncated, mut is_made) = (Vec::new(), Vec::new(), Vec::new());
    for id in (0..count).map(SegmentId) {
        let (file, found) = match access {
            Access::ReadOnly => open_as_it_is(directory, id, superblock.segment_bytes)?,
            Access::ReadWrite => open(directory, id, superblock.segment_bytes)?,
        };
        answers.note();
        is_made.push(found.is_some());
        if let Some(found) = found.filter(|found| *found > 0 || access == Access::ReadOnly) {
            truncated.push(Truncated { id, found });
        }
        files.push(file);
    }
    if access == Access::ReadOnly {
        return Ok((files, truncated));
    }
    // After all of them are made: the first sync carries what the others changed.
    let opened = (0..).map(SegmentId).zip(&files).zip(&is_made);
    for ((id, file), _) in opened.filter(|(_, is_made)| **is_made) {
        let (path, bytes) = (directory.path().join(name(id)), superblock.segment_bytes);
        file.sync_all().map_err(|source| FilesError::Reserve { path, bytes, source })?;
        answers.note();
    }
    for id in (count..).map(SegmentId) {
        // Ids have no gaps: the first absent one ends it.
        if fs::unlinkat(directory.handle(), name(id), fs::AtFlags::empty()).is_err() {
            break;
        }
    }
    Ok((files, truncated))
}

/// The file of a segment within its directory.
pub fn name(id: SegmentId) -> String {
    format!("segment-{:08}", id.0)
}

fn check_space(directory: &Directory, count: u32) -> Result<(), FilesError> {
    let path = directory.path().to_path_buf();
    let open = |errno: Errno| FilesError::Open { path: path.clone(), source: errno.into() };
    let disk = fs::fstatvfs(directory.handle()).map_err(open)?;
    let mut reserved = 0;
    for id in (0..count).map(SegmentId) {
        match fs::statat(directory.handle(), name(id), fs::AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => reserved += u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
            Err(_) => break,
        }
    }
    let capacity = u64::from(count) * directory.superblock().segment_bytes;
    let available = disk.f_bavail * disk.f_frsize + reserved;
    if capacity + SPARE_BYTES > available {
        return Err(FilesError::DiskTooSmall { path, capacity, available });
    }
    Ok(())
}

fn open(
    directory: &Directory,
    id: SegmentId,
    bytes: u64,
) -> Result<(File, Option<u64>), FilesError> {
    let path = directory.path().join(name(id));
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::DIRECT;
    let mode = Mode::from_raw_mode(0o600);
    let file = match fs::openat(directory.handle(), name(id), flags, mode) {
        Ok(file) => File::from(file),
        Err(Errno::INVAL) => return Err(FilesError::NoDirect { path }),
        Err(errno) => return Err(FilesError::Open { path, source: errno.into() }),
    };
    let found = file.metadata();
    let found = found.map_err(|source| FilesError::Open { path: path.clone(), source })?.len();
    if found == bytes {
        return Ok((file, None));
    }
    let reserve =
        |errno: Errno| FilesError::Reserve { path: path.clone(), bytes, source: errno.into() };
    if found > bytes {
        fs::ftruncate(&file, bytes).map_err(reserve)?;
    }
    // It makes the file longer only as far as it reserves: a crash leaves a short one, not a hollow.
    fs::fallocate(&file, FallocateFlags::empty(), 0, bytes).map_err(reserve)?;
    Ok((file, Some(found)))
}

fn open_as_it_is(
    directory: &Directory,
    id: SegmentId,
    bytes: u64,
) -> Result<(File, Option<u64>), FilesError> {
    let path = directory.path().join(name(id));
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::DIRECT;
    let file = match fs::openat(directory.handle(), name(id), flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::INVAL) => return Err(FilesError::NoDirect { path }),
        // An absent file reads as an empty one.
        Err(Errno::NOENT) => fs::memfd_create("refrain-absent", fs::MemfdFlags::CLOEXEC)
            .map_err(|errno| FilesError::Open { path: path.clone(), source: errno.into() })?,
        Err(errno) => return Err(FilesError::Open { path, source: errno.into() }),
    };
    let file = File::from(file);
    let found = file.metadata().map_err(|source| FilesError::Open { path, source })?.len();
    Ok((file, (found < bytes).then_some(found)))
}

/// A file a segment: a large drive has more than the usual soft limit.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised, opening a file says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
