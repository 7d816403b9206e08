//! One segment from its head to its seal, as a sequence of steps.

use super::super::Limits;
use super::super::segments::SegmentStatus;
use super::super::{Append, AppendError, Reply, Stored};
use super::GroupEvent;
use crate::arena::{Arena, Frame};
use crate::device::DeviceOp;
use crate::geometry::{HEADER_SIZE, PAGE_SIZE, RECORDS_START, RecordAddress, SegmentId};
use crate::segment::{Entry, SegmentHead, Trailer, encode_footer, footer_length, has_room};
use rustix::io::Errno;
use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a write is for. Records are counted from the start of the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Head,
    HeadSync,
    Header {
        record: usize,
    },
    Payload {
        record: usize,
    },
    /// Promises all records before `records`; the last one of a segment covers its seal.
    Sync {
        records: usize,
        sealed: bool,
    },
    Footer,
    Trailer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preparation {
    HeadInFlight,
    HeadWritten,
    Ready,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seal {
    /// Takes records still.
    Open,
    Wanted,
    /// The footer is out, or written already; the trailer follows.
    FooterOut {
        checksum: u64,
        written: bool,
    },
    /// Pages of the seal that are in flight.
    InFlight {
        left: u8,
    },
    Written,
    Done,
}

/// A record that is not promised yet.
struct Pending {
    bytes: u64,
    writes_left: u8,
    stored: Stored,
    reply: Option<Reply>,
    payload: Option<DeviceOp>,
    keep: Option<Box<dyn Any + Send>>,
    header_page: Option<Frame>,
}

pub(super) struct OpenSegment {
    status: SegmentStatus,
    cursor: u64,
    /// Of all records, for the footer.
    entries: Vec<Entry>,
    /// The records from number `promised` on.
    pending: VecDeque<Pending>,
    promised: usize,
    promised_end: u64,
    /// All records before this number are written.
    written: usize,
    unsynced_bytes: u64,
    unsynced_since: Option<Instant>,
    preparation: Preparation,
    syncing: bool,
    seal: Seal,
    /// Kept until written.
    pages: Vec<Frame>,
    group: Option<GroupEvent>,
}

impl OpenSegment {
    /// A segment whose head is about to be written.
    pub(super) fn begin(status: SegmentStatus) -> Self {
        Self { preparation: Preparation::HeadInFlight, ..Self::resume(status, Vec::new()) }
    }

    /// A segment found half full: what is in it was promised by whoever wrote it.
    pub(super) fn resume(status: SegmentStatus, entries: Vec<Entry>) -> Self {
        Self {
            status,
            cursor: status.end,
            promised: entries.len(),
            promised_end: status.end,
            written: entries.len(),
            entries,
            pending: VecDeque::new(),
            unsynced_bytes: 0,
            unsynced_since: None,
            preparation: Preparation::Ready,
            syncing: false,
            seal: Seal::Open,
            pages: Vec::new(),
            group: None,
        }
    }

    pub(super) fn id(&self) -> SegmentId {
        self.status.id
    }

    pub(super) fn cursor(&self) -> u64 {
        self.cursor
    }

    pub(super) fn has_room(&self, segment_bytes: u64, length: u64) -> bool {
        has_room(segment_bytes, self.cursor, length, self.entries.len())
    }

    pub(super) fn is_prepared(&self) -> bool {
        self.preparation == Preparation::Ready
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.seal == Seal::Done
    }

    /// Whether everything in it is promised.
    pub(super) fn is_settled(&self) -> bool {
        self.pending.is_empty() && !self.syncing
    }

    pub(super) fn next_address(&self) -> RecordAddress {
        let SegmentStatus { id, generation, .. } = self.status;
        RecordAddress { segment: id, generation, offset: self.cursor }
    }

    pub(super) fn group_deadline(&self, interval: Duration) -> Option<Instant> {
        let waits = self.written > self.promised && !self.syncing;
        self.unsynced_since.filter(|_| waits).map(|since| since + interval)
    }

    pub(super) fn group_is_due(&self, now: Instant, limits: &Limits) -> bool {
        self.unsynced_bytes >= limits.group_bytes
            || self
                .unsynced_since
                .is_some_and(|since| now.saturating_duration_since(since) >= limits.group_interval)
    }

    pub(super) fn write_head(&mut self, frame: Frame) -> (Step, DeviceOp) {
        let head = DeviceOp::Write {
            file: self.status.id.0,
            offset: SegmentHead::offset(self.status.generation),
            region: frame.region().clone(),
        };
        self.pages.push(frame);
        (Step::Head, head)
    }

    /// Takes a record at the cursor; its header goes out now, its payload next.
    pub(super) fn place(&mut self, entry: Entry, append: Append, page: Frame) -> (Step, DeviceOp) {
        let (file, record) = (self.status.id.0, self.entries.len());
        let stored_length = entry.stored_length();
        let header = DeviceOp::Write { file, offset: self.cursor, region: page.region().clone() };
        let payload = DeviceOp::Write {
            file,
            offset: self.cursor + HEADER_SIZE,
            region: append.payload.region,
        };
        self.pending.push_back(Pending {
            bytes: stored_length,
            writes_left: 2,
            stored: Stored { address: self.next_address(), stored_length },
            reply: Some(append.reply),
            payload: Some(payload),
            keep: append.keep,
            header_page: Some(page),
        });
        self.cursor += stored_length;
        self.entries.push(entry);
        (Step::Header { record }, header)
    }

    /// The payload of the record that was placed last.
    pub(super) fn next_payload(&mut self) -> Option<(Step, DeviceOp)> {
        let record = self.entries.len().checked_sub(1)?;
        let payload = self.pending.back_mut()?.payload.take()?;
        Some((Step::Payload { record }, payload))
    }

    pub(super) fn begin_seal(&mut self) {
        self.seal = Seal::Wanted;
    }

    /// The next sync or page of the seal; `due` says that a group should not wait any longer.
    pub(super) fn next_step(
        &mut self,
        due: bool,
        (store_id, segment_bytes): ([u8; 16], u64),
        scratch: &Arc<Arena>,
    ) -> Option<(Step, DeviceOp)> {
        let file = self.status.id.0;
        if self.preparation != Preparation::Ready {
            let sync = self.preparation == Preparation::HeadWritten && !self.syncing;
            self.syncing |= sync;
            return sync.then_some((Step::HeadSync, DeviceOp::Sync { file }));
        }
        let all_written = self.written == self.entries.len();
        let all_promised = self.promised == self.entries.len();
        match self.seal {
            // A footer vouches for its records: no power loss may leave it without them.
            Seal::Wanted if all_promised => self.write_footer(scratch),
            Seal::FooterOut { checksum, written } => {
                self.write_trailer((checksum, written), store_id, segment_bytes, scratch)
            }
            Seal::Written if !self.syncing => {
                self.syncing = true;
                let step = Step::Sync { records: self.written, sealed: true };
                Some((step, DeviceOp::Sync { file }))
            }
            Seal::Open | Seal::Wanted
                if (due || self.seal == Seal::Wanted && all_written)
                    && !self.syncing
                    && self.written > self.promised =>
            {
                self.syncing = true;
                let step = Step::Sync { records: self.written, sealed: false };
                Some((step, DeviceOp::Sync { file }))
            }
            Seal::Open | Seal::Wanted | Seal::InFlight { .. } | Seal::Written | Seal::Done => None,
        }
    }

    fn write_footer(&mut self, scratch: &Arc<Arena>) -> Option<(Step, DeviceOp)> {
        let frame = scratch.allocate(footer_length(self.entries.len()))?;
        let checksum = frame.region().fill_with(|bytes| encode_footer(&self.entries, bytes));
        let footer = DeviceOp::Write {
            file: self.status.id.0,
            offset: self.cursor,
            region: frame.region().clone(),
        };
        self.pages.push(frame);
        self.seal = Seal::FooterOut { checksum, written: false };
        Some((Step::Footer, footer))
    }

    fn write_trailer(
        &mut self,
        (footer_checksum, footer_written): (u64, bool),
        store_id: [u8; 16],
        segment_bytes: u64,
        scratch: &Arc<Arena>,
    ) -> Option<(Step, DeviceOp)> {
        let frame = scratch.allocate(PAGE_SIZE)?;
        let trailer = Trailer {
            id: self.status.id,
            generation: self.status.generation,
            footer_offset: self.cursor,
            entries: u64::try_from(self.entries.len()).expect("usize fits"),
            footer_checksum,
        };
        frame.region().copy_from(0, &trailer.encode(store_id)[..]);
        let offset = segment_bytes - PAGE_SIZE;
        let region = frame.region().clone();
        self.pages.push(frame);
        self.seal = Seal::InFlight { left: if footer_written { 1 } else { 2 } };
        Some((Step::Trailer, DeviceOp::Write { file: self.status.id.0, offset, region }))
    }

    /// Takes the good end of a step. `answer_early`: a written record is answered before its sync.
    pub(super) fn finish_step(&mut self, step: Step, answer_early: bool, now: Instant) {
        match step {
            Step::Head => {
                self.preparation = Preparation::HeadWritten;
                self.pages.clear();
            }
            Step::HeadSync => {
                self.syncing = false;
                self.preparation = Preparation::Ready;
            }
            Step::Header { record } | Step::Payload { record } => {
                self.finish_write(record, answer_early, now);
            }
            Step::Footer | Step::Trailer => self.finish_seal_page(),
            Step::Sync { records, sealed } => {
                self.syncing = false;
                self.promise(records, sealed, now);
            }
        }
    }

    fn finish_write(&mut self, record: usize, answer_early: bool, now: Instant) {
        let pending = &mut self.pending[record - self.promised];
        pending.writes_left -= 1;
        if pending.writes_left > 0 {
            return;
        }
        (pending.keep, pending.header_page) = (None, None);
        self.unsynced_bytes += pending.bytes;
        self.unsynced_since.get_or_insert(now);
        if answer_early && let Some(reply) = pending.reply.take() {
            reply(Ok(pending.stored));
        }
        while self.pending.get(self.written - self.promised).is_some_and(|p| p.writes_left == 0) {
            self.written += 1;
        }
    }

    fn finish_seal_page(&mut self) {
        self.seal = match self.seal {
            Seal::FooterOut { checksum, .. } => Seal::FooterOut { checksum, written: true },
            Seal::InFlight { left: 1 } => Seal::Written,
            Seal::InFlight { left } => Seal::InFlight { left: left - 1 },
            Seal::Open | Seal::Wanted | Seal::Written | Seal::Done => {
                unreachable!("no page of a seal is in flight")
            }
        };
        if self.seal == Seal::Written {
            self.pages.clear();
        }
    }

    /// What is written counts as promised, where nobody asked for more.
    pub(super) fn promise_unsynced(&mut self, now: Instant) {
        if self.written > self.promised && self.seal == Seal::Open {
            self.promise(self.written, false, now);
        }
    }

    fn promise(&mut self, records: usize, sealed: bool, now: Instant) {
        for pending in self.pending.drain(..records - self.promised) {
            self.unsynced_bytes -= pending.bytes;
            if let Some(reply) = pending.reply {
                reply(Ok(pending.stored));
            }
        }
        let entries = self.entries[self.promised..records].to_vec();
        let end = entries.last().map_or(self.promised_end, |e| e.offset + e.stored_length());
        self.group = Some(GroupEvent::Durable {
            segment: self.status.id,
            generation: self.status.generation,
            start: self.promised_end,
            end,
            sealed,
            entries,
        });
        (self.promised, self.promised_end) = (records, end);
        self.unsynced_since = (self.unsynced_bytes > 0).then_some(now);
        if sealed {
            self.seal = Seal::Done;
        }
    }

    pub(super) fn take_group(&mut self) -> Option<GroupEvent> {
        self.group.take()
    }

    /// Nothing that is not answered yet will be stored.
    pub(super) fn fail(self, errno: Errno) {
        for reply in self.pending.into_iter().filter_map(|pending| pending.reply) {
            reply(Err(AppendError::Io(errno)));
        }
    }
}

const _: () = assert!(RECORDS_START == 2 * PAGE_SIZE, "a head copy a page");
