//! What a lane has to do, and in which order. No thread, no clock, no GPU.

use super::{CopyError, CopySink};
use crate::cuda::Event;
use crate::paged::{Batch, Direction};
use crate::plan::Copy;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// Names a transfer within its lane, in the order of beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TransferId(pub(crate) u64);

/// Bounds on what is given to a stream at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PieceSize {
    pub(crate) bytes: u64,
    pub(crate) copies: usize,
}

/// A part of a step, to be copied at once.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) transfer: TransferId,
    pub(crate) direction: Direction,
    copies: Vec<Copy>,
    /// Keeps the memory on both sides.
    pub(crate) batch: Option<Batch>,
    /// With the last piece of a step.
    pub(crate) mark: Option<usize>,
    /// With the first piece of a transfer: what its copies come after.
    pub(crate) after: Option<Arc<Event>>,
}

impl Piece {
    pub(crate) fn copies(&self) -> &[Copy] {
        &self.copies
    }
}

/// What has ended, to be told without the lock.
pub(crate) type Ended = Option<(Arc<dyn CopySink>, Result<(), CopyError>)>;

#[derive(Default)]
pub(crate) struct Queue {
    next: u64,
    transfers: BTreeMap<TransferId, Entry>,
    pub(crate) stopped: bool,
}

struct Entry {
    direction: Direction,
    deadline: Instant,
    sink: Arc<dyn CopySink>,
    steps: VecDeque<Step>,
    after: Option<Arc<Event>>,
    in_flight: u32,
    /// No more steps will come.
    closed: bool,
    error: Option<CopyError>,
}

struct Step {
    copies: VecDeque<Copy>,
    batch: Option<Batch>,
    mark: Option<usize>,
}

impl Queue {
    pub(crate) fn begin(
        &mut self,
        direction: Direction,
        deadline: Instant,
        after: Option<Arc<Event>>,
        sink: Arc<dyn CopySink>,
    ) -> TransferId {
        let id = TransferId(self.next);
        self.next += 1;
        let (steps, error) = (VecDeque::new(), self.stopped.then_some(CopyError::Stopped));
        let (in_flight, closed) = (0, false);
        let entry = Entry { direction, deadline, sink, steps, after, in_flight, closed, error };
        self.transfers.insert(id, entry);
        id
    }

    /// Adds a step; one of a transfer that has failed is not made.
    pub(crate) fn push(&mut self, id: TransferId, batch: Option<Batch>, mark: Option<usize>) {
        let Some(entry) = self.transfers.get_mut(&id) else { return };
        if entry.closed || entry.error.is_some() {
            return;
        }
        let copies = batch.iter().flat_map(Batch::copies).collect();
        entry.steps.push_back(Step { copies, batch, mark });
    }

    /// No more steps of this transfer will come.
    pub(crate) fn close(&mut self, id: TransferId) -> Ended {
        self.transfers.get_mut(&id)?.closed = true;
        self.end(id)
    }

    /// What of a transfer is not under way is never made.
    pub(crate) fn fail(&mut self, id: TransferId, error: CopyError) -> Ended {
        let entry = self.transfers.get_mut(&id)?;
        entry.steps.clear();
        entry.error.get_or_insert(error);
        entry.closed = true;
        self.end(id)
    }

    pub(crate) fn has_work(&self) -> bool {
        self.transfers.values().any(|entry| !entry.steps.is_empty())
    }

    /// Nothing is left to do, and nobody could add to it.
    pub(crate) fn is_over(&self) -> bool {
        self.stopped && self.transfers.is_empty()
    }

    /// Forgets all transfers, whose sinks are to be told.
    pub(crate) fn abandon(&mut self) -> Vec<Arc<dyn CopySink>> {
        std::mem::take(&mut self.transfers).into_values().map(|entry| entry.sink).collect()
    }

    pub(crate) fn contains(&self, id: TransferId) -> bool {
        self.transfers.contains_key(&id)
    }

    pub(crate) fn sink(&self, id: TransferId) -> Option<Arc<dyn CopySink>> {
        self.transfers.get(&id).map(|entry| Arc::clone(&entry.sink))
    }

    /// The next piece of the transfer whose deadline comes first.
    pub(crate) fn take(&mut self, size: PieceSize) -> Option<Piece> {
        let waiting = self.transfers.iter_mut().filter(|(_, entry)| !entry.steps.is_empty());
        let (&transfer, entry) = waiting.min_by_key(|(id, entry)| (entry.deadline, **id))?;
        let step = entry.steps.front_mut()?;
        let copies = step.take(size);
        let is_last = step.copies.is_empty();
        let (batch, mark) = (step.batch.clone(), step.mark.filter(|_| is_last));
        if is_last {
            entry.steps.pop_front();
        }
        entry.in_flight += 1;
        let (direction, after) = (entry.direction, entry.after.take());
        Some(Piece { transfer, direction, copies, batch, mark, after })
    }

    /// A piece is under way no more.
    pub(crate) fn finish(&mut self, id: TransferId, outcome: Result<(), CopyError>) -> Ended {
        self.transfers.get_mut(&id)?.in_flight -= 1;
        match outcome {
            Ok(()) => self.end(id),
            Err(error) => self.fail(id, error),
        }
    }

    /// Forgets a transfer of which nothing is left to do.
    fn end(&mut self, id: TransferId) -> Ended {
        let entry = self.transfers.get(&id)?;
        if !entry.closed || entry.in_flight > 0 || !entry.steps.is_empty() {
            return None;
        }
        let Entry { sink, error, .. } = self.transfers.remove(&id)?;
        Some((sink, error.map_or(Ok(()), Err)))
    }
}

impl Step {
    fn take(&mut self, size: PieceSize) -> Vec<Copy> {
        let mut taken = Vec::new();
        let mut left = size.bytes;
        while left > 0
            && taken.len() < size.copies
            && let Some(copy) = self.copies.pop_front()
        {
            let length = copy.length.min(left);
            left -= length;
            taken.push(Copy { length, ..copy });
            if length < copy.length {
                let (source, target) = (copy.source + length, copy.target + length);
                let length = copy.length - length;
                self.copies.push_front(Copy { source, target, length });
            }
        }
        taken
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("transfers", &self.transfers.keys()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
