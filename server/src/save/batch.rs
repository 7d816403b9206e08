//! The payloads of a save: taken out of a reservation, and queued at a drive.

use super::{Refusal, SaveError, index, refusal_of};
use crate::leases::ReservationId;
use crate::names::Names;
use crate::namespaces::{Registration, SessionId};
use crate::node::Node;
use refrain_index::hash::KEY_SCHEME;
use refrain_store::arena::{Frame, Region};
use refrain_store::drive::{Drive, Refused as Unqueued};
use refrain_store::engine::{Append, AppendError, NewRecord, Payload, Stored};
use refrain_store::geometry::{HEADER_SIZE, PAGE_SIZE, RecordAddress};
use std::any::Any;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;

/// One block of a commit.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    pub block: u32,
    /// From the start of the session arena.
    pub offset: u64,
    pub length: u64,
}

/// A block of the prompt, its pages, and what keeps them until they are written.
pub(crate) type Outgoing = (u32, Region, Option<Box<dyn Any + Send>>);

/// The blocks of a prompt by name, and whose they are.
pub(crate) type Chain = (Arc<Registration>, Names);

/// Payloads that may be written, in order.
pub struct Batch {
    pub(super) registration: Arc<Registration>,
    pub(super) names: Names,
    pub(super) blocks: Vec<Outgoing>,
    /// Of the namespace, when the blocks were sent.
    pub(super) epoch: u64,
    pub(super) begin: Instant,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("blocks", &self.blocks.len()).finish_non_exhaustive()
    }
}

/// Blocks of a commit that a drive has taken, each with where its answer comes.
type Sent = Vec<(u32, oneshot::Receiver<Result<Stored, AppendError>>)>;

impl Batch {
    pub(crate) fn new(
        (registration, names): Chain,
        blocks: Vec<Outgoing>,
        epoch: u64,
        begin: Instant,
    ) -> Self {
        Self { registration, names, blocks, epoch, begin }
    }

    /// Queues the blocks at a drive, one by one: it writes the first while the next is checksummed.
    /// With why not all of them were. `withdraw` is told of those that are written when nobody waits
    /// for them any more: a drive that hung may have read their pages when they were another save's.
    pub(super) fn send(
        self,
        drive: &Drive,
        withdraw: &(impl Fn(RecordAddress) + Clone + Send + 'static),
    ) -> (Sent, Option<Refusal>) {
        let Self { registration, names, blocks, epoch, .. } = self;
        let mut sent = Vec::with_capacity(blocks.len());
        for (block, region, keep) in blocks {
            let header = NewRecord {
                key_scheme: KEY_SCHEME,
                sequence_hash: names[index(block)].0,
                shard: registration.shard,
                parent: names.parent(block).unwrap_or_else(|| registration.root()).0,
                namespace: registration.digest.0,
                epoch,
                position: names.position(block),
            };
            let payload = match Payload::new(&registration.layout, region) {
                Ok(payload) => payload,
                Err(error) => return (sent, Some(refusal_of(error))),
            };
            let (answer, written_at) = oneshot::channel();
            let withdraw = withdraw.clone();
            let reply = Box::new(move |outcome| {
                if let Err(Ok(Stored { address, .. })) = answer.send(outcome) {
                    withdraw(address);
                }
            });
            match drive.append(Append { header, payload, keep, reply }) {
                Ok(()) => sent.push((block, written_at)),
                Err(Unqueued::Busy) => return (sent, Some(Refusal::Busy)),
                Err(_) => return (sent, Some(Refusal::Draining)),
            }
        }
        (sent, None)
    }
}

impl Node {
    /// Takes blocks out of a reservation that lie in the session's arena.
    pub fn batch(&self, reservation: ReservationId, placed: &[Placed]) -> Result<Batch, SaveError> {
        let mut guard = self.state();
        let state = &mut *guard;
        let reserved = state.leases.reservation(reservation).ok_or(SaveError::NoReservation)?;
        let (lease, registration) = (reserved.lease, Arc::clone(&reserved.registration));
        let session: SessionId = registration.session.ok_or(SaveError::NoSession)?;
        let arena = state.sessions.get(&session).ok_or(SaveError::NoSession)?;
        let mut blocks = Vec::with_capacity(placed.len());
        let declared = registration.layout.payload_length;
        let pages = registration.layout.stored_length() - HEADER_SIZE;
        let mut expected = reserved.blocks.iter().copied();
        for &Placed { block, offset, length } in placed {
            let expected = expected.next();
            if expected != Some(block) {
                return Err(SaveError::Unreserved { found: block, expected });
            }
            if length != declared {
                return Err(SaveError::Length { block, found: length, declared });
            }
            let aligned = offset.is_multiple_of(PAGE_SIZE);
            let region = arena.region(offset, pages).ok().filter(|_| aligned);
            let region = region.ok_or(SaveError::Place { block, offset })?;
            blocks.push((block, region, None));
        }
        let names = reserved.names.clone();
        let epoch = state.epoch(registration.namespace);
        state.leases.take_reserved(reservation, blocks.len());
        state.leases.renew(lease, self.clock.now() + self.config.lease_default);
        Ok(Batch { registration, names, blocks, epoch, begin: self.clock.now() })
    }

    /// Blocks that a reservation still awaits.
    pub(crate) fn reserved_blocks(&self, reservation: ReservationId) -> Result<usize, SaveError> {
        let state = self.state();
        let reserved = state.leases.reservation(reservation);
        reserved.map(|reserved| reserved.blocks.len()).ok_or(SaveError::NoReservation)
    }

    /// What one block of a reservation is to be written into, by a client without shared memory;
    /// with the length of its payload. `None` in place of a frame: there is no memory now.
    pub fn write_frame(
        &self,
        reservation: ReservationId,
    ) -> Result<(Option<Frame>, u64), SaveError> {
        let mut guard = self.state();
        let state = &mut *guard;
        let reserved = state.leases.reservation(reservation).ok_or(SaveError::NoReservation)?;
        let layout = reserved.registration.layout.clone();
        let frame = self.take_frame(state, layout.stored_length());
        Ok((frame, layout.payload_length))
    }

    /// As `batch`, of blocks that lie in frames.
    pub fn batch_of_frames(
        &self,
        reservation: ReservationId,
        frames: Vec<Frame>,
    ) -> Result<Batch, SaveError> {
        let mut state = self.state();
        let reserved = state.leases.reservation(reservation).ok_or(SaveError::NoReservation)?;
        let (registration, names) = (Arc::clone(&reserved.registration), reserved.names.clone());
        let pages = registration.layout.stored_length() - HEADER_SIZE;
        let blocks: Vec<_> = reserved.blocks.iter().copied().zip(frames).collect();
        state.leases.take_reserved(reservation, blocks.len());
        let epoch = state.epoch(registration.namespace);
        drop(state);
        let blocks = blocks.into_iter().map(|(block, frame)| {
            let region = frame.region().slice(HEADER_SIZE, pages);
            (block, region, Some(Box::new(frame) as Box<dyn Any + Send>))
        });
        let blocks = blocks.collect();
        Ok(Batch { registration, names, blocks, epoch, begin: self.clock.now() })
    }
}
