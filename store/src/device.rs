//! The seam to a disk: operations in, completions out. The engine knows nothing else of it, and
//! recovery knows no more than [`Medium`].

use crate::arena::Region;
use rustix::io::Errno;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
#[cfg(not(loom))]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[cfg(loom)]
use loom::sync::atomic::AtomicBool;

/// Names one operation in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpId(pub u32);

/// An operation on one file; files are numbered as they were given to the device.
///
/// The device holds the region, and so the memory, until it reports the completion, whoever has
/// gone away meanwhile.
#[derive(Clone, Debug)]
pub enum DeviceOp {
    Read { file: u32, offset: u64, region: Region },
    Write { file: u32, offset: u64, region: Region },
    Sync { file: u32 },
}

impl DeviceOp {
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Read { region, .. } | Self::Write { region, .. } => region.length(),
            Self::Sync { .. } => 0,
        }
    }
}

/// The end of an operation: bytes transferred, which may be fewer than asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    pub op: OpId,
    pub result: Result<u64, Errno>,
}

/// A disk, driven by one thread.
pub trait Device {
    /// Takes an operation; it may begin at once, or at the next `wait`.
    fn start(&mut self, op: OpId, operation: DeviceOp);

    /// Begins what was taken, if it has not begun, without sleeping.
    fn flush(&mut self) {}

    /// Memory that operations will use again and again, resident by now.
    fn adopt(&mut self, _memory: &Region) {}

    /// Sleeps until something completes, somebody wakes it, or `timeout` passes.
    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Completion>) -> io::Result<()>;
}

/// One segment's bytes, for those who wait for each call: recovery and repair.
pub trait Medium: Debug + Send + Sync {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// What was written survives a power loss from now on.
    fn sync(&self) -> io::Result<()>;
}

impl Medium for File {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Ends a sleep of `Device::wait` from another thread.
pub trait Interrupt: Send + Sync {
    fn interrupt(&self);
}

/// Wakes a device once for any number of calls between two of its rounds.
#[derive(Clone)]
pub struct Waker {
    interrupt: Arc<dyn Interrupt>,
    raised: Arc<AtomicBool>,
}

impl std::fmt::Debug for Waker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waker").field("raised", &self.raised).finish_non_exhaustive()
    }
}

impl Waker {
    pub fn new(interrupt: Arc<dyn Interrupt>) -> Self {
        Self { interrupt, raised: Arc::new(AtomicBool::new(false)) }
    }

    pub fn wake(&self) {
        if !self.raised.swap(true, Ordering::AcqRel) {
            self.interrupt.interrupt();
        }
    }

    /// Called by the device's thread before it looks for work: later calls wake it again, and what
    /// came before earlier ones is seen. A store would not see it: the thread could look for work
    /// before that arrives, and sleep on it, as whoever brought it found the flag raised.
    pub fn lower(&self) {
        self.raised.swap(false, Ordering::AcqRel);
    }
}

#[cfg(all(test, loom))]
mod handshakes;
