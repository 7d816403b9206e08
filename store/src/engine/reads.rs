//! Reads: records in parts, each part checked before anybody hears of it.

use super::rate::Rate;
use crate::arena::Frame;
use crate::check::{self, ReadError, Shape, Wanted};
use crate::device::DeviceOp;
use crate::format::RecordHeader;
use crate::geometry::{HEADER_SIZE, PAGE_SIZE, RecordAddress};
use crate::stats::Counters;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long after a read writes still make room for the next. Some reads long, so that a client
/// has time to ask again; too short for a save to notice.
const AFTERGLOW: Duration = Duration::from_millis(20);

/// Who hears how a read goes. Called on the drive's thread: it must not block.
pub trait ReadSink: Send + Sync {
    /// Stripe `index` is in the frame, and checked.
    fn stripe(&self, index: usize);
    /// The end, once, after all stripes.
    fn done(&self, outcome: Result<(), ReadError>);
}

/// A record to be read into a frame: the header first, the payload [`HEADER_SIZE`] behind it.
#[derive(Clone)]
pub struct RecordRead {
    pub address: RecordAddress,
    pub sequence_hash: [u8; 32],
    pub shard: u32,
    pub namespace: [u8; 32],
    pub shape: Shape,
    pub frame: Arc<Frame>,
    /// One operation a stripe, in the order of the stripes over all records of a call; otherwise,
    /// and where the layout is not known, one operation a record.
    pub by_stripe: bool,
    /// A read that has not begun by then is answered as late.
    pub deadline: Option<Instant>,
    pub sink: Arc<dyn ReadSink>,
}

impl std::fmt::Debug for RecordRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordRead").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Stripes `first..first + count` of a record; the header comes with stripe 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    record: usize,
    first: usize,
    count: usize,
}

#[derive(Debug)]
struct Active {
    request: RecordRead,
    wanted: Wanted,
    header: Option<RecordHeader>,
    /// Read before the header was.
    unchecked: Vec<usize>,
    /// Not checked yet; known from the header on.
    stripes_left: Option<usize>,
    /// Queued or in flight: while there are any, the frame is kept.
    parts_left: usize,
    answered: bool,
}

#[derive(Debug)]
pub(super) struct Reads {
    store_id: [u8; 16],
    active: Vec<Option<Active>>,
    free: Vec<usize>,
    queue: VecDeque<Part>,
    /// Before this nothing that waits is late; somewhat early where the first to be late has begun.
    late_from: Option<Instant>,
    queued_bytes: u64,
    bytes_in_flight: u64,
    parts_in_flight: usize,
    last_completed: Option<Instant>,
    /// Read, and not looked at yet.
    arrived: Vec<(Part, u64, Result<(), Errno>)>,
    rate: Rate,
    counters: Arc<Counters>,
}

impl Reads {
    pub(super) fn new(store_id: [u8; 16], counters: Arc<Counters>) -> Self {
        Self {
            store_id,
            active: Vec::new(),
            free: Vec::new(),
            queue: VecDeque::new(),
            late_from: None,
            queued_bytes: 0,
            bytes_in_flight: 0,
            parts_in_flight: 0,
            last_completed: None,
            arrived: Vec::new(),
            rate: Rate::default(),
            counters,
        }
    }

    pub(super) fn bytes_in_flight(&self) -> u64 {
        self.bytes_in_flight
    }

    pub(super) fn queued_bytes(&self) -> u64 {
        self.queued_bytes + self.bytes_in_flight
    }

    /// Whether anybody reads, or did a moment ago: a prefix is read in several calls, and between
    /// two of them the device must not fill with writes that the next would wait behind.
    pub(super) fn is_busy(&self, now: Instant) -> bool {
        let lately = |at: Instant| now.saturating_duration_since(at) < AFTERGLOW;
        self.parts_in_flight > 0
            || !self.queue.is_empty()
            || self.last_completed.is_some_and(lately)
    }

    pub(super) fn enqueue(&mut self, records: Vec<RecordRead>) {
        if self.queue.is_empty() {
            self.late_from = None;
        }
        let added: Vec<_> = records.into_iter().filter_map(|request| self.add(request)).collect();
        let rounds = added.iter().map(|&(_, parts, _)| parts).max().unwrap_or(0);
        for first in 0..rounds {
            for &(record, parts, stripes) in added.iter().filter(|added| first < added.1) {
                let count = if parts == 1 { stripes } else { 1 };
                let part = Part { record, first, count };
                self.queued_bytes += self.range(part).1;
                self.queue.push_back(part);
            }
        }
    }

    /// The record's number, parts and stripes, if its frame has room for it.
    fn add(&mut self, request: RecordRead) -> Option<(usize, usize, usize)> {
        if request.frame.region().length() < request.shape.stored_length() {
            request.sink.done(Err(ReadError::Layout));
            return None;
        }
        let stripes = match &request.shape {
            Shape::Layout(layout) => layout.stripes.len(),
            Shape::Stored(_) => 1,
        };
        let parts = if request.by_stripe { stripes } else { 1 };
        let wanted = Wanted {
            store_id: self.store_id,
            address: request.address,
            sequence_hash: request.sequence_hash,
            shard: request.shard,
            namespace: request.namespace,
        };
        self.late_from = earlier(self.late_from, request.deadline);
        let record = self.free.pop().unwrap_or_else(|| {
            self.active.push(None);
            self.active.len() - 1
        });
        self.active[record] = Some(Active {
            request,
            wanted,
            header: None,
            unchecked: Vec::new(),
            stripes_left: None,
            parts_left: parts,
            answered: false,
        });
        Some((record, parts, stripes))
    }

    /// The next part that is worth reading.
    pub(super) fn next(&mut self, now: Instant) -> Option<(Part, DeviceOp)> {
        while let Some(part) = self.queue.pop_front() {
            let (offset, length) = self.range(part);
            self.queued_bytes -= length;
            let active = self.active[part.record].as_mut().expect("a queued part has its record");
            if active.request.deadline.is_some_and(|deadline| deadline <= now) {
                active.answer(Err(ReadError::Deadline));
            }
            if active.answered {
                self.leave(part.record);
                continue;
            }
            let address = active.request.address;
            let operation = DeviceOp::Read {
                file: address.segment.0,
                offset: address.offset + offset,
                region: active.request.frame.region().slice(offset, length),
            };
            self.rate.begin(now);
            self.bytes_in_flight += length;
            self.parts_in_flight += 1;
            return Some((part, operation));
        }
        None
    }

    pub(super) fn complete(
        &mut self,
        part: Part,
        bytes: u64,
        result: Result<(), Errno>,
        now: Instant,
    ) {
        self.bytes_in_flight -= self.range(part).1;
        self.parts_in_flight -= 1;
        self.last_completed = Some(now);
        let busy = self.parts_in_flight > 0;
        self.rate.add(bytes, now, busy, &self.counters.read_bytes_per_second);
        self.arrived.push((part, bytes, result));
    }

    pub(super) fn has_arrived(&self) -> bool {
        !self.arrived.is_empty()
    }

    pub(super) fn check_arrived(&mut self) {
        let mut arrived = std::mem::take(&mut self.arrived);
        for (part, bytes, result) in arrived.drain(..) {
            self.check(part, bytes, result);
        }
        // Its memory serves the next round.
        self.arrived = arrived;
    }

    fn check(&mut self, part: Part, bytes: u64, result: Result<(), Errno>) {
        let active = self.active[part.record].as_mut().expect("a part has its record");
        match result {
            Ok(()) => {
                self.counters.read_bytes.add(bytes);
                self.counters.read_errors_in_row.set(0);
                if !active.answered
                    && let Err(error) = active.check(part)
                {
                    self.counters.checksum_failures.add(1);
                    active.answer(Err(error));
                }
            }
            Err(Errno::NODATA) => active.answer(Err(ReadError::Truncated)),
            Err(errno) => {
                self.counters.read_errors.add(1);
                self.counters.read_errors_in_row.add(1);
                active.answer(Err(ReadError::Io(errno)));
            }
        }
        if active.stripes_left == Some(0) {
            active.answer(Ok(()));
        }
        self.leave(part.record);
    }

    /// When a part that waits will be late: behind a device that hangs nothing else would tell.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.late_from.filter(|_| !self.queue.is_empty())
    }

    /// Answers what waits and is late, so that its frames are free again.
    pub(super) fn let_late_go(&mut self, now: Instant) {
        if self.deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        self.late_from = None;
        for part in std::mem::take(&mut self.queue) {
            let active = self.active[part.record].as_mut().expect("a queued part has its record");
            let deadline = active.request.deadline;
            if deadline.is_none_or(|deadline| deadline > now) {
                self.late_from = earlier(self.late_from, deadline);
                self.queue.push_back(part);
                continue;
            }
            active.answer(Err(ReadError::Deadline));
            self.queued_bytes -= self.range(part).1;
            self.leave(part.record);
        }
    }

    /// What waits is answered; what is in flight runs out.
    pub(super) fn stop(&mut self) {
        while let Some(part) = self.queue.pop_front() {
            self.queued_bytes -= self.range(part).1;
            let active = self.active[part.record].as_mut().expect("a queued part has its record");
            active.answer(Err(ReadError::Stopped));
            self.leave(part.record);
        }
    }

    fn leave(&mut self, record: usize) {
        let active = self.active[record].as_mut().expect("a part has its record");
        active.parts_left -= 1;
        if active.parts_left == 0 {
            self.active[record] = None;
            self.free.push(record);
        }
    }

    /// Where a part lies in its record, in whole pages.
    fn range(&self, part: Part) -> (u64, u64) {
        let active = self.active[part.record].as_ref().expect("a part has its record");
        let stripes = match &active.request.shape {
            Shape::Layout(layout) => &layout.stripes,
            Shape::Stored(length) => return (0, *length),
        };
        let last = stripes[part.first + part.count - 1];
        let start = if part.first == 0 { 0 } else { HEADER_SIZE + stripes[part.first].offset };
        let end = HEADER_SIZE + (last.offset + last.length).next_multiple_of(PAGE_SIZE);
        (start, end - start)
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

impl Active {
    fn check(&mut self, part: Part) -> Result<(), ReadError> {
        let bytes = self.request.frame.region().bytes();
        let mut arrived = part.first..part.first + part.count;
        if part.first == 0 {
            let header = check::header(bytes, &self.wanted)?;
            check::shape(&header, &self.request.shape)?;
            if matches!(self.request.shape, Shape::Stored(_)) {
                arrived = 0..header.stripes.len();
            }
            self.stripes_left = Some(header.stripes.len());
            self.header = Some(header);
        }
        self.unchecked.extend(arrived);
        let (Some(header), Some(left)) = (&self.header, &mut self.stripes_left) else {
            return Ok(());
        };
        for index in self.unchecked.drain(..) {
            let range = header.stripes[index];
            let start = usize::try_from(HEADER_SIZE + range.offset).expect("memory is addressed");
            let length = usize::try_from(range.length).expect("memory is addressed");
            check::stripe(header, index, &bytes[start..start + length])?;
            *left -= 1;
            self.request.sink.stripe(index);
        }
        Ok(())
    }

    fn answer(&mut self, outcome: Result<(), ReadError>) {
        if !self.answered {
            self.answered = true;
            self.request.sink.done(outcome);
        }
    }
}
