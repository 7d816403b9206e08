//! Filling an empty index at once, in whatever order the blocks were found.

use super::nodes::as_index;
use super::{BlockKey, Chain, NONE, Place, bucket};
use crate::hash::SequenceHash;

/// What became of the blocks that were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    pub inserted: usize,
    /// Left out: a block before them is gone.
    pub orphans: usize,
    /// Found again: the later one counts.
    pub duplicates: usize,
}

impl<P: Place> Chain<P> {
    /// Inserts blocks in any order. Of two with one key the later counts.
    pub fn restore(
        &mut self,
        blocks: impl IntoIterator<Item = (BlockKey, Option<SequenceHash>, P)>,
        now: u32,
    ) -> Restored {
        assert!(self.is_empty(), "an index is restored once, before it serves");
        let blocks = blocks.into_iter();
        let mut restored = Restored::default();
        let nodes = &self.nodes;
        self.table.reserve(blocks.size_hint().0, |&i| bucket(nodes.get(i).key));
        let mut parents: Vec<Option<SequenceHash>> = Vec::with_capacity(blocks.size_hint().0);
        for (key, parent, place) in blocks {
            if let Some(index) = self.find(key) {
                self.replace(key, place);
                parents[as_index(index)] = parent;
                restored.duplicates += 1;
            } else {
                self.add(key, place, now);
                parents.push(parent);
            }
        }
        let orphans = self.link(&parents);
        for &index in &orphans {
            self.take(index);
        }
        restored.orphans = orphans.len();
        restored.inserted = self.len();
        restored
    }

    /// Links children to their parents; the answer is who has no way to a first block.
    fn link(&mut self, parents: &[Option<SequenceHash>]) -> Vec<u32> {
        let count = u32::try_from(parents.len()).expect("fewer than 2^32 - 1 blocks");
        let mut reached = vec![false; parents.len()];
        let mut order = Vec::new();
        for (index, parent) in (0..count).zip(parents) {
            match parent {
                None => order.push(index),
                Some(sequence) => {
                    // Mostly the block that was found just before.
                    let shard = self.nodes.get(index).key.shard;
                    let key = BlockKey { sequence: *sequence, shard };
                    let before = index.checked_sub(1);
                    let before = before.filter(|&before| self.nodes.get(before).key == key);
                    if let Some(parent) = before.or_else(|| self.find(key)) {
                        self.link_child(parent, index);
                    }
                }
            }
        }
        while let Some(index) = order.pop() {
            reached[as_index(index)] = true;
            let mut child = self.nodes.get(index).first_child;
            while child != NONE {
                order.push(child);
                child = self.nodes.get(child).next;
            }
        }
        (0..count).filter(|&index| !reached[as_index(index)]).collect()
    }
}
