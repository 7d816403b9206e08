//! The thread that writes a drive's catalogue, so that the drive's own never waits for RocksDB.
//!
//! It also knows how far each segment is promised: whoever asked for a durable save waits here. The
//! catalogue is derived from the disk; where it cannot be written, the next start reads more.

use refrain_index::catalog::{Catalog, Row, Run};
use refrain_store::engine::{Durability, GroupEvent};
use refrain_store::geometry::{RecordAddress, SegmentId};
use refrain_store::segment::Entry;
use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
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
pub(crate) struct Journal {
    notes: Sender<Note>,
    promised: Arc<Promised>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Takes what a drive reports.
pub(crate) type OnGroup = Box<dyn FnMut(GroupEvent) + Send>;

/// How far each segment would survive a power loss.
#[derive(Debug)]
struct Promised {
    segments: Mutex<HashMap<SegmentId, Extent>>,
    changed: watch::Sender<()>,
}

#[derive(Clone, Copy, Debug)]
enum Extent {
    UpTo { generation: u64, end: u64 },
    Lost,
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
    pub(crate) fn start(catalog: Catalog, durability: Durability) -> io::Result<(Self, OnGroup)> {
        let (notes, received) = channel();
        let changed = watch::Sender::new(());
        let promised = Arc::new(Promised { segments: Mutex::default(), changed });
        let writer = Writer { catalog, promised: Arc::clone(&promised), durability };
        let thread = std::thread::Builder::new().name("refrain-journal".into());
        let thread = thread.spawn(move || writer.run(&received))?;
        let groups = notes.clone();
        // Nobody listens once the journal has stopped, and nothing is written any more by then.
        let on_group = Box::new(move |event| drop(groups.send(Note::Group(event))));
        Ok((Self { notes, promised, thread: Mutex::new(Some(thread)) }, on_group))
    }

    /// A record no longer counts.
    pub(crate) fn withdraw(&self, address: RecordAddress) {
        let _ = self.notes.send(Note::Withdrawn(address));
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
            match locked(&self.promised.segments).get(&address.segment) {
                Some(Extent::Lost) => return false,
                Some(Extent::UpTo { generation, end }) if *generation == address.generation.0 => {
                    if *end > address.offset {
                        return true;
                    }
                }
                Some(Extent::UpTo { generation, .. }) if *generation > address.generation.0 => {
                    return false;
                }
                Some(Extent::UpTo { .. }) | None => {}
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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding one of these.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Writer {
    catalog: Catalog,
    promised: Arc<Promised>,
    durability: Durability,
}

impl Writer {
    fn run(self, notes: &Receiver<Note>) {
        for note in notes {
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
                Note::Stop => break,
            };
            if let Err(error) = written {
                warn!(error = &error as &dyn std::error::Error, "catalogue not written");
            }
        }
        if let Err(error) = self.catalog.close() {
            warn!(error = &error as &dyn std::error::Error, "catalogue not closed");
        }
    }

    fn group(&self, event: GroupEvent) -> Result<(), refrain_index::catalog::CatalogError> {
        match event {
            GroupEvent::Durable { segment, generation, start, end, sealed, entries } => {
                // The disk has it already: the promise does not wait for the catalogue.
                if self.durability != Durability::None {
                    self.promise(segment, Extent::UpTo { generation: generation.0, end });
                }
                let group = Group { start, end, sealed, entries: &entries };
                self.catalog.commit(&run_of(segment.0, generation.0, &group))
            }
            GroupEvent::Lost { segment } => {
                self.promise(segment, Extent::Lost);
                self.catalog.forget_segment(segment.0)
            }
        }
    }

    fn promise(&self, segment: SegmentId, extent: Extent) {
        locked(&self.promised.segments).insert(segment, extent);
        self.promised.changed.send_replace(());
    }
}
