//! What the benchmarks share: sizes, samples, and prompts whose blocks are saved as a node saves
//! them.

pub mod cublas;
pub mod paged;
pub mod redis_benchmark;
pub mod sidecar;

use refrain_index::hash::{KEY_SCHEME, SequenceHash, TenantKey};
use refrain_index::namespace::NamespaceDigest;
use refrain_store::engine::NewRecord;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Blocks of one prompt.
pub const PROMPT_BLOCKS: usize = 2048;
pub const NAMESPACE: NamespaceDigest = NamespaceDigest([0x5a; 32]);
/// A block of DeepSeek-V3: 64 tokens of 61 layers.
pub const BLOCK_BYTES: u64 = 4_497_408;

/// Requests that come together, and how many blocks each saves in turn.
const TOGETHER: usize = 8;
const RUN: usize = 64;

/// Whether sizes should be tiny: the run proves that the benchmark works, and measures nothing.
pub fn is_smoke() -> bool {
    std::env::args().any(|argument| argument == "--smoke")
}

/// A directory to measure in, on the drive of the build: the usual place for temporary files may
/// be memory, which takes no O_DIRECT.
pub fn scratch() -> tempfile::TempDir {
    let parent = Path::new(env!("CARGO_MANIFEST_DIR"));
    tempfile::Builder::new().prefix(".tmp-bench").tempdir_in(parent).expect("the tree is writable")
}

/// One block in the order of saving.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    pub hash: SequenceHash,
    pub parent: Option<SequenceHash>,
    pub position: u32,
}

impl Block {
    /// As a drive takes it.
    pub fn record(&self) -> NewRecord {
        NewRecord {
            key_scheme: KEY_SCHEME,
            sequence_hash: self.hash.0,
            shard: 0,
            parent: self.parent.map_or([0; 32], |parent| parent.0),
            namespace: NAMESPACE.0,
            epoch: 0,
            position: self.position,
        }
    }
}

/// Hash chains of prompts of [`PROMPT_BLOCKS`].
#[derive(Debug)]
pub struct Prompts {
    pub chains: Vec<Vec<SequenceHash>>,
}

impl Prompts {
    /// As many prompts as have `blocks` together; the last is shorter.
    pub fn new(blocks: usize) -> Self {
        let key = TenantKey::derive(&[7; 32], "bench");
        let chain = |first: usize| {
            let count = PROMPT_BLOCKS.min(blocks - first);
            let mut parent = key.root(NAMESPACE);
            let next = |at: usize| {
                let token = u32::try_from(at).expect("fewer than 2^32 blocks");
                parent = key.next(parent, &[token], &[]);
                parent
            };
            (first..first + count).map(next).collect()
        };
        Self { chains: (0..blocks).step_by(PROMPT_BLOCKS).map(chain).collect() }
    }

    /// All blocks in the order in which requests that come together save them.
    pub fn saved(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        for group in self.chains.chunks(TOGETHER) {
            for first in (0..PROMPT_BLOCKS).step_by(RUN) {
                for chain in group {
                    let last = chain.len().min(first + RUN);
                    blocks.extend((first..last).map(|at| Block {
                        hash: chain[at],
                        parent: at.checked_sub(1).map(|before| chain[before]),
                        position: u32::try_from(at).expect("2048 at most"),
                    }));
                }
            }
        }
        blocks
    }
}

/// Durations of one thing, done often.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    pub fn time<R>(&mut self, act: impl FnOnce() -> R) -> R {
        let begin = Instant::now();
        let result = act();
        self.0.push(begin.elapsed());
        result
    }

    pub fn add(&mut self, duration: Duration) {
        self.0.push(duration);
    }

    /// The value that a share `quantile` of them does not exceed.
    pub fn quantile(&self, quantile: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let share = |rank: usize| float(rank) / float(sorted.len());
        let rank = (1..=sorted.len()).find(|&rank| share(rank) >= quantile);
        rank.map_or(Duration::ZERO, |rank| sorted[rank - 1])
    }

    pub fn median(&self) -> Duration {
        self.quantile(0.5)
    }
}

impl From<Vec<Duration>> for Samples {
    fn from(samples: Vec<Duration>) -> Self {
        Self(samples)
    }
}

impl std::fmt::Display for Samples {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p50 {:?}, p99 {:?}", self.median(), self.quantile(0.99))
    }
}

/// A result that stands for all of them, so that no work can be left out unseen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Digest(u64);

impl Digest {
    pub fn add(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(5);
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Writes lines to standard output, as whoever reads them may have gone.
pub fn tell(lines: impl IntoIterator<Item = String>) {
    let mut out = std::io::stdout().lock();
    for line in lines {
        let _ = writeln!(out, "{line}");
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts in rates for people")]
pub fn float(count: usize) -> f64 {
    count as f64
}

/// Gigabytes, of 1e9 bytes, a second.
#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
pub fn gigabytes_per_second(bytes: u64, elapsed: Duration) -> f64 {
    bytes as f64 / elapsed.as_secs_f64() / 1e9
}

#[cfg(test)]
mod tests {
    //! Proves that every block is saved once, behind its parent, and that quantiles are samples.

    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_block_is_saved_once_and_after_its_parent() {
        let prompts = Prompts::new(9 * PROMPT_BLOCKS + 5);
        let mut seen = HashSet::new();
        for block in prompts.saved() {
            assert!(block.parent.is_none_or(|parent| seen.contains(&parent)));
            assert!(seen.insert(block.hash));
        }
        assert_eq!(seen.len(), 9 * PROMPT_BLOCKS + 5);
    }

    #[test]
    fn a_quantile_is_the_least_sample_that_reaches_its_share() {
        let samples = Samples::from((1..=200).rev().map(Duration::from_micros).collect::<Vec<_>>());
        assert_eq!(samples.quantile(0.99), Duration::from_micros(198));
        assert_eq!(samples.median(), Duration::from_micros(100));
    }
}
