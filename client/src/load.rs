//! Blocks on their way into memory, announced stripe by stripe.

use crate::call::{Deadline, Failure};
use crate::error::ClientError;
use crate::layout::Layout;
use crate::lease::Lease;
use crate::line::Line;
use refrain_gpu_transfer::arena::Region;
use refrain_proto::v1::{self, load_event::Event};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tonic::Streaming;

/// How long after a load's deadline its last message may arrive: it says what came in time.
const GRACE: Duration = Duration::from_millis(500);

/// A load under way; dropping it ends it.
///
/// What it announces may be copied out of [`Load::stripe`] at once. The copies count only when
/// [`crate::Lookup::release`] afterwards says that the lease held, and only those of the first
/// `loaded_blocks` blocks.
#[derive(Debug)]
pub struct Load {
    /// `None` when nothing more will come.
    stream: Option<Streaming<v1::LoadEvent>>,
    lease: Arc<Lease>,
    layout: Arc<Layout>,
    deadline: Deadline,
    begun: Instant,
    blocks: u32,
    /// These are all that the lookup matched.
    is_whole: bool,
    /// The blocks' payloads in the load arena.
    payloads: Vec<Region>,
    done: Option<Done>,
}

/// Read and checked: one stripe of a run of blocks, counted within the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    pub stripe: usize,
    pub first_block: u32,
    pub blocks: u32,
}

/// How a load ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Blocks from this one on are misses, whatever was announced of them.
    pub loaded_blocks: u32,
    /// Why they are; `Unspecified` when the sidecar went away.
    pub reason: v1::MissReason,
    pub host_blocks: u32,
    pub ssd_blocks: u32,
    pub peer_blocks: u32,
}

impl Done {
    pub(crate) fn with(reason: v1::MissReason) -> Self {
        Self { loaded_blocks: 0, reason, host_blocks: 0, ssd_blocks: 0, peer_blocks: 0 }
    }

    pub(crate) fn of(done: &v1::load_event::Done) -> Self {
        Self {
            loaded_blocks: done.loaded_blocks,
            reason: done.reason(),
            host_blocks: done.host_blocks,
            ssd_blocks: done.ssd_blocks,
            peer_blocks: done.peer_blocks,
        }
    }

    /// Without a last message all of it is a miss, unless the sidecar refuses to load at all.
    pub(crate) fn missed(failure: &Failure) -> Option<Self> {
        match failure {
            Failure::Lost(_) => Some(Self::with(v1::MissReason::Unspecified)),
            Failure::Late(_) => Some(Self::with(v1::MissReason::Deadline)),
            Failure::Unknown(_) => Some(Self::with(v1::MissReason::Lease)),
            Failure::Refused(_) => None,
        }
    }
}

impl Load {
    pub(crate) async fn request(
        lease: Arc<Lease>,
        layout: Arc<Layout>,
        (first, blocks, is_whole): (u32, u32, bool),
        limit: Duration,
    ) -> Result<Self, ClientError> {
        let begun = Instant::now();
        let deadline = Deadline::after(limit.saturating_add(GRACE));
        let (stream, payloads, done) = (None, Vec::new(), None);
        let mut load =
            Self { stream, lease, layout, deadline, begun, blocks, is_whole, payloads, done };
        if blocks == 0 {
            load.done = Some(Done::with(v1::MissReason::None));
            return Ok(load);
        }
        // 0 would be the sidecar's default.
        let deadline_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX).max(1);
        let lease = load.lease.id;
        let request = v1::LoadRequest { lease, first_block: first, blocks, deadline_ms };
        let mut cache = load.lease.connection.cache();
        match deadline.answer(cache.load(deadline.request(request))).await {
            Ok(stream) => load.stream = Some(stream),
            Err(failure) => load.miss(failure)?,
        }
        match load.event().await? {
            Some(Event::Placement(placement)) => load.place(&placement)?,
            // Nothing could be placed, and `done` says why.
            None => {}
            Some(Event::Ready(_) | Event::Done(_)) => {
                return Err(answered("stripes before their place"));
            }
        }
        Ok(load)
    }

    /// What has arrived since; `None` when no more will, and [`Load::done`] says how it ended.
    pub async fn next(&mut self) -> Result<Option<Ready>, ClientError> {
        match self.event().await? {
            Some(Event::Ready(ready)) => self.check(ready).map(Some),
            None => Ok(None),
            Some(Event::Placement(_) | Event::Done(_)) => Err(answered("a second placement")),
        }
    }

    /// The bytes of an announced stripe, where the sidecar has put them.
    ///
    /// Panics when the block was not placed, or has no such stripe.
    pub fn stripe(&self, block: u32, stripe: usize) -> &[u8] {
        let block = usize::try_from(block).expect("addresses have 64 bits");
        &self.payloads[block].bytes()[self.layout.range(stripe)]
    }

    /// Where the payload of a block lies in the load arena; panics when the block was not placed.
    pub(crate) fn payload_offset(&self, block: u32) -> u64 {
        self.payloads[usize::try_from(block).expect("addresses have 64 bits")].offset()
    }

    /// How it ended, once it has.
    pub fn done(&self) -> Option<Done> {
        self.done
    }

    /// The next message, unless it is the last one: that is kept.
    async fn event(&mut self) -> Result<Option<Event>, ClientError> {
        let Some(stream) = &mut self.stream else {
            return Ok(None);
        };
        let limit = self.deadline.limit();
        let failure = match self.deadline.bound(stream.message()).await {
            Some(Ok(Some(v1::LoadEvent { event: Some(Event::Done(done)) }))) => {
                return self.end(done).map(|()| None);
            }
            Some(Ok(Some(v1::LoadEvent { event: Some(event) }))) => return Ok(Some(event)),
            Some(Ok(Some(v1::LoadEvent { event: None }))) => {
                return Err(answered("an event that this client does not know"));
            }
            Some(Ok(None)) => Failure::Lost(tonic::Status::unavailable("load broken off")),
            Some(Err(status)) => Failure::from_status(status, limit),
            None => Failure::Late(limit),
        };
        self.miss(failure).map(|()| None)
    }

    fn place(&mut self, placement: &v1::load_event::Placement) -> Result<(), ClientError> {
        if placement.payload_offsets.len() > usize::try_from(self.blocks).unwrap_or(usize::MAX) {
            return Err(answered("more blocks than were asked for"));
        }
        let arena = self.lease.connection.load_arena();
        let payload = |&offset: &u64| arena.region(offset, self.layout.payload_bytes);
        let payloads: Result<_, _> = placement.payload_offsets.iter().map(payload).collect();
        self.payloads = payloads.map_err(|_| answered("places outside the arena"))?;
        Ok(())
    }

    fn placed(&self) -> u32 {
        u32::try_from(self.payloads.len()).expect("no more than were asked for")
    }

    fn check(&self, ready: v1::load_event::Ready) -> Result<Ready, ClientError> {
        let v1::load_event::Ready { stripe, first_block, blocks } = ready;
        let end = first_block.checked_add(blocks);
        let stripe = usize::try_from(stripe).expect("addresses have 64 bits");
        if stripe < self.layout.stripes.len() && end.is_some_and(|end| end <= self.placed()) {
            Ok(Ready { stripe, first_block, blocks })
        } else {
            Err(answered("stripes that have no place"))
        }
    }

    fn end(&mut self, done: v1::load_event::Done) -> Result<(), ClientError> {
        self.stream = None;
        if done.loaded_blocks > self.placed() {
            return Err(answered("more blocks than it placed"));
        }
        if self.is_whole && done.loaded_blocks == self.blocks {
            let load_us = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.lease.load_us.store(load_us, Ordering::Relaxed);
        }
        self.done = Some(Done::of(&done));
        Ok(())
    }

    /// Ends the load without a last message: all of it is a miss.
    fn miss(&mut self, failure: Failure) -> Result<(), ClientError> {
        self.stream = None;
        let failure = self.lease.connection.noted(failure);
        let missed = Done::missed(&failure);
        self.done = Some(missed.ok_or_else(|| self.lease.connection.error("load", failure))?);
        Ok(())
    }
}

fn answered(what: &'static str) -> ClientError {
    ClientError::Answer { call: "load", what }
}
