//! Blocks of peers that stay: those that are wanted again, or that others are saved behind, are saved
//! on this node's own drives.
//!
//! A block is only ever found behind its parent, on the same node: so what a worker computes behind a
//! prefix of a peer can be saved here once that prefix is. It is written while the worker computes.

use crate::config::Keep;
use crate::leases::{Lease, LeaseId};
use crate::load::Ended;
use crate::node::Node;
use crate::save::{Batch, Outgoing};
use refrain_index::chain::BlockKey;
use refrain_store::geometry::HEADER_SIZE;
use std::any::Any;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::watch;

impl Node {
    /// Begins to save what of a lease's loaded blocks only memory holds, where the config wants that,
    /// when a load of it has ended. Waits for nothing.
    pub(crate) fn keep_guests(self: &Arc<Self>, lease: LeaseId, ended: Ended) {
        let mut guard = self.state();
        let state = &mut *guard;
        let is_draining = state.draining;
        let Some(held) = state.leases.get_mut(lease) else { return };
        let wanted = wanted(held, ended, self.config.peers.keep);
        let is_keeping = held.keeping.as_ref().is_some_and(|kept| !*kept.borrow());
        if wanted.is_empty() || is_keeping || is_draining {
            return;
        }
        let (registration, names) = (Arc::clone(&held.registration), held.names.clone());
        let pages = registration.layout.stored_length() - HEADER_SIZE;
        let mut outgoing: Vec<Outgoing> = Vec::new();
        for block in wanted {
            let key = BlockKey { sequence: names[block], shard: registration.shard };
            let Some(frame) = held.loaded[block].clone() else { break };
            if state.chain.get(key).is_some() {
                continue;
            }
            // Another load's task has it, and those behind it.
            if !state.host.begin_keeping(key) {
                break;
            }
            let payload = frame.region().slice(HEADER_SIZE, pages);
            let number = u32::try_from(block).expect("32 bits fit");
            outgoing.push((number, payload, Some(Box::new(frame) as Box<dyn Any + Send>)));
        }
        if outgoing.is_empty() {
            return;
        }
        let (done, kept) = watch::channel(false);
        held.keeping = Some(kept);
        let epoch = state.epoch(registration.namespace);
        drop(guard);
        let node = Arc::clone(self);
        tokio::spawn(async move {
            node.keep(&(registration, names), outgoing, epoch).await;
            done.send_replace(true);
        });
    }

    /// Writes blocks, as many at a time as the queue for saves takes.
    async fn keep(
        self: &Arc<Self>,
        (registration, names): &crate::save::Chain,
        mut outgoing: Vec<Outgoing>,
        epoch: u64,
    ) {
        let stored = registration.layout.stored_length();
        let mut goes_on = true;
        while !outgoing.is_empty() {
            let room = self.save_room(&self.state(), stored) / stored;
            let room = usize::try_from(room).unwrap_or(usize::MAX).clamp(1, outgoing.len());
            let rest = outgoing.split_off(room);
            let asked: Vec<_> = outgoing.iter().map(|(block, ..)| names[index(*block)]).collect();
            let mut saved = 0;
            if goes_on {
                let chain = (Arc::clone(registration), names.clone());
                let batch = Batch::new(chain, outgoing, epoch, self.clock.now());
                saved = index(self.commit(batch, false).await.saved);
                goes_on = saved == asked.len();
            }
            self.metrics.kept_blocks.inc_by(u64::try_from(saved).expect("usize fits"));
            let mut state = self.state();
            for (number, sequence) in asked.into_iter().enumerate() {
                let key = BlockKey { sequence, shard: registration.shard };
                state.host.end_keeping(key, number < saved);
            }
            drop(state);
            outgoing = rest;
        }
    }

    /// Returns when what [`Node::keep_guests`] began for a lease has ended: blocks behind it can be
    /// saved then.
    pub(crate) async fn guests_kept(&self, lease: LeaseId) {
        let keeping = self.state().leases.get_mut(lease).and_then(|held| held.keeping.clone());
        if let Some(mut keeping) = keeping {
            let patience = self.clock.now() + self.config.drive_patience;
            // Where it takes longer, or broke off, the save is refused for want of a parent.
            let _ = self.clock.until(patience, keeping.wait_for(|kept| *kept)).await;
        }
    }
}

/// Of a lease's blocks, those behind the ones on drives that should be on one too.
fn wanted(lease: &Lease, ended: Ended, keep: Keep) -> Range<usize> {
    let first = lease.places.len();
    let behind = lease.loaded[first..].iter().take_while(|loaded| loaded.is_some()).count();
    // Nothing more is loaded behind them: there is no more, or it does not come.
    let is_end = first + behind == lease.matched() || ended.reason.is_some();
    // Somebody is about to compute what stands there.
    let goes_on = is_end && lease.names.len() > first + behind;
    match keep {
        Keep::Never => first..first,
        Keep::Second if !goes_on => first..first + behind.min(lease.guests),
        Keep::Second | Keep::Always => first..first + behind,
    }
}

fn index(number: u32) -> usize {
    usize::try_from(number).expect("32 bits fit")
}
