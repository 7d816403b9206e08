//! Mixed load for a long time, with reclaim running: nothing grows, and loads stay as fast.
//!
//! Workers save new prompts and load old ones at a fixed pace, break calls off, come and go. Ten
//! times in the run it is looked at what the sidecar holds; at the end it must hold no more than
//! after the first tenth, and nothing at all for workers that have gone.
//!
//! Other programs make loads slower too: so as many bytes as a load had from its drive are read from
//! a file beside it, right after it, and how these become slower is told with it.
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "shares and sizes for people"
)]

use crate::fixture::PATIENCE;
use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{MIB, Node, Setup, home};
use crate::fixture::worker::Worker;
use refrain_store::arena::Mapping;
use rustix::fs::OFlags;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const TENTHS: usize = 10;
const WORKERS: u64 = 4;
const SHAPES: [Shape; 2] = [Shape::new(8, 40_000), Shape::new(61, 16_384)];
const BLOCKS: u64 = 6;
/// Between two requests of one worker: well below what the sidecar takes, so that a load waits for
/// its drive and not for its turn.
const PACE: Duration = Duration::from_millis(40);
/// Prompts that may be asked for again.
const REMEMBERED: u64 = 400;
/// Requests of a worker before it goes and another comes.
const LIFE: u64 = 200;
/// What the memory of its own may differ by without anything growing: the catalogue keeps up to three
/// tables of 16 MiB in memory before it writes one out.
const SLACK_BYTES: u64 = 48 << 20;
/// What a p99 of the last tenth may exceed the first's by, in percent.
const DRIFT_PERCENT: f64 = 10.0;
/// Of the file that is read for comparison.
const CONTROL_BYTES: u64 = 128 << 20;

/// What a sidecar holds.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    rss: u64,
    descriptors: u64,
    threads: u64,
    leases: u64,
    sessions: u64,
    frames: u64,
    evicted: u64,
}

/// What one tenth took, in microseconds.
#[derive(Clone, Debug, Default)]
struct Tenth {
    loads: Vec<u64>,
    /// Each right after one of the loads.
    raw_reads: Vec<u64>,
}

type Loads = Arc<std::sync::Mutex<Vec<Tenth>>>;

/// Reads from the same disk that nobody of ours has a part in: as slow as the machine is just now.
struct Control {
    file: File,
    memory: Arc<Mapping>,
    random: fastrand::Rng,
}

impl Control {
    /// Over the file at `path`, which is made where it is missing.
    fn new(path: &Path, random: fastrand::Rng) -> Self {
        if !path.exists() {
            let mut bytes = vec![0; CONTROL_BYTES as usize];
            random.clone().fill(&mut bytes);
            std::fs::write(path, bytes).unwrap();
            File::open(path).unwrap().sync_all().unwrap();
        }
        let flags = OFlags::RDONLY | OFlags::DIRECT;
        let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap().into();
        Self { file, memory: Mapping::create("soak-control", CONTROL_BYTES / 2).unwrap(), random }
    }

    /// Reads as many bytes as a load had from its drive, at least a page, at a place where nothing
    /// of ours lies; how long that took.
    fn read(&mut self, bytes: u64) -> Duration {
        let bytes = bytes.max(1).next_multiple_of(4096).min(CONTROL_BYTES / 2);
        let place = self.random.u64(..=(CONTROL_BYTES - bytes) / 4096) * 4096;
        let region = self.memory.region(0, bytes).unwrap();
        let begun = Instant::now();
        region.fill_with(|into| self.file.read_exact_at(into, place)).unwrap();
        begun.elapsed()
    }
}

/// `steady`: fails, too, where loads have become slower.
pub(crate) fn run(minutes: f64, seed: u64, steady: bool) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(soak(Duration::from_secs_f64(minutes * 60.0), seed, steady));
}

async fn soak(time: Duration, seed: u64, steady: bool) {
    let setup = Setup { capacity: 768 * MIB, segment: 32 * MIB, ..Setup::default() };
    let node = Arc::new(Node::start(&setup.with("load_arena = \"128MiB\"")));
    let beside = home();
    let mut random = fastrand::Rng::with_seed(seed);
    // Written before the time runs.
    drop(Control::new(&beside.path().join("control"), random.fork()));
    let begin = Instant::now();
    let loads: Loads = Arc::new(std::sync::Mutex::new(vec![Tenth::default(); TENTHS]));
    let next = Arc::new(AtomicU64::new(1));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..WORKERS {
        let (node, loads, next) = (Arc::clone(&node), Arc::clone(&loads), Arc::clone(&next));
        let control = Control::new(&beside.path().join("control"), random.fork());
        workers.spawn(work(node, (loads, control), next, random.fork(), (begin, time)));
    }
    println!(
        "  tenth   RSS MiB  descriptors  threads  leases  frames  evicted  loads  p50 us  p99 us  \
         raw p50  raw p99"
    );
    let mut held = Vec::new();
    for tenth in 0..TENTHS {
        tokio::time::sleep_until((begin + time.mul_f64((tenth + 1) as f64 / 10.0)).into()).await;
        let now = look(&node).await;
        let Tenth { mut loads, mut raw_reads } = loads.lock().unwrap()[tenth].clone();
        println!(
            "  {:>5}  {:>8.1}  {:>11}  {:>7}  {:>6}  {:>6}  {:>7}  {:>5}  {:>6}  {:>6}  {:>7}  {:>7}",
            tenth + 1,
            now.rss as f64 / MIB as f64,
            now.descriptors,
            now.threads,
            now.leases,
            now.frames,
            now.evicted,
            loads.len(),
            percentile(&mut loads, 50),
            percentile(&mut loads, 99),
            percentile(&mut raw_reads, 50),
            percentile(&mut raw_reads, 99)
        );
        held.push(now);
    }
    while let Some(worker) = workers.join_next().await {
        worker.unwrap();
    }
    node.nothing_is_held(PATIENCE).await;
    let (first, last) = (held[0], look(&node).await);
    let end = held[TENTHS - 1];
    assert!(end.evicted > 0, "reclaim never ran");
    assert!(end.rss <= first.rss + SLACK_BYTES, "RSS grew: {first:?}, {end:?}");
    assert!(last.descriptors <= first.descriptors, "descriptors leak: {first:?}, {last:?}");
    assert!(end.threads <= first.threads + 8, "threads grew: {first:?}, {end:?}");
    assert_eq!((last.leases, last.sessions), (0, 0));
    let tenths = loads.lock().unwrap();
    let grown = |times: fn(&Tenth) -> &Vec<u64>| {
        let p99 = |tenth: &Tenth| percentile(&mut times(tenth).clone(), 99) as f64;
        p99(&tenths[TENTHS - 1]) / p99(&tenths[0]).max(1.0)
    };
    let (loads, raw) = (grown(|tenth| &tenth.loads), grown(|tenth| &tenth.raw_reads));
    let percent = |ratio: f64| 100.0 * (ratio - 1.0);
    let (plain, against) = (percent(loads), percent(loads / raw));
    println!(
        "  p99 of the last tenth against the first: loads {plain:+.1} %, raw reads at the same \
         moments {:+.1} %, loads against these {against:+.1} %",
        percent(raw)
    );
    // What the raw reads are slower by, the machine is.
    assert!(!steady || plain.min(against) <= DRIFT_PERCENT, "loads have become slower");
}

async fn work(
    node: Arc<Node>,
    (loads, mut control): (Loads, Control),
    next: Arc<AtomicU64>,
    mut random: fastrand::Rng,
    (begin, time): (Instant, Duration),
) {
    let mut turn = begin;
    while begin.elapsed() < time {
        let shape = random.usize(..SHAPES.len());
        let worker = Worker::new(&node, SHAPES[shape]).await;
        for _ in 0..LIFE {
            turn += PACE;
            tokio::time::sleep_until(turn.into()).await;
            let share = begin.elapsed().as_secs_f64() / time.as_secs_f64();
            if share >= 1.0 {
                return;
            }
            let newest = next.load(Ordering::Relaxed);
            match random.u8(..10) {
                0..3 => {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    worker.try_save(&prompt(seed * 2 + shape as u64, BLOCKS)).await.unwrap();
                }
                3 => {
                    let ids = prompt(random.u64(..newest) * 2 + shape as u64, BLOCKS);
                    let limit = Duration::from_micros(random.u64(1..3000));
                    // However far it came.
                    let _ = tokio::time::timeout(limit, worker.try_load(&ids)).await;
                }
                _ => {
                    let seed = newest - random.u64(1..=REMEMBERED.min(newest));
                    let begun = Instant::now();
                    let ids = prompt(seed * 2 + shape as u64, BLOCKS);
                    let loaded = worker.try_load(&ids).await.unwrap();
                    if loaded.loaded > 0 {
                        let took = begun.elapsed();
                        let read = u64::from(loaded.loaded - loaded.from_host);
                        let bytes = read * SHAPES[shape].block_bytes();
                        let reading = tokio::task::spawn_blocking(move || {
                            let took = control.read(bytes);
                            (control, took)
                        });
                        let raw;
                        (control, raw) = reading.await.unwrap();
                        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap();
                        let tenth = ((share * 10.0) as usize).min(9);
                        let mut tenths = loads.lock().unwrap();
                        tenths[tenth].loads.push(micros(took));
                        tenths[tenth].raw_reads.push(micros(raw));
                    }
                }
            }
        }
    }
}

async fn look(node: &Node) -> Held {
    let proc = format!("/proc/{}", node.pid());
    let status = std::fs::read_to_string(format!("{proc}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let stats = node.stats().await;
    Held {
        // What is shared is the arenas, as large as they were made.
        rss: field("RssAnon:") * 1024,
        descriptors: std::fs::read_dir(format!("{proc}/fd")).unwrap().count() as u64,
        threads: field("Threads:"),
        leases: stats.leases,
        sessions: stats.sessions,
        frames: stats.host_frames,
        evicted: stats.evicted_blocks,
    }
}

fn percentile(times: &mut [u64], percent: usize) -> u64 {
    times.sort_unstable();
    times
        .get((times.len() * percent / 100).min(times.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0)
}
