//! The thread that writes a drive's catalogue, so that the drive's own never waits for RocksDB.
//!
//! It also knows how far each segment is promised: whoever asked for a durable save waits here. The
//! catalogue is derived from the disk; where it cannot be written, the next start reads more.

use refrain_index::catalog::{Catalog, Row, Run};
use refrain_store::engine::{Durability, GroupEvent};
use refrain_store::geometry::{Generation, RecordAddress, SegmentId};
use refrain_store::segment::Entry;
use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::{oneshot, watch};
use tracing::warn;

#[derive(Debug)]
enum Note {
    Group(GroupEvent),
    Withdrawn(RecordAddress),
    Forgotten(SegmentId),
    /// Somebody waits for all that came before.
    Reached(oneshot::Sender<()>),
    Stop,
}

/// One drive's journal.
#[derive(Debug)]
pub struct Journal {
    notes: Sender<Note>,
    promised: Arc<Promised>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Takes what a drive reports.
pub type OnGroup = Box<dyn FnMut(GroupEvent) + Send>;

/// How far each segment would survive a power loss.
#[derive(Debug)]
struct Promised {
    segments: Mutex<HashMap<SegmentId, Extent>>,
    changed: watch::Sender<()>,
}

#[derive(Clone, Copy, Debug)]
struct Extent {
    generation: u64,
    /// All before it is.
    end: u64,
    /// Nothing more ever will be.
    is_lost: bool,
}

/// Of a segment that a start found: what it holds is durable.
#[derive(Clone, Copy, Debug)]
pub struct Recovered {
    pub segment: SegmentId,
    pub generation: Generation,
    pub end: u64,
}

/// The run of a group, as the catalogue keeps it.
pub(crate) fn run_of(segment: u32, generation: u64, group: &Group<'_>) -> Run {
    let rows = group.entries.iter().map(row_of).collect();
    let Group { start, end, sealed, .. } = *group;
    Run { segment, generation, start, end, sealed, rows }
}

/// Records that lie one behind the other.
pub(crate) struct Group<'a> {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) sealed: bool,
    pub(crate) entries: &'a [Entry],
}

fn row_of(entry: &Entry) -> Row {
    Row {
        offset: entry.offset,
        length: entry.payload_length,
        sequence: entry.sequence_hash,
        shard: entry.shard,
        position: entry.position,
        parent: entry.parent,
        namespace: entry.namespace,
        epoch: entry.epoch,
    }
}

impl Journal {
    /// Starts the thread; the second part is what the drive reports its groups to.
    pub(crate) fn start(
        catalog: Catalog,
        recovered: &[Recovered],
        durability: Durability,
    ) -> io::Result<(Self, OnGroup)> {
        let (journal, on_group, writer) = Self::detached(catalog, recovered, durability);
        let thread = std::thread::Builder::new().name("refrain-journal".into());
        *locked(&journal.thread) = Some(thread.spawn(move || writer.run())?);
        Ok((journal, on_group))
    }

    /// As `start` has it, without its thread: whoever holds the writer is that thread.
    pub fn detached(
        catalog: Catalog,
        recovered: &[Recovered],
        durability: Durability,
    ) -> (Self, OnGroup, Writer) {
        let (notes, received) = channel();
        let changed = watch::Sender::new(());
        let extent = |found: &Recovered| {
            let (generation, end) = (found.generation.0, found.end);
            (found.segment, Extent { generation, end, is_lost: false })
        };
        let segments = Mutex::new(recovered.iter().map(extent).collect());
        let promised = Arc::new(Promised { segments, changed });
        let writer =
            Writer { notes: received, catalog, promised: Arc::clone(&promised), durability };
        let groups = notes.clone();
        // Nobody listens once the journal has stopped, and nothing is written any more by then.
        let on_group = Box::new(move |event| drop(groups.send(Note::Group(event))));
        (Self { notes, promised, thread: Mutex::default() }, on_group, writer)
    }

    /// A record no longer counts.
    pub(crate) fn withdraw(&self, address: RecordAddress) {
        self.withdrawals()(address);
    }

    /// As `withdraw`, for whoever learns of a record later.
    pub(crate) fn withdrawals(&self) -> impl Fn(RecordAddress) + Clone + Send + use<> {
        let notes = self.notes.clone();
        // A journal that has stopped is of a node that has, too.
        move |address| drop(notes.send(Note::Withdrawn(address)))
    }

    /// Nothing in a segment counts any more.
    pub(crate) fn forget(&self, segment: SegmentId) {
        let _ = self.notes.send(Note::Forgotten(segment));
    }

    /// Returns once all that was noted so far is in the catalogue, where it can be written at all.
    pub(crate) async fn caught_up(&self) {
        let (reached, catching_up) = oneshot::channel();
        let _ = self.notes.send(Note::Reached(reached));
        // A journal that has stopped has written all.
        let _ = catching_up.await;
    }

    /// Waits until a record would survive a power loss; `false` when it never will.
    pub(crate) async fn promised(&self, address: RecordAddress) -> bool {
        let mut changed = self.promised.changed.subscribe();
        loop {
            let extent = locked(&self.promised.segments).get(&address.segment).copied();
            if let Some(Extent { generation, end, is_lost }) = extent {
                if generation > address.generation.0 {
                    return false;
                }
                if generation == address.generation.0 && end > address.offset {
                    return true;
                }
                if is_lost {
                    return false;
                }
            }
            if changed.changed().await.is_err() {
                return false;
            }
        }
    }

    /// Writes what has come and closes the catalogue. Blocks until then.
    pub(crate) fn stop(&self) {
        let _ = self.notes.send(Note::Stop);
        if let Some(thread) = locked(&self.thread).take() {
            // A panic of the thread has been reported by itself.
            let _ = thread.join();
        }
    }
}

impl Drop for Journal {
    /// Wherever a start ends half-way, RocksDB's threads must not outlive the process's last function.
    fn drop(&mut self) {
        self.stop();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding one of these.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes what was noted.
#[derive(Debug)]
pub struct Writer {
    notes: Receiver<Note>,
    catalog: Catalog,
    promised: Arc<Promised>,
    durability: Durability,
}

impl Writer {
    fn run(self) {
        while let Ok(note) = self.notes.recv()
            && self.write(note)
        {}
        self.close();
    }

    /// Writes the next note; `false`: there is none.
    pub fn write_next(&self) -> bool {
        match self.notes.try_recv() {
            Ok(note) => self.write(note),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => false,
        }
    }

    /// `false`: it was the last.
    fn write(&self, note: Note) -> bool {
        let written = match note {
            Note::Group(event) => self.group(event),
            Note::Withdrawn(RecordAddress { segment, generation, offset }) => {
                self.catalog.withdraw(segment.0, generation.0, offset)
            }
            Note::Forgotten(segment) => self.catalog.forget_segment(segment.0),
            Note::Reached(reached) => {
                // Whoever asked may have gone.
                let _ = reached.send(());
                Ok(())
            }
            Note::Stop => return false,
        };
        if let Err(error) = written {
            warn!(error = &error as &dyn std::error::Error, "catalogue not written");
        }
        true
    }

    /// Closes the catalogue, so that the next start replays no log.
    pub fn close(self) {
        if let Err(error) = self.catalog.close() {
            warn!(error = &error as &dyn std::error::Error, "catalogue not closed");
        }
    }

    fn group(&self, event: GroupEvent) -> Result<(), refrain_index::catalog::CatalogError> {
        match event {
            GroupEvent::Durable { segment, generation, start, end, sealed, entries } => {
                // The disk has it already: the promise does not wait for the catalogue.
                if self.durability != Durability::None {
                    let extent = Extent { generation: generation.0, end, is_lost: false };
                    locked(&self.promised.segments).insert(segment, extent);
                    self.promised.changed.send_replace(());
                }
                let group = Group { start, end, sealed, entries: &entries };
                self.catalog.commit(&run_of(segment.0, generation.0, &group))
            }
            GroupEvent::Lost { segment } => {
                // What was promised before stays so.
                let none = Extent { generation: 0, end: 0, is_lost: true };
                locked(&self.promised.segments).entry(segment).or_insert(none).is_lost = true;
                self.promised.changed.send_replace(());
                self.catalog.forget_segment(segment.0)
            }
        }
    }
}
