//! Pins: prefixes that reclaim keeps, until their time is up or an operator lets them go.
//!
//! A pin names the last block of a prefix and takes in all of its ancestors. Each block counts the
//! pins that it is under, and each segment the bytes of such blocks, so that neither a removal nor
//! reclaim has to look for pins. A pin ends with its block.

use crate::place::{BlockPlace, DriveId, Group};
use crate::state::State;
use refrain_index::chain::BlockKey;
use std::collections::{BTreeMap, HashMap};
use thiserror::Error;

pub(crate) mod file;

/// Of each drive's capacity, the part that may be pinned: so at most half of its segments are half
/// full of pinned blocks, and reclaim finds others.
pub(crate) const SHARE: u64 = 4;
/// On fewer segments there is no room to move pinned blocks to.
pub(crate) const SEGMENTS_MIN: u32 = 8;
/// Pins at once.
const PINS_MAX: usize = 1 << 16;

/// When a pin ends, in milliseconds of the Unix epoch: it outlives a start. `None`: never by itself.
pub(crate) type Until = Option<u64>;

/// Why a prefix is not pinned.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum PinError {
    #[error("block is not resident: there is nothing to pin")]
    Absent,
    #[error("{limit} pins are all that a sidecar keeps: unpin others")]
    TooMany { limit: usize },
    #[error(
        "pinned blocks would take {wanted} bytes of drive {}, of which {limit} may be pinned, a \
         quarter of its capacity: unpin others, or give it more",
        drive.0
    )]
    Share { drive: DriveId, wanted: u64, limit: u64 },
    #[error(
        "drive {} has {segments} segments, and needs {SEGMENTS_MIN} before blocks on it can be \
         pinned: give smaller segments or more capacity",
        drive.0
    )]
    Small { drive: DriveId, segments: u32 },
    #[error("a block of the prefix is being reclaimed at this moment: try again")]
    Leaving,
}

/// What of a drive may be pinned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) segments: u32,
    pub(crate) capacity: u64,
}

/// A prefix that is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pinned {
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Pins {
    /// By the last block of each prefix.
    ends: BTreeMap<BlockKey, Until>,
    /// Of each block that is pinned: how many pins it is under.
    under: HashMap<BlockKey, u32>,
    /// Whether a pin has ended without anybody having asked for it.
    changed: bool,
}

impl Pins {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn is_pinned(&self, key: BlockKey) -> bool {
        self.under.contains_key(&key)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (BlockKey, Until)> {
        self.ends.iter().map(|(key, until)| (*key, *until))
    }

    /// Whether pins have ended by themselves since the last call.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
}

impl State {
    /// Pins the prefix that ends with `top`, or gives its pin another time to end.
    pub(crate) fn pin(
        &mut self,
        top: BlockKey,
        until: Until,
        rooms: &[Room],
    ) -> Result<Pinned, PinError> {
        let path = self.path(top);
        if path.is_empty() {
            return Err(PinError::Absent);
        }
        if !self.pins.ends.contains_key(&top) {
            if self.pins.len() >= PINS_MAX {
                return Err(PinError::TooMany { limit: PINS_MAX });
            }
            self.check_room(&path, rooms)?;
            for (key, place) in &path {
                let under = self.pins.under.entry(*key).or_insert(0);
                *under += 1;
                if *under == 1 {
                    self.segments.pin(place);
                }
            }
        }
        self.pins.ends.insert(top, until);
        Ok(sum(&path))
    }

    /// What a pin at `top` holds, or would.
    pub(crate) fn pinned_by(&self, top: BlockKey) -> Pinned {
        sum(&self.path(top))
    }

    /// Ends a pin; whether there was one.
    pub(crate) fn unpin(&mut self, top: BlockKey) -> bool {
        if self.pins.ends.remove(&top).is_none() {
            return false;
        }
        for (key, place) in self.path(top) {
            self.uncover(key, &place, 1);
        }
        true
    }

    /// Ends pins whose time is up, at `now`.
    pub(crate) fn expire_pins(&mut self, now: u64) {
        let is_over = |(_, until): &(BlockKey, Until)| until.is_some_and(|until| until <= now);
        let over: Vec<_> = self.pins.all().filter(is_over).map(|(key, _)| key).collect();
        for key in over {
            self.unpin(key);
        }
    }

    /// Ends the pins on blocks of a segment, which there is no room to move; how many end.
    pub(crate) fn give_up_pins(&mut self, group: Group) -> usize {
        let in_group = |key: &BlockKey| {
            let path = self.path(*key);
            path.iter().any(|(_, place)| place.group == group)
        };
        let ends: Vec<_> = self.pins.ends.keys().copied().filter(in_group).collect();
        self.pins.changed |= !ends.is_empty();
        ends.iter().filter(|key| self.unpin(**key)).count()
    }

    /// Before a block is removed with all behind it: its ancestors are under fewer pins.
    pub(crate) fn let_pins_go(&mut self, top: BlockKey) {
        let Some(&under) = self.pins.under.get(&top) else { return };
        for (key, place) in self.path(top).into_iter().skip(1) {
            self.uncover(key, &place, under);
        }
    }

    /// A block was removed, and all behind it: no pin is left on it.
    pub(crate) fn forget_pins(&mut self, key: BlockKey, place: &BlockPlace) {
        if self.pins.under.remove(&key).is_some() {
            self.segments.unpin(place);
            self.pins.changed |= self.pins.ends.remove(&key).is_some();
        }
    }

    fn uncover(&mut self, key: BlockKey, place: &BlockPlace, pins: u32) {
        let Some(under) = self.pins.under.get_mut(&key) else { return };
        *under -= pins;
        if *under == 0 {
            self.pins.under.remove(&key);
            self.segments.unpin(place);
        }
    }

    /// A block and its ancestors, the first block of its prompt last; empty where it is not there.
    fn path(&self, top: BlockKey) -> Vec<(BlockKey, BlockPlace)> {
        let step = |key: &BlockKey| {
            let sequence = self.chain.parent(*key)??;
            Some(BlockKey { sequence, ..*key })
        };
        let keys = std::iter::successors(Some(top), step);
        keys.map_while(|key| Some((key, self.chain.get(key)?))).collect()
    }

    fn check_room(&self, path: &[(BlockKey, BlockPlace)], rooms: &[Room]) -> Result<(), PinError> {
        let mut wanted: BTreeMap<DriveId, u64> = BTreeMap::new();
        for (_, place) in path.iter().filter(|(key, _)| !self.pins.is_pinned(*key)) {
            if self.segments.get(place.group).is_leaving() {
                return Err(PinError::Leaving);
            }
            *wanted.entry(place.group.drive()).or_insert(0) += place.stored_length();
        }
        for (drive, wanted) in wanted {
            let Room { segments, capacity } = rooms[usize::from(drive.0)];
            if segments < SEGMENTS_MIN {
                return Err(PinError::Small { drive, segments });
            }
            let (wanted, limit) = (self.segments.pinned_bytes(drive) + wanted, capacity / SHARE);
            if wanted > limit {
                return Err(PinError::Share { drive, wanted, limit });
            }
        }
        Ok(())
    }
}

fn sum(path: &[(BlockKey, BlockPlace)]) -> Pinned {
    let bytes = path.iter().map(|(_, place)| place.stored_length()).sum();
    Pinned { blocks: u64::try_from(path.len()).expect("usize fits"), bytes }
}

#[cfg(test)]
mod tests;
