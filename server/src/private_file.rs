//! Small files that belong to their owner alone, each there in whole or not at all.

use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

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
