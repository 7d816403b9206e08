//! Which blocks come and go, as routers are told.

use crate::place::NamespaceId;
use refrain_index::chain::BlockKey;
use tokio::sync::broadcast;

/// Changes that a slow watcher may be behind by before it must start over.
const BACKLOG: usize = 4096;

/// Blocks of one namespace and shard that came, or went, or a namespace whose blocks have names.
#[derive(Clone, Debug)]
pub struct Change {
    pub sequence: u64,
    pub(crate) namespace: NamespaceId,
    pub kind: Kind,
    pub keys: Vec<BlockKey>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Stored,
    Removed,
    /// The engine's names of a namespace's blocks can be told.
    Named,
}

/// Published under the lock of the index: what a watcher is told of later became so later.
#[derive(Debug)]
pub(crate) struct Events {
    /// Differs after every start.
    pub(crate) epoch: u64,
    sequence: u64,
    sender: broadcast::Sender<Change>,
}

impl Default for Events {
    fn default() -> Self {
        Self { epoch: fastrand::u64(1..), sequence: 0, sender: broadcast::Sender::new(BACKLOG) }
    }
}

impl Events {
    pub(crate) fn publish(&mut self, kind: Kind, blocks: &[(BlockKey, NamespaceId)]) {
        if self.sender.receiver_count() == 0 {
            // Nobody sees that these have no number.
            return;
        }
        let alike = |left: &(BlockKey, NamespaceId), right: &(BlockKey, NamespaceId)| {
            (left.1, left.0.shard) == (right.1, right.0.shard)
        };
        for run in blocks.chunk_by(alike) {
            self.sequence += 1;
            let (sequence, namespace) = (self.sequence, run[0].1);
            let keys = run.iter().map(|(key, _)| *key).collect();
            // Nobody listening any more is no fault.
            let _ = self.sender.send(Change { sequence, namespace, kind, keys });
        }
    }

    pub(crate) fn named(&mut self, namespace: NamespaceId) {
        if self.sender.receiver_count() > 0 {
            self.sequence += 1;
            let (sequence, kind, keys) = (self.sequence, Kind::Named, Vec::new());
            let _ = self.sender.send(Change { sequence, namespace, kind, keys });
        }
    }

    /// What comes from now on, and the number of the change before it.
    pub(crate) fn subscribe(&self) -> (broadcast::Receiver<Change>, u64) {
        (self.sender.subscribe(), self.sequence)
    }
}
