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
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

mod error;
mod store;

pub use error::StoreProbeError;
pub use store::{Pass, StoreProbe};

/// Hears of every operation that is through, in bytes; `false` ends the pass.
pub type Watch = Arc<dyn Fn(u64) -> bool + Send + Sync>;

/// A file on the device under test; removed with the probe.
pub struct Probe {
    path: PathBuf,
    memory: Memory,
    block_bytes: u64,
    blocks: u64,
    io_engine: IoEngine,
    watch: Option<Watch>,
}

/// What a probe moves blocks from and to, in turns; `depth` operations at once.
///
/// It counts where that is: a device is given memory in runs of adjacent physical pages, and takes
/// fewer operations at once where the runs are short. Two rates can be held against each other only
/// if both were reached with the same memory.
struct Memory {
    mapping: Arc<Mapping>,
    sources: Vec<Region>,
    targets: Vec<Region>,
    depth: usize,
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
        let bytes = (u64::from(depth) * block_bytes).next_multiple_of(HUGE_PAGE);
        let mapping = Mapping::create("refrain-probe", bytes).map_err(io::Error::other)?;
        let whole = mapping.region(0, bytes).map_err(io::Error::other)?;
        whole.populate()?;
        // Not zeros: a device may treat those better than what a store writes.
        whole.fill_with(|bytes| {
            for (index, byte) in (0u8..=250).cycle().zip(bytes) {
                *byte = index;
            }
        });
        let block = |slot| whole.slice(u64::from(slot) * block_bytes, block_bytes);
        let sources: Vec<_> = (0..depth).map(block).collect();
        let depth = sources.len();
        let memory = Memory { mapping, targets: sources.clone(), sources, depth };
        Ok(Self::over(memory, directory, block_bytes, blocks, io_engine))
    }

    fn over(
        memory: Memory,
        directory: &Path,
        block_bytes: u64,
        blocks: u64,
        io_engine: IoEngine,
    ) -> Self {
        let path = directory.join(format!("refrain-probe-{}", std::process::id()));
        Self { path, memory, block_bytes, blocks, io_engine, watch: None }
    }

    /// Lets `watch` follow the passes, and end them.
    #[must_use]
    pub fn watched(mut self, watch: Watch) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Writes the file, front to back, and syncs it; the first time into space that was reserved
    /// alone, and then over what is there.
    pub fn write(&self) -> io::Result<Rate> {
        let bytes = self.blocks * self.block_bytes;
        let file = self.open()?;
        if file.metadata()?.len() != bytes {
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
            file.sync_all()?;
        }
        let order: Vec<u64> = (0..self.blocks).collect();
        let syncs = file.try_clone()?;
        let mut device = self.device(file)?;
        let begin = Instant::now();
        self.pass(
            &mut *device,
            (&self.memory.sources, self.memory.depth),
            &order,
            |offset, region| DeviceOp::Write { file: 0, offset, region },
        )?;
        syncs.sync_data()?;
        Ok(Rate { bytes, elapsed: begin.elapsed() })
    }

    /// Reads blocks `order` of the file that `write` left.
    pub fn read(&self, order: &[u64]) -> io::Result<Rate> {
        self.read_into((&self.memory.targets, self.memory.depth), self.block_bytes, order)
    }

    /// The file in pieces of `bytes`, a multiple of 4 KiB, as many in flight as fit the memory of
    /// the blocks in flight: reads pieces `order`.
    pub fn read_pieces(&self, bytes: u64, order: &[u64]) -> io::Result<Rate> {
        let cut = |region: &Region| {
            let pieces = (0..region.length() / bytes).map(|index| index * bytes);
            pieces.map(|offset| region.slice(offset, bytes)).collect::<Vec<_>>()
        };
        let pieces: Vec<_> = self.memory.targets.iter().flat_map(cut).collect();
        let depth = pieces.len() * self.memory.depth / self.memory.targets.len();
        self.read_into((&pieces, depth.min(PIECES_MAX)), bytes, order)
    }

    fn read_into(&self, memory: (&[Region], usize), bytes: u64, order: &[u64]) -> io::Result<Rate> {
        let mut device = self.device(self.open()?)?;
        let begin = Instant::now();
        self.pass(&mut *device, memory, order, |offset, region| DeviceOp::Read {
            file: 0,
            offset,
            region,
        })?;
        Ok(Rate { bytes: order.len() as u64 * bytes, elapsed: begin.elapsed() })
    }

    fn device(&self, file: File) -> io::Result<Box<dyn Device>> {
        let mut device: Box<dyn Device> = match self.io_engine {
            IoEngine::Blocking => Box::new(BlockingDevice::new(vec![file])?),
            IoEngine::Auto | IoEngine::Uring => Box::new(UringDevice::new(vec![file])?),
        };
        let mapping = &self.memory.mapping;
        let whole = mapping.region(0, mapping.bytes_len()).map_err(io::Error::other)?;
        device.adopt(&whole);
        Ok(device)
    }

    fn open(&self) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::DIRECT;
        Ok(File::from(rustix::fs::open(&self.path, flags, Mode::from_raw_mode(0o600))?))
    }

    /// One operation for each of `order`, `depth` in flight, each with the next piece of memory.
    fn pass(
        &self,
        device: &mut dyn Device,
        (memory, depth): (&[Region], usize),
        order: &[u64],
        operation: impl Fn(u64, Region) -> DeviceOp,
    ) -> io::Result<()> {
        let mut slots: VecDeque<u32> = (0..).take(memory.len()).collect();
        let mut in_flight = 0;
        let mut left = order.iter();
        let mut done = Vec::new();
        loop {
            while in_flight < depth
                && let Some(piece) = left.next()
            {
                let slot = slots.pop_front().expect("no less memory than depth");
                in_flight += 1;
                let region = memory[usize::try_from(slot).expect("32 bits fit")].clone();
                device.start(OpId(slot), operation(piece * region.length(), region));
            }
            if in_flight == 0 {
                return Ok(());
            }
            device.wait(None, &mut done)?;
            for completion in done.drain(..) {
                let slot = completion.op.0;
                let bytes = memory[usize::try_from(slot).expect("32 bits fit")].length();
                if completion.result? != bytes {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if self.watch.as_ref().is_some_and(|watch| !watch(bytes)) {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                slots.push_back(slot);
                in_flight -= 1;
            }
        }
    }
}

/// A mapping of whole ones is made of them, where there are any.
const HUGE_PAGE: u64 = 2 << 20;

/// As the engine bounds its operations.
const PIECES_MAX: usize = 192;

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
