//! The raw device: the same file, block size, depth and O_DIRECT, with nothing of a store about it.
//!
//! What the store reaches is a share of what this reaches in the same run.

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

/// A file on the device under test; removed with the probe.
#[derive(Debug)]
pub struct Probe {
    path: PathBuf,
    memory: Arc<Mapping>,
    block_bytes: u64,
    depth: u32,
    blocks: u64,
    io_engine: IoEngine,
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
        Ok(Self { path, memory, block_bytes, depth, blocks, io_engine })
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
        self.pass(file, &order, |offset, region| DeviceOp::Write { file: 0, offset, region })?;
        syncs.sync_data()?;
        Ok(Rate { bytes, elapsed: begin.elapsed() })
    }

    /// Reads blocks `order` of the file that `write` left.
    pub fn read(&self, order: &[u64]) -> io::Result<Rate> {
        let bytes = order.len() as u64 * self.block_bytes;
        let file = self.open()?;
        let begin = Instant::now();
        self.pass(file, order, |offset, region| DeviceOp::Read { file: 0, offset, region })?;
        Ok(Rate { bytes, elapsed: begin.elapsed() })
    }

    fn open(&self) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::DIRECT;
        Ok(File::from(rustix::fs::open(&self.path, flags, Mode::from_raw_mode(0o600))?))
    }

    fn pass(
        &self,
        file: File,
        order: &[u64],
        operation: impl Fn(u64, Region) -> DeviceOp,
    ) -> io::Result<()> {
        let mut device: Box<dyn Device> = match self.io_engine {
            IoEngine::Blocking => Box::new(BlockingDevice::new(vec![file])?),
            IoEngine::Auto | IoEngine::Uring => {
                Box::new(UringDevice::new(vec![file], std::slice::from_ref(&self.memory))?)
            }
        };
        let mut slots: Vec<u32> = (0..self.depth).collect();
        let mut left = order.iter();
        let mut done = Vec::new();
        loop {
            while !slots.is_empty()
                && let Some(block) = left.next()
            {
                let slot = slots.pop().expect("not empty");
                let at = u64::from(slot) * self.block_bytes;
                let region = self.memory.region(at, self.block_bytes).map_err(io::Error::other)?;
                device.start(OpId(slot), operation(block * self.block_bytes, region));
            }
            if slots.len() == self.memory_slots() {
                return Ok(());
            }
            device.wait(None, &mut done)?;
            for completion in done.drain(..) {
                if completion.result? != self.block_bytes {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                slots.push(completion.op.0);
            }
        }
    }

    fn memory_slots(&self) -> usize {
        usize::try_from(self.depth).expect("32 bits fit")
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
