//! How long does the longest prefix match of a long prompt take at a million resident blocks, and
//! what memory does a block take?

use refrain_benches::{Digest, PROMPT_BLOCKS, Prompts, Samples, float, is_smoke, tell};
use refrain_index::chain::{BlockKey, Chain, Place};

/// As large as what a sidecar keeps of a block.
#[derive(Clone, Copy)]
struct At {
    segment: u32,
    page: u32,
    _rest: [u32; 2],
}

impl Place for At {
    fn group(&self) -> u32 {
        self.segment
    }
}

fn main() {
    let (blocks, lookups) = if is_smoke() { (20_000, 20) } else { (1_000_000, 2_000) };
    let prompts = Prompts::new(blocks);
    let mut chain = Chain::default();
    for (index, block) in (0u32..).zip(prompts.saved()) {
        let key = BlockKey { sequence: block.hash, shard: 0 };
        let place = At { segment: index / 238, page: index % 238, _rest: [0; 2] };
        chain.insert(key, block.parent, place, 0).expect("parents come first");
    }
    let mut random = fastrand::Rng::with_seed(1);
    let (mut samples, mut digest) = (Samples::default(), Digest::default());
    for now in 0..lookups {
        let hashes = &prompts.chains[random.usize(0..blocks / PROMPT_BLOCKS)];
        let found = samples.time(|| chain.match_prefix(0, hashes, now));
        assert_eq!(found.len(), PROMPT_BLOCKS);
        for place in &found {
            digest.add(u64::from(place.segment ^ place.page));
        }
    }
    let bytes = chain.bytes() / u64::try_from(chain.len()).expect("usize fits");
    let each = float(PROMPT_BLOCKS) / samples.median().as_secs_f64() / 1e6;
    tell([
        format!("{blocks} resident blocks, {lookups} lookups of {PROMPT_BLOCKS} blocks"),
        format!("hash {digest}"),
        format!("{each:.1} million blocks/s, {samples} (target: p99 <= 300us)"),
        format!("{bytes} bytes a block (target: <= 150)"),
    ]);
}
