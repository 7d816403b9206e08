//! What is remembered of blocks that are not there: why each went, or was not let in.
//!
//! Two rings of fixed size, so that a day of refused saves does not push out who was evicted:
//! together they take 8 MiB at most. A start begins with none.

use crate::place::{DriveId, NamespaceId};
use crate::save::Refusal;
use refrain_index::chain::BlockKey;
use refrain_index::recent::Recent;
use std::collections::BTreeMap;

/// 52 bytes each, and 13 of the table.
const GONE_MAX: u32 = 100_000;
/// 44 bytes each, and 13 of the table.
const REFUSED_MAX: u32 = 25_000;

/// Why a block went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    Reclaim,
    Drop,
    Evict,
    Damage,
}

/// A removal: of one block, and of all behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Removal {
    pub(crate) why: Eviction,
    /// In ticks of the node's clock.
    pub(crate) at: u32,
    /// Whose saves reclaim made room for, as far as that is known.
    pub(crate) for_whom: Option<NamespaceId>,
}

/// A block that went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone {
    pub(crate) removal: Removal,
    /// It went as a block before it did.
    pub(crate) behind: bool,
}

/// A block that was not saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) why: Refusal,
    pub(crate) at: u32,
}

/// The last that is known of a block which is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Gone(Gone),
    Refused(Refused),
}

#[derive(Debug)]
pub(crate) struct Fates {
    gone: Recent<Gone>,
    refused: Recent<Refused>,
    /// Whose blocks each drive took last.
    savers: BTreeMap<DriveId, NamespaceId>,
}

impl Default for Fates {
    fn default() -> Self {
        let (gone, refused) = (Recent::new(GONE_MAX), Recent::new(REFUSED_MAX));
        Self { gone, refused, savers: BTreeMap::new() }
    }
}

impl Fates {
    pub(crate) fn went(&mut self, key: BlockKey, removal: Removal, behind: bool) {
        self.gone.note(key, Gone { removal, behind });
    }

    pub(crate) fn refused(&mut self, key: BlockKey, refused: Refused) {
        self.refused.note(key, refused);
    }

    pub(crate) fn saved(&mut self, drive: DriveId, namespace: NamespaceId) {
        self.savers.insert(drive, namespace);
    }

    /// Whose blocks a drive took last: they are what room is made for.
    pub(crate) fn saver(&self, drive: DriveId) -> Option<NamespaceId> {
        self.savers.get(&drive).copied()
    }

    /// The later one, of a block that both went and was refused.
    pub(crate) fn get(&self, key: BlockKey) -> Option<Fate> {
        match (self.gone.get(key), self.refused.get(key)) {
            (Some(gone), Some(refused)) if refused.at > gone.removal.at => {
                Some(Fate::Refused(refused))
            }
            (Some(gone), _) => Some(Fate::Gone(gone)),
            (None, refused) => refused.map(Fate::Refused),
        }
    }

    /// Ticks until which removals, and refusals, may be forgotten; `None`: none is.
    pub(crate) fn forgotten(&self) -> (Option<u32>, Option<u32>) {
        let gone = self.gone.forgotten().map(|gone| gone.removal.at);
        (gone, self.refused.forgotten().map(|refused| refused.at))
    }
}

#[cfg(test)]
mod tests {
    //! Proves that the later fate counts, and the bound of the memory.

    use super::*;
    use refrain_index::hash::SequenceHash;

    fn key(id: u32) -> BlockKey {
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&id.wrapping_mul(0x9e37_79b9).to_le_bytes());
        hash[4..8].copy_from_slice(&id.to_le_bytes());
        BlockKey { sequence: SequenceHash(hash), shard: 0 }
    }

    fn removal(at: u32) -> Removal {
        Removal { why: Eviction::Reclaim, at, for_whom: Some(NamespaceId(1)) }
    }

    #[test]
    fn the_later_of_a_removal_and_a_refusal_counts() {
        let mut fates = Fates::default();
        assert_eq!(fates.get(key(1)), None);
        let refused = |at| Refused { why: Refusal::Busy, at };
        fates.refused(key(1), refused(4));
        assert_eq!(fates.get(key(1)), Some(Fate::Refused(refused(4))));
        fates.went(key(1), removal(5), true);
        let gone = Gone { removal: removal(5), behind: true };
        assert_eq!(fates.get(key(1)), Some(Fate::Gone(gone)));
        fates.refused(key(1), refused(6));
        assert_eq!(fates.get(key(1)), Some(Fate::Refused(refused(6))));
        assert_eq!(fates.forgotten(), (None, None));
    }

    #[test]
    fn both_memories_together_take_8_mib() {
        let mut fates = Fates::default();
        for id in 0..2 * GONE_MAX {
            fates.went(key(id), removal(id), false);
            fates.refused(key(id), Refused { why: Refusal::Busy, at: id });
        }
        let bytes = fates.gone.bytes() + fates.refused.bytes();
        assert!(bytes <= 8 << 20, "{bytes}");
        assert_eq!(fates.forgotten(), (Some(GONE_MAX - 1), Some(2 * GONE_MAX - REFUSED_MAX - 1)));
        assert_eq!((fates.get(key(0)), fates.savers.len()), (None, 0));
    }
}
