//! Any file of a store, as a sidecar and its workers see it.

use super::{SHAPES, Stores, block_on, prompts, setup};
use crate::fixture::PATIENCE;
use crate::fixture::content::prompt;
use crate::fixture::node::Node;
use crate::fixture::worker::Worker;

/// Faults of one round at most.
const FAULTS: u64 = 30;

#[derive(Debug, Default)]
struct Counts {
    rounds: u64,
    flips: u64,
    blocks: u64,
    refused: u64,
}

pub(crate) fn run(count: u64, seed: u64) -> String {
    let Counts { rounds, flips, blocks, refused } = block_on(rounds(count, seed));
    format!(
        "{flips} flipped bits in {rounds} rounds: {blocks} blocks served right, {refused} starts \
         refused with a reason"
    )
}

async fn rounds(flips: u64, seed: u64) -> Counts {
    let stores = Stores::make().await;
    let mut node = Node::start(&setup());
    node.stop().await;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut counts = Counts::default();
    while counts.flips < flips {
        let image = stores.closed_or_killed(&mut random);
        let mut damaged = image.clone();
        for _ in 0..random.u64(1..=FAULTS) {
            let name = super::any_file(image, &mut random).0;
            let bytes = damaged.files.get_mut(name).unwrap();
            let bit = random.usize(..bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            counts.flips += 1;
        }
        damaged.write(&node.drive(0));
        counts.rounds += 1;
        let said = node.said().len();
        if node.try_start_again() {
            let served = tokio::time::timeout(PATIENCE * 3, serve(&node, counts.rounds));
            counts.blocks += served.await.expect("no call hangs");
            node.stop().await;
        } else {
            let said = node.said()[said..].to_owned();
            let told = ["superblock", "epochs", "secret"].iter().any(|name| said.contains(name));
            assert!(told && !said.contains("panicked"), "{said}");
            counts.refused += 1;
        }
    }
    counts
}

/// Loads all that is there, compares it, and saves something more.
async fn serve(node: &Node, round: u64) -> u64 {
    let mut loaded = 0;
    for shape in SHAPES {
        let worker = Worker::new(node, shape).await;
        for (_, ids) in prompts().filter(|(of, _)| of.layers == shape.layers) {
            let outcome = worker.load(&ids).await;
            assert!(outcome.held);
            loaded += u64::from(outcome.loaded);
        }
        let fresh = prompt(1_000_000 + round, 3);
        worker.save(&fresh).await;
        worker.load(&fresh).await;
    }
    loaded
}
