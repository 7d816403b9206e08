//! What became of blocks that are not resident: the latest of them, in a bounded number of bytes.
//!
//! A ring: the newest note takes the place of the oldest. Of a block that is noted again the later
//! note counts, and lives as long as any other.

use crate::chain::{BlockKey, bucket};
use hashbrown::HashTable;

/// Up to a fixed number of blocks, each with what is known of it.
#[derive(Debug)]
pub struct Recent<T> {
    slots: Vec<(BlockKey, T)>,
    limit: usize,
    /// The slot that is written next, once all are taken.
    oldest: usize,
    /// Slots that count: a block that was noted again has an earlier one, which does not.
    table: HashTable<u32>,
    forgotten: Option<T>,
}

impl<T: Copy> Recent<T> {
    /// Remembers the last `limit` notes.
    pub fn new(limit: u32) -> Self {
        assert!(limit > 0, "what remembers nothing is not needed");
        let limit = usize::try_from(limit).expect("32 bits fit");
        Self { slots: Vec::new(), limit, oldest: 0, table: HashTable::new(), forgotten: None }
    }

    /// Notes what became of a block.
    pub fn note(&mut self, key: BlockKey, what: T) {
        let slots = &self.slots;
        let is_same = |slot: &u32| slots[index(*slot)].0 == key;
        if let Ok(before) = self.table.find_entry(bucket(key), is_same) {
            before.remove();
        }
        let slot = if self.slots.len() < self.limit {
            self.grow();
            self.slots.push((key, what));
            self.slots.len() - 1
        } else {
            let slot = self.oldest;
            self.forget(slot);
            self.slots[slot] = (key, what);
            self.oldest = (slot + 1) % self.limit;
            slot
        };
        let slot = u32::try_from(slot).expect("no more than the limit");
        let slots = &self.slots;
        self.table.insert_unique(bucket(key), slot, |&slot| bucket(slots[index(slot)].0));
    }

    /// What was noted last of a block, if that is remembered.
    pub fn get(&self, key: BlockKey) -> Option<T> {
        let slot = self.table.find(bucket(key), |&slot| self.slots[index(slot)].0 == key)?;
        Some(self.slots[index(*slot)].1)
    }

    /// The latest note that is remembered no more: all later ones are.
    pub fn forgotten(&self) -> Option<T> {
        self.forgotten
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> u64 {
        let slots = self.slots.capacity() * size_of::<(BlockKey, T)>();
        u64::try_from(slots + self.table.allocation_size()).expect("usize fits")
    }

    /// Doubles, and never beyond the limit.
    fn grow(&mut self) {
        let length = self.slots.len();
        if length == self.slots.capacity() {
            self.slots.reserve_exact(length.max(64).min(self.limit - length));
        }
    }

    fn forget(&mut self, slot: usize) {
        let (key, what) = self.slots[slot];
        self.forgotten = Some(what);
        if let Ok(entry) = self.table.find_entry(bucket(key), |&found| index(found) == slot) {
            entry.remove();
        }
    }
}

fn index(slot: u32) -> usize {
    usize::try_from(slot).expect("32 bits fit")
}

#[cfg(test)]
mod tests {
    //! Proves, against a list of all notes, that the latest are known and that none is passed off as
    //! never made.

    use super::*;
    use crate::hash::SequenceHash;
    use std::collections::BTreeSet;

    fn key(id: u32) -> BlockKey {
        BlockKey { sequence: SequenceHash(*blake3::hash(&id.to_le_bytes()).as_bytes()), shard: 0 }
    }

    #[test]
    fn the_last_notes_are_known_and_earlier_ones_said_to_be_forgotten() {
        for limit in [1, 2, 7, 64] {
            let (mut recent, mut notes) = (Recent::new(limit), Vec::new());
            let mut random = fastrand::Rng::with_seed(u64::from(limit));
            for time in 0..2000usize {
                let id = random.u32(0..90);
                recent.note(key(id), time);
                notes.push(id);
                let known_from = recent.forgotten().map_or(0, |time| time + 1);
                assert_eq!(known_from, notes.len().saturating_sub(index(limit)));
                for id in 0..90 {
                    let last = notes.iter().rposition(|noted| *noted == id);
                    let known = last.filter(|time| *time >= known_from);
                    assert_eq!(recent.get(key(id)), known, "limit {limit}, time {time}, {id}");
                }
            }
        }
    }

    #[test]
    fn shards_of_a_block_are_remembered_apart() {
        let mut recent = Recent::new(4);
        recent.note(key(1), 'a');
        recent.note(BlockKey { shard: 1, ..key(1) }, 'b');
        assert_eq!(recent.get(key(1)), Some('a'));
        assert_eq!(recent.get(BlockKey { shard: 2, ..key(1) }), None);
    }

    #[test]
    fn memory_grows_in_few_steps() {
        let mut recent = Recent::new(7 << 10);
        let sizes = (0..7 << 10).map(|id| {
            recent.note(key(id), id);
            recent.bytes()
        });
        let sizes: BTreeSet<_> = sizes.collect();
        // Slots and table double from 64 and 3 on.
        assert!(sizes.len() <= 8 + 12, "{sizes:?}");
    }

    #[test]
    fn memory_stops_growing_at_the_limit() {
        let mut recent = Recent::new(7 << 10);
        (0..100_000).for_each(|id| recent.note(key(id), [id; 2]));
        let full = recent.bytes();
        (0..100_000).for_each(|id| recent.note(key(id), [id; 2]));
        assert_eq!(recent.bytes(), full);
        // 36 + 8 bytes a slot, and at most two buckets of 5 bytes for each of a power of two.
        assert!(full > 44 * (7 << 10), "{full}");
        assert!(full <= 44 * (7 << 10) + 10 * (8 << 10) + 64, "{full}");
    }
}
