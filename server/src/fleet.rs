//! This node in its fleet: what it holds is published in the directory, and what other nodes hold is
//! asked for there.
//!
//! Nothing waits for the directory, and nothing fails because of it. What comes is published when it
//! would survive a power loss, what goes is taken out when it has left the index; an owner that is
//! asked for what has gone says so. Without a directory in the config none of this runs.

use crate::config::{Config, DirectoryFileError};
use crate::events::Kind;
use crate::node::Node;
use crate::save::LastRecords;
use life::Lives;
use refrain_index::chain::BlockKey;
use refrain_index::directory::{Directory, DirectoryError, Holdings, Life, Membership};
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::warn;

mod life;

/// Blocks that wait until they are durable; where there are more, all are looked through again.
const AWAITED_MAX: usize = 1 << 16;
/// Of these at once.
const AWAITED_AT_ONCE: usize = 4096;
/// A promise that takes longer is not waited for: the audit finds what it was for.
const PROMISE_PATIENCE: Duration = Duration::from_mins(1);
/// Of the last word to the directory.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

/// Why a node has no part in its fleet.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FleetError {
    #[error(transparent)]
    File(#[from] DirectoryFileError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// A node's part in its fleet.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) membership: Membership,
}

impl Node {
    /// Has the node join its fleet, where it has one; nothing is waited for.
    pub(crate) fn join_fleet(
        self: &Arc<Self>,
        config: &Config,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), FleetError> {
        let Some(config) = &config.directory else { return Ok(()) };
        let directory = Directory::connect(config.settings()?)?;
        let disks = self.disks.iter().map(|disk| (disk.drive.path(), disk.store_id));
        let lives = Lives::read(disks, self.disks.missing().count());
        let (life, stores) = lives.life(config.node_id());
        let held = Held { node: Arc::downgrade(self), stores, keeping: Mutex::default() };
        let address = config.address.clone();
        let membership =
            Membership::new(directory, address, config.bucket_bits, life, Arc::new(held));
        self.metrics.watch_fleet(&membership);
        let fleet = self.fleet.get_or_init(|| Fleet { membership });
        let (sent, durable) = mpsc::channel(AWAITED_MAX);
        let (following, promising) = (Arc::clone(self), Arc::clone(self));
        let mut changes = self.changes();
        let membership = fleet.membership.clone();
        tasks.spawn(async move { membership.run().await });
        let membership = fleet.membership.clone();
        tasks.spawn(async move {
            loop {
                match changes.recv().await {
                    Ok(change) if change.kind == Kind::Removed => membership.changed(&change.keys),
                    Ok(change) => following.await_promises(&membership, &sent, change.keys),
                    Err(RecvError::Lagged(_)) => membership.doubt_all(),
                    Err(RecvError::Closed) => return,
                }
            }
        });
        let membership = fleet.membership.clone();
        tasks.spawn(async move { promising.publish_promised(&membership, durable).await });
        Ok(())
    }

    fn await_promises(
        &self,
        membership: &Membership,
        sent: &mpsc::Sender<BlockKey>,
        keys: Vec<BlockKey>,
    ) {
        if !self.is_synced() {
            membership.changed(&keys);
            return;
        }
        if keys.into_iter().any(|key| sent.try_send(key).is_err()) {
            membership.doubt_all();
        }
    }

    /// Publishes blocks, once they would survive a power loss.
    async fn publish_promised(
        &self,
        membership: &Membership,
        mut durable: mpsc::Receiver<BlockKey>,
    ) {
        let mut keys = Vec::new();
        while durable.recv_many(&mut keys, AWAITED_AT_ONCE).await > 0 {
            let promised = tokio::time::timeout(PROMISE_PATIENCE, self.promised(&mut keys)).await;
            if promised.is_err() {
                warn!(
                    blocks = keys.len(),
                    "blocks are not durable in time: they are not published"
                );
            } else {
                membership.changed(&keys);
            }
            keys.clear();
        }
    }

    /// Waits for blocks' promises, and forgets of them what will never survive, or has gone.
    async fn promised(&self, keys: &mut Vec<BlockKey>) {
        let mut last = LastRecords::default();
        {
            let state = self.state();
            keys.retain(|key| {
                let Some(place) = state.chain.get(*key) else { return false };
                last.add(place.group, state.segments.address(&place));
                true
            });
        }
        let lost = self.unpromised(&last).await;
        if !lost.is_empty() {
            let state = self.state();
            keys.retain(|key| state.chain.get(*key).is_some_and(|at| !lost.contains(&at.group)));
        }
    }

    /// From now on no peer is sent here.
    pub(crate) async fn drain_fleet(&self) {
        if let Some(fleet) = self.fleet.get() {
            // Without an answer the lease lapses by itself.
            let _ = tokio::time::timeout(LEAVE_PATIENCE, fleet.membership.drain()).await;
        }
    }

    /// The node's blocks sleep until it is back.
    pub(crate) async fn leave_fleet(&self) {
        if let Some(fleet) = self.fleet.get() {
            let _ = tokio::time::timeout(LEAVE_PATIENCE, fleet.membership.leave()).await;
        }
    }
}

/// What a node holds, as the directory's client asks for it.
#[derive(Debug)]
struct Held {
    /// Which owns whoever asks.
    node: Weak<Node>,
    stores: Vec<[u8; 16]>,
    /// Two that replace one file at once would take each other's unfinished one.
    keeping: Mutex<()>,
}

impl Holdings for Held {
    fn keep(&self, life: &Life) -> io::Result<()> {
        let Some(node) = self.node.upgrade() else { return Ok(()) };
        // It guards no data that a panic could leave half changed.
        let _one_at_a_time = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        let drives = node.disks.iter().map(|disk| disk.drive.path());
        life::write(drives, life, &self.stores)
    }

    fn holds(&self, key: BlockKey) -> bool {
        self.node.upgrade().is_some_and(|node| {
            let withdrawn = node.withdrawn();
            node.state().chain.get(key).is_some_and(|place| !withdrawn.holds(&place))
        })
    }

    fn pages(&self) -> usize {
        self.node.upgrade().map_or(0, |node| node.state().chain.pages())
    }

    fn page(&self, page: usize) -> Vec<BlockKey> {
        let keys = |node: Arc<Node>| {
            let state = node.state();
            state.chain.page(page).map(|(key, _)| key).collect()
        };
        self.node.upgrade().map(keys).unwrap_or_default()
    }
}
