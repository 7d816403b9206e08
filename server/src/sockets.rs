//! The two Unix sockets of a sidecar: gRPC, and sessions beside it.
//!
//! A socket that somebody answers is never taken; one that nobody answers was left by a kill, and
//! is removed. Between that question and the new socket nobody else may ask it, so both happen
//! under a lock on the directory. A socket has its permissions before its name.

use refrain_proto::session;
use rustix::fs::{self, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// Connections that wait to be accepted; the kernel may allow fewer.
const BACKLOG: i32 = 1024;
/// Another sidecar holds the lock for as long as it takes to bind: microseconds.
const LOCK_TRIES: u32 = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Why a sidecar does not listen.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SocketError {
    #[error("open directory {} of socket {}: make it, or listen elsewhere", directory.display(), path.display())]
    NoDirectory { directory: PathBuf, path: PathBuf, source: io::Error },
    #[error("lock directory {} to make socket {}", directory.display(), path.display())]
    Lock { directory: PathBuf, path: PathBuf, source: io::Error },
    #[error("socket {} is served by another sidecar: stop it, or listen elsewhere", path.display())]
    InUse { path: PathBuf },
    #[error("{} is there and is no socket: remove it, or listen elsewhere", path.display())]
    NotASocket { path: PathBuf },
    #[error("find out who serves socket {}", path.display())]
    Probe { path: PathBuf, source: io::Error },
    #[error("remove socket {}, which nobody serves", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("listen on socket {}", path.display())]
    Bind { path: PathBuf, source: io::Error },
}

/// Both sockets, listening; neither blocks, so that a runtime can take them.
#[derive(Debug)]
pub struct Sockets {
    pub grpc: UnixListener,
    pub sessions: UnixListener,
    pub files: SocketFiles,
}

/// The names of the sockets; dropped, they are removed.
#[must_use]
#[derive(Debug)]
pub struct SocketFiles {
    bound: Vec<Bound>,
}

#[derive(Debug)]
struct Bound {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Sockets {
    /// Listens at `path` and beside it, with permissions `mode`.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, SocketError> {
        let mut files = SocketFiles { bound: Vec::new() };
        let beside = session::socket_path(path);
        let _lock = lock(path)?;
        // Both are free before either is made.
        vacate(path)?;
        vacate(&beside)?;
        let mut listen = |path: &Path| {
            let error =
                |errno: Errno| SocketError::Bind { path: path.into(), source: errno.into() };
            let (listener, bound) = bind(path, mode).map_err(error)?;
            files.bound.push(bound);
            Ok(listener)
        };
        // Whoever finds the first open may count on the other.
        let sessions = listen(&beside)?;
        let grpc = listen(path)?;
        Ok(Self { grpc, sessions, files })
    }
}

impl Drop for SocketFiles {
    fn drop(&mut self) {
        for Bound { path, device, inode } in &self.bound {
            // Only what is still ours: somebody may have removed it and begun anew.
            let ours = fs::lstat(path).is_ok_and(|it| (it.st_dev, it.st_ino) == (*device, *inode));
            if ours {
                let _ = fs::unlink(path);
            }
        }
    }
}

fn lock(path: &Path) -> Result<OwnedFd, SocketError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let named = || (directory.to_path_buf(), path.to_path_buf());
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = fs::open(directory, flags, Mode::empty()).map_err(|errno| {
        let (directory, path) = named();
        SocketError::NoDirectory { directory, path, source: errno.into() }
    })?;
    let mut tries_left = LOCK_TRIES;
    loop {
        let Err(errno) = fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) else {
            return Ok(handle);
        };
        tries_left -= 1;
        if errno != Errno::WOULDBLOCK || tries_left == 0 {
            let (directory, path) = named();
            return Err(SocketError::Lock { directory, path, source: errno.into() });
        }
        std::thread::sleep(LOCK_PAUSE);
    }
}

/// Removes a socket that nobody serves.
fn vacate(path: &Path) -> Result<(), SocketError> {
    let probe = |errno: Errno| SocketError::Probe { path: path.into(), source: errno.into() };
    let found = match fs::lstat(path) {
        Ok(found) => found,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(probe(errno)),
    };
    if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
        return Err(SocketError::NotASocket { path: path.into() });
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let socket = socket.map_err(probe)?;
    let address = SocketAddrUnix::new(path).map_err(probe)?;
    match net::connect(&socket, &address) {
        // A server that is behind with accepting is one all the same.
        Ok(()) | Err(Errno::AGAIN) => return Err(SocketError::InUse { path: path.into() }),
        Err(Errno::CONNREFUSED) => {}
        // Its server removed it just now.
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(probe(errno)),
    }
    fs::unlink(path)
        .map_err(|errno| SocketError::Remove { path: path.into(), source: errno.into() })
}

fn bind(path: &Path, mode: u32) -> Result<(UnixListener, Bound), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The name is made with the permissions that the socket has by then, less the umask: never
    // more than its owner's, until they are set as they should be.
    fs::fchmod(&socket, Mode::from_raw_mode(0o600))?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let named = fs::lstat(path)?;
    let bound = Bound { path: path.into(), device: named.st_dev, inode: named.st_ino };
    let listening =
        fs::chmod(path, Mode::from_raw_mode(mode)).and_then(|()| net::listen(&socket, BACKLOG));
    if let Err(errno) = listening {
        drop(SocketFiles { bound: vec![bound] });
        return Err(errno);
    }
    Ok((socket.into(), bound))
}

#[cfg(test)]
mod tests;
