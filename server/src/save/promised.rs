//! Whether what was saved would survive a power loss.

use crate::namespaces::Registration;
use crate::node::Node;
use crate::place::Group;
use refrain_index::chain::BlockKey;
use refrain_index::hash::SequenceHash;
use refrain_store::geometry::RecordAddress;
use std::collections::BTreeMap;

impl Node {
    /// Whether a prompt's blocks would survive a power loss, as soon as that is known: from the first
    /// on, as each is found by those before it alone, which may lie on other drives.
    pub(super) async fn are_promised(
        &self,
        registration: &Registration,
        hashes: &[SequenceHash],
    ) -> bool {
        let mut before = None;
        loop {
            let records = self.last_records(registration, hashes);
            // What has moved meanwhile is asked for again.
            let records = records.filter(|now| self.is_synced() && before.as_ref() != Some(now));
            let Some(records) = records else { return false };
            if self.all_promised(&records).await {
                return true;
            }
            before = Some(records);
        }
    }

    /// Whether these records, and all before each in its segment, would survive.
    pub(crate) async fn all_promised(&self, records: &BTreeMap<Group, RecordAddress>) -> bool {
        for (group, address) in records {
            if !self.disk(group.drive()).journal.promised(*address).await {
                return false;
            }
        }
        true
    }

    /// Of each segment that blocks lie in, the last one's place; `None` where one has gone.
    fn last_records(
        &self,
        registration: &Registration,
        hashes: &[SequenceHash],
    ) -> Option<BTreeMap<Group, RecordAddress>> {
        let mut last: BTreeMap<Group, RecordAddress> = BTreeMap::new();
        let state = self.state();
        for &sequence in hashes {
            let place = state.chain.get(BlockKey { sequence, shard: registration.shard })?;
            let address = state.segments.address(&place);
            let known = last.entry(place.group).or_insert(address);
            known.offset = known.offset.max(address.offset);
        }
        Some(last)
    }
}
