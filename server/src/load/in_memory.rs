//! Blocks of one load that are in memory already.

use crate::host_tier::HostTier;
use refrain_index::chain::BlockKey;
use refrain_store::arena::Frame;
use std::sync::Arc;

/// They are held from the start, so that none makes way for an earlier block of the same prompt,
/// only to be read again.
pub(super) struct InMemory {
    frames: Vec<(BlockKey, Option<Arc<Frame>>)>,
    /// From here on, only what others hold too.
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
            // What others hold stays: that frees nothing, and of a block that is on no drive here, a
            // lease may hold all there is.
            if frame.as_ref().is_some_and(|frame| host.give_up(*key, frame)) {
                *frame = None;
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
        assert!(held.take(4).is_some(), "what is there is not read again");
        assert_eq!(arena.allocated_bytes(), 2 * 4096);
        drop(leased);
    }

    #[test]
    fn what_a_lease_alone_holds_does_not_make_way() {
        let arena = Arena::new(Mapping::create("test", 1 << 20).unwrap());
        let frame = || Arc::new(arena.allocate(4096).unwrap());
        // As of a namespace that was dropped since: the tier has none of them, and 2 came anew.
        let leased: Vec<_> = (0..3).map(|_| frame()).collect();
        let mut host = HostTier::default();
        host.insert(key(2), frame());
        let wanted = (0..).zip(&leased).map(|(name, leased)| (key(name), Some(Arc::clone(leased))));
        let mut held = InMemory::hold(wanted, &mut host);
        assert!(!held.give_up(0, &mut host) && host.contains(key(2)));
        assert!((0..3).all(|block| held.take(block).is_some()));
    }
}
