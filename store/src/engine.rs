//! The engine of one drive: commands and completions in, device operations and replies out.
//!
//! It does no I/O, starts no thread and reads no clock, so that a simulated disk and a simulated
//! time drive the same code. Reads go before writes; both are bounded by bytes in flight.

use crate::arena::{Arena, Region};
use crate::device::{Completion, DeviceOp, OpId};
use crate::geometry::PAGE_SIZE;
use crate::stats::Counters;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

mod append;
mod log;
mod payload;
mod rate;
mod reads;
mod segments;

pub(crate) use append::entry_of;
pub use append::{Append, AppendError, NewRecord, Reply, Stored};
pub use log::{Durability, GroupEvent};
pub use payload::Payload;
pub use reads::{ReadSink, RecordRead};
pub use segments::{SegmentSetup, SegmentState, SegmentStatus};

use log::{Log, WriteOp};
use reads::Reads;

/// Bounds, all fixed at start.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of reads that the device works on at once; one operation may exceed it alone.
    pub read_bytes: u64,
    /// As above, of writes.
    pub write_bytes: u64,
    /// Of writes while anybody reads: what keeps the tail of reads short.
    pub write_bytes_beside_reads: u64,
    /// Operations of either kind at once.
    pub operations: usize,
    /// A group is synced when it has this many bytes,
    pub group_bytes: u64,
    /// or when its oldest record has waited this long.
    pub group_interval: Duration,
    /// An append that found no segment to go to for this long is refused.
    pub space_patience: Duration,
    /// A drive with an operation that runs for longer counts as one that hangs.
    pub hang_patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            read_bytes: 32 << 20,
            write_bytes: 32 << 20,
            write_bytes_beside_reads: 4 << 20,
            operations: 192,
            group_bytes: 64 << 20,
            group_interval: Duration::from_millis(50),
            space_patience: Duration::from_secs(1),
            hang_patience: Duration::from_secs(10),
        }
    }
}

/// What an engine is made of.
pub struct Setup {
    pub store_id: [u8; 16],
    pub segment_bytes: u64,
    pub durability: Durability,
    pub limits: Limits,
    /// Every segment of the drive, by id.
    pub segments: Vec<SegmentSetup>,
    /// For headers, heads and footers.
    pub scratch: Arc<Arena>,
    pub counters: Arc<Counters>,
    pub on_group: Box<dyn FnMut(GroupEvent) + Send>,
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup").field("segments", &self.segments.len()).finish_non_exhaustive()
    }
}

/// Whom a completion belongs to.
#[derive(Clone, Copy, Debug)]
enum Owner {
    Read(reads::Part),
    Write(WriteOp),
}

#[derive(Debug)]
struct Running {
    owner: Owner,
    operation: DeviceOp,
    transferred: u64,
    /// Of what is left of it.
    begun: Instant,
}

/// One drive's state machine.
pub struct Engine {
    limits: Limits,
    reads: Reads,
    log: Log,
    running: Vec<Option<Running>>,
    free: Vec<OpId>,
    in_flight: usize,
    started: VecDeque<(OpId, DeviceOp)>,
    /// The time of the last `advance`.
    advanced: Option<Instant>,
    counters: Arc<Counters>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl Engine {
    pub fn new(setup: Setup) -> Self {
        let limits = setup.limits;
        let counters = Arc::clone(&setup.counters);
        let reads = Reads::new(setup.store_id, Arc::clone(&counters));
        Self {
            limits,
            reads,
            log: Log::new(setup),
            running: Vec::new(),
            free: Vec::new(),
            in_flight: 0,
            started: VecDeque::new(),
            advanced: None,
            counters,
        }
    }

    pub fn read(&mut self, records: Vec<RecordRead>) {
        self.reads.enqueue(records);
    }

    pub fn append(&mut self, append: Append, now: Instant) {
        self.log.enqueue(append, now);
    }

    /// Segment `id` holds nothing that anybody wants: it may be used again.
    pub fn release(&mut self, id: crate::geometry::SegmentId) {
        self.log.release(id);
    }

    /// Takes no new work: what waits is refused, what runs is finished and synced.
    pub fn stop(&mut self) {
        self.reads.stop();
        self.log.stop();
    }

    /// Whether nothing runs and nothing waits to be synced.
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.started.is_empty() && self.log.is_idle()
    }

    /// When `advance` must be called again even if nothing completes. What was due at its last call
    /// and could not begin waits for a completion: the time alone changes nothing for it.
    pub fn deadline(&self) -> Option<Instant> {
        let is_ahead = |at: &Instant| self.advanced.is_none_or(|advanced| *at > advanced);
        let log = self.log.deadlines(&self.limits).filter(is_ahead);
        log.chain(self.reads.deadline()).min()
    }

    /// The segments as they stand.
    pub fn segments(&self) -> Vec<SegmentStatus> {
        self.log.segments()
    }

    /// Whether `segments` would answer otherwise than before.
    pub fn take_segments_changed(&mut self) -> bool {
        self.log.take_segments_changed()
    }

    /// Starts what the limits allow; the operations come out of `next_operation`.
    pub fn advance(&mut self, now: Instant) {
        self.advanced = Some(now);
        while self.in_flight < self.limits.operations
            && (self.reads.bytes_in_flight() < self.limits.read_bytes)
        {
            let Some((part, operation)) = self.reads.next(now) else { break };
            self.start(Owner::Read(part), operation, now);
        }
        self.reads.let_late_go(now);
        let writes = if self.reads.is_busy(now) {
            self.limits.write_bytes_beside_reads
        } else {
            self.limits.write_bytes
        };
        while self.in_flight < self.limits.operations {
            let Some((op, operation)) = self.log.next(now, writes, &self.limits) else { break };
            self.start(Owner::Write(op), operation, now);
        }
        self.counters.queued_read_bytes.set(self.reads.queued_bytes());
        self.counters.queued_write_bytes.set(self.log.queued_bytes());
    }

    /// Whether reads have come in that nobody has looked at.
    pub fn has_arrived(&self) -> bool {
        self.reads.has_arrived()
    }

    /// Checks what came in, and tells whoever waits for it.
    pub fn check_arrived(&mut self) {
        self.reads.check_arrived();
    }

    pub fn next_operation(&mut self) -> Option<(OpId, DeviceOp)> {
        self.started.pop_front()
    }

    /// Takes the end of an operation; the rest of a short transfer is started again. What was read
    /// waits for `check_arrived`.
    pub fn complete(&mut self, completion: Completion, now: Instant) {
        let slot = usize::try_from(completion.op.0).expect("32 bits fit");
        let mut running = self.running[slot].take().expect("a completion has its operation");
        let wanted = running.operation.bytes();
        // How far it got, where it goes on: whole pages count, as a direct transfer goes on at one.
        let reached = match completion.result {
            // Nothing was done, not even a sync of no bytes.
            Err(Errno::INTR | Errno::AGAIN) => Some(0),
            Ok(bytes) if 0 < bytes && bytes < wanted => Some(bytes - bytes % PAGE_SIZE),
            Ok(_) | Err(_) => None,
        };
        if let Some(bytes) = reached {
            running.operation = rest(&running.operation, bytes);
            running.transferred += bytes;
            running.begun = now;
            let operation = running.operation.clone();
            self.running[slot] = Some(running);
            self.started.push_back((completion.op, operation));
            return;
        }
        let result = match completion.result {
            // A file that ends early, or a device that takes nothing more.
            Ok(0) if wanted > 0 => Err(Errno::NODATA),
            Ok(_) => Ok(()),
            Err(errno) => Err(errno),
        };
        self.finish(completion.op, &running, result, now);
    }

    fn finish(&mut self, op: OpId, running: &Running, result: Result<(), Errno>, now: Instant) {
        self.free.push(op);
        self.in_flight -= 1;
        let bytes = running.transferred + running.operation.bytes();
        match running.owner {
            Owner::Read(part) => self.reads.complete(part, bytes, result, now),
            Owner::Write(write) => self.log.complete(write, bytes, result, now),
        }
    }

    /// When the operation was begun that runs the longest.
    pub fn oldest_operation(&self) -> Option<Instant> {
        if self.in_flight == 0 {
            return None;
        }
        self.running.iter().flatten().map(|running| running.begun).min()
    }

    fn start(&mut self, owner: Owner, operation: DeviceOp, begun: Instant) {
        let op = self.free.pop().unwrap_or_else(|| {
            self.running.push(None);
            OpId(u32::try_from(self.running.len() - 1).expect("bounded by the limits"))
        });
        let slot = usize::try_from(op.0).expect("32 bits fit");
        let running = Running { owner, operation: operation.clone(), transferred: 0, begun };
        self.running[slot] = Some(running);
        self.in_flight += 1;
        self.started.push_back((op, operation));
    }
}

fn rest(operation: &DeviceOp, bytes: u64) -> DeviceOp {
    let after = |region: &Region| region.slice(bytes, region.length() - bytes);
    match operation {
        DeviceOp::Read { file, offset, region } => {
            DeviceOp::Read { file: *file, offset: offset + bytes, region: after(region) }
        }
        DeviceOp::Write { file, offset, region } => {
            DeviceOp::Write { file: *file, offset: offset + bytes, region: after(region) }
        }
        DeviceOp::Sync { file } => DeviceOp::Sync { file: *file },
    }
}

#[cfg(test)]
mod tests;
