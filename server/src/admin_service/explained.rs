//! What is known of a prompt, as it travels: neighbours of which the same is known are one run.

use crate::explain::{Explained, Other, Standing};
use crate::fates::{Eviction, Fate, Gone, Refused};
use crate::node::Node;
use crate::status;
use crate::wire;
use refrain_index::hash::SequenceHash;
use refrain_proto::v1;
use std::time::Duration;
use tonic::Status;

/// The hashes of blocks that are named by them.
pub(super) fn hashes(names: &v1::BlockNames) -> Result<Vec<SequenceHash>, Status> {
    let hash = |bytes: &Vec<u8>| wire::array("sequence_hashes", bytes).map(SequenceHash);
    names.sequence_hashes.iter().map(hash).collect::<Result<_, _>>().map_err(status::of_wire)
}

pub(super) fn answer(node: &Node, explained: Explained) -> v1::ExplainResponse {
    let Explained { blocks, matched, tail_tokens, other } = explained;
    let (gone, refused) = node.state().fates.forgotten();
    let uptime = node.clock.uptime();
    let known =
        |forgotten: Option<u32>| millis(forgotten.map_or(uptime, |at| node.clock.since(at)));
    v1::ExplainResponse {
        prompt_blocks: count(blocks.len()),
        matched_blocks: count(matched),
        tail_tokens: count(tail_tokens),
        runs: runs(node, &blocks),
        other_namespace: other.map(other_namespace),
        removals_known_ms: known(gone),
        refusals_known_ms: known(refused),
        uptime_ms: millis(uptime),
    }
}

fn runs(node: &Node, blocks: &[(SequenceHash, Standing)]) -> Vec<v1::FateRun> {
    let mut first = 0;
    let alike = blocks.chunk_by(|(_, left), (_, right)| left == right);
    let run = |run: &[(SequenceHash, Standing)]| {
        let (hash, standing) = run[0];
        let (first_block, blocks) = (first, count(run.len()));
        first += blocks;
        let sequence_hash = hash.0.to_vec();
        v1::FateRun { first_block, blocks, sequence_hash, ..fate(node, standing) }
    };
    alike.map(run).collect()
}

/// All of a run but its place.
fn fate(node: &Node, standing: Standing) -> v1::FateRun {
    let plain = |fate: v1::Fate| v1::FateRun { fate: fate.into(), ..Default::default() };
    let ago_ms = |at| millis(node.clock.since(at));
    match standing {
        Standing::Host => plain(v1::Fate::Host),
        Standing::Ssd => plain(v1::Fate::Ssd),
        Standing::Elsewhere => plain(v1::Fate::Elsewhere),
        Standing::Unknown => plain(v1::Fate::Unknown),
        Standing::Other => plain(v1::Fate::OtherNamespace),
        Standing::Absent(Fate::Refused(Refused { why, at })) => v1::FateRun {
            refusal: wire::refusal(Some(why)).into(),
            ago_ms: ago_ms(at),
            ..plain(v1::Fate::Refused)
        },
        Standing::Absent(Fate::Gone(Gone { removal, behind })) => {
            let why = match removal.why {
                Eviction::Reclaim => v1::Fate::Reclaimed,
                Eviction::Evict => v1::Fate::Evicted,
                Eviction::Drop => v1::Fate::Dropped,
                Eviction::Damage => v1::Fate::Damaged,
            };
            let digest = |id| node.state().namespaces.get(id).digest.0.to_vec();
            let for_namespace = removal.for_whom.map(digest).unwrap_or_default();
            v1::FateRun { ago_ms: ago_ms(removal.at), behind, for_namespace, ..plain(why) }
        }
    }
}

fn other_namespace(other: Other) -> v1::OtherNamespace {
    let differences = other.differences.into_iter().map(|difference| v1::FieldDifference {
        field: difference.field.into(),
        here: difference.here,
        there: difference.there,
    });
    v1::OtherNamespace {
        namespace_digest: other.digest.0.to_vec(),
        matched_blocks: count(other.matched),
        differences: differences.collect(),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn count(blocks: usize) -> u32 {
    u32::try_from(blocks).expect("a prompt has fewer than 2^32 blocks")
}
