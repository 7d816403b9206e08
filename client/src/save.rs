//! Blocks on their way out of memory: reserved, copied into the session arena, committed.

use crate::call::{Deadline, Failure};
use crate::error::ClientError;
use crate::layout::Layout;
use crate::lease::Lease;
use crate::line::Line;
use crate::reservation::Reservation;
use crate::slots::Slot;
use refrain_proto::v1::{self, Refusal};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// How long a commit's slots wait for its answer. Callers stop waiting at their deadline; a sidecar
/// this late is one to part from, since it may read the slots for as long as the session lasts.
const COMMIT_LIMIT: Duration = Duration::from_mins(1);

/// What became of a save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Blocks that the sidecar wanted: those asked for without what it had or had no room for.
    pub offered: u32,
    /// How many of them are known to be stored now, from the first one on.
    pub saved: u32,
    /// Why it is not all; `Unspecified` when the lease or the sidecar has gone.
    pub refusal: Refusal,
    /// Whether what was saved would survive a power loss.
    pub durable: bool,
}

/// Who has the blocks.
pub(crate) trait Source: Send {
    /// Writes each block into its slot, and gives the slots back when all is there. Dropped before
    /// that, it writes no more, or keeps the slots until it does not.
    fn fill(
        &mut self,
        blocks: &[u32],
        slots: Vec<Slot>,
    ) -> impl Future<Output = Result<Vec<Slot>, ClientError>> + Send;
}

/// Has the caller write each block.
pub(crate) struct ByCall<F>(pub(crate) F);

impl<F: FnMut(u32, &mut [u8]) + Send> Source for ByCall<F> {
    async fn fill(&mut self, blocks: &[u32], slots: Vec<Slot>) -> Result<Vec<Slot>, ClientError> {
        for (&block, slot) in blocks.iter().zip(&slots) {
            slot.region().fill_with(|payload| self.0(block, payload));
        }
        Ok(slots)
    }
}

pub(crate) async fn save(
    lease: &Arc<Lease>,
    layout: &Layout,
    blocks: Range<u32>,
    mut source: impl Source,
    durable: bool,
) -> Result<Saved, ClientError> {
    let mut saved = Saved::none();
    if blocks.is_empty() {
        return Ok(saved.ended(Refusal::None));
    }
    let (reservation, refusal) = match Reservation::request(lease, blocks).await {
        Ok(answer) => answer,
        Err(Failure::Lost(_) | Failure::Unknown(_)) => {
            return Ok(saved.ended(Refusal::Unspecified));
        }
        Err(Failure::Late(_)) => return Ok(saved.ended(Refusal::Busy)),
        Err(failure @ Failure::Refused(_)) => {
            return Err(lease.connection.error("reserve", failure));
        }
    };
    saved.offered = count(reservation.blocks.len());
    let mut left = reservation.blocks.as_slice();
    while !left.is_empty() {
        let slots = take_slots(lease, layout, left.len()).await;
        if slots.is_empty() {
            return Ok(saved.ended(Refusal::Busy));
        }
        let (batch, rest) = left.split_at(slots.len());
        for slot in &slots {
            // What an earlier block left there is none of this one's.
            let clear = |payload: &mut [u8]| {
                layout.padding().for_each(|range| payload[range].fill(0));
            };
            slot.region().fill_with(clear);
        }
        let slots = source.fill(batch, slots).await?;
        let done = rest.is_empty();
        let commit = Commit { reservation: Arc::clone(&reservation), slots, durable, done };
        match commit.run(batch).await {
            Ok(answer) => {
                let whole = saved.add(&answer, count(batch.len()));
                if !whole {
                    return Ok(saved.ended(answer.refusal()));
                }
            }
            Err(Failure::Late(_)) => return Ok(saved.ended(Refusal::Busy)),
            Err(Failure::Lost(_) | Failure::Unknown(_)) => {
                return Ok(saved.ended(Refusal::Unspecified));
            }
            Err(failure @ Failure::Refused(_)) => {
                return Err(lease.connection.error("commit", failure));
            }
        }
        left = rest;
    }
    Ok(saved.ended(refusal))
}

impl Saved {
    /// Before anything was.
    pub(crate) fn none() -> Self {
        Self { offered: 0, saved: 0, refusal: Refusal::None, durable: true }
    }

    /// With nothing saved, nothing is durable.
    pub(crate) fn ended(self, refusal: Refusal) -> Self {
        Self { refusal, durable: self.durable && self.saved > 0, ..self }
    }

    /// Counts a commit in; whether all of its blocks were saved.
    pub(crate) fn add(&mut self, answer: &v1::CommitResponse, blocks: u32) -> bool {
        self.saved += answer.saved_blocks.min(blocks);
        self.durable &= answer.durable;
        answer.saved_blocks >= blocks
    }
}

/// As many slots as there are, up to one for each block; waits until there is one.
async fn take_slots(lease: &Lease, layout: &Layout, blocks: usize) -> Vec<Slot> {
    let slots = lease.connection.slots();
    let deadline = Deadline::after(lease.limit);
    let mut taken = Vec::new();
    taken.extend(slots.wait(layout.payload_bytes, deadline).await);
    while !taken.is_empty()
        && taken.len() < blocks
        && let Some(slot) = slots.take(layout.payload_bytes)
    {
        taken.push(slot);
    }
    taken
}

/// One batch of a save.
struct Commit {
    reservation: Arc<Reservation>,
    slots: Vec<Slot>,
    durable: bool,
    /// Whether the reservation awaits nothing after this.
    done: bool,
}

impl Commit {
    /// Goes on when its caller stops waiting: the slots are free only when the sidecar says so.
    async fn run(self, batch: &[u32]) -> Result<v1::CommitResponse, Failure> {
        let placed = |(&block, slot): (&u32, &Slot)| v1::Placed {
            block,
            payload_offset: slot.region().offset(),
            payload_bytes: slot.region().length(),
        };
        let request = v1::CommitRequest {
            reservation: self.reservation.id,
            blocks: batch.iter().zip(&self.slots).map(placed).collect(),
            durable: self.durable,
        };
        let deadline = Deadline::after(self.reservation.lease.limit);
        let runtime = self.reservation.lease.connection.runtime().clone();
        let committing = runtime.spawn(self.send(request));
        match deadline.bound(committing).await {
            Some(Ok(answer)) => answer,
            Some(Err(_)) | None => Err(Failure::Late(deadline.limit())),
        }
    }

    async fn send(self, request: v1::CommitRequest) -> Result<v1::CommitResponse, Failure> {
        let connection = &self.reservation.lease.connection;
        let deadline = Deadline::after(COMMIT_LIMIT);
        let answer = deadline.answer(connection.cache().commit(deadline.request(request))).await;
        match answer.map_err(|failure| connection.noted(failure)) {
            Ok(answer) => {
                let whole = count(self.slots.len()) == answer.saved_blocks;
                self.reservation.set_complete(whole && self.done);
                Ok(answer)
            }
            Err(failure @ (Failure::Unknown(_) | Failure::Refused(_))) => Err(failure),
            Err(failure @ (Failure::Lost(_) | Failure::Late(_))) => {
                self.slots.into_iter().for_each(Slot::abandon);
                connection.lose();
                Err(failure)
            }
        }
    }
}

fn count(blocks: usize) -> u32 {
    u32::try_from(blocks).expect("no more than a prompt has")
}
