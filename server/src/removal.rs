//! Blocks that go by an operator's word: one with all behind it, or all of a namespace.

use crate::epochs::{Epochs, EpochsError, RaiseError};
use crate::fates::{Eviction, Removal};
use crate::node::Node;
use crate::place::BlockPlace;
use refrain_index::chain::BlockKey;
use refrain_index::namespace::NamespaceDigest;
use std::sync::{Arc, PoisonError};
use thiserror::Error;

/// Blocks removed under one lock.
const DROPPED_AT_ONCE: usize = 256;

/// Why a namespace's blocks still count.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InvalidateError {
    #[error(transparent)]
    Raise(#[from] RaiseError),
    #[error(transparent)]
    Keep(#[from] EpochsError),
}

/// A namespace whose earlier blocks are misses now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidated {
    pub(crate) epoch: u64,
    /// How many went.
    pub(crate) blocks: u64,
}

impl Node {
    /// Removes blocks and all behind them, for good; how many went.
    pub(crate) fn evict(&self, keys: &[BlockKey], why: Eviction) -> u64 {
        let mut gone = 0;
        let removal = Removal { why, at: self.clock.tick(), for_whom: None };
        let mut state = self.state();
        for &key in keys {
            for (_, place) in state.remove(key, removal) {
                // So that no restart finds it again.
                let address = state.segments.address(&place);
                self.disk(place.group.drive()).journal.withdraw(address);
                gone += 1;
            }
        }
        drop(state);
        self.metrics.evicted(why, gone);
        gone
    }

    /// Returns once no restart, not even after a kill, finds again what was removed, or a pin on it.
    pub(crate) async fn removed_for_good(self: &Arc<Self>) {
        let node = Arc::clone(self);
        // It syncs; and it does not panic.
        let _ = tokio::task::spawn_blocking(move || node.keep_changed_pins()).await;
        // A withdrawn drive may not write its catalogue now: it is noted, and written when it can be.
        for disk in self.disks.iter().filter(|disk| disk.drive.withdrawn().is_none()) {
            disk.journal.caught_up().await;
        }
    }

    /// Removes every block of a namespace, for good. What is being saved in it, or found by a later
    /// start on the disk, is of an earlier epoch and does not count.
    pub fn drop_namespace(&self, digest: NamespaceDigest) -> Result<Invalidated, InvalidateError> {
        self.invalidate(digest, |epochs| epochs.raise(digest))
    }

    /// As `drop_namespace`, to an epoch that is given: the nodes of a fleet agree on it. Nothing
    /// goes where the namespace is in that epoch already.
    pub(crate) fn set_epoch(
        &self,
        digest: NamespaceDigest,
        epoch: u64,
    ) -> Result<Invalidated, InvalidateError> {
        self.invalidate(digest, |epochs| epochs.raise_to(digest, epoch))
    }

    fn invalidate(
        &self,
        digest: NamespaceDigest,
        raise: impl FnOnce(&mut Epochs) -> Result<(), RaiseError>,
    ) -> Result<Invalidated, InvalidateError> {
        let _one_at_a_time = self.dropping.lock().unwrap_or_else(PoisonError::into_inner);
        let mut epochs = self.state().epochs.clone();
        let before = epochs.get(digest);
        raise(&mut epochs)?;
        let epoch = epochs.get(digest);
        if epoch == before {
            return Ok(Invalidated { epoch, blocks: 0 });
        }
        // On the disk first, and without the lock on the index: a sync takes its time.
        for drive in self.drives() {
            epochs.write(drive.path())?;
        }
        let mut state = self.state();
        state.epochs = epochs;
        let id = state.namespaces.find(digest);
        if let Some(id) = id {
            state.host.dismiss(id);
        }
        let of = |(key, place, _): (BlockKey, BlockPlace, u32)| {
            (Some(place.namespace) == id).then_some(key)
        };
        let keys: Vec<_> = state.chain.iter().filter_map(of).collect();
        drop(state);
        let chunks = keys.chunks(DROPPED_AT_ONCE);
        let blocks = chunks.map(|some| self.evict(some, Eviction::Drop)).sum();
        self.keep_changed_pins();
        Ok(Invalidated { epoch, blocks })
    }
}
