//! How fast do prefixes go from SSD and from the host tier into a paged KV cache, and out of it, and
//! when is their first layer there?
//!
//! A sidecar in this process, a client with its session and arenas, blocks of DeepSeek-V3 in random
//! pages. Reads from SSD stand beside those of the raw device, of the same size and depth, in turns.
//! On the first GPU; `--smoke` runs on the host.

use refrain_benches::paged::{bytes, cache, copier_or_exit, pages};
use refrain_benches::sidecar::{Sidecar, prompt, register};
use refrain_benches::{BLOCK_BYTES, Samples, gigabytes_per_second, is_smoke, scratch, tell};
use refrain_client::gpu_transfer::copier::Stream;
use refrain_client::gpu_transfer::cuda::Way;
use refrain_client::gpu_transfer::layout::Pages;
use refrain_client::gpu_transfer::paged::PagedCache;
use refrain_client::v1::Refusal;
use refrain_client::{KvCache, Lookup, Prompt, Registration};
use refrain_store::drive::IoEngine;
use refrain_store::geometry::Layout;
use refrain_store::probe::Probe;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const LAYERS: u32 = 61;
const CHUNK: u64 = 73_728;
const STREAM: Stream = Stream(0);
/// As many blocks as the store reads at once.
const DEPTH: u32 = 8;

struct Sizes {
    blocks: u32,
    rounds: usize,
    /// Loads of any length whose time was foretold; the sidecar learns from as many before them.
    foretold: usize,
    /// Room for one prompt and not for two, so that each load of the other comes from SSD.
    load_arena: u64,
    session_arena: u64,
}

impl Sizes {
    fn new(blocks: u32, (rounds, foretold): (usize, usize), session_arena: u64) -> Self {
        let frame = Layout::new(LAYERS, CHUNK).expect("a block of DeepSeek-V3").stored_length();
        // The arena is cut into slabs that frames do not fill to the last byte.
        let load_arena = (u64::from(blocks) * frame * 107 / 100).next_multiple_of(2 << 20);
        Self { blocks, rounds, foretold, load_arena: load_arena.max(64 << 20), session_arena }
    }
}

struct Worker {
    registration: Registration,
    cache: KvCache,
    paged: Arc<PagedCache>,
    blocks: u32,
    /// What a prefill of each of the two prompts left in the pages.
    computed: [Vec<u8>; 2],
}

fn main() {
    let sizes = if is_smoke() {
        Sizes::new(12, (1, 4), 32 << 20)
    } else {
        Sizes::new(400, (7, 40), 1 << 30)
    };
    let copier = copier_or_exit(Way::Measured);
    let runtime = Runtime::new().expect("threads");
    let directory = scratch();
    let capacity = (u64::from(sizes.blocks) * BLOCK_BYTES * 3).max(512 << 20);
    let sidecar = Sidecar::start(&runtime, directory.path(), capacity, sizes.load_arena);
    let paged = cache(&copier, LAYERS, CHUNK, sizes.blocks);
    let cache = KvCache::new(copier, Arc::clone(&paged));
    runtime.block_on(async {
        let client = sidecar.client(sizes.session_arena).await;
        let registration = register(&client, LAYERS, CHUNK).await;
        let computed = [1, 2].map(|seed| {
            let mut found = bytes(&paged);
            fastrand::Rng::with_seed(seed).fill(&mut found);
            found
        });
        let worker = Worker { registration, cache, paged, blocks: sizes.blocks, computed };
        run(&worker, &sizes, directory.path()).await;
    });
    sidecar.stop(&runtime);
}

async fn run(worker: &Worker, sizes: &Sizes, directory: &Path) {
    let prompts = [1, 2].map(|seed| prompt(seed, sizes.blocks));
    for (seed, tokens) in (1..).zip(&prompts) {
        worker.compute(seed);
        let begin = Instant::now();
        let refused = worker.save(tokens, seed).await;
        let rate = gigabytes_per_second(u64::from(sizes.blocks) * BLOCK_BYTES, begin.elapsed());
        tell([format!(
            "save {seed}: {} blocks, {rate:.2} GB/s, {refused} times Busy",
            sizes.blocks
        )]);
    }
    let registering = worker.cache.registering().await.unwrap_or_default();
    let mib = (sizes.load_arena + sizes.session_arena) >> 20;
    tell([format!("arenas of {mib} MiB registered in {registering:?}")]);

    let probe = Probe::new(directory, BLOCK_BYTES, DEPTH, sizes.blocks.into(), IoEngine::Auto);
    let probe = probe.expect("memory for the raw device");
    probe.write().expect("the raw file is written");
    let mut shares = Vec::new();
    for _ in 0..sizes.rounds {
        let raw = raw_rate(&probe, sizes.blocks);
        for (seed, tokens) in (1..).zip(&prompts) {
            let loaded = worker.load(tokens, seed).await;
            assert!(loaded.host_blocks < sizes.blocks / 4, "{loaded:?}");
            shares.push(loaded.ssd_rate() / raw);
            tell([format!("SSD: raw {raw:.3} GB/s, {loaded}")]);
        }
    }
    shares.sort_unstable_by(f64::total_cmp);
    tell([format!("SSD to pages: median {:.3} of the raw device", shares[shares.len() / 2])]);
    let mut times = Vec::new();
    for _ in 0..sizes.rounds {
        let loaded = worker.load(&prompts[1], 2).await;
        assert_eq!(loaded.host_blocks, sizes.blocks, "all of it is in the host tier");
        tell([format!("host tier: {loaded}")]);
        times.push(loaded.elapsed);
    }
    let bytes = u64::from(sizes.blocks) * BLOCK_BYTES;
    let rate = gigabytes_per_second(bytes, Samples::from(times).median());
    tell([format!("host tier to pages: median {rate:.1} GB/s, sidecar and session included")]);
    let mut errors = foretell(worker, sizes, &prompts).await;
    errors.sort_unstable_by(f64::total_cmp);
    let at = |share: usize| errors[errors.len() * share / 10];
    tell([format!("expected load time: off by {:.3} at p50, {:.3} at p90", at(5), at(9))]);
}

/// How far the expected times of loads were off: of beginnings of any length of either prompt, of
/// which the host tier has all, a part or nothing.
async fn foretell(worker: &Worker, sizes: &Sizes, prompts: &[Vec<u32>; 2]) -> Vec<f64> {
    let mut random = fastrand::Rng::with_seed(3);
    let mut errors = Vec::new();
    for turn in 0..2 * sizes.foretold {
        let (seed, blocks) = (random.u64(1..=2), random.usize(1..=prompts[0].len() / 64));
        let tokens = &prompts[usize::try_from(seed - 1).expect("one of two")][..blocks * 64];
        let loaded = worker.load(tokens, seed).await;
        let error = loaded.expected.div_duration_f64(loaded.elapsed) - 1.0;
        if turn >= sizes.foretold {
            tell([format!("foretold: off by {error:+.3}, {loaded}")]);
            errors.push(error.abs());
        }
    }
    errors
}

/// The better of reads of whole blocks and reads of stripes, in the order of the file.
fn raw_rate(probe: &Probe, blocks: u32) -> f64 {
    let order: Vec<u64> = (0..blocks.into()).collect();
    let whole = probe.read(&order).expect("the raw file is read").gigabytes_per_second();
    let layout = Layout::new(LAYERS, CHUNK).expect("a block of DeepSeek-V3");
    let stripe = layout.stripes[0].length;
    let pieces: Vec<u64> = (0..u64::from(blocks) * BLOCK_BYTES / stripe).collect();
    let pieces = probe.read_pieces(stripe, &pieces).expect("the raw file is read");
    whole.max(pieces.gigabytes_per_second())
}

#[derive(Debug)]
struct Loaded {
    blocks: u32,
    host_blocks: u32,
    expected: Duration,
    first_layer: Duration,
    last_layer: Duration,
    elapsed: Duration,
}

impl Loaded {
    fn rate(&self) -> f64 {
        gigabytes_per_second(u64::from(self.blocks) * BLOCK_BYTES, self.elapsed)
    }

    /// Of what came from SSD, as if the rest had come for nothing.
    fn ssd_rate(&self) -> f64 {
        let blocks = u64::from(self.blocks - self.host_blocks);
        gigabytes_per_second(blocks * BLOCK_BYTES, self.elapsed)
    }
}

impl std::fmt::Display for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { blocks, host_blocks, expected, first_layer, last_layer, elapsed } = self;
        let rate = self.rate();
        write!(
            f,
            "{blocks} blocks ({host_blocks} from the host) in {elapsed:.1?}, {rate:.2} GB/s; first \
             layer on its way after {first_layer:.1?}, last after {last_layer:.1?}; expected \
             {expected:.1?}"
        )
    }
}

impl Worker {
    async fn lookup(&self, tokens: &[u32]) -> Lookup {
        self.registration.lookup(Prompt::Tokens(tokens)).await.expect("the sidecar answers")
    }

    /// What a prefill of prompt `seed` left.
    fn computed(&self, seed: u64) -> &[u8] {
        &self.computed[usize::try_from(seed - 1).expect("one of two")]
    }

    /// What stands for a prefill: other bytes for each prompt.
    fn compute(&self, seed: u64) {
        let memory = self.paged.memory().expect("memory of its own");
        memory.write(0, self.computed(seed)).expect("it is written");
    }

    /// Saves a whole prompt out of its pages; says how often the drives were behind.
    async fn save(&self, tokens: &[u32], seed: u64) -> u32 {
        let all = pages(self.blocks, seed);
        let mut refused = 0;
        loop {
            let lookup = self.lookup(tokens).await;
            let first = lookup.matched_blocks;
            if first == self.blocks {
                return refused;
            }
            let left = (first..self.blocks).map(|block| all.page(0, block).expect("it has one"));
            let left = Pages::new(self.blocks - first, vec![left.collect()]);
            let saving = lookup.save_from(&self.cache, first, left, Some(STREAM), false);
            let saved = saving.await.expect("the sidecar answers");
            lookup.release().await.expect("the sidecar answers");
            if saved.refusal == Refusal::Busy {
                refused += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// Holds the pages of `numbers` against `right`, and all others against nothing.
    fn compare(&self, numbers: &[u32], right: &[u8]) {
        let length = usize::try_from(CHUNK).expect("memory is addressed");
        let blocks = usize::try_from(self.blocks).expect("32 bits fit");
        let mut loaded = vec![false; blocks];
        for &number in numbers {
            loaded[usize::try_from(number).expect("32 bits fit")] = true;
        }
        let nothing = vec![0; length];
        let found = bytes(&self.paged);
        for (index, page) in found.chunks_exact(length).enumerate() {
            let right = &right[index * length..(index + 1) * length];
            let expected = if loaded[index % blocks] { right } else { &nothing };
            assert!(page == expected, "a wrong byte in page {}", index % blocks);
        }
    }

    /// Loads a prompt's beginning into the pages that it was saved from, and compares every byte.
    async fn load(&self, tokens: &[u32], seed: u64) -> Loaded {
        let memory = self.paged.memory().expect("memory of its own");
        let lookup = self.lookup(tokens).await;
        let blocks = lookup.matched_blocks;
        assert_eq!(usize::try_from(blocks).expect("32 bits fit") * 64, tokens.len());
        let expected = lookup.expected_load;
        let begin = Instant::now();
        let all = pages(self.blocks, seed);
        let numbers = |blocks: Range<u32>| {
            blocks.map(|block| all.page(0, block).expect("it has one")).collect::<Vec<_>>()
        };
        let pages = Pages::new(blocks, vec![numbers(0..blocks)]);
        let load = lookup.load_into(&self.cache, 0, pages, None, None).await.expect("it begins");
        load.layer(0, STREAM).await.expect("it comes");
        let first_layer = begin.elapsed();
        load.layer(LAYERS - 1, STREAM).await.expect("it comes");
        let last_layer = begin.elapsed();
        let done = load.finish().await.expect("it ends");
        let elapsed = begin.elapsed();
        assert!(lookup.release().await.expect("the sidecar answers"), "the lease held");
        self.compare(&numbers(0..blocks), self.computed(seed));
        // The next load cannot live on what this one left.
        memory.write(0, &vec![0; self.computed(seed).len()]).expect("it is written");
        let (blocks, host_blocks) = (done.loaded_blocks, done.host_blocks);
        Loaded { blocks, host_blocks, expected, first_layer, last_layer, elapsed }
    }
}
