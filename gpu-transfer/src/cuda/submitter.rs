//! Puts pieces on a stream, the way that suits them.

use super::batch::{Arena, Arguments};
use super::event::Event;
use super::kernel::Pieces;
use super::stream::{OwnStream, Priority};
use super::{CudaError, Gpu};
use crate::copier::{DEVICE_PIECE, PIECES_IN_FLIGHT, Piece};
use crate::paged::Direction;
use std::sync::Arc;

/// One direction's stream.
#[derive(Debug)]
pub(crate) struct Submitter {
    gpu: Arc<Gpu>,
    stream: OwnStream,
    /// One for each piece that may be under way, used in turn.
    pieces: Vec<Pieces>,
    arguments: Arguments,
}

impl Submitter {
    pub(crate) fn new(gpu: &Arc<Gpu>, direction: Direction) -> Result<Self, CudaError> {
        let priority = match direction {
            Direction::Load => Priority::Raised,
            Direction::Save => Priority::Least,
        };
        let pieces = |_| Pieces::new(gpu, DEVICE_PIECE.copies, DEVICE_PIECE.bytes);
        Ok(Self {
            gpu: Arc::clone(gpu),
            stream: OwnStream::new(gpu, priority)?,
            pieces: (0..PIECES_IN_FLIGHT).map(pieces).collect::<Result<_, _>>()?,
            arguments: Arguments::default(),
        })
    }

    /// Puts a piece on the stream, and a point behind it. No more than [`PIECES_IN_FLIGHT`] are
    /// under way at once: the caller has waited for those before.
    pub(crate) fn submit(&mut self, piece: &Piece) -> Result<Arc<Event>, CudaError> {
        let submitted = self.put(piece);
        if submitted.is_err() {
            // What of it is on the stream ends before its memory is anybody else's.
            let _ = self.stream.wait();
        }
        submitted
    }

    fn put(&mut self, piece: &Piece) -> Result<Arc<Event>, CudaError> {
        let gpu = Arc::clone(&self.gpu);
        let _current = gpu.enter()?;
        if let Some(after) = &piece.after {
            after.hold_back(self.stream.name())?;
        }
        let copies = piece.copies();
        if let (Some(batch), false) = (&piece.batch, copies.is_empty()) {
            let bytes: u64 = copies.iter().map(|copy| copy.length).sum();
            let count = u64::try_from(copies.len()).expect("usize fits");
            let is_batched = gpu.calibration().is_batched(piece.direction, bytes / count);
            if let Some(batched) = gpu.batched.filter(|_| is_batched) {
                let base = batch.arena_address();
                let arena = match piece.direction {
                    Direction::Load => Arena::Source(base),
                    Direction::Save => Arena::Target(base),
                };
                batched.submit(&self.stream, copies, arena, &mut self.arguments)?;
            } else {
                self.pieces.rotate_left(1);
                let pieces = self.pieces.first_mut().expect("there is one for each in flight");
                gpu.kernel.launch(&self.stream, copies, pieces)?;
            }
        }
        Ok(Arc::new(Event::behind(&gpu, self.stream.name())?))
    }
}

impl Drop for Submitter {
    fn drop(&mut self) {
        // Whatever is under way uses `pieces`, and memory that others keep until now.
        let _ = self.stream.wait();
    }
}
