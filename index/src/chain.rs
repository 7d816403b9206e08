//! The RAM index: which blocks are resident, and who stands behind whom.
//!
//! Blocks form a forest by their parents. Two things always hold: a block's parent is resident, so
//! that a prefix match is a walk from the first hash to the first absent one; and a block that goes
//! takes all its descendants along, as nobody could reach them any more.

use crate::hash::SequenceHash;
use hashbrown::{HashMap, HashTable};
use thiserror::Error;

mod nodes;
mod restore;

use nodes::{NONE, Node, Nodes};
pub use restore::Restored;

/// Names stored bytes: a prefix, and one rank's share of its last block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey {
    pub sequence: SequenceHash,
    pub shard: u32,
}

/// Where a block lies, as far as the index must know.
pub trait Place: Copy {
    /// What goes together: all blocks of a group can be listed.
    fn group(&self) -> u32;
}

/// Why a block is not inserted.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum InsertError {
    #[error("parent {parent} of shard {shard} is not resident")]
    ParentAbsent { parent: SequenceHash, shard: u32 },
    #[error("block {} of shard {} is resident already", key.sequence, key.shard)]
    Resident { key: BlockKey },
}

/// Children looked at one by one before the table is asked: a conversation has one.
const CHILDREN_WALKED: usize = 4;

/// Resident blocks, each with its place `P`.
#[derive(Debug)]
pub struct Chain<P> {
    nodes: Nodes<P>,
    table: HashTable<u32>,
    /// First block of each group.
    groups: HashMap<u32, u32, std::hash::BuildHasherDefault<std::hash::DefaultHasher>>,
}

impl<P> Default for Chain<P> {
    fn default() -> Self {
        Self { nodes: Nodes::default(), table: HashTable::new(), groups: HashMap::default() }
    }
}

impl<P: Place> Chain<P> {
    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Memory that the index takes.
    pub fn bytes(&self) -> u64 {
        let table = self.table.allocation_size() + self.groups.allocation_size();
        self.nodes.bytes() + u64::try_from(table).expect("usize fits")
    }

    /// Inserts a block behind `parent`; `None` is the first block of a prompt. `now` is seconds.
    pub fn insert(
        &mut self,
        key: BlockKey,
        parent: Option<SequenceHash>,
        place: P,
        now: u32,
    ) -> Result<(), InsertError> {
        let parent = match parent {
            None => NONE,
            Some(parent) => self
                .find(BlockKey { sequence: parent, shard: key.shard })
                .ok_or(InsertError::ParentAbsent { parent, shard: key.shard })?,
        };
        if self.find(key).is_some() {
            return Err(InsertError::Resident { key });
        }
        let index = self.add(key, place, now);
        self.link_child(parent, index);
        Ok(())
    }

    pub fn get(&self, key: BlockKey) -> Option<P> {
        self.find(key).map(|index| self.nodes.get(index).place)
    }

    /// When a block was last part of a prefix match, or else inserted.
    pub fn touched(&self, key: BlockKey) -> Option<u32> {
        self.find(key).map(|index| self.nodes.get(index).touched)
    }

    /// A resident block's parent; `Some(None)` is the first block of a prompt.
    pub fn parent(&self, key: BlockKey) -> Option<Option<SequenceHash>> {
        let parent = self.nodes.get(self.find(key)?).parent;
        Some((parent != NONE).then(|| self.nodes.get(parent).key.sequence))
    }

    /// The longest run of resident blocks from the first hash on. A match touches each of its
    /// blocks, hence all ancestors of the last.
    pub fn match_prefix(&mut self, shard: u32, hashes: &[SequenceHash], now: u32) -> Vec<P> {
        let mut places = Vec::new();
        let mut behind = NONE;
        for &sequence in hashes {
            let Some(index) = self.child(behind, BlockKey { sequence, shard }) else { break };
            let node = self.nodes.get_mut(index);
            node.touched = now;
            places.push(node.place);
            behind = index;
        }
        places
    }

    /// Where each block is that is resident, whatever it is behind. Touches each of them alone.
    pub fn match_each(&mut self, shard: u32, hashes: &[SequenceHash], now: u32) -> Vec<Option<P>> {
        let found = hashes.iter().map(|&sequence| {
            let node = self.nodes.get_mut(self.find(BlockKey { sequence, shard })?);
            node.touched = now;
            Some(node.place)
        });
        found.collect()
    }

    /// How long that run is; touches nothing.
    pub fn matched(&self, shard: u32, hashes: &[SequenceHash]) -> usize {
        let mut behind = NONE;
        let next = |&&sequence: &&SequenceHash| {
            let child = self.child(behind, BlockKey { sequence, shard });
            behind = child.unwrap_or(NONE);
            child.is_some()
        };
        hashes.iter().take_while(next).count()
    }

    /// A block moved: its new place, for the old one.
    pub fn replace(&mut self, key: BlockKey, place: P) -> Option<P> {
        let index = self.find(key)?;
        self.leave_group(index);
        let before = std::mem::replace(&mut self.nodes.get_mut(index).place, place);
        self.enter_group(index);
        Some(before)
    }

    /// Removes a block and all behind it; descendants come before their ancestors.
    pub fn remove(&mut self, key: BlockKey) -> Vec<(BlockKey, P)> {
        let Some(top) = self.find(key) else { return Vec::new() };
        self.unlink_child(top);
        let mut order = vec![top];
        let mut at = 0;
        while at < order.len() {
            let mut child = self.nodes.get(order[at]).first_child;
            while child != NONE {
                order.push(child);
                child = self.nodes.get(child).next;
            }
            at += 1;
        }
        order.into_iter().rev().map(|index| self.take(index)).collect()
    }

    /// All blocks of a group, with when they were touched; the last to come is the first.
    pub fn group(&self, group: u32) -> impl Iterator<Item = (BlockKey, P, u32)> {
        let mut index = self.groups.get(&group).copied().unwrap_or(NONE);
        std::iter::from_fn(move || {
            let node = (index != NONE).then(|| self.nodes.get(index))?;
            index = node.group_next;
            Some((node.key, node.place, node.touched))
        })
    }

    /// All blocks, with when they were touched, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (BlockKey, P, u32)> {
        self.table.iter().map(|&index| {
            let node = self.nodes.get(index);
            (node.key, node.place, node.touched)
        })
    }

    /// How many pages all blocks lie in. A block that is resident throughout is on one of them.
    pub fn pages(&self) -> usize {
        self.nodes.pieces()
    }

    /// The blocks of a page, some thousands at most.
    pub fn page(&self, page: usize) -> impl Iterator<Item = (BlockKey, P)> {
        self.nodes.piece(page).map(|node| (node.key, node.place))
    }

    /// The block `key`, if it stands directly behind `parent`.
    fn child(&self, parent: u32, key: BlockKey) -> Option<u32> {
        if parent != NONE {
            // Children of a prompt were mostly saved right after their parents: they are neighbours
            // in memory, and no table needs to be touched.
            let mut child = self.nodes.get(parent).first_child;
            for _ in 0..CHILDREN_WALKED {
                if child == NONE {
                    return None;
                }
                let node = self.nodes.get(child);
                if node.key == key {
                    return Some(child);
                }
                child = node.next;
            }
        }
        // Engine hashes come from outside: two resident ones in a wrong order are no prefix.
        self.find(key).filter(|&index| self.nodes.get(index).parent == parent)
    }

    fn add(&mut self, key: BlockKey, place: P, now: u32) -> u32 {
        let index = self.nodes.add(Node::new(key, place, now));
        let nodes = &self.nodes;
        self.table.insert_unique(bucket(key), index, |&i| bucket(nodes.get(i).key));
        self.enter_group(index);
        index
    }

    fn take(&mut self, index: u32) -> (BlockKey, P) {
        self.leave_group(index);
        let node = self.nodes.take(index);
        let entry = self.table.find_entry(bucket(node.key), |&i| i == index);
        entry.expect("present nodes are in the table").remove();
        (node.key, node.place)
    }

    fn link_child(&mut self, parent: u32, index: u32) {
        if parent == NONE {
            return;
        }
        let next = std::mem::replace(&mut self.nodes.get_mut(parent).first_child, index);
        if next != NONE {
            self.nodes.get_mut(next).previous = index;
        }
        let node = self.nodes.get_mut(index);
        (node.parent, node.next, node.previous) = (parent, next, NONE);
    }

    fn unlink_child(&mut self, index: u32) {
        let Node { parent, next, previous, .. } = *self.nodes.get(index);
        if next != NONE {
            self.nodes.get_mut(next).previous = previous;
        }
        if previous != NONE {
            self.nodes.get_mut(previous).next = next;
        } else if parent != NONE {
            self.nodes.get_mut(parent).first_child = next;
        }
    }

    fn enter_group(&mut self, index: u32) {
        let group = self.nodes.get(index).place.group();
        let next = self.groups.insert(group, index).unwrap_or(NONE);
        if next != NONE {
            self.nodes.get_mut(next).group_previous = index;
        }
        let node = self.nodes.get_mut(index);
        (node.group_next, node.group_previous) = (next, NONE);
    }

    fn leave_group(&mut self, index: u32) {
        let Node { group_next: next, group_previous: previous, place, .. } = *self.nodes.get(index);
        if next != NONE {
            self.nodes.get_mut(next).group_previous = previous;
        }
        if previous != NONE {
            self.nodes.get_mut(previous).group_next = next;
        } else if next != NONE {
            self.groups.insert(place.group(), next);
        } else {
            self.groups.remove(&place.group());
        }
    }

    fn find(&self, key: BlockKey) -> Option<u32> {
        self.table.find(bucket(key), |&index| self.nodes.get(index).key == key).copied()
    }
}

/// A keyed hash is uniform already: its first bytes are the bucket, turned by the shard.
pub(crate) fn bucket(key: BlockKey) -> u64 {
    let (head, _) = key.sequence.0.split_first_chunk().expect("32 bytes hold 8");
    u64::from_le_bytes(*head) ^ u64::from(key.shard).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests;
