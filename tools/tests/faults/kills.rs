//! SIGKILL at a random moment under load: of the sidecar, of a worker, of both at once, and of a
//! sidecar that is still starting.
//!
//! The worker is a process of its own. It saves and loads through gRPC and arenas and says what was
//! acknowledged; whatever it has said must be there afterwards, and whatever is found is compared.

use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{MIB, Node, Setup};
use crate::fixture::worker::Worker;
use crate::fixture::{PATIENCE, eventually};
use clap::Args as ClapArgs;
use refrain_client::{Client, ClientConfig};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// One stripe a block, and two.
const SHAPES: [Shape; 2] = [Shape::new(4, 5_000), Shape::new(2, 200_000)];
/// Prompts of a store: so few that its capacity holds all of them, and most are met again.
const PROMPTS: u64 = 150;
const BLOCKS: u64 = 10;
/// Kills of one store; each is followed by a look at all that it ever acknowledged.
const KILLS: u64 = 25;
/// A kill comes this much later than the first acknowledgement, at most.
const MOMENT_US: u64 = 60_000;
const TASKS: u64 = 3;
/// Stores between two words on how far it is.
const TOLD: u64 = 10;

/// Blocks acknowledged of each prompt.
type Ledger = BTreeMap<u64, u32>;

#[derive(Debug, Default)]
struct Counts {
    sidecar: u64,
    worker: u64,
    both: u64,
    starting: u64,
    acknowledged: u64,
    compared: u64,
    stores: u64,
}

/// What a worker process is told.
#[derive(ClapArgs, Debug)]
pub(crate) struct WorkerArgs {
    socket: PathBuf,
    seed: u64,
}

struct WorkerProcess {
    child: Child,
    said: Receiver<(u64, u32)>,
}

fn shape(seed: u64) -> usize {
    usize::from(seed.is_multiple_of(8))
}

pub(crate) fn run(count: u64, seed: u64) -> String {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut counts = Counts::default();
    let mut left = count;
    while left > 0 {
        let kills = left.min(KILLS);
        runtime.block_on(store(kills, &mut random, &mut counts));
        left -= kills;
        if counts.stores.is_multiple_of(TOLD) {
            println!("  {} kills of {count}: {counts:?}", count - left);
        }
    }
    let Counts { sidecar, worker, both, starting, acknowledged, compared, stores } = counts;
    format!(
        "{sidecar} kills of the sidecar, {worker} of a worker, {both} of both, {starting} of a \
         starting sidecar, over {stores} stores: all of {acknowledged} acknowledged blocks there, \
         {compared} blocks compared"
    )
}

async fn store(kills: u64, random: &mut fastrand::Rng, counts: &mut Counts) {
    let durability = ["none", "group", "sync"][random.usize(..3)];
    let setup = Setup { capacity: 512 * MIB, segment: 8 * MIB, ..Setup::default() };
    let mut node = Node::start(&setup.with(&format!("durability = \"{durability}\"")));
    let mut ledger = Ledger::new();
    counts.stores += 1;
    for _ in 0..kills {
        let mut worker = WorkerProcess::start(&node, random.u64(..));
        worker.first_word(&mut ledger);
        let moment = Instant::now() + Duration::from_micros(random.u64(..MOMENT_US));
        tokio::time::sleep_until(moment.into()).await;
        match random.u8(..8) {
            0..4 => {
                node.kill();
                counts.sidecar += 1;
            }
            4..6 => {
                worker.child.kill().unwrap();
                counts.worker += 1;
            }
            6 => {
                node.kill();
                worker.child.kill().unwrap();
                counts.both += 1;
            }
            _ => {
                node.kill();
                let mut starting = node.spawn();
                let moment = Instant::now() + Duration::from_micros(random.u64(..MOMENT_US));
                tokio::time::sleep_until(moment.into()).await;
                starting.kill().unwrap();
                starting.wait().unwrap();
                counts.starting += 1;
            }
        }
        worker.end(&mut ledger).await;
        if !node.runs() {
            node.start_again();
        }
        node.nothing_is_held(PATIENCE).await;
        check(&node, &ledger, counts).await;
    }
    let drive = &node.stats().await.drives[0];
    assert!(drive.segments_free > 2, "reclaim would explain any miss: {drive:?}");
    counts.acknowledged += ledger.values().map(|blocks| u64::from(*blocks)).sum::<u64>();
}

async fn check(node: &Node, ledger: &Ledger, counts: &mut Counts) {
    let workers = [Worker::new(node, SHAPES[0]).await, Worker::new(node, SHAPES[1]).await];
    for (&seed, &acknowledged) in ledger {
        let loaded = workers[shape(seed)].load(&prompt(seed, BLOCKS)).await;
        assert!(loaded.matched >= acknowledged, "{acknowledged} were acknowledged: {loaded:?}");
        assert!(loaded.loaded == loaded.matched && loaded.held, "{loaded:?}");
        counts.compared += u64::from(loaded.loaded);
    }
}

impl WorkerProcess {
    fn start(node: &Node, seed: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("worker")
            .arg(node.socket())
            .arg(seed.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tell, said) = channel();
        std::thread::spawn(move || {
            for line in lines {
                // A line that a kill cut off acknowledges nothing.
                let line = line.unwrap();
                let words = line.strip_suffix(" blocks").and_then(|line| line.split_once(' '));
                let word = words
                    .and_then(|(seed, blocks)| Some((seed.parse().ok()?, blocks.parse().ok()?)));
                if let Some(word) = word {
                    let _ = tell.send(word);
                }
            }
        });
        Self { child, said }
    }

    fn first_word(&self, ledger: &mut Ledger) {
        note(ledger, self.said.recv_timeout(PATIENCE).expect("a worker saves something"));
    }

    /// Takes all that it has said; it ends by itself where its sidecar did.
    async fn end(mut self, ledger: &mut Ledger) {
        let status =
            eventually("the worker ends", PATIENCE, async || self.child.try_wait().unwrap());
        let status = status.await;
        assert!(status.success() || status.code().is_none(), "{status}");
        // Until its end of the pipe is read out.
        self.said.iter().for_each(|word| note(ledger, word));
    }
}

fn note(ledger: &mut Ledger, (seed, blocks): (u64, u32)) {
    let noted = ledger.entry(seed).or_default();
    *noted = blocks.max(*noted);
}

/// The worker process: saves and loads until it, or its sidecar, is killed.
pub(crate) fn work(args: &WorkerArgs) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(async {
        let mut random = fastrand::Rng::with_seed(args.seed);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..TASKS {
            let Ok(client) = Client::connect(ClientConfig {
                address: format!("unix:{}", args.socket.display()).parse().unwrap(),
                session_arena_bytes: 8 * MIB,
                deadline: PATIENCE,
            })
            .await
            else {
                return;
            };
            tasks.spawn(save_and_load(client, random.fork()));
        }
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
    });
}

async fn save_and_load(client: Client, mut random: fastrand::Rng) {
    let mut workers = Vec::new();
    for shape in SHAPES {
        let Ok(worker) = Worker::try_with(client.clone(), shape).await else { return };
        workers.push(worker);
    }
    loop {
        let seed = random.u64(..PROMPTS);
        let ids = prompt(seed, random.u64(1..=BLOCKS));
        let Ok((found, _)) = workers[shape(seed)].try_save(&ids).await else { return };
        // One write each: a kill cuts none in two without leaving its end out.
        let line = format!("{seed} {found} blocks\n");
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
        let other = random.u64(..PROMPTS);
        if workers[shape(other)].try_load(&prompt(other, BLOCKS)).await.is_err() {
            return;
        }
    }
}
