//! A store directory with its I/O thread: opened, recovered, started, driven through a handle.
//!
//! The thread owns the engine and the device. It sleeps in one system call and wakes for
//! completions or for new work; the handle only queues and never waits.

use crate::arena::{Arena, ArenaError, Mapping, Region};
use crate::blocking::BlockingDevice;
use crate::device::{Device, Waker};
use crate::directory::{Directory, DirectoryError, NewStore};
use crate::engine::{
    Append, Durability, Engine, GroupEvent, Limits, RecordRead, SegmentSetup, SegmentState,
    SegmentStatus, Setup,
};
use crate::files::{self, FilesError};
use crate::geometry::{Generation, RECORDS_START, SegmentId};
use crate::recover::{self, Scan, ScanError, SegmentProblem};
use crate::segment::{Entry, SegmentHead};
use crate::stats::Counters;
use crate::superblock::SuperblockError;
use crate::uring::UringDevice;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use thiserror::Error;

mod opening;
mod repair;
mod worker;

pub use opening::{KnownSegment, Opening};
pub use worker::{Round, Worker};

/// How the device is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoEngine {
    /// io_uring, or the thread pool where it is refused.
    Auto,
    /// io_uring, or nothing.
    Uring,
    /// The thread pool.
    Blocking,
}

/// A drive as it is asked for.
#[derive(Clone, Debug)]
pub struct DriveConfig {
    pub path: PathBuf,
    /// The hard bound on all segments together.
    pub capacity_bytes: u64,
    /// Of a new store; an existing one keeps its own.
    pub segment_bytes: Option<u64>,
    pub io_engine: IoEngine,
    pub durability: Durability,
}

/// Why a drive does not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("take memory for headers")]
    Memory(#[from] ArenaError),
    #[error("set up io_uring: allow it, or choose another I/O engine")]
    Uring(#[source] io::Error),
    #[error("start an I/O thread")]
    Thread(#[source] io::Error),
    #[error(transparent)]
    Segment(#[from] SegmentProblem),
    #[error("read the segments of {}: the drive gives none of them", path.display())]
    Unreadable { path: PathBuf },
}

impl OpenError {
    /// Whether the drive is to blame, which may be back later: not who configured it, nor another
    /// who uses it, nor this machine.
    pub fn is_of_drive(&self) -> bool {
        match self {
            Self::Directory(
                DirectoryError::Create { source, .. }
                | DirectoryError::Open { source, .. }
                | DirectoryError::Write { source, .. }
                | DirectoryError::Read { source, .. },
            )
            | Self::Files(FilesError::Reserve { source, .. } | FilesError::Open { source, .. }) => {
                is_of_drive(source)
            }
            Self::Directory(DirectoryError::Superblock { source, .. }) => {
                *source == SuperblockError::Damaged
            }
            // Nothing is made where a drive is looked for again.
            Self::Directory(DirectoryError::NoStore { .. }) | Self::Unreadable { .. } => true,
            Self::Directory(DirectoryError::InUse { .. } | DirectoryError::Capacity { .. })
            | Self::Files(FilesError::DiskTooSmall { .. } | FilesError::NoDirect { .. })
            | Self::Memory(_)
            | Self::Uring(_)
            | Self::Thread(_)
            | Self::Segment(_) => false,
        }
    }
}

/// A link, a file in the place of a directory, and a lack of anything that this process has too
/// little of are not the drive's.
fn is_of_drive(error: &io::Error) -> bool {
    let Some(errno) = Errno::from_io_error(error) else { return false };
    let drives = [
        Errno::NOENT,
        Errno::IO,
        Errno::NXIO,
        Errno::NODEV,
        Errno::ACCESS,
        Errno::PERM,
        Errno::ROFS,
        Errno::NOTCONN,
        Errno::CONNABORTED,
        Errno::STALE,
        Errno::TIMEDOUT,
        Errno::UCLEAN,
        Errno::REMOTEIO,
        Errno::NOMEDIUM,
        Errno::SHUTDOWN,
        Errno::NOLINK,
    ];
    drives.contains(&errno)
}

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refused {
    #[error("drive has as much work as it takes")]
    Busy,
    #[error("drive has stopped")]
    Stopped,
}

/// Why a drive should be asked for nothing.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Withdrawn {
    #[error("hangs: an operation does not end")]
    Hangs,
    #[error("fails: no read of many went well")]
    Fails,
    /// Of one that a start did not find: it has no handle.
    #[error("is not there")]
    Missing,
}

/// Reads that fail one after the other before a drive counts as one that fails: more than a bad
/// spot makes, as each is of another block, or of another stripe of one.
const READ_ERRORS_MAX: u64 = 16;

/// What a drive says of itself at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriveStats {
    pub io_engine: &'static str,
    pub writable: bool,
    pub withdrawn: Option<Withdrawn>,
    pub capacity_bytes: u64,
    pub segment_bytes: u64,
    pub segments: u32,
    pub segments_free: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub queued_read_bytes: u64,
    pub queued_write_bytes: u64,
    /// 0 until it was measured.
    pub read_bytes_per_second: u64,
    pub write_bytes_per_second: u64,
    pub checksum_failures: u64,
    pub read_errors: u64,
    pub write_errors: u64,
    pub syncs: u64,
}

impl DriveStats {
    /// Of a drive that was not there at the start.
    pub fn missing(capacity_bytes: u64) -> Self {
        Self {
            io_engine: "none",
            writable: false,
            withdrawn: Some(Withdrawn::Missing),
            capacity_bytes,
            segment_bytes: 0,
            segments: 0,
            segments_free: 0,
            read_bytes: 0,
            written_bytes: 0,
            queued_read_bytes: 0,
            queued_write_bytes: 0,
            read_bytes_per_second: 0,
            write_bytes_per_second: 0,
            checksum_failures: 0,
            read_errors: 0,
            write_errors: 0,
            syncs: 0,
        }
    }
}

/// Requests that wait for the thread; more are refused.
const QUEUE: usize = 4096;
/// Memory that a device adopts in one call, 10 ms of its thread's time.
const ADOPTED_AT_ONCE: u64 = 256 << 20;
/// Memory for headers, segment heads and footers.
const SCRATCH_BYTES: u64 = 64 << 20;

enum Command {
    Read(Vec<RecordRead>),
    Append(Box<Append>),
    Release(SegmentId),
    Adopt(Region),
    Stop,
}

/// What time it is, for the drive's thread and for whoever asks whether it hangs.
pub type Now = Arc<dyn Fn() -> Instant + Send + Sync>;

/// The handle of a running drive.
#[derive(Clone)]
pub struct Drive {
    shared: Arc<Shared>,
}

struct Shared {
    commands: SyncSender<Command>,
    waker: Waker,
    counters: Arc<Counters>,
    segments: Arc<Mutex<Vec<SegmentStatus>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    io_engine: &'static str,
    capacity_bytes: u64,
    segment_bytes: u64,
    segment_count: u32,
    path: PathBuf,
    begun: Instant,
    now: Now,
    hang_patience: Duration,
}

impl std::fmt::Debug for Drive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drive").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Drive {
    /// Queues reads. Their sinks answer, also where the drive stops meanwhile.
    pub fn read(&self, records: Vec<RecordRead>) -> Result<(), Refused> {
        self.send(Command::Read(records))
    }

    /// Queues a record; its reply comes on the drive's thread.
    pub fn append(&self, append: Append) -> Result<(), Refused> {
        self.send(Command::Append(Box::new(append)))
    }

    /// Gives back a sealed segment that holds nothing anybody wants.
    pub fn release(&self, segment: SegmentId) -> Result<(), Refused> {
        self.send(Command::Release(segment))
    }

    fn send(&self, command: Command) -> Result<(), Refused> {
        self.shared.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => Refused::Busy,
            TrySendError::Disconnected(_) => Refused::Stopped,
        })?;
        self.shared.waker.wake();
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    pub fn stats(&self) -> DriveStats {
        let Shared { counters, .. } = &*self.shared;
        DriveStats {
            io_engine: self.shared.io_engine,
            writable: counters.read_only.get() == 0,
            withdrawn: self.withdrawn(),
            capacity_bytes: self.shared.capacity_bytes,
            segment_bytes: self.shared.segment_bytes,
            segments: self.shared.segment_count,
            segments_free: counters.segments_free.get(),
            read_bytes: counters.read_bytes.get(),
            written_bytes: counters.written_bytes.get(),
            queued_read_bytes: counters.queued_read_bytes.get(),
            queued_write_bytes: counters.queued_write_bytes.get(),
            read_bytes_per_second: counters.read_bytes_per_second.get(),
            write_bytes_per_second: counters.write_bytes_per_second.get(),
            checksum_failures: counters.checksum_failures.get(),
            read_errors: counters.read_errors.get(),
            write_errors: counters.write_errors.get(),
            syncs: counters.syncs.get(),
        }
    }

    /// Whether it should be asked for nothing now; by itself it refuses nothing.
    pub fn withdrawn(&self) -> Option<Withdrawn> {
        let Shared { counters, begun, now, hang_patience, .. } = &*self.shared;
        let oldest = counters.oldest_operation_ms.get();
        let since = Duration::from_millis(oldest.saturating_sub(1));
        if oldest > 0
            && now().saturating_duration_since(*begun).saturating_sub(since) > *hang_patience
        {
            Some(Withdrawn::Hangs)
        } else if counters.read_errors_in_row.get() >= READ_ERRORS_MAX {
            Some(Withdrawn::Fails)
        } else {
            None
        }
    }

    /// Whether no operation runs.
    pub fn is_idle(&self) -> bool {
        self.shared.counters.oldest_operation_ms.get() == 0
    }

    /// Every segment, by id.
    pub fn segments(&self) -> Vec<SegmentStatus> {
        locked(&self.shared.segments).clone()
    }

    /// Finishes and syncs what was taken, then ends the thread. Blocks until then.
    pub fn stop(&self) {
        let thread = locked(&self.shared.thread).take();
        if let Some(thread) = thread {
            // A full queue drains, and a thread that is gone needs no telling.
            let _ = self.shared.commands.send(Command::Stop);
            self.shared.waker.wake();
            // A panic of the thread has been reported by itself.
            let _ = thread.join();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = self.commands.try_send(Command::Stop);
        self.waker.wake();
        if let Some(thread) = locked(&self.thread).take() {
            let _ = thread.join();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding one of these.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start_thread(
    files: Vec<File>,
    io_engine: IoEngine,
    worker: Worker,
    directory: Directory,
) -> Result<(JoinHandle<()>, Waker, &'static str), OpenError> {
    let (ready, started) = sync_channel(1);
    let thread = std::thread::Builder::new().name("refrain-drive".into());
    let thread = thread.spawn(move || {
        let made = make_device(files, io_engine);
        let (mut device, waker, name) = match made {
            Ok(made) => made,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        if ready.send(Ok((waker.clone(), name))).is_ok() {
            worker.run(&mut *device, &waker);
        }
        // Locked for as long as this thread may have written.
        drop(directory);
    });
    let thread = thread.map_err(OpenError::Thread)?;
    let gone = || OpenError::Thread(io::Error::other("the thread ended before it began"));
    let (waker, name) = started.recv().map_err(|_| gone())??;
    Ok((thread, waker, name))
}

/// Makes memory resident piece by piece and has the device adopt it, while the drive serves: a
/// large arena takes seconds, and no start should wait for it.
fn adopt_memory(
    arenas: Vec<Arc<Mapping>>,
    commands: SyncSender<Command>,
    waker: Waker,
) -> Result<(), OpenError> {
    let thread = std::thread::Builder::new().name("refrain-populate".into());
    let populate = move || {
        for region in arenas.iter().flat_map(pieces) {
            // Memory that is not to be had now may be later: the device uses it all the same.
            if region.populate().is_err() || commands.send(Command::Adopt(region)).is_err() {
                return;
            }
            waker.wake();
        }
    };
    thread.spawn(populate).map(drop).map_err(OpenError::Thread)
}

fn pieces(mapping: &Arc<Mapping>) -> impl Iterator<Item = Region> {
    let (bytes, mapping) = (mapping.bytes_len(), Arc::clone(mapping));
    (0..bytes.div_ceil(ADOPTED_AT_ONCE)).map(move |index| {
        let offset = index * ADOPTED_AT_ONCE;
        let length = ADOPTED_AT_ONCE.min(bytes - offset);
        mapping.region(offset, length).expect("pieces of a mapping lie in it")
    })
}

fn make_device(
    files: Vec<File>,
    io_engine: IoEngine,
) -> Result<(Box<dyn Device>, Waker, &'static str), OpenError> {
    if io_engine != IoEngine::Blocking {
        let clones = files.iter().map(File::try_clone).collect::<io::Result<Vec<_>>>();
        match clones.and_then(UringDevice::new) {
            Ok(device) => {
                let waker = Waker::new(device.interrupt());
                return Ok((Box::new(device), waker, "uring"));
            }
            Err(error) if io_engine == IoEngine::Uring => return Err(OpenError::Uring(error)),
            Err(_) => {}
        }
    }
    let device = BlockingDevice::new(files).map_err(OpenError::Thread)?;
    let waker = Waker::new(device.interrupt());
    Ok((Box::new(device), waker, "blocking"))
}

#[cfg(test)]
mod tests;
