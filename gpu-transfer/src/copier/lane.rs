//! A thread that makes the copies of one direction.

use super::queue::{Ended, Piece, PieceSize, Queue, TransferId};
use super::{CopyError, CopySink, Fence};
use crate::cuda::{Event, Submitter};
use crate::host;
use crate::memory::Place;
use crate::paged::{Batch, Direction};
use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Instant;
#[cfg(not(loom))]
use std::{
    sync::{Condvar, Mutex, MutexGuard},
    thread,
};

#[cfg(loom)]
use loom::{
    sync::{Condvar, Mutex, MutexGuard},
    thread,
};

/// Pieces that a stream has at once. While one runs the next stands behind it, and the third is
/// being put there.
pub(crate) const PIECES_IN_FLIGHT: usize = 3;

/// 0.6 ms at the rate of PCIe 5: long beside a launch, short beside a deadline.
pub(crate) const DEVICE_PIECE: PieceSize = PieceSize { bytes: 32 << 20, copies: 4096 };
const HOST_PIECE: PieceSize = PieceSize { bytes: 4 << 20, copies: 4096 };

/// Who makes the copies.
#[derive(Debug)]
pub(crate) enum Maker {
    Host,
    Cuda(Submitter),
}

/// A piece under way.
type Running = (Piece, Arc<Event>);

#[derive(Debug)]
pub(crate) struct Lane {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// There is something to do.
    work: Condvar,
    /// A transfer has ended.
    ended: Condvar,
}

/// One load or save. Dropped before it has ended, it is cancelled, and dropping returns only when
/// none of its copies runs any more: the caller may then do with the memory as it likes.
#[derive(Debug)]
pub struct Transfer {
    shared: Arc<Shared>,
    id: TransferId,
    place: Place,
    direction: Direction,
}

impl Transfer {
    /// Adds copies, to be made behind those added before. With a mark the sink is told when they
    /// are on their way; a mark alone stands behind all before it.
    ///
    /// Panics when the batch is of the other direction, or its memory not where this copier copies.
    pub fn push(&self, batch: Option<Batch>, mark: Option<usize>) {
        if let Some(batch) = &batch {
            assert_eq!((batch.direction(), batch.place()), (self.direction, Some(self.place)));
        }
        self.shared.queue().push(self.id, batch, mark);
        self.shared.work.notify_one();
    }

    /// Nothing more will be added: the transfer ends when all is copied.
    pub fn close(&self) {
        let ended = self.shared.queue().close(self.id);
        self.shared.tell(ended);
    }

    /// Makes none of what is not on its way yet. Does not wait for the rest.
    pub fn cancel(&self) {
        let ended = self.shared.queue().fail(self.id, CopyError::Cancelled);
        self.shared.tell(ended);
    }

    /// Cancels, and returns when none of its copies runs any more.
    pub fn abandon(&self) {
        self.cancel();
        let mut queue = self.shared.queue();
        while queue.contains(self.id) {
            queue = self.shared.ended.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.abandon();
    }
}

impl Lane {
    pub(crate) fn start(name: &str, maker: Maker) -> Result<Arc<Self>, CopyError> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let named = thread::Builder::new().name(name.to_owned());
        let started = named.spawn(move || {
            let stopping = Stopping(&theirs);
            stopping.0.run(maker);
        });
        started.map_err(|source| CopyError::Thread { source: Arc::new(source) })?;
        Ok(Arc::new(Self { shared }))
    }

    pub(crate) fn begin(
        &self,
        place: Place,
        direction: Direction,
        deadline: Instant,
        after: Option<Arc<Event>>,
        sink: Arc<dyn CopySink>,
    ) -> Transfer {
        let id = self.shared.queue().begin(direction, deadline, after, sink);
        Transfer { shared: Arc::clone(&self.shared), id, place, direction }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.shared.queue().stopped = true;
        self.shared.work.notify_one();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics half-way through a change of it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, ended: Ended) {
        if let Some((sink, outcome)) = ended {
            sink.ended(outcome);
            self.ended.notify_all();
            // The last one of a lane that was dropped: its thread sleeps, and has nothing to wait for.
            if self.queue().is_over() {
                self.work.notify_one();
            }
        }
    }

    /// Makes copies until the lane is dropped and all that was begun has ended.
    fn run(&self, mut maker: Maker) {
        let mut running: VecDeque<Running> = VecDeque::new();
        loop {
            let has_room = running.len() < PIECES_IN_FLIGHT;
            let piece = if has_room { self.queue().take(maker.piece_size()) } else { None };
            if let Some(piece) = piece {
                running.extend(self.make(&mut maker, piece));
            } else if let Some((piece, event)) = running.pop_front() {
                self.finish(&piece, event.wait().map_err(CopyError::from));
            } else if !self.wait() {
                return;
            }
        }
    }

    /// Sleeps until there may be something to do; `false`: there never will be.
    fn wait(&self) -> bool {
        let mut queue = self.queue();
        while !queue.has_work() && !queue.is_over() {
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        !queue.is_over()
    }

    /// Puts a piece on its way, and says what to wait for if it has not arrived by then.
    fn make(&self, maker: &mut Maker, piece: Piece) -> Option<Running> {
        let event = match maker {
            Maker::Host => {
                host::run(&piece);
                Ok(None)
            }
            Maker::Cuda(submitter) => submitter.submit(&piece).map(Some),
        };
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                self.finish(&piece, Err(error.into()));
                return None;
            }
        };
        let sink = piece.mark.and_then(|mark| Some((mark, self.queue().sink(piece.transfer)?)));
        if let Some((mark, sink)) = sink {
            sink.marked(mark, Fence(event.clone()));
        }
        if event.is_none() {
            self.finish(&piece, Ok(()));
        }
        event.map(|event| (piece, event))
    }

    fn finish(&self, piece: &Piece, outcome: Result<(), CopyError>) {
        let ended = self.queue().finish(piece.transfer, outcome);
        self.tell(ended);
    }
}

impl Maker {
    fn piece_size(&self) -> PieceSize {
        match self {
            Self::Host => HOST_PIECE,
            Self::Cuda(_) => DEVICE_PIECE,
        }
    }
}

/// However the thread ends, nobody waits for it in vain.
struct Stopping<'a>(&'a Shared);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.stopped = true;
        let left = queue.abandon();
        drop(queue);
        for sink in left {
            sink.ended(Err(CopyError::Stopped));
        }
        self.0.ended.notify_all();
    }
}

#[cfg(all(test, loom))]
mod handshakes;
