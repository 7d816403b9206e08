//! What does the fleet's directory cost: a lookup of a long prompt, a core of its servers for probes
//! and for publications, and the memory of an entry?
//!
//! Three masters on this machine, beside `redis-benchmark` in the same run: HGET of 64 buckets, and the
//! function that publishes, over as few. `--entries N` says how many entries there are.

use refrain::cluster::Cluster;
use refrain_benches::{Prompts, Samples, float, is_smoke, scratch, tell};
use refrain_index::chain::BlockKey;
use refrain_index::directory::{Directory, Holdings, Life, Membership, NodeId, Settings, User};
use refrain_index::hash::SequenceHash;
use std::io;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Blocks of the long prompt that lookups are timed with.
const LONG: usize = 2000;
/// Entries of a bucket, as a directory is laid out for.
const BUCKET: usize = 32;
/// Blocks handed over at once, and waiting.
const BATCH: usize = 1024;
const WAITING: usize = 8 * BATCH;
const PATIENCE: Duration = Duration::from_mins(10);
/// Lookups side by side.
const SIDE_BY_SIDE: usize = 16;

/// Holds whatever it is asked for.
#[derive(Debug)]
struct All;

impl Holdings for All {
    fn keep(&self, _: &Life) -> io::Result<()> {
        Ok(())
    }

    fn holds(&self, _: BlockKey) -> bool {
        true
    }

    fn pages(&self) -> usize {
        0
    }

    fn page(&self, _: usize) -> Vec<BlockKey> {
        Vec::new()
    }
}

/// Operations in a time, and what of it the servers' cores worked.
#[derive(Clone, Copy)]
struct Rate {
    operations: usize,
    elapsed: Duration,
    core_seconds: f64,
}

impl Rate {
    /// Of one core, if it did nothing else.
    fn a_core(self) -> f64 {
        float(self.operations) / self.core_seconds
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = float(self.operations) / self.elapsed.as_secs_f64();
        write!(f, "{rate:.0}/s, {:.0}/s a server's core", self.a_core())
    }
}

struct Bench {
    cluster: Cluster,
    membership: Membership,
    reader: Directory,
}

fn main() {
    let entries = match std::env::args().skip_while(|word| word != "--entries").nth(1) {
        Some(count) => count.parse().expect("--entries takes a number"),
        None if is_smoke() => 20_000,
        None => 1_000_000,
    };
    let home = scratch();
    let cluster = Cluster::start_masters(home.path()).expect("redis-server is there");
    let runtime = Runtime::new().expect("a runtime starts");
    runtime.block_on(run(cluster, entries));
}

async fn run(cluster: Cluster, entries: usize) {
    let name = "refrain".into();
    let user = Some(User { name, password: cluster.password().into() });
    let settings = Settings { seeds: cluster.addresses(), user, tls: None };
    let bits = entries.div_ceil(BUCKET << 14).next_power_of_two().ilog2();
    let bits = u8::try_from(bits).expect("less than 64");
    let directory = Directory::connect(settings.clone()).expect("addresses are right");
    let life = Life::begin(NodeId(1));
    let membership = Membership::new(directory, "127.0.0.1:1".into(), bits, life, Arc::new(All));
    let running = membership.clone();
    tokio::spawn(async move { running.run().await });
    let reader = Directory::connect(settings).expect("addresses are right");
    let bench = Bench { cluster, membership, reader };
    bench.until("joined", || bench.membership.is_joined()).await;

    let prompts = Prompts::new(entries);
    let before = bench.used_bytes();
    let published = bench.publish(&prompts).await;
    let bytes = float(bench.used_bytes().saturating_sub(before)) / float(entries);
    let located = |chain: &[SequenceHash]| bench.is_located(chain.to_vec());
    let last = &prompts.chains[prompts.chains.len().saturating_sub(2)];
    let long = &last[..last.len().min(LONG)];
    let end = Instant::now() + PATIENCE;
    while !located(long).await {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: the long prompt is found");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let lookups = if is_smoke() { 20 } else { 2000 };
    let (mut whole, mut half) = (Samples::default(), Samples::default());
    let mut broken = long.to_vec();
    for block in broken.iter_mut().skip(long.len() / 2) {
        // A block that nobody published.
        *block = SequenceHash(block.0.map(|byte| byte ^ 0x55));
    }
    for _ in 0..lookups {
        bench.timed(&mut whole, long, long.len()).await;
        bench.timed(&mut half, &broken, long.len() / 2).await;
    }
    let probed = bench.probe(&prompts, lookups * 8).await;
    let theirs = bench.redis_benchmark(if is_smoke() { 20_000 } else { 1_000_000 });
    tell([
        format!("{entries} entries on three masters, {} buckets a slot", 1_u32 << bits),
        format!("{bytes:.1} bytes an entry (target: <= 22)"),
        format!("lookup of {} blocks that are all there: {whole}", long.len()),
        format!("lookup of {} blocks, half of them there: {half}", long.len()),
        format!("probes: {probed}"),
        format!("redis-benchmark HGET: {}", theirs.0),
        format!("publications: {published}"),
        format!("redis-benchmark FCALL: {}", theirs.1),
        format!(
            "a server's core does {:.2} of redis-benchmark's probes, {:.2} of its publications \
             (target: >= 0.8)",
            probed.a_core() / theirs.0.a_core(),
            published.a_core() / theirs.1.a_core(),
        ),
    ]);
}

impl Bench {
    async fn until(&self, what: &str, mut is: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is() {
            assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn publish(&self, prompts: &Prompts) -> Rate {
        let keys: Vec<_> = prompts.saved().iter().map(|block| key(block.hash)).collect();
        let published = &self.membership.directory().counts().published;
        let (begin, core_seconds) = (Instant::now(), self.core_seconds());
        for some in keys.chunks(BATCH) {
            self.until("there is room", || self.membership.pending() < WAITING).await;
            self.membership.changed(some);
        }
        let all = u64::try_from(keys.len()).expect("usize fits");
        self.until("all is published", || published.load(Relaxed) >= all).await;
        let core_seconds = self.core_seconds() - core_seconds;
        Rate { operations: keys.len(), elapsed: begin.elapsed(), core_seconds }
    }

    async fn is_located(&self, chain: Vec<SequenceHash>) -> bool {
        let deadline = Instant::now() + Duration::from_secs(2);
        let located = self.reader.locate(0, &chain, deadline).await;
        located.runs.first().is_some_and(|run| run.count == chain.len())
    }

    async fn timed(&self, samples: &mut Samples, chain: &[SequenceHash], expected: usize) {
        let begin = Instant::now();
        let located = self.reader.locate(0, chain, begin + Duration::from_secs(2)).await;
        samples.add(begin.elapsed());
        assert_eq!(located.runs.first().map_or(0, |run| run.count), expected, "{located:?}");
    }

    /// Chains that are probed block by block, many at once.
    async fn probe(&self, prompts: &Prompts, lookups: usize) -> Rate {
        const BLOCKS: usize = 256;
        let (begin, core_seconds) = (Instant::now(), self.core_seconds());
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..SIDE_BY_SIDE {
            let reader = self.reader.clone();
            let mut random = fastrand::Rng::with_seed(u64::try_from(task).expect("usize fits"));
            let full = prompts.chains.iter().filter(|chain| chain.len() >= BLOCKS);
            let chains: Vec<Vec<_>> = (0..lookups / SIDE_BY_SIDE)
                .map(|_| {
                    let chain = random.choice(full.clone().collect::<Vec<_>>());
                    chain.expect("some chain is long")[..BLOCKS].to_vec()
                })
                .collect();
            tasks.spawn(async move {
                for chain in chains {
                    let deadline = Instant::now() + Duration::from_secs(10);
                    let located = reader.locate(0, &chain, deadline).await;
                    assert_eq!(located.runs.first().map_or(0, |run| run.count), BLOCKS);
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("every block is found");
        }
        let operations = lookups / SIDE_BY_SIDE * SIDE_BY_SIDE * BLOCKS;
        let core_seconds = self.core_seconds() - core_seconds;
        Rate { operations, elapsed: begin.elapsed(), core_seconds }
    }

    /// What those who make the server measure with: HGET of 64 buckets, and the function that publishes
    /// an entry, which after the first of each finds it there.
    fn redis_benchmark(&self, operations: usize) -> (Rate, Rate) {
        let put = ["FCALL", "refrain1_put", "1", "{tag}:__rand_int__", "ownr", "__rand_int__"];
        let puts = self.redis_benchmark_of(operations, &put);
        let gets =
            self.redis_benchmark_of(operations, &["HGET", "{tag}:__rand_int__", "__rand_int__"]);
        (gets, puts)
    }

    fn redis_benchmark_of(&self, operations: usize, words: &[&str]) -> Rate {
        let address = &self.cluster.addresses()[0];
        let port = address.rsplit_once(':').expect("host and port").1;
        let count = operations.to_string();
        let (begin, core_seconds) = (Instant::now(), self.core_seconds());
        let status = Command::new("redis-benchmark")
            .args(["--cluster", "-h", "127.0.0.1", "-p", port, "--user", "admin"])
            .args(["-a", self.cluster.password(), "-q", "-c", "6", "-P", "85", "-r", "64"])
            .args(["-n", &count])
            .args(words)
            .output()
            .expect("redis-benchmark is there");
        assert!(status.status.success(), "{status:?}");
        let core_seconds = self.core_seconds() - core_seconds;
        Rate { operations, elapsed: begin.elapsed(), core_seconds }
    }

    fn core_seconds(&self) -> f64 {
        self.sum("cpu", &["used_cpu_user:", "used_cpu_sys:"])
    }

    fn used_bytes(&self) -> usize {
        let bytes = self.sum("memory", &["used_memory:"]);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bytes of memory, whole numbers below 2^53"
        )]
        let bytes = bytes as usize;
        bytes
    }

    fn sum(&self, section: &str, fields: &[&str]) -> f64 {
        let servers = 0..self.cluster.len();
        let of = |server| {
            let info = self.cluster.command(server, ["INFO", section]).expect("it answers");
            let field = |line: &str| {
                fields.iter().find_map(|field| line.strip_prefix(field)?.trim().parse::<f64>().ok())
            };
            info.lines().filter_map(field).sum::<f64>()
        };
        servers.map(of).sum()
    }
}

fn key(sequence: SequenceHash) -> BlockKey {
    BlockKey { sequence, shard: 0 }
}
