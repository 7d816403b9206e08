//! The raw device: the same file system, block size, depth and O_DIRECT, with nothing of a store
//! about it; and beside it, in [`StoreProbe`], the store's own path over the same device.
//!
//! What the store reaches is a share of what the raw device reaches in the same run.

use crate::arena::{Mapping, Region};
use crate::blocking::BlockingDevice;
use crate::device::{Device, DeviceOp, OpId};
use crate::drive::IoEngine;
use crate::uring::UringDevice;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

mod store;

pub use store::{Pass, StoreProbe, StoreProbeError};

/// Hears of every operation that is through, in bytes; `false` ends the pass.
pub type Watch = Arc<dyn Fn(u64) -> bool + Send + Sync>;

/// A file on the device under test; removed with the probe.
pub struct Probe {
    path: PathBuf,
    memory: Arc<Mapping>,
    block_bytes: u64,
    depth: u32,
    blocks: u64,
    io_engine: IoEngine,
    watch: Option<Watch>,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What one pass reached.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub bytes: u64,
    pub elapsed: Duration,
}

impl Rate {
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn gigabytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64() / 1e9
    }
}

impl Probe {
    /// `depth` operations of `block_bytes`, a multiple of 4 KiB, over a file of `blocks` of them.
    pub fn new(
        directory: &Path,
        block_bytes: u64,
        depth: u32,
        blocks: u64,
        io_engine: IoEngine,
    ) -> io::Result<Self> {
        let memory = Mapping::create("refrain-probe", u64::from(depth) * block_bytes);
        let memory = memory.map_err(io::Error::other)?;
        let whole = memory.region(0, memory.bytes_len()).map_err(io::Error::other)?;
        // Not zeros: a device may treat those better than what a store writes.
        whole.fill_with(|bytes| {
            for (index, byte) in (0u8..=250).cycle().zip(bytes) {
                *byte = index;
            }
        });
        let path = directory.join(format!("refrain-probe-{}", std::process::id()));
        Ok(Self { path, memory, block_bytes, depth, blocks, io_engine, watch: None })
    }

    /// Lets `watch` follow the passes, and end them.
    #[must_use]
    pub fn watched(mut self, watch: Watch) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Writes the file anew, front to back, and syncs it.
    pub fn write(&self) -> io::Result<Rate> {
        let bytes = self.blocks * self.block_bytes;
        let _ = std::fs::remove_file(&self.path);
        let file = self.open()?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
        file.sync_all()?;
        let order: Vec<u64> = (0..self.blocks).collect();
        let syncs = file.try_clone()?;
        let begin = Instant::now();
        self.pass(file, (self.block_bytes, self.depth), &order, |offset, region| {
            DeviceOp::Write { file: 0, offset, region }
        })?;
        syncs.sync_data()?;
        Ok(Rate { bytes, elapsed: begin.elapsed() })
    }

    /// Reads blocks `order` of the file that `write` left.
    pub fn read(&self, order: &[u64]) -> io::Result<Rate> {
        self.read_cut(self.block_bytes, self.depth, order)
    }

    /// The file in pieces of `bytes`, a multiple of 4 KiB, and as many of them in flight as have
    /// the bytes of `depth` blocks: reads pieces `order`.
    pub fn read_pieces(&self, bytes: u64, order: &[u64]) -> io::Result<Rate> {
        self.read_cut(bytes, self.pieces_in_flight(bytes), order)
    }

    /// How many pieces of `bytes` have the bytes of `depth` blocks.
    pub fn pieces_in_flight(&self, bytes: u64) -> u32 {
        let pieces = (self.memory.bytes_len() / bytes).max(1);
        u32::try_from(pieces).unwrap_or(u32::MAX).min(PIECES_MAX)
    }

    fn read_cut(&self, bytes: u64, depth: u32, order: &[u64]) -> io::Result<Rate> {
        let file = self.open()?;
        let begin = Instant::now();
        self.pass(file, (bytes, depth), order, |offset, region| DeviceOp::Read {
            file: 0,
            offset,
            region,
        })?;
        Ok(Rate { bytes: order.len() as u64 * bytes, elapsed: begin.elapsed() })
    }

    fn open(&self) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::DIRECT;
        Ok(File::from(rustix::fs::open(&self.path, flags, Mode::from_raw_mode(0o600))?))
    }

    /// One operation for each of `order`, `depth` of them in flight.
    fn pass(
        &self,
        file: File,
        (bytes, depth): (u64, u32),
        order: &[u64],
        operation: impl Fn(u64, Region) -> DeviceOp,
    ) -> io::Result<()> {
        let mut device: Box<dyn Device> = match self.io_engine {
            IoEngine::Blocking => Box::new(BlockingDevice::new(vec![file])?),
            IoEngine::Auto | IoEngine::Uring => Box::new(UringDevice::new(vec![file])?),
        };
        let whole = self.memory.region(0, self.memory.bytes_len()).map_err(io::Error::other)?;
        device.adopt(&whole);
        let mut slots: Vec<u32> = (0..depth).collect();
        let all = slots.len();
        let mut left = order.iter();
        let mut done = Vec::new();
        loop {
            while !slots.is_empty()
                && let Some(piece) = left.next()
            {
                let slot = slots.pop().expect("not empty");
                let region = self.memory.region(u64::from(slot) * bytes, bytes);
                let region = region.map_err(io::Error::other)?;
                device.start(OpId(slot), operation(piece * bytes, region));
            }
            if slots.len() == all {
                return Ok(());
            }
            device.wait(None, &mut done)?;
            for completion in done.drain(..) {
                if completion.result? != bytes {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if self.watch.as_ref().is_some_and(|watch| !watch(bytes)) {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                slots.push(completion.op.0);
            }
        }
    }
}

/// As the engine bounds its operations.
const PIECES_MAX: u32 = 192;

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
