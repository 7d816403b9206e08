//! Saves: blocks reserved, written, and only then let into the index, parents first.
//!
//! Nothing of a save waits for room: what the drives cannot take soon is refused. A block that was
//! written and whose parent did not make it is never found; its record goes with its segment.

use crate::disks::Disk;
use crate::fates::Refused;
use crate::leases::{LeaseId, Reservation, ReservationId};
use crate::names::Names;
use crate::namespaces::Registration;
use crate::node::Node;
use crate::place::{BlockPlace, DriveId, Group};
use crate::state::{Entered, State};
use refrain_index::chain::BlockKey;
use refrain_index::hash::SequenceHash;
use refrain_store::engine::{AppendError, Stored};
use std::sync::Arc;
use thiserror::Error;

mod batch;
mod promised;

pub use batch::{Batch, Placed};
pub(crate) use batch::{Chain, Outgoing};
pub(crate) use promised::LastRecords;

/// Why a block was not saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The drives are behind.
    Busy,
    NoSpace,
    ReadOnly,
    Draining,
    /// The block before it is not resident.
    NoParent,
}

/// What a save may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// 0 where no block is wanted.
    pub reservation: ReservationId,
    /// Indices into the prompt's blocks.
    pub blocks: Vec<u32>,
    /// Why these are not all that were asked for and are not resident.
    pub refusal: Option<Refusal>,
}

/// A call that cannot be right.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SaveError {
    #[error("lease is not known: it has ended")]
    NoLease,
    #[error("reservation is not known: it has ended")]
    NoReservation,
    #[error("blocks {first}+{blocks} are not among the prompt's {available}")]
    OutOfRange { first: u32, blocks: u32, available: u32 },
    #[error("block {found} is sent, the reservation awaits {}", awaited(*expected))]
    Unreserved { found: u32, expected: Option<u32> },
    #[error("block {block} has {found} bytes, its registration declares {declared}")]
    Length { block: u32, found: u64, declared: u64 },
    #[error("block {block} at byte {offset} does not lie in the session arena, page by page")]
    Place { block: u32, offset: u64 },
    #[error("registration has no session: write its blocks as chunks")]
    NoSession,
    #[error("{found} bytes are sent, the reserved blocks have {expected}")]
    Written { found: u64, expected: u64 },
}

/// What became of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Blocks that can be found now, in the order given.
    pub saved: u32,
    pub refusal: Option<Refusal>,
    pub durable: bool,
}

impl Node {
    /// Says which blocks of a lease's prompt should be sent: those that are not resident, as far
    /// as the drives keep up.
    pub fn reserve(&self, lease: LeaseId, first: u32, blocks: u32) -> Result<Reserved, SaveError> {
        let mut guard = self.state();
        let state = &mut *guard;
        let held = state.leases.get_mut(lease).ok_or(SaveError::NoLease)?;
        let (registration, names) = (Arc::clone(&held.registration), held.names.clone());
        let available = count(names.len());
        let end = first.checked_add(blocks).filter(|end| *end <= available);
        let end = end.ok_or(SaveError::OutOfRange { first, blocks, available })?;
        state.leases.renew(lease, self.clock.now() + self.config.lease_default);
        let withdrawn = self.withdrawn();
        let resident = |block: u32| {
            let key = names.key(&registration, block);
            let place = state.chain.get(key);
            place.is_some_and(|place| !withdrawn.holds(&place) || state.host.contains(key))
        };
        let Some(start) = (first..end).find(|block| !resident(*block)) else {
            return Ok(Reserved { reservation: 0, blocks: Vec::new(), refusal: None });
        };
        let has_parent = names.are_separate() || start.checked_sub(1).is_none_or(resident);
        let refusal = if state.draining {
            Some(Refusal::Draining)
        } else if !has_parent {
            Some(Refusal::NoParent)
        } else if !self.disks.iter().any(Disk::takes_writes) {
            Some(Refusal::ReadOnly)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.refuse(state, &registration, &names[index(start)..index(end)], refusal);
            return Ok(Reserved { reservation: 0, blocks: Vec::new(), refusal: Some(refusal) });
        }
        let block_bytes = registration.layout.stored_length();
        let room = self.save_room(state, block_bytes) / block_bytes;
        // Behind a block that is not resident, none is.
        let wanted = (start..end).filter(|block| !names.are_separate() || !resident(*block));
        let mut blocks: Vec<u32> = wanted.collect();
        let refused =
            blocks.split_off(blocks.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
        let refusal = (!refused.is_empty()).then_some(Refusal::Busy);
        if refusal.is_some() {
            let refused: Vec<_> = refused.iter().map(|block| names[index(*block)]).collect();
            self.refuse(state, &registration, &refused, Refusal::Busy);
        }
        if blocks.is_empty() {
            return Ok(Reserved { reservation: 0, blocks, refusal });
        }
        let reservation = Reservation {
            lease,
            registration,
            names,
            blocks: blocks.iter().copied().collect(),
            block_bytes,
        };
        let reservation = state.leases.reserve(reservation);
        Ok(Reserved { reservation, blocks, refusal })
    }

    /// Counts blocks that are not saved, and remembers them for whoever asks why they miss.
    fn refuse(
        &self,
        state: &mut State,
        registration: &Registration,
        hashes: &[SequenceHash],
        why: Refusal,
    ) {
        self.metrics.refused(why, u64::from(count(hashes.len())));
        let refused = Refused { why, at: self.clock.tick() };
        for &sequence in hashes {
            let key = BlockKey { sequence, shard: registration.shard };
            state.fates.refused(key, refused);
        }
    }

    /// Bytes of the queue for saves that nobody has taken. An idle node takes at least one block.
    pub(crate) fn save_room(&self, state: &State, block_bytes: u64) -> u64 {
        let stats = self.disks.iter().map(|disk| disk.drive.stats());
        // What a drive that hangs has queued would leave no room for the others.
        let working = stats.filter(|stats| stats.withdrawn.is_none());
        let queued: u64 = working.map(|stats| stats.queued_write_bytes).sum();
        let taken = queued + state.leases.reserved_bytes();
        let beside_pins = self.numbered_disks().map(|(id, _)| self.room_beside_pins(state, id));
        let beside_pins = beside_pins.fold(0, u64::saturating_add);
        let room = self.config.save_queue.min(beside_pins).saturating_sub(taken);
        if beside_pins < block_bytes {
            return 0;
        }
        if taken == 0 { room.max(block_bytes) } else { room }
    }

    /// Calls a reservation off.
    pub fn abort(&self, reservation: ReservationId) -> Result<(), SaveError> {
        let known = self.state().leases.abort(reservation);
        if known { Ok(()) } else { Err(SaveError::NoReservation) }
    }

    /// Writes a batch and lets it into the index.
    pub async fn commit(&self, batch: Batch, durable: bool) -> Committed {
        let (registration, names) = (Arc::clone(&batch.registration), batch.names.clone());
        let (epoch, begin) = (batch.epoch, batch.begin);
        let asked: Vec<_> = batch.blocks.iter().map(|(block, ..)| names[index(*block)]).collect();
        let Some(drive) = self.choose_drive() else {
            self.refuse(&mut self.state(), &registration, &asked, Refusal::ReadOnly);
            return Committed { saved: 0, refusal: Some(Refusal::ReadOnly), durable: false };
        };
        self.disk(drive).reclaim_if_low();
        self.disk(drive).asked.notify_one();
        let patience = self.clock.now() + self.config.drive_patience;
        let to = self.disk(drive).drive.clone();
        let withdraw = self.disk(drive).journal.withdrawals();
        let withdraw_later = withdraw.clone();
        // Off the runtime, whose threads have lookups to answer: checksums take a core's time.
        let sent = self.clock.aside(move || batch.send(&to, &withdraw_later)).await;
        // A runtime that ends takes no more work.
        let (written, mut refusal) = sent.unwrap_or((Vec::new(), Some(Refusal::Draining)));
        let mut stored = Vec::with_capacity(written.len());
        let mut failed = false;
        for (block, mut written_at) in written {
            let why = match self.clock.until(patience, &mut written_at).await {
                Some(Ok(Ok(place))) => {
                    // Behind one that failed, none counts: an answer says how many, not which.
                    if !failed {
                        stored.push((block, place));
                    }
                    continue;
                }
                Some(Ok(Err(error))) => refusal_of(error),
                Some(Err(_)) => Refusal::Draining,
                None => {
                    // Should it be written after all, nobody finds it, nor does a later start.
                    written_at.close();
                    if let Ok(Ok(Stored { address, .. })) = written_at.try_recv() {
                        withdraw(address);
                    }
                    Refusal::Busy
                }
            };
            failed = true;
            refusal = refusal.or(Some(why));
        }
        let committed = self.enter_all((&registration, epoch), &names, drive, &stored, refusal);
        let durable = durable && committed.saved > 0 && {
            let first = stored.first().map_or(0, |(block, _)| index(*block));
            let saved = if names.are_separate() {
                &asked[..index(committed.saved)]
            } else {
                &names[..first + index(committed.saved)]
            };
            let promised = self.are_promised(&registration, saved);
            let patience = self.clock.now() + self.config.drive_patience;
            self.clock.until(patience, promised).await.unwrap_or(false)
        };
        if let Some(refusal) = committed.refusal {
            let refused = &asked[index(committed.saved)..];
            self.refuse(&mut self.state(), &registration, refused, refusal);
        }
        let bytes = u64::from(committed.saved) * registration.layout.payload_length;
        self.metrics.saved(u64::from(committed.saved), bytes, self.clock.now() - begin);
        Committed { durable, ..committed }
    }

    /// Lets written blocks be found, parents first, up to the first that cannot be.
    fn enter_all(
        &self,
        (registration, epoch): (&Registration, u64),
        names: &Names,
        drive: DriveId,
        stored: &[(u32, Stored)],
        refusal: Option<Refusal>,
    ) -> Committed {
        let (now, withdrawn) = (self.clock.tick(), self.withdrawn());
        let mut state = self.state();
        if state.epoch(registration.namespace) != epoch {
            // The namespace was dropped meanwhile, and these blocks with it.
            return Committed { saved: 0, refusal: Some(Refusal::NoParent), durable: false };
        }
        let mut saved = 0;
        for &(block, Stored { address, stored_length }) in stored {
            let (key, parent) = (names.key(registration, block), names.parent(block));
            let group = Group::new(drive, address.segment).expect("checked at start");
            let namespace = registration.namespace;
            let place = BlockPlace::new(group, namespace, address.offset, stored_length);
            let place = place.expect("the engine places whole pages in a segment");
            match state.enter(key, parent, (place, address.generation), now) {
                Entered::Already => {
                    // The copy on a drive that does not answer is worth less than this one.
                    if let Some(old) = state.chain.get(key).filter(|old| withdrawn.holds(old)) {
                        state.moved(key, old, (place, address.generation));
                    }
                    saved += 1;
                }
                Entered::New => saved += 1,
                Entered::Lost => {
                    let refusal = refusal.or(Some(Refusal::NoParent));
                    return Committed { saved, refusal, durable: false };
                }
            }
        }
        Committed { saved, refusal, durable: false }
    }

    /// Of the drives that take writes, the one with the shortest queue for its speed; of equals, the emptiest.
    fn choose_drive(&self) -> Option<DriveId> {
        let state = self.state();
        let writable = self.numbered_disks().filter_map(|(id, disk)| {
            let stats = disk.drive.stats();
            let rate = stats.write_bytes_per_second.max(1 << 20);
            let wait_ms = stats.queued_write_bytes.saturating_mul(1000) / rate;
            let used = u64::from(stats.segments) - stats.segments_free;
            let used_share = used * 1000 / u64::from(stats.segments.max(1));
            let is_short = self.room_beside_pins(&state, id) == 0;
            disk.takes_writes().then_some((is_short, wait_ms, used_share, id))
        });
        writable.min().map(|(.., id)| id)
    }
}

fn awaited(block: Option<u32>) -> String {
    block.map_or_else(|| "no more".into(), |block| format!("block {block}"))
}

fn refusal_of(error: AppendError) -> Refusal {
    match error {
        AppendError::Stopped => Refusal::Draining,
        // Too large a block is refused at its registration, and its pages are ours to count.
        AppendError::NoSpace | AppendError::TooLarge { .. } | AppendError::Payload { .. } => {
            Refusal::NoSpace
        }
        AppendError::Io(_) | AppendError::ReadOnly | _ => Refusal::ReadOnly,
    }
}

fn count(blocks: usize) -> u32 {
    u32::try_from(blocks).expect("a prompt has fewer than 2^32 blocks")
}

fn index(block: u32) -> usize {
    usize::try_from(block).expect("32 bits fit")
}
