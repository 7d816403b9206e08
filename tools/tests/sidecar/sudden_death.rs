//! SIGKILL at any moment under load costs nothing that was acknowledged, and what is found after it
//! is right. Workers save and load until the sidecar is killed at a random count of saves; the next
//! one must find every block that was said to be saved, and whatever else it finds is compared.

use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{MIB, Node, Setup};
use crate::fixture::worker::Worker;
use crate::fixture::{PATIENCE, eventually};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

const ROUNDS: u32 = 5;
const WORKERS: u32 = 3;
const SHAPE: Shape = Shape::new(4, 20_000);

/// What was tried, and how many blocks of it were acknowledged.
#[derive(Debug, Default)]
struct Ledger {
    prompts: Mutex<HashMap<Vec<u64>, u32>>,
}

impl Ledger {
    fn note(&self, ids: &[u64], acknowledged: u32) {
        let mut prompts = self.prompts.lock().unwrap();
        let noted = prompts.entry(ids.to_vec()).or_default();
        *noted = acknowledged.max(*noted);
    }

    fn len(&self) -> usize {
        self.prompts.lock().unwrap().len()
    }

    /// An earlier prompt, or one that goes on where it ends, or a new one.
    fn next(&self, random: &mut fastrand::Rng) -> Vec<u64> {
        let fresh = prompt(random.u64(..), random.u64(1..6));
        let prompts = self.prompts.lock().unwrap();
        match random.u8(..4) {
            0 => random.choice(prompts.keys()).cloned().unwrap_or(fresh),
            1 => {
                let before = random.choice(prompts.keys()).cloned().unwrap_or_default();
                [&before[..before.len().min(12)], &fresh[..]].concat()
            }
            _ => fresh,
        }
    }
}

/// Saves and loads for as long as there is a sidecar.
async fn work(worker: Worker, mut random: fastrand::Rng, ledger: Arc<Ledger>) {
    loop {
        let ids = ledger.next(&mut random);
        ledger.note(&ids, 0);
        let Ok((found, _)) = worker.try_save(&ids).await else { return };
        ledger.note(&ids, found);
        let again = ledger.next(&mut random);
        if worker.try_load(&again).await.is_err() {
            return;
        }
    }
}

async fn check(durability: &str) {
    let mut random = fastrand::Rng::new();
    println!("seed {:#x}", random.get_seed());
    let setup = Setup { capacity: 384 * MIB, segment: 8 * MIB, ..Setup::default() };
    let mut node = Node::start(&setup.with(&format!("durability = \"{durability}\"")));
    let ledger = Arc::new(Ledger::default());
    for round in 0..ROUNDS {
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..WORKERS {
            let worker = Worker::new(&node, SHAPE).await;
            workers.spawn(work(worker, random.fork(), Arc::clone(&ledger)));
        }
        let until = ledger.len() + random.usize(1..60);
        eventually("enough was saved", PATIENCE, async || (ledger.len() >= until).then_some(()))
            .await;
        node.kill();
        while let Some(worker) = workers.join_next().await {
            worker.unwrap();
        }
        node.start_again();
        let worker = Worker::new(&node, SHAPE).await;
        let prompts = ledger.prompts.lock().unwrap().clone();
        for (ids, acknowledged) in prompts {
            let loaded = worker.load(&ids).await;
            assert!(loaded.matched >= acknowledged, "round {round}: {acknowledged}: {loaded:?}");
            assert!(loaded.loaded == loaded.matched && loaded.held, "round {round}: {loaded:?}");
        }
    }
    let drive = &node.stats().await.drives[0];
    assert!(drive.segments_free > 2, "reclaim would explain any miss: {drive:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_blocks_outlive_kills_without_a_sync() {
    check("none").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_blocks_outlive_kills_with_group_syncs() {
    check("group").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_blocks_outlive_kills_with_a_sync_each() {
    check("sync").await;
}
