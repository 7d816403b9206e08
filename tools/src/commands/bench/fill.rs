//! A store full of blocks that can be looked up: prompts, their hash chains, and a directory that
//! holds all but the payloads, which no lookup reads.

use super::scratch::Interrupt;
use anyhow::{Context, Result, bail};
use refrain_client::v1;
use refrain_index::hash::{KEY_SCHEME, SequenceHash, TenantKey};
use refrain_index::namespace::{
    AttentionGroup, KvLayout, Namespace, NamespaceDigest, ParallelShape,
};
use refrain_store::drive::{DriveConfig, IoEngine, Opening};
use refrain_store::engine::{Durability, NewRecord};
use refrain_store::geometry::{PAGE_SIZE, SegmentId, stored_length};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Blocks of one prompt.
pub(super) const PROMPT_BLOCKS: u64 = 2048;
/// The least that a block can have.
pub(super) const PAYLOAD: u64 = PAGE_SIZE;
const SEGMENT: u64 = 1 << 30;
const TENANT: &str = "bench";
/// Prompts that are saved at the same time, and how many blocks each saves in turn.
const TOGETHER: usize = 8;
const RUN: usize = 64;

/// The prompts of one measurement, as a function of the seed.
pub(super) struct Prompts {
    key: TenantKey,
    secret: [u8; 32],
    namespace: Namespace,
    digest: NamespaceDigest,
    block_tokens: u32,
    seed: u64,
    blocks: u64,
}

/// One block in the order of saving.
pub(super) struct Block {
    pub(super) hash: SequenceHash,
    pub(super) parent: Option<SequenceHash>,
    pub(super) position: u32,
}

impl Prompts {
    pub(super) fn new(blocks: u64, block_tokens: u32, seed: u64) -> Result<Self> {
        let mut secret = [0; 32];
        fastrand::Rng::with_seed(seed).fill(&mut secret);
        let namespace = Namespace {
            tenant: TENANT.into(),
            model: "bench".into(),
            weights: "none".into(),
            config_digest: vec![1],
            kv_dtype: "bytes".into(),
            block_tokens,
            layers: 1,
            layer_bytes: PAYLOAD,
            layout: KvLayout::Latent,
            groups: vec![AttentionGroup::Full { layers: 1 }],
            parallel: ParallelShape { tensor: 1, pipeline: 1, context: 1 },
            adapter_digest: Vec::new(),
            salt: Vec::new(),
        };
        let digest = namespace.digest().context("name what is measured")?;
        let key = TenantKey::derive(&secret, TENANT);
        Ok(Self { key, secret, namespace, digest, block_tokens, seed, blocks })
    }

    /// Prompts that are resident; the last may be so in part.
    pub(super) fn count(&self) -> u64 {
        self.blocks.div_ceil(PROMPT_BLOCKS)
    }

    /// Resident blocks of prompt `index`.
    pub(super) fn resident(&self, index: u64) -> u64 {
        PROMPT_BLOCKS.min(self.blocks - index * PROMPT_BLOCKS)
    }

    pub(super) fn tokens(&self, index: u64) -> Vec<u32> {
        let mut random = fastrand::Rng::with_seed(self.seed ^ (index + 1).rotate_left(32));
        (0..PROMPT_BLOCKS * u64::from(self.block_tokens)).map(|_| random.u32(0..128_000)).collect()
    }

    pub(super) fn hashes(&self, tokens: &[u32]) -> Vec<SequenceHash> {
        let each = usize::try_from(self.block_tokens).expect("32 bits fit");
        self.key.chain(self.digest, tokens, each)
    }

    /// All resident blocks in the order in which requests that come together save them.
    pub(super) fn saved(&self) -> impl Iterator<Item = Block> {
        let together = u64::try_from(TOGETHER).expect("usize fits");
        (0..self.count().div_ceil(together)).flat_map(move |group| {
            let last = self.count().min((group + 1) * together);
            let chains: Vec<Vec<SequenceHash>> = (group * together..last)
                .map(|index| {
                    let mut chain = self.hashes(&self.tokens(index));
                    chain.truncate(usize::try_from(self.resident(index)).expect("2048 at most"));
                    chain
                })
                .collect();
            interleaved(&chains)
        })
    }

    /// Of a store that holds all blocks and has segments to write to.
    pub(super) fn capacity_bytes(&self) -> u64 {
        // A little below what a footer has room for.
        let per_segment = (SEGMENT / stored_length(PAYLOAD)).min(100_000);
        (self.blocks / per_segment + 3) * SEGMENT
    }

    /// Makes the store at `path`; the answer is its capacity.
    pub(super) fn fill(&self, path: &Path, interrupt: &Interrupt) -> Result<u64> {
        let capacity_bytes = self.capacity_bytes();
        let config = DriveConfig {
            path: path.to_path_buf(),
            capacity_bytes,
            segment_bytes: Some(SEGMENT),
            io_engine: IoEngine::Auto,
            durability: Durability::Group,
        };
        let mut opening = Opening::open(&config).context("make a store")?;
        let root = self.key.root(self.digest);
        let mut records = self.saved().map(|block| NewRecord {
            key_scheme: KEY_SCHEME,
            sequence_hash: block.hash.0,
            shard: 0,
            parent: block.parent.unwrap_or(root).0,
            namespace: self.digest.0,
            epoch: 0,
            position: block.position,
        });
        let mut stored = 0;
        for segment in (0..opening.segment_count()).map(SegmentId) {
            interrupt.check()?;
            let entries = opening.outline(segment, PAYLOAD, &mut records, true);
            let entries = entries.with_context(|| format!("write segment {}", segment.0))?;
            stored += u64::try_from(entries.len()).expect("usize fits");
            if stored == self.blocks {
                self.write_secret(path)?;
                return Ok(capacity_bytes);
            }
        }
        bail!("{stored} of {} blocks fit the store", self.blocks)
    }

    /// Where a sidecar looks for it, so that it hashes as we do.
    fn write_secret(&self, path: &Path) -> Result<()> {
        let path = path.join("secret");
        let named = || format!("write {}", path.display());
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        file.with_context(named)?.write_all(&self.secret).with_context(named)
    }

    /// The namespace as a client names it.
    pub(super) fn wire_namespace(&self) -> v1::Namespace {
        let Namespace { tenant, model, weights, config_digest, kv_dtype, .. } =
            self.namespace.clone();
        v1::Namespace {
            tenant,
            model,
            weights,
            config_digest,
            kv_dtype,
            block_tokens: self.block_tokens,
            layers: 1,
            layer_bytes: PAYLOAD,
            layout: v1::KvLayout::Latent.into(),
            groups: vec![v1::AttentionGroup {
                kind: v1::attention_group::Kind::Full.into(),
                layers: 1,
                window_tokens: 0,
            }],
            tensor_parallel: 1,
            pipeline_parallel: 1,
            context_parallel: 1,
            adapter_digest: Vec::new(),
            salt: Vec::new(),
        }
    }
}

/// A run of each chain in turn, until all are through.
fn interleaved(chains: &[Vec<SequenceHash>]) -> Vec<Block> {
    let longest = chains.iter().map(Vec::len).max().unwrap_or(0);
    let mut blocks = Vec::with_capacity(chains.iter().map(Vec::len).sum());
    for first in (0..longest).step_by(RUN) {
        for chain in chains {
            for at in first..chain.len().min(first + RUN) {
                let parent = at.checked_sub(1).map(|before| chain[before]);
                let position = u32::try_from(at).expect("2048 at most");
                blocks.push(Block { hash: chain[at], parent, position });
            }
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    //! Proves that every resident block is saved once, behind its parent.

    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_block_is_saved_once_and_after_its_parent() {
        let prompts = Prompts::new(2 * PROMPT_BLOCKS + 5, 16, 1).unwrap();
        let mut seen = HashSet::new();
        for block in prompts.saved() {
            assert!(block.parent.is_none_or(|parent| seen.contains(&parent)));
            assert_eq!(block.parent.is_none(), block.position == 0);
            assert!(seen.insert(block.hash));
        }
        assert_eq!(seen.len(), 2 * 2048 + 5);
        assert_eq!((prompts.count(), prompts.resident(2)), (3, 5));
    }
}
