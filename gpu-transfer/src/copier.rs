//! Makes copies between arenas and a paged KV cache, in the order of deadlines.
//!
//! A [`Copier`] has a lane for loads and one for saves, each with a thread and, on a GPU, a stream
//! of its own: saves on one of low priority. What is asked for goes to the stream in pieces, few at a
//! time, so that a load with an early deadline overtakes one that began before it, and a load that is
//! cancelled has little left to run. A lane's thread sleeps while there is nothing to do.
//!
//! A [`Transfer`] is one load or save. Its steps are made in order. At a mark its [`CopySink`] is
//! given a [`Fence`], which any stream can be told to wait for while no CPU does.

use crate::arena::{Access, Mapping};
use crate::cuda::{CudaError, Event, Gpu, Registered, Submitter, Way};
use crate::memory::Place;
use crate::paged::Direction;
use lane::{Lane, Maker};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;

mod lane;
mod queue;

pub use lane::Transfer;
pub(crate) use lane::{DEVICE_PIECE, PIECES_IN_FLIGHT};
pub(crate) use queue::Piece;

/// A stream of the caller's, as its engine names it; 0 is the default stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(pub u64);

/// Copies for one worker.
#[derive(Clone, Debug)]
pub struct Copier {
    gpu: Option<Arc<Gpu>>,
    loads: Arc<Lane>,
    saves: Arc<Lane>,
}

/// Why copies were not made.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum CopyError {
    #[error("cancelled")]
    Cancelled,
    #[error("copy on a GPU")]
    Cuda(#[from] CudaError),
    #[error("start a thread that copies")]
    Thread { source: Arc<io::Error> },
    #[error("the thread that copies has ended")]
    Stopped,
}

/// Learns what becomes of a transfer. Called by a lane's thread, which it must not keep waiting.
pub trait CopySink: Send + Sync {
    /// All steps up to the one with this mark are on their way.
    fn marked(&self, mark: usize, fence: Fence);
    /// Nothing of it is under way any more, and nothing will be.
    fn ended(&self, outcome: Result<(), CopyError>);
}

/// A point behind copies that are under way.
#[derive(Clone, Debug)]
pub struct Fence(Option<Arc<Event>>);

impl Fence {
    /// Has what is put on `stream` from now on wait for these copies. Does not wait itself.
    pub fn hold_back(&self, stream: Stream) -> Result<(), CopyError> {
        match &self.0 {
            Some(event) => Ok(event.hold_back(stream)?),
            // Copied already.
            None => Ok(()),
        }
    }
}

/// An arena that copies can be made from or into.
#[derive(Debug)]
pub struct Pinned {
    // Unregistered before it is unmapped.
    registered: Option<Registered>,
    mapping: Arc<Mapping>,
    elapsed: Duration,
}

impl Pinned {
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// What it took to register.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    pub(crate) fn address(&self) -> u64 {
        self.mapping.address()
    }

    pub(crate) fn place(&self) -> Place {
        self.registered.as_ref().map_or(Place::Host, |it| Place::Gpu(it.ordinal()))
    }
}

impl Copier {
    /// Copies in the memory of the host.
    pub fn host() -> Result<Self, CopyError> {
        let loads = Lane::start("refrain-load", Maker::Host)?;
        let saves = Lane::start("refrain-save", Maker::Host)?;
        Ok(Self { gpu: None, loads, saves })
    }

    /// Copies to and from the GPU of this number, in its primary context, as PyTorch does.
    pub fn cuda(ordinal: u32, way: Way) -> Result<Self, CopyError> {
        let gpu = Gpu::open(ordinal, way)?;
        let maker = |direction| Submitter::new(&gpu, direction).map(Maker::Cuda);
        let loads = Lane::start("refrain-load", maker(Direction::Load)?)?;
        let saves = Lane::start("refrain-save", maker(Direction::Save)?)?;
        Ok(Self { gpu: Some(gpu), loads, saves })
    }

    /// The GPU that it copies to and from, if any.
    pub fn gpu(&self) -> Option<&Arc<Gpu>> {
        self.gpu.as_ref()
    }

    /// Makes an arena known to the GPU, which takes a while for a large one.
    pub fn register(&self, arena: &Arc<Mapping>) -> Result<Arc<Pinned>, CudaError> {
        let begin = Instant::now();
        let writable = arena.access() == Access::ReadWrite;
        let registered = match &self.gpu {
            Some(gpu) => Some(gpu.register(arena, writable)?),
            None => None,
        };
        let (mapping, elapsed) = (Arc::clone(arena), begin.elapsed());
        Ok(Arc::new(Pinned { registered, mapping, elapsed }))
    }

    /// Begins a load or save. Its copies begin after what is on the stream `after` by now.
    pub fn begin(
        &self,
        direction: Direction,
        deadline: Instant,
        after: Option<Stream>,
        sink: Arc<dyn CopySink>,
    ) -> Result<Transfer, CopyError> {
        let after = match (&self.gpu, after) {
            (Some(gpu), Some(stream)) => Some(Arc::new(Event::behind(gpu, stream)?)),
            (Some(_) | None, _) => None,
        };
        let lane = match direction {
            Direction::Load => &self.loads,
            Direction::Save => &self.saves,
        };
        let place = self.gpu.as_ref().map_or(Place::Host, |gpu| Place::Gpu(gpu.ordinal()));
        Ok(lane.begin(place, direction, deadline, after, sink))
    }
}

#[cfg(test)]
mod tests;
