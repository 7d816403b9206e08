//! The host tier: frames of the load arena that keep what they were read with.
//!
//! A frame is given up when memory is wanted and nobody else holds it; which one is the choice of a
//! clock that spares what was used since its hand last came by.
//!
//! A guest is a block of a peer that is on none of this node's drives: nothing but its frame tells of it.

use crate::place::NamespaceId;
use refrain_index::chain::BlockKey;
use refrain_index::hash::SequenceHash;
use refrain_store::arena::Frame;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

#[derive(Debug)]
struct Cached {
    frame: Arc<Frame>,
    used: bool,
    /// Which entry of the clock is this one's: a key may come back after it went.
    stamp: u64,
    guest: Option<Guest>,
}

#[derive(Clone, Copy, Debug)]
struct Guest {
    namespace: NamespaceId,
    /// It is being saved on a drive.
    keeping: bool,
}

#[derive(Debug, Default)]
pub(crate) struct HostTier {
    cached: HashMap<BlockKey, Cached>,
    clock: VecDeque<(BlockKey, u64)>,
    stamp: u64,
    bytes: u64,
}

impl HostTier {
    pub(crate) fn len(&self) -> usize {
        self.cached.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn contains(&self, key: BlockKey) -> bool {
        self.cached.contains_key(&key)
    }

    /// A block's frame, which is thereby used.
    pub(crate) fn get(&mut self, key: BlockKey) -> Option<Arc<Frame>> {
        let cached = self.cached.get_mut(&key)?;
        cached.used = true;
        Some(Arc::clone(&cached.frame))
    }

    /// Keeps a frame whose bytes were checked.
    pub(crate) fn insert(&mut self, key: BlockKey, frame: Arc<Frame>) {
        self.add(key, frame, None);
    }

    /// Keeps the frame of a block that is on no drive here.
    pub(crate) fn insert_guest(
        &mut self,
        key: BlockKey,
        frame: Arc<Frame>,
        namespace: NamespaceId,
    ) {
        self.add(key, frame, Some(Guest { namespace, keeping: false }));
    }

    /// The frames of the first of these blocks, up to one that is not here; all are thereby used.
    pub(crate) fn run(&mut self, shard: u32, hashes: &[SequenceHash]) -> Vec<Arc<Frame>> {
        let keys = hashes.iter().map(|&sequence| BlockKey { sequence, shard });
        keys.map_while(|key| self.get(key)).collect()
    }

    /// Whether a guest is to be saved now, by whoever asks first.
    pub(crate) fn begin_keeping(&mut self, key: BlockKey) -> bool {
        let guest = self.cached.get_mut(&key).and_then(|cached| cached.guest.as_mut());
        guest.is_some_and(|guest| !std::mem::replace(&mut guest.keeping, true))
    }

    /// Whoever began has ended; what is on a drive is no guest any more.
    pub(crate) fn end_keeping(&mut self, key: BlockKey, is_saved: bool) {
        let Some(cached) = self.cached.get_mut(&key) else { return };
        match &mut cached.guest {
            guest if is_saved => *guest = None,
            Some(guest) => guest.keeping = false,
            None => {}
        }
    }

    /// Gives up all guests of a namespace.
    pub(crate) fn dismiss(&mut self, namespace: NamespaceId) {
        let is_one = |guest: Option<Guest>| guest.is_some_and(|it| it.namespace == namespace);
        let of = self.cached.iter().filter(|(_, cached)| is_one(cached.guest));
        let keys: Vec<_> = of.map(|(key, _)| *key).collect();
        for key in keys {
            self.remove(key);
        }
    }

    fn add(&mut self, key: BlockKey, frame: Arc<Frame>, guest: Option<Guest>) {
        self.stamp += 1;
        self.bytes += frame.region().length();
        let cached = Cached { frame, used: false, stamp: self.stamp, guest };
        self.clock.push_back((key, self.stamp));
        if let Some(before) = self.cached.insert(key, cached) {
            self.bytes -= before.frame.region().length();
        }
    }

    pub(crate) fn remove(&mut self, key: BlockKey) {
        if let Some(cached) = self.cached.remove(&key) {
            self.bytes -= cached.frame.region().length();
        }
        // Entries of what has gone are passed over by the hand; not too many of them are kept.
        if self.clock.len() > 2 * self.cached.len() + 64 {
            let cached = &self.cached;
            self.clock.retain(|(key, stamp)| cached.get(key).is_some_and(|c| c.stamp == *stamp));
        }
    }

    /// Gives up a block's frame; `false` where it is another than `held`, or others hold it too.
    pub(crate) fn give_up(&mut self, key: BlockKey, held: &Arc<Frame>) -> bool {
        let is_it = |cached: &Cached| Arc::ptr_eq(&cached.frame, held);
        // The tier's and the caller's.
        let gives = self.cached.get(&key).is_some_and(is_it) && Arc::strong_count(held) == 2;
        if gives {
            self.remove(key);
        }
        gives
    }

    /// Gives up one frame; `false` when all that are left are held by somebody.
    pub(crate) fn evict(&mut self) -> bool {
        // Twice around: the first may only clear marks.
        for _ in 0..2 * self.clock.len() {
            let Some((key, stamp)) = self.clock.pop_front() else { return false };
            let Some(cached) = self.cached.get_mut(&key).filter(|c| c.stamp == stamp) else {
                continue;
            };
            let spared = std::mem::take(&mut cached.used) || Arc::strong_count(&cached.frame) > 1;
            if spared {
                self.clock.push_back((key, stamp));
            } else {
                self.remove(key);
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    //! Proves whom the clock spares, and that the count of bytes follows.

    use super::*;
    use refrain_index::hash::SequenceHash;
    use refrain_store::arena::{Arena, Mapping};

    fn key(name: u8) -> BlockKey {
        BlockKey { sequence: SequenceHash([name; 32]), shard: 0 }
    }

    fn filled(count: u8) -> (Arc<Arena>, HostTier) {
        let arena = Arena::new(Mapping::create("test", 1 << 20).unwrap());
        let mut tier = HostTier::default();
        for name in 0..count {
            tier.insert(key(name), Arc::new(arena.allocate(4096).unwrap()));
        }
        (arena, tier)
    }

    #[test]
    fn used_and_held_frames_are_spared() {
        let (arena, mut tier) = filled(4);
        let held = tier.get(key(2)).unwrap();
        drop(tier.get(key(0)));
        assert!(tier.evict() && tier.evict());
        assert!(tier.contains(key(0)) && tier.contains(key(2)));
        // Its mark is spent by now, and 2 is held all the same.
        assert!(tier.evict());
        assert!(!tier.evict());
        drop(held);
        assert!(tier.evict() && !tier.evict());
        assert_eq!((tier.len(), tier.bytes(), arena.allocated_bytes()), (0, 0, 0));
    }

    #[test]
    fn a_key_that_came_back_counts_once() {
        let (arena, mut tier) = filled(1);
        for _ in 0..200 {
            tier.remove(key(0));
            tier.insert(key(0), Arc::new(arena.allocate(4096).unwrap()));
        }
        tier.insert(key(0), Arc::new(arena.allocate(4096).unwrap()));
        assert_eq!((tier.len(), tier.bytes()), (1, 4096));
        assert!(tier.clock.len() < 100);
        assert!(tier.evict() && !tier.evict());
        assert_eq!(arena.allocated_bytes(), 0);
    }
}
