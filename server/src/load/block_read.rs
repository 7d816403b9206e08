//! A block on its way from a drive or a peer, shared by all loads that want it.

use super::{Load, Miss, count};
use crate::node::Node;
use crate::place::{BlockPlace, NamespaceId};
use refrain_index::chain::BlockKey;
use refrain_store::arena::Frame;
use refrain_store::check::ReadError;
use refrain_store::engine::ReadSink;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Where a block comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Drive(BlockPlace),
    /// Its namespace, in which epoch.
    Peer(NamespaceId, u64),
}

/// A block on its way.
pub(crate) struct BlockRead {
    node: Weak<Node>,
    pub(crate) key: BlockKey,
    pub(super) origin: Origin,
    pub(crate) frame: Arc<Frame>,
    waiting: Mutex<Waiting>,
}

impl std::fmt::Debug for BlockRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockRead").field("key", &self.key).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Waiting {
    loads: Vec<(Arc<Load>, u32)>,
    /// Stripes that are there.
    arrived: Vec<u32>,
    outcome: Option<Result<(), Miss>>,
}

impl BlockRead {
    pub(crate) fn new(node: Weak<Node>, key: BlockKey, origin: Origin, frame: Arc<Frame>) -> Self {
        Self { node, key, origin, frame, waiting: Mutex::default() }
    }

    /// How it ended, once it has.
    #[cfg(test)]
    pub(crate) fn outcome(&self) -> Option<Result<(), Miss>> {
        self.waiting().outcome
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while holding it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells `load` of what has come and will come of this block, its number `block`.
    pub(super) fn join(&self, load: &Arc<Load>, block: u32) {
        let mut waiting = self.waiting();
        waiting.arrived.iter().for_each(|&stripe| load.arrive(block, stripe));
        match &waiting.outcome {
            None => waiting.loads.push((Arc::clone(load), block)),
            Some(Ok(())) => {}
            Some(Err(miss)) => load.cut(block, *miss),
        }
    }

    /// Stripe `index` is in the frame, and checked.
    pub(crate) fn arrive(&self, index: usize) {
        let mut waiting = self.waiting();
        let stripe = count(index);
        waiting.arrived.push(stripe);
        waiting.loads.iter().for_each(|(load, block)| load.arrive(*block, stripe));
    }

    /// As `arrive`, of a peer's last stripe: whoever looks the block up on hearing of it finds it in
    /// memory.
    pub(crate) fn arrive_last(&self, index: usize) {
        if let Some(node) = self.node.upgrade() {
            node.finish_fetch(self, Ok(()));
        }
        self.arrive(index);
        self.end(Ok(()));
    }

    /// A peer's block does not come.
    pub(crate) fn give_up(&self, miss: Miss) {
        if let Some(node) = self.node.upgrade() {
            node.finish_fetch(self, Err(miss));
        }
        self.end(Err(miss));
    }

    fn end(&self, outcome: Result<(), Miss>) {
        let mut waiting = self.waiting();
        let loads = std::mem::take(&mut waiting.loads);
        if let Err(miss) = outcome {
            for (load, block) in &loads {
                load.cut(*block, miss);
            }
        }
        waiting.outcome = Some(outcome);
    }
}

impl ReadSink for BlockRead {
    fn stripe(&self, index: usize) {
        self.arrive(index);
    }

    fn done(&self, outcome: Result<(), ReadError>) {
        // First for those who come later, then for those who wait: in between nobody is forgotten.
        if let Some(node) = self.node.upgrade() {
            node.finish_read(self, &outcome);
        }
        self.end(outcome.as_ref().copied().map_err(miss_of));
    }
}

fn miss_of(error: &ReadError) -> Miss {
    if *error == ReadError::Deadline {
        Miss::Deadline
    } else if error.is_damage() {
        Miss::Damaged
    } else {
        Miss::Drive
    }
}
