//! Writes: records appended to segments in order, synced in groups, sealed when full.
//!
//! A record is read by others only after its bytes were written, and promised only after a sync
//! that began when all records before it in its segment were written too. So whatever recovery
//! finds up to the first unreadable header includes everything that was promised.

use super::rate::Rate;
use super::segments::{SegmentState, SegmentStatus};
use super::{Append, AppendError, Limits, Setup, entry_of};
use crate::arena::Arena;
use crate::device::DeviceOp;
use crate::format::RecordHeader;
use crate::geometry::{Generation, HEADER_SIZE, PAGE_SIZE, RECORDS_START, SegmentId};
use crate::segment::{self, Entry, SegmentHead};
use crate::stats::Counters;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

mod open;

use open::{OpenSegment, Step};

/// What a save waits for before it is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Nothing is synced: a power loss may cost all that the device had not written by itself.
    None,
    /// A sync for each group of records.
    Group,
    /// As `Group`, without waiting for a group to fill, and nobody reads a record before.
    Sync,
}

/// What became of a run of records. Called on the drive's thread: it must not block.
#[derive(Debug)]
pub enum GroupEvent {
    /// Records of one segment that a power loss leaves. Runs of a segment come in order, without
    /// gaps, the first from [`RECORDS_START`] on.
    Durable {
        segment: SegmentId,
        generation: Generation,
        start: u64,
        end: u64,
        sealed: bool,
        entries: Vec<Entry>,
    },
    /// A write or sync failed: nothing in the segment counts any more.
    Lost { segment: SegmentId },
}

/// A write in flight: of which segment, and what for.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteOp {
    segment: SegmentId,
    step: Step,
    length: u64,
}

struct Waiting {
    append: Append,
    since: Instant,
}

pub(super) struct Log {
    store_id: [u8; 16],
    segment_bytes: u64,
    durability: Durability,
    statuses: Vec<SegmentStatus>,
    statuses_changed: bool,
    birth: u64,
    /// Takes records, unless it is the one being prepared.
    current: Option<OpenSegment>,
    /// Made ready ahead, so that no record waits for a head to be synced.
    next: Option<OpenSegment>,
    /// Full, with writes or their seal under way.
    sealing: Vec<OpenSegment>,
    queue: VecDeque<Waiting>,
    queued_bytes: u64,
    bytes_in_flight: u64,
    operations: usize,
    stopping: bool,
    rate: Rate,
    scratch: Arc<Arena>,
    counters: Arc<Counters>,
    on_group: Box<dyn FnMut(GroupEvent) + Send>,
}

impl Log {
    pub(super) fn new(setup: Setup) -> Self {
        let birth = setup.segments.iter().map(|known| known.status.birth).max().unwrap_or(0);
        let mut statuses: Vec<_> = setup.segments.iter().map(|known| known.status).collect();
        let current = setup
            .segments
            .into_iter()
            .filter(|known| known.status.state == SegmentState::Open)
            .max_by_key(|known| known.status.birth);
        // Only the youngest is written on; another that was never sealed is read as it is.
        for status in statuses.iter_mut().filter(|status| status.state == SegmentState::Open) {
            if current.as_ref().is_none_or(|current| current.status.id != status.id) {
                status.state = SegmentState::Sealed;
            }
        }
        let mut log = Self {
            store_id: setup.store_id,
            segment_bytes: setup.segment_bytes,
            durability: setup.durability,
            statuses,
            statuses_changed: true,
            birth,
            current: current.map(|known| OpenSegment::resume(known.status, known.entries)),
            next: None,
            sealing: Vec::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            bytes_in_flight: 0,
            operations: 0,
            stopping: false,
            rate: Rate::default(),
            scratch: setup.scratch,
            counters: setup.counters,
            on_group: setup.on_group,
        };
        log.count_free();
        log
    }

    pub(super) fn queued_bytes(&self) -> u64 {
        self.queued_bytes + self.bytes_in_flight
    }

    pub(super) fn segments(&self) -> Vec<SegmentStatus> {
        self.statuses.clone()
    }

    pub(super) fn take_segments_changed(&mut self) -> bool {
        std::mem::take(&mut self.statuses_changed)
    }

    pub(super) fn is_idle(&self) -> bool {
        let settled = |open: &OpenSegment| open.is_settled();
        self.operations == 0
            && self.sealing.is_empty()
            && self.queue.is_empty()
            && self.current.as_ref().is_none_or(settled)
    }

    pub(super) fn enqueue(&mut self, append: Append, now: Instant) {
        let (length, limit) =
            (append.payload.stored_length(), segment::record_max(self.segment_bytes));
        let refusal = if self.stopping {
            Some(AppendError::Stopped)
        } else if self.is_read_only() {
            Some(AppendError::ReadOnly)
        } else if length > limit {
            Some(AppendError::TooLarge { length, limit })
        } else {
            None
        };
        if let Some(error) = refusal {
            (append.reply)(Err(error));
        } else {
            self.queued_bytes += length;
            self.queue.push_back(Waiting { append, since: now });
        }
    }

    pub(super) fn release(&mut self, id: SegmentId) {
        let status = &mut self.statuses[id.index()];
        if status.state == SegmentState::Sealed {
            status.state = SegmentState::Free;
            self.statuses_changed = true;
            self.count_free();
        }
    }

    pub(super) fn stop(&mut self) {
        self.stopping = true;
        self.refuse_all(AppendError::Stopped);
    }

    /// Whether a record waits for a segment, and none is on the way.
    fn is_starving(&self, waiting: &Waiting) -> bool {
        let length = waiting.append.payload.stored_length();
        let fits = |open: &OpenSegment| open.has_room(self.segment_bytes, length);
        self.next.is_none()
            && !self.current.as_ref().is_some_and(fits)
            && self.free_segment().is_none()
    }

    /// When something becomes due.
    pub(super) fn deadlines(&self, limits: &Limits) -> impl Iterator<Item = Instant> {
        let (interval, patience) = (limits.group_interval, limits.space_patience);
        let open = self.current.iter().chain(&self.sealing);
        let groups = open.filter_map(move |open| open.group_deadline(interval));
        let starving = self.queue.front().filter(|waiting| self.is_starving(waiting));
        groups.chain(starving.map(move |waiting| waiting.since + patience))
    }

    /// The next write that the limits allow, in the order that recovery relies on.
    pub(super) fn next(
        &mut self,
        now: Instant,
        write_bytes: u64,
        limits: &Limits,
    ) -> Option<(WriteOp, DeviceOp)> {
        if self.is_read_only() {
            return None;
        }
        if let Some(started) = self.next_of_open(now, limits) {
            return Some(self.started(started, now));
        }
        self.end_patience(now, limits);
        if self.bytes_in_flight >= write_bytes {
            return None;
        }
        // A record's two halves go to one segment: only then may another take its place.
        let started = self.finish_placing().or_else(|| {
            self.make_room();
            self.place_next().or_else(|| self.prepare_next())
        })?;
        Some(self.started(started, now))
    }

    /// Syncs and seals first: others wait for them.
    fn next_of_open(&mut self, now: Instant, limits: &Limits) -> Option<(WriteOp, DeviceOp)> {
        let (store_id, segment_bytes, scratch) = (self.store_id, self.segment_bytes, &self.scratch);
        let eager = self.stopping || self.durability == Durability::Sync;
        let open = self.sealing.iter_mut().chain(self.current.as_mut()).chain(self.next.as_mut());
        for segment in open {
            let due = eager || segment.group_is_due(now, limits);
            if due && self.durability == Durability::None {
                segment.promise_unsynced(now);
                if let Some(event) = segment.take_group() {
                    (self.on_group)(event);
                }
            }
            let seal = (store_id, segment_bytes);
            if let Some((step, operation)) = segment.next_step(due, seal, scratch) {
                let length = operation.bytes();
                return Some((WriteOp { segment: segment.id(), step, length }, operation));
            }
        }
        None
    }

    fn started(&mut self, started: (WriteOp, DeviceOp), now: Instant) -> (WriteOp, DeviceOp) {
        self.operations += 1;
        self.bytes_in_flight += started.0.length;
        self.rate.begin(now);
        started
    }

    /// Refuses records that found no segment to go to for too long.
    fn end_patience(&mut self, now: Instant, limits: &Limits) {
        while let Some(waiting) = self.queue.front()
            && self.is_starving(waiting)
            && now.saturating_duration_since(waiting.since) >= limits.space_patience
        {
            let waiting = self.queue.pop_front().expect("looked at above");
            self.queued_bytes -= waiting.append.payload.stored_length();
            (waiting.append.reply)(Err(AppendError::NoSpace));
        }
    }

    /// Puts the segment that is ready in the place of a full one.
    fn make_room(&mut self) {
        let Some(waiting) = self.queue.front() else { return };
        let length = waiting.append.payload.stored_length();
        let segment_bytes = self.segment_bytes;
        let fits = |open: &OpenSegment| open.has_room(segment_bytes, length);
        if self.current.as_ref().is_some_and(fits) {
            return;
        }
        if self.next.as_ref().is_some_and(OpenSegment::is_prepared)
            && let Some(mut full) = std::mem::replace(&mut self.current, self.next.take())
        {
            full.begin_seal();
            self.sealing.push(full);
        }
    }

    /// The payload of a record whose header is out.
    fn finish_placing(&mut self) -> Option<(WriteOp, DeviceOp)> {
        let current = self.current.as_mut()?;
        let (step, operation) = current.next_payload()?;
        let length = operation.bytes();
        Some((WriteOp { segment: current.id(), step, length }, operation))
    }

    /// The header of the next record, where it fits.
    fn place_next(&mut self) -> Option<(WriteOp, DeviceOp)> {
        let current = self.current.as_mut()?;
        let segment = current.id();
        let length = self.queue.front()?.append.payload.stored_length();
        if !current.has_room(self.segment_bytes, length) {
            return None;
        }
        let frame = self.scratch.allocate(HEADER_SIZE)?;
        let Waiting { mut append, .. } = self.queue.pop_front().expect("looked at above");
        self.queued_bytes -= length;
        let stripes = std::mem::take(&mut append.payload.stripes);
        let (address, length) = (current.next_address(), append.payload.length);
        let header = append.header.header(self.store_id, address, length, stripes);
        let bytes = header.encode().expect("a payload's stripes make a right header");
        frame.region().copy_from(0, &bytes[..]);
        let entry = entry_of(&header, RecordHeader::checksum_of(&bytes));
        let (step, operation) = current.place(entry, append, frame);
        let status = &mut self.statuses[segment.index()];
        status.end = current.cursor();
        self.statuses_changed = true;
        Some((WriteOp { segment, step, length: HEADER_SIZE }, operation))
    }

    /// Begins to make a segment ready when the current one runs out, or there is none.
    fn prepare_next(&mut self) -> Option<(WriteOp, DeviceOp)> {
        let low = self.segment_bytes - self.segment_bytes / 4;
        let needed = match &self.current {
            None => !self.queue.is_empty(),
            Some(current) => {
                let length =
                    self.queue.front().map_or(0, |next| next.append.payload.stored_length());
                current.cursor() >= low || !current.has_room(self.segment_bytes, length)
            }
        };
        if !needed || self.next.is_some() || self.stopping {
            return None;
        }
        let id = self.free_segment()?;
        let frame = self.scratch.allocate(PAGE_SIZE)?;
        self.birth += 1;
        let status = &mut self.statuses[id.index()];
        status.generation = Generation(status.generation.0 + 1);
        status.birth = self.birth;
        status.state = SegmentState::Open;
        status.end = RECORDS_START;
        let head = SegmentHead { id, generation: status.generation, birth: status.birth };
        frame.region().copy_from(0, &head.encode(self.store_id)[..]);
        let mut next = OpenSegment::begin(*status);
        let (step, operation) = next.write_head(frame);
        self.next = Some(next);
        self.statuses_changed = true;
        self.count_free();
        Some((WriteOp { segment: id, step, length: PAGE_SIZE }, operation))
    }

    pub(super) fn complete(
        &mut self,
        op: WriteOp,
        bytes: u64,
        result: Result<(), Errno>,
        now: Instant,
    ) {
        self.operations -= 1;
        self.bytes_in_flight -= op.length;
        let busy = self.operations > 0;
        self.rate.add(bytes, now, busy, &self.counters.write_bytes_per_second);
        let open = self.sealing.iter_mut().chain(self.current.as_mut()).chain(self.next.as_mut());
        let Some(segment) = open.into_iter().find(|open| open.id() == op.segment) else {
            return;
        };
        if let Err(errno) = result {
            self.counters.write_errors.add(1);
            self.lose(errno);
            return;
        }
        self.counters.written_bytes.add(bytes);
        let answer_early = self.durability != Durability::Sync;
        segment.finish_step(op.step, answer_early, now);
        if matches!(op.step, Step::Sync { .. }) {
            self.counters.syncs.add(1);
        }
        if let Some(event) = segment.take_group() {
            (self.on_group)(event);
        }
        if segment.is_sealed() {
            self.sealing.retain(|open| open.id() != op.segment);
            self.statuses[op.segment.index()].state = SegmentState::Sealed;
            self.statuses_changed = true;
        }
    }

    /// A failed write or sync is not tried again: what the device holds of it is not known.
    fn lose(&mut self, errno: Errno) {
        self.counters.read_only.set(1);
        let open = self.sealing.drain(..).chain(self.current.take()).chain(self.next.take());
        for segment in open.collect::<Vec<_>>() {
            let id = segment.id();
            self.statuses[id.index()].state = SegmentState::Lost;
            segment.fail(errno);
            (self.on_group)(GroupEvent::Lost { segment: id });
        }
        self.statuses_changed = true;
        self.refuse_all(AppendError::ReadOnly);
    }

    fn refuse_all(&mut self, error: AppendError) {
        for waiting in self.queue.drain(..) {
            (waiting.append.reply)(Err(error));
        }
        self.queued_bytes = 0;
    }

    fn is_read_only(&self) -> bool {
        self.counters.read_only.get() != 0
    }

    /// The one that has been free the longest.
    fn free_segment(&self) -> Option<SegmentId> {
        let free = self.statuses.iter().filter(|status| status.state == SegmentState::Free);
        free.min_by_key(|status| (status.birth, status.id)).map(|status| status.id)
    }

    fn count_free(&mut self) {
        let free = self.statuses.iter().filter(|status| status.state == SegmentState::Free);
        self.counters.segments_free.set(u64::try_from(free.count()).expect("usize fits"));
    }
}
