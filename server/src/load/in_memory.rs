//! Blocks of one load that are in memory already.

use crate::host_tier::HostTier;
use refrain_index::chain::BlockKey;
use refrain_store::arena::Frame;
use std::sync::Arc;

/// They are held from the start, so that none makes way for an earlier block of the same prompt,
/// only to be read again.
pub(super) struct InMemory {
    frames: Vec<(BlockKey, Option<Arc<Frame>>)>,
    /// Nothing is held from here on.
    end: usize,
}

impl InMemory {
    /// Of `wanted` blocks, with the frames that their lease holds.
    pub(super) fn hold(
        wanted: impl Iterator<Item = (BlockKey, Option<Arc<Frame>>)>,
        host: &mut HostTier,
    ) -> Self {
        let held = wanted.map(|(key, frame)| (key, frame.or_else(|| host.get(key))));
        let frames: Vec<_> = held.collect();
        Self { end: frames.len(), frames }
    }

    pub(super) fn take(&mut self, block: usize) -> Option<Arc<Frame>> {
        self.frames[block].1.take()
    }

    /// Has the last one behind `block` make way, where memory lacks: only what is contiguous counts.
    /// `false` where none is left that nobody else holds.
    pub(super) fn give_up(&mut self, block: usize, host: &mut HostTier) -> bool {
        while self.end > block + 1 {
            self.end -= 1;
            let (key, frame) = &mut self.frames[self.end];
            // Ours and the tier's.
            if frame.take().is_some_and(|frame| Arc::strong_count(&frame) == 2) {
                host.remove(*key);
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    //! Proves what makes way, and what does not.

    use super::*;
    use refrain_index::hash::SequenceHash;
    use refrain_store::arena::{Arena, Mapping};

    fn key(name: u8) -> BlockKey {
        BlockKey { sequence: SequenceHash([name; 32]), shard: 0 }
    }

    #[test]
    fn what_is_held_stays_until_the_last_makes_way_for_the_first() {
        let arena = Arena::new(Mapping::create("test", 1 << 20).unwrap());
        let mut host = HostTier::default();
        for name in 2..6 {
            host.insert(key(name), Arc::new(arena.allocate(4096).unwrap()));
        }
        let leased = host.get(key(4)).unwrap();
        let mut held = InMemory::hold((0..6).map(|name| (key(name), None)), &mut host);
        assert!(!host.evict(), "all are held");
        assert!(held.take(0).is_none());
        assert!(held.give_up(0, &mut host) && !host.contains(key(5)));
        // 4 is another's.
        assert!(held.give_up(1, &mut host) && host.contains(key(4)) && !host.contains(key(3)));
        assert!(held.take(2).is_some());
        assert!(!held.give_up(2, &mut host));
        assert_eq!(arena.allocated_bytes(), 2 * 4096);
        drop(leased);
    }
}
