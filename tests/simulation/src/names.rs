//! Who saves what: namespaces, the names of their blocks, and the bytes that belong to each name.

use refrain_index::chain::BlockKey;
use refrain_index::hash::TenantKey;
use refrain_index::namespace::{
    AttentionGroup, KvLayout, Namespace, NamespaceDigest, ParallelShape,
};
use refrain_store::geometry::Layout;

/// What the secret file of a simulated node holds.
pub const SECRET: [u8; 32] = *b"the secret of a simulated node, ";

/// One namespace.
#[derive(Clone, Debug)]
pub struct Family {
    pub namespace: Namespace,
    pub digest: NamespaceDigest,
    pub layout: Layout,
    pub shards: u32,
    key: TenantKey,
}

impl Family {
    pub fn new(number: usize, layers: u32, layer_bytes: u64, shards: u32) -> Self {
        let namespace = Namespace {
            // The first two share a tenant.
            tenant: format!("tenant {}", number / 2),
            model: format!("model {number}"),
            weights: "1".into(),
            config_digest: vec![1],
            kv_dtype: "bf16".into(),
            // A token a block: a prompt is a path.
            block_tokens: 1,
            layers,
            layer_bytes,
            layout: KvLayout::KeyValue,
            groups: vec![AttentionGroup::Full { layers }],
            parallel: ParallelShape { tensor: shards, pipeline: 1, context: 1 },
            adapter_digest: Vec::new(),
            salt: Vec::new(),
        };
        let digest = namespace.digest().expect("every field is given");
        let layout = Layout::new(layers, layer_bytes).expect("a block has bytes");
        let key = TenantKey::derive(&SECRET, &namespace.tenant);
        Self { namespace, digest, layout, shards, key }
    }

    /// The names of a prompt's blocks.
    pub fn keys(&self, shard: u32, tokens: &[u32]) -> Vec<BlockKey> {
        let mut sequence = self.key.root(self.digest);
        let named = tokens.iter().map(|token| {
            sequence = self.key.next(sequence, &[*token], &[]);
            BlockKey { sequence, shard }
        });
        named.collect()
    }
}

/// Fills `bytes` with what stands `offset` bytes into the payload of a block. No two blocks, and no
/// two pages of one, are alike.
pub fn fill(key: BlockKey, offset: u64, bytes: &mut [u8]) {
    let (words, rest) = bytes.as_chunks_mut::<8>();
    let mut word = first_word(key, offset);
    for bytes in words {
        *bytes = word.to_le_bytes();
        word = word.wrapping_add(STEP);
    }
    let last = word.to_le_bytes();
    rest.copy_from_slice(&last[..rest.len()]);
}

/// Whether `bytes` are what `fill` gives.
pub fn is_filled(key: BlockKey, offset: u64, bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut word = first_word(key, offset);
    let mut alike = true;
    for bytes in words {
        alike &= *bytes == word.to_le_bytes();
        word = word.wrapping_add(STEP);
    }
    alike && rest == &word.to_le_bytes()[..rest.len()]
}

/// Odd, and far from any simple fraction of 2^64.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn first_word(key: BlockKey, offset: u64) -> u64 {
    assert!(offset.is_multiple_of(8), "whole words");
    let (head, _) = key.sequence.0.split_first_chunk().expect("32 bytes hold 8");
    let seed = u64::from_le_bytes(*head) ^ u64::from(key.shard).rotate_right(8);
    seed.wrapping_add((offset / 8).wrapping_mul(STEP))
}
