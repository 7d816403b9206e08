//! Why each block of a prompt is there, or is not.
//!
//! Nothing is touched: who asks why is no hit. Where a block was never seen, other namespaces that
//! share its tenant or its model are asked for the same prompt: a worker that registers one field
//! differently finds none of what others saved.

use crate::fates::Fate;
use crate::lookup::Prompt;
use crate::namespaces::{Known, Registration};
use crate::node::Node;
use crate::state::State;
use refrain_index::chain::BlockKey;
use refrain_index::hash::SequenceHash;
use refrain_index::namespace::{Difference, Namespace, NamespaceDigest};
use std::sync::Arc;

/// Other namespaces that a prompt is hashed for; the latest to be met.
const OTHERS_MAX: usize = 32;

/// What is known of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Host,
    Ssd,
    /// Resident, but not behind the block before it: no prefix.
    Elsewhere,
    Absent(Fate),
    /// Not here, but a hit in the other namespace.
    Other,
    /// Never here, or longer ago than is remembered.
    Unknown,
}

/// A namespace in which more of the prompt is resident.
#[derive(Clone, Debug)]
pub(crate) struct Other {
    pub(crate) digest: NamespaceDigest,
    /// Blocks of its own that it has of the prompt.
    pub(crate) matched: usize,
    /// Blocks of this namespace that these are, whole.
    covers: usize,
    pub(crate) differences: Vec<Difference>,
}

/// A prompt, block by block.
#[derive(Clone, Debug)]
pub(crate) struct Explained {
    pub(crate) blocks: Vec<(SequenceHash, Standing)>,
    pub(crate) matched: usize,
    /// Tokens behind the last full block, which no cache keeps.
    pub(crate) tail_tokens: usize,
    pub(crate) other: Option<Other>,
}

impl Node {
    /// Explains the blocks of a prompt.
    pub(crate) fn explain(&self, registration: &Registration, prompt: Prompt<'_>) -> Explained {
        let hashes = registration.names(prompt);
        let mut explained = self.explain_blocks(registration.shard, &hashes);
        explained.tail_tokens = registration.tail(prompt);
        let is_unknown = |(_, standing): &(_, Standing)| *standing == Standing::Unknown;
        if !explained.blocks.iter().any(is_unknown) {
            return explained;
        }
        explained.other = self.elsewhere(registration, prompt, explained.matched);
        if let Some(other) = &explained.other {
            for block in explained.blocks.iter_mut().take(other.covers) {
                if is_unknown(block) {
                    block.1 = Standing::Other;
                }
            }
        }
        explained
    }

    /// Explains blocks by their names, in the order of their prompt.
    pub(crate) fn explain_blocks(&self, shard: u32, hashes: &[SequenceHash]) -> Explained {
        let state = self.state();
        let matched = state.chain.matched(shard, hashes);
        let blocks = hashes.iter().enumerate().map(|(block, &sequence)| {
            let key = BlockKey { sequence, shard };
            (sequence, standing(&state, key, block < matched))
        });
        Explained { blocks: blocks.collect(), matched, tail_tokens: 0, other: None }
    }

    /// The namespace that has most of the prompt, if it has more than the `matched` blocks here.
    fn elsewhere(&self, here: &Registration, prompt: Prompt<'_>, matched: usize) -> Option<Other> {
        let state = self.state();
        let ours = state.namespaces.get(here.namespace).described.clone()?;
        let related = |(id, known): (_, &Known)| {
            let theirs = known.described.clone()?;
            let related = theirs.tenant == ours.tenant || theirs.model == ours.model;
            (related && id != here.namespace).then_some((id, known.digest, theirs))
        };
        let others: Vec<_> =
            state.namespaces.numbered().rev().filter_map(related).take(OTHERS_MAX).collect();
        drop(state);
        let other = |(id, digest, theirs): (_, _, Arc<Namespace>)| {
            let there = self.registration_of((id, digest), &theirs, here.shard);
            // Hashed without the lock: a long prompt takes milliseconds.
            let names = there.names(prompt);
            let matched = self.state().chain.matched(there.shard, &names);
            let covers = match prompt {
                Prompt::Tokens { .. } => matched * there.block_tokens / here.block_tokens,
                Prompt::Engine(_) | Prompt::Separate(_) => matched,
            };
            Other { digest, matched, covers, differences: ours.differences(&theirs) }
        };
        let others = others.into_iter().map(other).filter(|other| other.covers > matched);
        others.max_by_key(|other| (other.covers, std::cmp::Reverse(other.differences.len())))
    }
}

fn standing(state: &State, key: BlockKey, is_matched: bool) -> Standing {
    match state.chain.get(key) {
        Some(_) if !is_matched => Standing::Elsewhere,
        Some(_) if state.host.contains(key) => Standing::Host,
        Some(_) => Standing::Ssd,
        None => state.fates.get(key).map_or(Standing::Unknown, Standing::Absent),
    }
}
