//! The names of a prompt's blocks, as leases and reservations keep them.

use crate::namespaces::Registration;
use refrain_index::chain::BlockKey;
use refrain_index::hash::SequenceHash;
use std::ops::Deref;
use std::sync::Arc;

/// In order; each block is behind the one before it, unless they are separate.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    hashes: Arc<[SequenceHash]>,
    separate: bool,
}

impl Names {
    pub(crate) fn new(hashes: Vec<SequenceHash>, separate: bool) -> Self {
        Self { hashes: hashes.into(), separate }
    }

    /// Of a chain.
    pub(crate) fn chained(hashes: Arc<[SequenceHash]>) -> Self {
        Self { hashes, separate: false }
    }

    pub(crate) fn hashes(&self) -> &Arc<[SequenceHash]> {
        &self.hashes
    }

    pub(crate) fn are_separate(&self) -> bool {
        self.separate
    }

    /// `None` is the first block of a prompt.
    pub(crate) fn parent(&self, block: u32) -> Option<SequenceHash> {
        let before = block.checked_sub(1).filter(|_| !self.separate)?;
        Some(self[usize::try_from(before).expect("32 bits fit")])
    }

    /// In its chain.
    pub(crate) fn position(&self, block: u32) -> u32 {
        if self.separate { 0 } else { block }
    }

    pub(crate) fn key(&self, of: &Registration, block: u32) -> BlockKey {
        let sequence = self[usize::try_from(block).expect("32 bits fit")];
        BlockKey { sequence, shard: of.shard }
    }
}

impl Deref for Names {
    type Target = [SequenceHash];

    fn deref(&self) -> &[SequenceHash] {
        &self.hashes
    }
}
