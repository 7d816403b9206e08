//! What does the fleet's directory cost: a lookup of a long prompt, a core of its servers for probes
//! and for publications, and the memory of an entry?
//!
//! Three masters on this machine, beside `redis-benchmark` that does the same to them in the same run, a
//! round of the one after a round of the other: what else keeps the machine busy, and its caches, is then
//! much the same for both. `--entries N` says how many entries there are.

use refrain::cluster::Cluster;
use refrain_benches::redis_benchmark::{Pipelines, RedisBenchmark};
use refrain_benches::{Prompts, Samples, float, is_smoke, scratch, tell};
use refrain_index::chain::BlockKey;
use refrain_index::directory::{Directory, Holdings, Life, Membership, NodeId, Settings, User};
use refrain_index::hash::SequenceHash;
use std::io;
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
/// Blocks that a second node publishes.
const SECOND: usize = 1_000_000;
/// Lookups side by side, and the blocks of each, which are all probed at once.
const SIDE_BY_SIDE: usize = 16;
const PROBED: usize = 256;
/// Of each of the two, in turn.
const ROUNDS: usize = 8;

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
#[derive(Clone, Copy, Default)]
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

    /// Of both together.
    fn and(self, other: Self) -> Self {
        Self {
            operations: self.operations + other.operations,
            elapsed: self.elapsed + other.elapsed,
            core_seconds: self.core_seconds + other.core_seconds,
        }
    }
}

/// The same done by a directory and by `redis-benchmark`, round after round.
#[derive(Default)]
struct Compared {
    ours: Rate,
    theirs: Rate,
    /// What a core does of theirs, in each round.
    shares: Vec<f64>,
}

impl Compared {
    fn add(&mut self, ours: Rate, theirs: Rate) {
        self.ours = self.ours.and(ours);
        self.theirs = self.theirs.and(theirs);
        self.shares.push(ours.a_core() / theirs.a_core());
    }
}

impl std::fmt::Display for Compared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shares = self.shares.clone();
        shares.sort_unstable_by(f64::total_cmp);
        let (least, most) = (shares[0], shares[shares.len() - 1]);
        let all = self.ours.a_core() / self.theirs.a_core();
        write!(f, "{all:.2} in all, {least:.2} to {most:.2} in {} rounds", shares.len())
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
    let directory = || Directory::connect(settings.clone()).expect("addresses are right");
    let bench = Bench { cluster, reader: directory() };
    let [node, other] = [1, 2].map(|node| {
        let (address, life) = (format!("127.0.0.1:{node}"), Life::begin(NodeId(node)));
        let membership = Membership::new(directory(), address, bits, life, Arc::new(All));
        let running = membership.clone();
        tokio::spawn(async move { running.run().await });
        membership
    });
    until("both joined", || node.is_joined() && other.is_joined()).await;

    let prompts = Prompts::new(entries);
    let saved: Vec<_> = prompts.saved().iter().map(|block| key(block.hash)).collect();
    let theirs = RedisBenchmark::new(&bench.cluster, 1 << (14 + bits));
    let (publications, used) = bench.compare_publications(&node, &saved, &theirs).await;
    let bytes = float(used) / float(entries);
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
    theirs.load(entries);
    let probes = bench.compare_probes(&prompts, lookups * 8, &theirs).await;
    let second = bench.publish(&other, &saved[..entries.min(SECOND)]).await;
    tell([
        format!("{entries} entries on three masters, {} buckets a slot", 1_u32 << bits),
        format!("{bytes:.1} bytes an entry (target: <= 22)"),
        format!("lookup of {} blocks that are all there: {whole}", long.len()),
        format!("lookup of {} blocks, half of them there: {half}", long.len()),
        format!("probes: {}", probes.ours),
        format!("redis-benchmark HGET: {}", probes.theirs),
        format!("publications: {}", publications.ours),
        format!("redis-benchmark HSETNX: {}", publications.theirs),
        format!("publications of blocks that another node has published: {second}"),
        format!("of redis-benchmark's probes a server's core does {probes} (target: >= 0.8)"),
        format!("of its publications: {publications}"),
    ]);
}

impl Bench {
    /// Also how many bytes the entries take.
    async fn compare_publications(
        &self,
        node: &Membership,
        keys: &[BlockKey],
        theirs: &RedisBenchmark<'_>,
    ) -> (Compared, usize) {
        // A batch is a pipeline to each master, and the next one waits for it.
        let (connections, commands) = (1, BATCH / self.cluster.len());
        let (mut compared, mut used) = (Compared::default(), 0);
        for some in keys.chunks(keys.len().div_ceil(ROUNDS)) {
            let before = self.used_bytes();
            let ours = self.publish(node, some).await;
            used += self.used_bytes().saturating_sub(before);
            let put = || theirs.put(some.len(), Pipelines { connections, commands });
            compared.add(ours, self.rate(put));
        }
        (compared, used)
    }

    async fn compare_probes(
        &self,
        prompts: &Prompts,
        lookups: usize,
        theirs: &RedisBenchmark<'_>,
    ) -> Compared {
        let (connections, commands) = (SIDE_BY_SIDE, PROBED / self.cluster.len());
        let mut compared = Compared::default();
        for round in 0..ROUNDS {
            let ours = self.probe(prompts, lookups / ROUNDS, round).await;
            let get = || theirs.get(ours.operations, Pipelines { connections, commands });
            compared.add(ours, self.rate(get));
        }
        compared
    }

    async fn publish(&self, node: &Membership, keys: &[BlockKey]) -> Rate {
        let published = &node.directory().counts().published;
        let before = published.load(Relaxed);
        let (begin, core_seconds) = (Instant::now(), self.core_seconds());
        for some in keys.chunks(BATCH) {
            until("there is room", || node.pending() < WAITING).await;
            node.changed(some);
        }
        let all = before + u64::try_from(keys.len()).expect("usize fits");
        until("all is published", || published.load(Relaxed) >= all).await;
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

    /// Stretches of chains that are probed block by block, many at once.
    async fn probe(&self, prompts: &Prompts, lookups: usize, round: usize) -> Rate {
        let answered = self.answered();
        let (begin, core_seconds) = (Instant::now(), self.core_seconds());
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..SIDE_BY_SIDE {
            let reader = self.reader.clone();
            let seed = u64::try_from(round * SIDE_BY_SIDE + task).expect("usize fits");
            let mut random = fastrand::Rng::with_seed(seed);
            let full = prompts.chains.iter().filter(|chain| chain.len() >= PROBED);
            let full: Vec<_> = full.collect();
            let mut stretch = || {
                let chain = random.choice(&full).expect("some chain is long");
                let first = random.usize(..=chain.len() - PROBED);
                chain[first..][..PROBED].to_vec()
            };
            let chains: Vec<_> = (0..lookups / SIDE_BY_SIDE).map(|_| stretch()).collect();
            tasks.spawn(async move {
                for chain in chains {
                    let deadline = Instant::now() + Duration::from_secs(10);
                    let located = reader.locate(0, &chain, deadline).await;
                    let found = located.runs.first().map_or(0, |run| run.count);
                    assert!(found == PROBED || !located.unknown.is_empty(), "{located:?}");
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("every block is found");
        }
        let operations = self.answered() - answered;
        let core_seconds = self.core_seconds() - core_seconds;
        Rate { operations, elapsed: begin.elapsed(), core_seconds }
    }

    /// Probes that a server answered: on a machine that is busy with other things not all are, in time.
    fn answered(&self) -> usize {
        let counts = self.reader.counts();
        let answered = counts.probes.load(Relaxed) - counts.unknown_probes.load(Relaxed);
        usize::try_from(answered).expect("usize fits")
    }

    /// Operations that `act` does, and says how many.
    fn rate(&self, act: impl FnOnce() -> usize) -> Rate {
        let (begin, core_seconds) = (Instant::now(), self.core_seconds());
        let operations = act();
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

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn key(sequence: SequenceHash) -> BlockKey {
    BlockKey { sequence, shard: 0 }
}
