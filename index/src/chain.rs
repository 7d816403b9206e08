//! The RAM index: which blocks are resident, and who stands behind whom.
//!
//! Blocks form a forest by their parents. Two things always hold: a block's parent is resident, so
//! that a prefix match is a walk from the first hash to the first absent one; and a block that goes
//! takes all its descendants along, as nobody could reach them any more.

use crate::hash::SequenceHash;
use hashbrown::HashTable;
use thiserror::Error;

/// Names stored bytes: a prefix, and one rank's share of its last block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey {
    pub sequence: SequenceHash,
    pub shard: u32,
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

const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Node<P> {
    key: BlockKey,
    place: P,
    parent: u32,
    first_child: u32,
    /// Siblings are a doubly linked list, so that leaving it needs no search.
    next: u32,
    previous: u32,
    touched: u32,
}

/// Resident blocks, each with its place `P`.
#[derive(Debug)]
pub struct Chain<P> {
    nodes: Vec<Option<Node<P>>>,
    free: Vec<u32>,
    table: HashTable<u32>,
}

impl<P> Default for Chain<P> {
    fn default() -> Self {
        Self { nodes: Vec::new(), free: Vec::new(), table: HashTable::new() }
    }
}

impl<P: Copy> Chain<P> {
    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
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
        let next = if parent == NONE { NONE } else { self.node(parent).first_child };
        let node =
            Node { key, place, parent, first_child: NONE, next, previous: NONE, touched: now };
        let index = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            u32::try_from(self.nodes.len() - 1).expect("fewer than 2^32 blocks")
        });
        self.nodes[as_index(index)] = Some(node);
        if next != NONE {
            self.node_mut(next).previous = index;
        }
        if parent != NONE {
            self.node_mut(parent).first_child = index;
        }
        let nodes = &self.nodes;
        self.table.insert_unique(bucket(key), index, |&i| bucket(present(nodes, i).key));
        Ok(())
    }

    pub fn get(&self, key: BlockKey) -> Option<P> {
        self.find(key).map(|index| self.node(index).place)
    }

    /// When a block was last part of a prefix match, or else inserted.
    pub fn touched(&self, key: BlockKey) -> Option<u32> {
        self.find(key).map(|index| self.node(index).touched)
    }

    /// The longest run of resident blocks from the first hash on. A match touches each of its
    /// blocks, hence all ancestors of the last.
    pub fn match_prefix(&mut self, shard: u32, hashes: &[SequenceHash], now: u32) -> Vec<P> {
        let mut places = Vec::new();
        let mut behind = NONE;
        for &sequence in hashes {
            let Some(index) = self.find(BlockKey { sequence, shard }) else { break };
            let node = self.node_mut(index);
            // Engine hashes come from outside: two resident ones in a wrong order are no prefix.
            if node.parent != behind {
                break;
            }
            node.touched = now;
            places.push(node.place);
            behind = index;
        }
        places
    }

    /// Removes a block and all behind it; descendants come before their ancestors.
    pub fn remove(&mut self, key: BlockKey) -> Vec<(BlockKey, P)> {
        let Some(top) = self.find(key) else { return Vec::new() };
        self.unlink(top);
        let mut order = vec![top];
        let mut at = 0;
        while at < order.len() {
            let mut child = self.node(order[at]).first_child;
            while child != NONE {
                order.push(child);
                child = self.node(child).next;
            }
            at += 1;
        }
        order.into_iter().rev().map(|index| self.take(index)).collect()
    }

    fn unlink(&mut self, index: u32) {
        let Node { parent, next, previous, .. } = *self.node(index);
        if next != NONE {
            self.node_mut(next).previous = previous;
        }
        if previous != NONE {
            self.node_mut(previous).next = next;
        } else if parent != NONE {
            self.node_mut(parent).first_child = next;
        }
    }

    fn take(&mut self, index: u32) -> (BlockKey, P) {
        let node = self.nodes[as_index(index)].take().expect("linked nodes are present");
        let entry = self.table.find_entry(bucket(node.key), |&i| i == index);
        entry.expect("present nodes are in the table").remove();
        self.free.push(index);
        (node.key, node.place)
    }

    fn find(&self, key: BlockKey) -> Option<u32> {
        self.table.find(bucket(key), |&index| self.node(index).key == key).copied()
    }

    fn node(&self, index: u32) -> &Node<P> {
        present(&self.nodes, index)
    }

    fn node_mut(&mut self, index: u32) -> &mut Node<P> {
        self.nodes[as_index(index)].as_mut().expect("linked nodes are present")
    }
}

fn present<P>(nodes: &[Option<Node<P>>], index: u32) -> &Node<P> {
    nodes[as_index(index)].as_ref().expect("linked nodes are present")
}

fn as_index(index: u32) -> usize {
    usize::try_from(index).expect("32 bits fit")
}

/// A keyed hash is uniform already: its first bytes are the bucket, turned by the shard.
fn bucket(key: BlockKey) -> u64 {
    let (head, _) = key.sequence.0.split_first_chunk().expect("32 bytes hold 8");
    u64::from_le_bytes(*head) ^ u64::from(key.shard).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests;
