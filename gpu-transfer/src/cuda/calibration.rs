//! Which way is faster for copies of which size, measured on the GPU at hand.

use super::batch::{Arena, Arguments, BatchedCopy};
use super::kernel::Pieces;
use super::memory::{DeviceMemory, HostBuffer};
use super::stream::{OwnStream, Priority};
use super::{CudaError, Gpu};
use crate::paged::Direction;
use crate::plan::Copy;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Put on the stream at once, as a lane does, and how often in a row: what counts is the rate of a
/// load that lasts, where one piece is submitted while another runs.
const PIECE_BYTES: u64 = 32 << 20;
const PIECES: usize = 3;
/// The best of so many trials counts, after one that warms up.
const TRIALS: usize = 2;
/// Copied before the first trial, as a link that was idle is slow at first: 40 ms at its full rate.
const WARM_UP: usize = 20;
/// The share of the kernel's rate from which on the copy engine is chosen. It may be low, as a trial
/// has the GPU for itself: beside matrix products the kernel waits for multiprocessors (18 GB/s of 50
/// on an H100) and takes them away (a save made the products 26 % slower), the copy engine does not.
/// Nobody waits for a save, and it may cost compute nothing: there the kernel is a last resort.
const ENOUGH_FOR_LOADS: f64 = 0.6;
const ENOUGH_FOR_SAVES: f64 = 0.1;
const SIZES: [u64; 6] = [16 << 10, 32 << 10, 64 << 10, 128 << 10, 512 << 10, 4 << 20];

/// From which mean size on copies are made by the copy engine, and what shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    batched_from: [Option<u64>; 2],
    pub trials: Vec<Trial>,
    pub elapsed: Duration,
}

/// Copies of one size, in one direction, both ways.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    pub direction: Direction,
    pub bytes: u64,
    /// GB/s, of 1e9 bytes.
    pub batched: f64,
    pub kernel: f64,
}

impl Calibration {
    pub(super) fn kernel_alone() -> Self {
        Self { batched_from: [None; 2], trials: Vec::new(), elapsed: Duration::ZERO }
    }

    pub(super) fn batched_alone() -> Self {
        Self { batched_from: [Some(0); 2], ..Self::kernel_alone() }
    }

    pub(super) fn measure(gpu: &Arc<Gpu>, batched: BatchedCopy) -> Result<Self, CudaError> {
        let begin = Instant::now();
        let mut bench = Bench::new(gpu, batched)?;
        bench.warm_up()?;
        let mut trials = Vec::new();
        for direction in [Direction::Load, Direction::Save] {
            for bytes in SIZES {
                trials.push(bench.trial(direction, bytes)?);
            }
        }
        Ok(Self::from_trials(trials, begin.elapsed()))
    }

    fn from_trials(trials: Vec<Trial>, elapsed: Duration) -> Self {
        let each = [(Direction::Load, ENOUGH_FOR_LOADS), (Direction::Save, ENOUGH_FOR_SAVES)];
        let batched_from = each.map(|(direction, enough)| {
            let mut from = None;
            for trial in trials.iter().filter(|trial| trial.direction == direction) {
                let is_enough = trial.batched >= enough * trial.kernel;
                from = if is_enough { from.or(Some(trial.bytes)) } else { None };
            }
            from
        });
        Self { batched_from, trials, elapsed }
    }

    /// Whether copies of this mean size are made by the copy engine.
    pub fn is_batched(&self, direction: Direction, mean_bytes: u64) -> bool {
        let from = match direction {
            Direction::Load => self.batched_from[0],
            Direction::Save => self.batched_from[1],
        };
        from.is_some_and(|from| mean_bytes >= from)
    }
}

/// What trials are made with.
struct Bench {
    // Waited for whenever it was used, so that the rest may be freed.
    stream: OwnStream,
    host: HostBuffer,
    device: DeviceMemory,
    pieces: [Pieces; PIECES],
    arguments: Arguments,
    batched: BatchedCopy,
    gpu: Arc<Gpu>,
}

impl Bench {
    fn new(gpu: &Arc<Gpu>, batched: BatchedCopy) -> Result<Self, CudaError> {
        let bytes = usize::try_from(PIECE_BYTES).expect("addresses have 64 bits");
        let copies = usize::try_from(PIECE_BYTES / SIZES[0]).expect("addresses have 64 bits");
        let piece = || Pieces::new(gpu, copies, PIECE_BYTES);
        Ok(Self {
            stream: OwnStream::new(gpu, Priority::Raised)?,
            host: HostBuffer::new(gpu, bytes)?,
            device: DeviceMemory::new(gpu, PIECE_BYTES)?,
            pieces: [piece()?, piece()?, piece()?],
            arguments: Arguments::default(),
            batched,
            gpu: Arc::clone(gpu),
        })
    }

    fn trial(&mut self, direction: Direction, bytes: u64) -> Result<Trial, CudaError> {
        let (host, device) = (self.host.address(), self.device.addresses().start);
        let count = PIECE_BYTES / bytes;
        // Pages of a cache in use do not follow each other as the blocks in an arena do.
        let scattered = |at: u64| (at * 7 + 3) % count;
        let copies: Vec<_> = (0..count)
            .map(|at| (host + at * bytes, device + scattered(at) * bytes))
            .map(|(host, device)| match direction {
                Direction::Load => Copy { source: host, target: device, length: bytes },
                Direction::Save => Copy { source: device, target: host, length: bytes },
            })
            .collect();
        let arena = match direction {
            Direction::Load => Arena::Source(host),
            Direction::Save => Arena::Target(host),
        };
        let gpu = Arc::clone(&self.gpu);
        let _current = gpu.enter()?;
        let batched = self.best(|bench, _| {
            let Self { batched, stream, arguments, .. } = bench;
            batched.submit(stream, &copies, arena, arguments)
        })?;
        let kernel = self.best(|bench, piece| {
            let Self { gpu, stream, pieces, .. } = bench;
            gpu.kernel.launch(stream, &copies, &mut pieces[piece])
        })?;
        Ok(Trial { direction, bytes, batched, kernel })
    }

    /// The best rate of some trials.
    fn best(
        &mut self,
        mut submit: impl FnMut(&mut Self, usize) -> Result<(), CudaError>,
    ) -> Result<f64, CudaError> {
        let mut best = Duration::MAX;
        for trial in 0..=TRIALS {
            let begin = Instant::now();
            let submitted = (0..PIECES).try_for_each(|piece| submit(self, piece));
            self.stream.wait()?;
            submitted?;
            if trial > 0 {
                best = best.min(begin.elapsed());
            }
        }
        let pieces = u64::try_from(PIECES).expect("usize fits");
        Ok(rate(pieces * PIECE_BYTES, best))
    }

    fn warm_up(&mut self) -> Result<(), CudaError> {
        let (source, target) = (self.host.address(), self.device.addresses().start);
        let copies = [Copy { source, target, length: PIECE_BYTES }];
        let gpu = Arc::clone(&self.gpu);
        let _current = gpu.enter()?;
        for _ in 0..WARM_UP {
            gpu.kernel.launch(&self.stream, &copies, &mut self.pieces[0])?;
            self.stream.wait()?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate to compare")]
fn rate(bytes: u64, elapsed: Duration) -> f64 {
    bytes as f64 / elapsed.as_secs_f64().max(1e-9) / 1e9
}

#[cfg(test)]
mod tests;
