//! Small files that belong to their owner alone, each there in whole or not at all.

use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a file that keeps a secret is not read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PrivateFileError {
    #[error("read secret file {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("secret file {} is no regular file", path.display())]
    NotAFile { path: PathBuf },
    #[error("secret file {} may be used by others (mode {mode:04o}): chmod 600 it", path.display())]
    Exposed { path: PathBuf, mode: u32 },
}

/// What a file of its owner alone holds, or the first `most` bytes of it.
pub(crate) fn read(path: &Path, flags: OFlags, most: u64) -> Result<Vec<u8>, PrivateFileError> {
    let error = |source: io::Error| PrivateFileError::Read { path: path.into(), source };
    // Without waiting: a pipe would never answer.
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = fs::open(path, flags, Mode::empty()).map_err(|errno| error(errno.into()))?;
    let file = File::from(file);
    let metadata = file.metadata().map_err(error)?;
    if !metadata.is_file() {
        return Err(PrivateFileError::NotAFile { path: path.into() });
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(PrivateFileError::Exposed { path: path.into(), mode });
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).map_err(error)?;
    Ok(bytes)
}

/// Makes the file at `path` hold `bytes`, for its owner alone: written beside it, synced, renamed.
/// No link is followed.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let directory = fs::open(parent, flags, Mode::empty())?;
    let mut new = name.to_owned();
    new.push(".new");
    // Left by a crash, perhaps with other permissions.
    match fs::unlinkat(&directory, &new, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let written = write_new(&directory, &new, bytes);
    let renamed = written.and_then(|()| Ok(fs::renameat(&directory, &new, &directory, name)?));
    if renamed.is_err() {
        let _ = fs::unlinkat(&directory, &new, AtFlags::empty());
    }
    renamed?;
    Ok(fs::fsync(&directory)?)
}

fn write_new(directory: &OwnedFd, name: &OsStr, bytes: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::openat(directory, name, flags, Mode::from_raw_mode(0o600))?;
    let mut file = File::from(file);
    file.write_all(bytes)?;
    file.sync_all()
}
