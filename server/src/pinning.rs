//! Pinning for an operator: within bounds, and so that a start knows it again.

use crate::clock::unix_ms;
use crate::disks::{Disk, Disks, Missing};
use crate::lookup::Prompt;
use crate::namespaces::Registration;
use crate::node::Node;
use crate::pins::file::{Kept, PinsFileError};
use crate::pins::{PinError, Pinned, Room, Until};
use crate::place::{DriveId, Group};
use crate::state::State;
use refrain_index::chain::BlockKey;
use std::sync::PoisonError;
use std::time::Duration;
use thiserror::Error;
use tracing::warn;

/// Why a prefix is not pinned, or would not be after a start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum PinningError {
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Keep(#[from] PinsFileError),
}

impl Node {
    /// The last block of a prompt's longest resident prefix.
    pub(crate) fn resident_end(
        &self,
        registration: &Registration,
        prompt: Prompt<'_>,
    ) -> Result<BlockKey, PinError> {
        let hashes = registration.names(prompt);
        let shard = registration.shard;
        let matched = self.state().chain.matched(shard, &hashes);
        let last = matched.checked_sub(1).ok_or(PinError::Absent)?;
        Ok(BlockKey { sequence: hashes[last], shard })
    }

    /// Pins the prefix that ends with `top`, for good once this returns. Blocks: pins are synced.
    pub(crate) fn pin(
        &self,
        top: BlockKey,
        time: Option<Duration>,
    ) -> Result<Pinned, PinningError> {
        let _one_at_a_time = self.pinning.lock().unwrap_or_else(PoisonError::into_inner);
        let now = unix_ms();
        let until = time.map(|time| now.saturating_add(millis(time)));
        let rooms = rooms(&self.disks);
        let mut state = self.state();
        state.expire_pins(now);
        let before = state.pins.all().find(|(key, _)| *key == top);
        let pinned = state.pin(top, until, &rooms)?;
        drop(state);
        if let Err(error) = self.keep_pins() {
            // As before: what cannot be kept is not promised.
            let mut state = self.state();
            match before {
                Some((_, until)) => drop(state.pin(top, until, &rooms)),
                None => drop(state.unpin(top)),
            }
            return Err(error.into());
        }
        Ok(pinned)
    }

    /// Ends the pins that end with one of these blocks; how many.
    pub(crate) fn unpin(&self, tops: &[BlockKey]) -> Result<u64, PinningError> {
        let _one_at_a_time = self.pinning.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state();
        let mut ended = tops.iter().filter(|top| state.unpin(**top)).count();
        let waiting = state.pins_waiting.len();
        state.pins_waiting.retain(|(key, _)| !tops.contains(key));
        ended += waiting - state.pins_waiting.len();
        drop(state);
        if ended > 0 {
            self.keep_pins()?;
        }
        Ok(u64::try_from(ended).expect("usize fits"))
    }

    /// Has no start know pins whose blocks an operator has removed. Blocks.
    pub(crate) fn keep_changed_pins(&self) {
        let _one_at_a_time = self.pinning.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.state().pins.take_changed() {
            return;
        }
        if let Err(error) = self.keep_pins() {
            // A pin without its block holds nothing.
            warn!(error = &error as &dyn std::error::Error, "pins not kept");
        }
    }

    /// Pins what waited for a drive to come back.
    pub(crate) fn pin_again(&self) {
        let rooms = rooms(&self.disks);
        let mut state = self.state();
        let pins = std::mem::take(&mut state.pins_waiting);
        state.pins_waiting = pin_again(&mut state, pins, &rooms, unix_ms());
    }

    /// Under `pinning`, so that a later state is never overwritten by an earlier one.
    fn keep_pins(&self) -> Result<(), PinsFileError> {
        let mut state = self.state();
        state.pins_kept += 1;
        let pins = state.pins.all().chain(state.pins_waiting.iter().copied());
        let kept = Kept { sequence: state.pins_kept, pins: pins.collect() };
        drop(state);
        self.drives().try_for_each(|drive| kept.write(drive.path()))
    }

    /// Bytes that saves may take of a drive: where blocks are pinned, one segment stays free for
    /// those that reclaim moves on.
    pub(crate) fn room_beside_pins(&self, state: &State, drive: DriveId) -> u64 {
        if state.segments.pinned_bytes(drive) == 0 {
            return u64::MAX;
        }
        let disk = self.disk(drive);
        let room = disk.free_bytes().saturating_sub(disk.drive.stats().segment_bytes);
        if room == 0 {
            disk.reclaim_if_low();
        }
        room
    }

    /// No room was found for pinned blocks of a segment: reclaim goes on without them.
    pub(crate) fn give_up_pins(&self, group: Group) {
        let pins = self.state().give_up_pins(group);
        warn!(
            drive = group.drive().0,
            segment = group.segment().0,
            pins,
            "pins given up: there was no room to move their blocks to"
        );
    }
}

/// Pins again what was pinned before the start; called once the index is whole. Those whose block is
/// not there are left.
pub(crate) fn restore(state: &mut State, disks: &Disks, now: u64) -> Vec<(BlockKey, Until)> {
    let mut latest = Kept::default();
    for disk in disks.iter() {
        match Kept::read(disk.drive.path()) {
            Ok(kept) if kept.sequence > latest.sequence => latest = kept,
            Ok(_) => {}
            Err(error) => warn!(error = &error as &dyn std::error::Error, "pins not read"),
        }
    }
    state.pins_kept = latest.sequence;
    let left = pin_again(state, latest.pins, &rooms(disks), now);
    for (key, _) in &left {
        warn!(block = %key.sequence, shard = key.shard, error = %PinError::Absent, "not pinned again");
    }
    left
}

/// Those whose block is not there are left.
fn pin_again(
    state: &mut State,
    mut pins: Vec<(BlockKey, Until)>,
    rooms: &[Room],
    now: u64,
) -> Vec<(BlockKey, Until)> {
    let is_over = |until: Until| until.is_some_and(|until| until <= now);
    pins.retain(|&(key, until)| {
        if is_over(until) {
            return false;
        }
        match state.pin(key, until, rooms) {
            Ok(_) => false,
            Err(PinError::Absent) => true,
            Err(error) => {
                warn!(block = %key.sequence, shard = key.shard, error = %error, "not pinned again");
                false
            }
        }
    });
    pins
}

/// By the number of the drive.
fn rooms(disks: &Disks) -> Vec<Room> {
    let room = |(_, disk): (DriveId, Result<&Disk, &Missing>)| {
        let stats = disk.ok().map(|disk| disk.drive.stats());
        stats.map_or(Room { segments: 0, capacity: 0 }, |stats| Room {
            segments: stats.segments,
            capacity: stats.capacity_bytes,
        })
    };
    disks.all().map(room).collect()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
