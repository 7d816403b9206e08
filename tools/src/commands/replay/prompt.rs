//! How a block of a trace is shown to a sidecar: its shape, its tokens, its namespace.
//!
//! A trace has no tokens, only ids of blocks; so tokens are made up from the ids, equal where those
//! are. Their number does not matter to the cache: what is shown is a model whose blocks have
//! [`SHOWN_TOKENS`] tokens, so that prompts stay short on the wire and hashing them cheap, while
//! hits are counted in the tokens of the trace.

use super::content::mix;
use anyhow::{Result, ensure};
use refrain_client::v1;

/// Tokens shown for a block: 512 bits, far beyond any chance of two ids with the same.
const SHOWN_TOKENS: u32 = 16;
/// A store reads and checks stripes of at least 256 KiB; four layers or so make one.
const LAYER_BYTES: u64 = 64 << 10;
const LAYERS_MAX: u64 = 64;
const PAGE_BYTES: u64 = 4096;

/// One block, as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) block_bytes: u64,
    pub(super) layers: u32,
    pub(super) layer_bytes: u64,
}

impl Shape {
    /// `layers` divides `block_bytes`; without it, what divides it well is taken.
    pub(super) fn new(block_bytes: u64, layers: Option<u32>) -> Result<Self> {
        ensure!(block_bytes > 0, "--block-bytes 0: a block holds at least one byte");
        let layers = layers.map_or_else(|| usual_layers(block_bytes), u64::from);
        ensure!(
            layers > 0 && block_bytes.is_multiple_of(layers),
            "--layers {layers} does not divide a block of {block_bytes} bytes"
        );
        let (layers, layer_bytes) = (u32::try_from(layers)?, block_bytes / layers);
        Ok(Self { block_bytes, layers, layer_bytes })
    }

    /// A made-up model that caches such blocks. The seed enters it: another seed's blocks hold
    /// other bytes, and must never be taken for these.
    pub(super) fn namespace(&self, tenant: &str, seed: u64) -> v1::Namespace {
        use v1::attention_group::Kind;
        let all =
            v1::AttentionGroup { kind: Kind::Full.into(), layers: self.layers, window_tokens: 0 };
        v1::Namespace {
            tenant: tenant.to_owned(),
            model: "replay".into(),
            weights: format!("seed {seed}"),
            // Changes when contents or tokens are made otherwise.
            config_digest: b"refrain replay 1".to_vec(),
            kv_dtype: "u8".into(),
            block_tokens: SHOWN_TOKENS,
            layers: self.layers,
            layer_bytes: self.layer_bytes,
            layout: v1::KvLayout::Latent.into(),
            groups: vec![all],
            tensor_parallel: 1,
            pipeline_parallel: 1,
            context_parallel: 1,
            adapter_digest: Vec::new(),
            salt: Vec::new(),
        }
    }
}

/// The tokens of these blocks.
pub(crate) fn tokens(ids: &[u64]) -> Vec<u32> {
    let of_block = |&id: &u64| {
        let token = move |place| u32::try_from(mix(mix(id) ^ place) >> 32).expect("32 bits");
        (1..=u64::from(SHOWN_TOKENS)).map(token)
    };
    ids.iter().flat_map(of_block).collect()
}

/// As many layers of at least [`LAYER_BYTES`] as whole pages allow, so that stripes have no padding
/// between them; of a small block, up to four.
fn usual_layers(block_bytes: u64) -> u64 {
    let divides = |layers: &u64| block_bytes.is_multiple_of(*layers);
    let large = |layers: &u64| {
        let bytes = block_bytes / layers;
        bytes >= LAYER_BYTES && bytes.is_multiple_of(PAGE_BYTES)
    };
    let many = (5..=LAYERS_MAX).rev().filter(divides).find(large);
    many.or_else(|| (1..=4).rev().find(divides)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    //! Proves that blocks of any size have a shape, and that tokens follow from ids alone.

    use super::*;

    fn check(block_bytes: u64, layers: u32, layer_bytes: u64) {
        let shape = Shape::new(block_bytes, None).unwrap();
        assert_eq!((shape.layers, shape.layer_bytes), (layers, layer_bytes), "{block_bytes}");
        assert_eq!(u64::from(layers) * layer_bytes, block_bytes);
    }

    #[test]
    fn layers_make_up_exactly_the_block() {
        check(1, 1, 1);
        check(4093, 1, 4093);
        check(4096, 4, 1024);
        check(16 << 10, 4, 4096);
        check(1 << 20, 16, 64 << 10);
        // A block of DeepSeek-V3: 64 tokens, 61 layers.
        check(4_497_408, 61, 73_728);
    }

    #[test]
    fn layers_that_do_not_divide_the_block_are_refused() {
        assert_eq!(Shape::new(16_384, Some(2)).unwrap().layer_bytes, 8192);
        let error = Shape::new(16_384, Some(3)).unwrap_err();
        assert_eq!(error.to_string(), "--layers 3 does not divide a block of 16384 bytes");
        assert!(Shape::new(16_384, Some(0)).is_err());
        assert!(Shape::new(0, None).is_err());
    }

    #[test]
    fn equal_ids_and_only_those_have_equal_tokens() {
        let tokens = tokens(&[7, 8, 7]);
        let blocks: Vec<_> = tokens.chunks(16).collect();
        assert_eq!(blocks.len(), 3);
        assert_eq!(blocks[0], blocks[2]);
        assert_ne!(blocks[0], blocks[1]);
    }

    #[test]
    fn namespace_differs_by_seed_and_covers_all_layers() {
        let shape = Shape::new(16_384, None).unwrap();
        let (one, two) = (shape.namespace("t", 1), shape.namespace("t", 2));
        assert_ne!(one, two);
        assert_eq!(one.groups.iter().map(|group| group.layers).sum::<u32>(), one.layers);
    }
}
