//! Proves what an engine keeps to, whatever its device does and however long it takes: driven by hand,
//! operation by operation, over bytes in memory and a time that the test sets.

use super::*;
use crate::arena::{Frame, Mapping};
use crate::check::{ReadError, Shape};
use crate::geometry::{Generation, HEADER_SIZE, Layout, RECORDS_START, SegmentId};
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, TryRecvError, channel};

mod bounds;
mod reads;
mod writes;

const SEGMENT: u64 = 1 << 20;
/// A segment takes 15 of them, and is three quarters full with 12.
const RECORD: u64 = 64 << 10;
const RECORDS: u64 = 15;
const MILLISECOND: Duration = Duration::from_millis(1);

type Operation = (OpId, DeviceOp);
type Stores = Receiver<Result<Stored, AppendError>>;

struct Drive {
    engine: Engine,
    now: Instant,
    arena: Arc<Arena>,
    counters: Arc<Counters>,
    groups: Receiver<GroupEvent>,
    files: HashMap<u32, Vec<u8>>,
}

#[derive(Default)]
struct Sink(Mutex<Heard>);

#[derive(Clone, Debug, Default, PartialEq)]
struct Heard {
    stripes: Vec<usize>,
    outcome: Option<Result<(), ReadError>>,
}

impl ReadSink for Sink {
    fn stripe(&self, index: usize) {
        self.0.lock().unwrap().stripes.push(index);
    }
    fn done(&self, outcome: Result<(), ReadError>) {
        assert_eq!(self.0.lock().unwrap().outcome.replace(outcome), None, "told twice");
    }
}

impl Sink {
    fn outcome(&self) -> Option<Result<(), ReadError>> {
        self.0.lock().unwrap().outcome.clone()
    }
}

/// Above what any test needs, where a test does not set it.
fn limits() -> Limits {
    Limits { group_bytes: 1 << 40, ..Limits::default() }
}

impl Drive {
    fn new(segments: u32, durability: Durability, limits: Limits) -> Self {
        let arena = Arena::new(Mapping::create("engine", 256 << 20).unwrap());
        let counters = Arc::new(Counters::default());
        let (sender, groups) = channel();
        let free = |id| SegmentStatus {
            id: SegmentId(id),
            generation: Generation(0),
            birth: 0,
            state: SegmentState::Free,
            end: RECORDS_START,
        };
        let setup = |id| SegmentSetup { status: free(id), entries: Vec::new() };
        let engine = Engine::new(Setup {
            store_id: [3; 16],
            segment_bytes: SEGMENT,
            durability,
            limits,
            segments: (0..segments).map(setup).collect(),
            scratch: Arc::clone(&arena),
            counters: Arc::clone(&counters),
            on_group: Box::new(move |event| sender.send(event).unwrap()),
        });
        Self { engine, now: Instant::now(), arena, counters, groups, files: HashMap::new() }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// All but a millisecond of it.
    fn pass_most_of(&mut self, time: Duration) {
        self.pass(time.checked_sub(MILLISECOND).unwrap());
    }

    /// What it starts now.
    fn advance(&mut self) -> Vec<Operation> {
        self.engine.advance(self.now);
        std::iter::from_fn(|| self.engine.next_operation()).collect()
    }

    /// Does all of an operation.
    fn finish(&mut self, operation: &Operation) {
        self.transfer(operation, operation.1.bytes());
    }

    fn finish_all(&mut self, operations: &[Operation]) {
        for operation in operations {
            self.finish(operation);
        }
    }

    /// Does the first bytes of an operation, which then ends.
    fn transfer(&mut self, (op, operation): &Operation, bytes: u64) {
        let length = usize::try_from(bytes).unwrap();
        match operation {
            DeviceOp::Read { file, offset, region } => {
                let at = usize::try_from(*offset).unwrap();
                region.copy_from(0, &self.file(*file)[at..at + length]);
            }
            DeviceOp::Write { file, offset, region } => {
                let at = usize::try_from(*offset).unwrap();
                let written = &region.bytes()[..length];
                self.file(*file)[at..at + length].copy_from_slice(written);
            }
            DeviceOp::Sync { .. } => {}
        }
        self.end(*op, Ok(bytes));
    }

    fn end(&mut self, op: OpId, result: Result<u64, Errno>) {
        self.engine.complete(Completion { op, result }, self.now);
        self.engine.check_arrived();
    }

    fn file(&mut self, file: u32) -> &mut Vec<u8> {
        self.files.entry(file).or_insert_with(|| vec![0; usize::try_from(SEGMENT).unwrap()])
    }

    /// Does whatever it starts, until it starts nothing more at this time.
    fn settle(&mut self) -> Vec<Operation> {
        let mut all = Vec::new();
        loop {
            let started = self.advance();
            if started.is_empty() {
                return all;
            }
            self.finish_all(&started);
            all.extend(started);
        }
    }

    fn append(&mut self, length: u64) -> Stores {
        let layout = Layout::new(1, length - HEADER_SIZE).unwrap();
        let frame = self.frame(length);
        let region = frame.region().slice(0, length - HEADER_SIZE);
        region.fill_with(|bytes| fastrand::Rng::with_seed(7).fill(bytes));
        let (sender, stored) = channel();
        let append = Append {
            header: NewRecord {
                key_scheme: 1,
                sequence_hash: [1; 32],
                shard: 0,
                parent: [0; 32],
                namespace: [9; 32],
                epoch: 0,
                position: 0,
            },
            payload: Payload::new(&layout, region).unwrap(),
            keep: Some(Box::new(frame)),
            reply: Box::new(move |outcome| sender.send(outcome).unwrap()),
        };
        self.engine.append(append, self.now);
        stored
    }

    /// As many records as asked for, written and, after a sync, promised.
    fn filled(&mut self, records: u64) -> Vec<Stored> {
        let stores: Vec<_> = (0..records).map(|_| self.append(RECORD)).collect();
        self.settle();
        self.pass(limits().group_interval);
        self.settle();
        stores.iter().map(|stored| stored.try_recv().unwrap().unwrap()).collect()
    }

    fn frame(&self, bytes: u64) -> Frame {
        self.arena.allocate(bytes).unwrap()
    }

    fn request(&self, stored: Stored, sink: &Arc<Sink>, deadline: Option<Duration>) -> RecordRead {
        RecordRead {
            address: stored.address,
            sequence_hash: [1; 32],
            shard: 0,
            namespace: [9; 32],
            shape: Shape::Stored(stored.stored_length),
            frame: Arc::new(self.frame(stored.stored_length)),
            by_stripe: false,
            deadline: deadline.map(|ahead| self.now + ahead),
            sink: Arc::clone(sink) as Arc<dyn ReadSink>,
        }
    }

    /// Asks for one record.
    fn read(&mut self, stored: Stored, deadline: Option<Duration>) -> Arc<Sink> {
        let sink = Arc::default();
        let request = self.request(stored, &sink, deadline);
        self.engine.read(vec![request]);
        sink
    }

    fn state(&self, segment: u32) -> SegmentState {
        self.engine.segments()[SegmentId(segment).index()].state
    }
}

fn syncs(operations: &[Operation]) -> usize {
    operations.iter().filter(|(_, it)| matches!(it, DeviceOp::Sync { .. })).count()
}

/// Writes that begin at `offset`.
fn writes_at(operations: &[Operation], offset: u64) -> usize {
    let is_there =
        |it: &&Operation| matches!(&it.1, DeviceOp::Write { offset: at, .. } if *at == offset);
    operations.iter().filter(is_there).count()
}

fn file_of(operation: &DeviceOp) -> u32 {
    match operation {
        DeviceOp::Read { file, .. } | DeviceOp::Write { file, .. } | DeviceOp::Sync { file } => {
            *file
        }
    }
}
