//! The fleet's index: which node is thought to hold which block.
//!
//! It is a hint, kept in a Redis or Valkey cluster and derived from the nodes: an owner's own index
//! is the truth about its blocks. What is lost here costs hits on other nodes' blocks and nothing
//! else, and whatever asks here has a deadline.

use crate::chain::BlockKey;
use crate::hash::SequenceHash;
use std::ops::Range;
use std::time::Instant;

/// A node of the fleet, as its operator numbered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u16);

/// A node that is thought to hold a block, in one life of its disks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    pub node: NodeId,
    /// Raised when its disks were lost: what it published before then does not count.
    pub epoch: u16,
    /// Where its peers reach it, as it says itself: `HOST:PORT`.
    pub address: String,
}

/// Blocks `first..first + count` of the chain that was asked for, which `owner` is thought to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub owner: Owner,
    pub first: usize,
    pub count: usize,
}

/// What the directory knows of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Located {
    /// By where they begin, of equals the longest first; runs of several owners overlap. Of this node
    /// there is none, nor of one that is a suspect.
    pub runs: Vec<Run>,
    /// Blocks of which nothing is known, as whoever knows could not be reached in time: they may be
    /// anywhere. They end no run whose owner holds blocks on both sides of them.
    pub unknown: Vec<Range<usize>>,
}

/// This node's way to the fleet's directory. Clones share it.
#[derive(Clone, Debug)]
pub struct Directory {}

impl Directory {
    /// Who is thought to hold which of a chain's blocks. `hashes` may be any stretch of a chain, in
    /// its order; the answer counts from its first. Comes at `deadline` at the latest, and what is
    /// not known by then is `unknown`: never an error.
    pub async fn locate(&self, shard: u32, hashes: &[SequenceHash], deadline: Instant) -> Located {
        let _ = (shard, deadline);
        let unknown = if hashes.is_empty() { Vec::new() } else { vec![0..hashes.len()] };
        std::future::ready(Located { runs: Vec::new(), unknown }).await
    }

    /// An owner answered that it does not hold a block: its entry goes, some time soon, unless the
    /// owner has published it in another epoch meanwhile. Waits for nothing.
    pub fn forget(&self, key: BlockKey, owner: &Owner) {
        let _ = (key, owner);
    }

    /// A node did not answer, or refused a connection: for a few seconds `locate` does not name it.
    pub fn suspect(&self, node: NodeId) {
        let _ = node;
    }
}
