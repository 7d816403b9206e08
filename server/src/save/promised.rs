//! Whether what was saved would survive a power loss.

use crate::namespaces::Registration;
use crate::node::Node;
use crate::place::Group;
use refrain_index::chain::BlockKey;
use refrain_index::hash::SequenceHash;
use refrain_store::geometry::RecordAddress;
use std::collections::BTreeMap;

/// Of each segment that some records lie in, where the last of them is: its promise is theirs too.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct LastRecords(BTreeMap<Group, RecordAddress>);

impl LastRecords {
    pub(crate) fn add(&mut self, group: Group, address: RecordAddress) {
        let known = self.0.entry(group).or_insert(address);
        known.offset = known.offset.max(address.offset);
    }
}

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
    pub(crate) async fn all_promised(&self, records: &LastRecords) -> bool {
        for (group, address) in &records.0 {
            if !self.disk(group.drive()).journal.promised(*address).await {
                return false;
            }
        }
        true
    }

    /// Segments of these records that some of them are lost with.
    pub(crate) async fn unpromised(&self, records: &LastRecords) -> Vec<Group> {
        let mut lost = Vec::new();
        for (group, address) in &records.0 {
            if !self.disk(group.drive()).journal.promised(*address).await {
                lost.push(*group);
            }
        }
        lost
    }

    /// Those of a prompt's blocks; `None` where one has gone.
    fn last_records(
        &self,
        registration: &Registration,
        hashes: &[SequenceHash],
    ) -> Option<LastRecords> {
        let mut last = LastRecords::default();
        let state = self.state();
        for &sequence in hashes {
            let place = state.chain.get(BlockKey { sequence, shard: registration.shard })?;
            last.add(place.group, state.segments.address(&place));
        }
        Some(last)
    }
}
