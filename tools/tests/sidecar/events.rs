//! A router that watches knows what is resident: what was there, then every change, in sequence.

use crate::fixture::PATIENCE;
use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{MIB, Node, Setup};
use crate::fixture::worker::Worker;
use refrain_client::v1::events_client::EventsClient;
use refrain_client::v1::{self, change::Change as Kind};
use std::collections::HashSet;
use tonic::Streaming;
use tonic::transport::Endpoint;

const SHAPE: Shape = Shape::new(4, 31_000);

/// What a router makes of the changes it is told of.
struct Router {
    changes: Streaming<v1::Change>,
    epoch: u64,
    sequence: u64,
    resident: HashSet<Vec<u8>>,
    /// What comes while a snapshot is taken may be in it, and is told of behind it all the same.
    may_be_told_again: bool,
}

impl Router {
    /// Returns when the snapshot is complete.
    async fn watch(node: &Node) -> Self {
        let endpoint = Endpoint::from_shared(format!("unix:{}", node.socket().display())).unwrap();
        let mut client = EventsClient::new(endpoint.connect().await.unwrap());
        let changes = client.watch(v1::WatchRequest { snapshot: true }).await.unwrap();
        let mut router = Self {
            changes: changes.into_inner(),
            epoch: 0,
            sequence: 0,
            resident: HashSet::new(),
            may_be_told_again: false,
        };
        loop {
            let v1::Change { epoch, sequence, change } = router.next().await;
            (router.epoch, router.sequence) = (epoch, sequence);
            match change.unwrap() {
                Kind::Stored(names) => {
                    for hash in names.sequence_hashes {
                        assert!(router.resident.insert(hash), "told twice");
                    }
                }
                Kind::SnapshotEnd(end) => {
                    assert!(end);
                    return router;
                }
                removed @ Kind::Removed(_) => panic!("in a snapshot: {removed:?}"),
            }
        }
    }

    async fn next(&mut self) -> v1::Change {
        let next = tokio::time::timeout(PATIENCE, self.changes.message()).await;
        next.expect("a change comes").unwrap().expect("the stream goes on")
    }

    /// Takes changes in until what is resident is what `expected` says.
    async fn follow(&mut self, expected: &HashSet<Vec<u8>>) {
        while self.resident != *expected {
            let v1::Change { epoch, sequence, change } = self.next().await;
            assert_eq!((epoch, sequence), (self.epoch, self.sequence + 1));
            self.sequence = sequence;
            match change.unwrap() {
                Kind::Stored(names) => {
                    for hash in names.sequence_hashes {
                        let is_new = self.resident.insert(hash);
                        assert!(is_new || self.may_be_told_again, "stored twice");
                    }
                }
                Kind::Removed(names) => {
                    for hash in names.sequence_hashes {
                        assert!(self.resident.remove(&hash), "removed, never stored");
                    }
                }
                end @ Kind::SnapshotEnd(_) => panic!("a second time: {end:?}"),
            }
        }
    }
}

async fn resident(node: &Node) -> HashSet<Vec<u8>> {
    node.blocks().await.into_iter().map(|block| block.sequence_hash).collect()
}

#[tokio::test]
async fn a_router_learns_what_is_there_and_every_change_after_it() {
    let mut node = Node::start(&Setup::default());
    let worker = Worker::new(&node, SHAPE).await;
    worker.save(&prompt(1, 6)).await;
    let mut router = Router::watch(&node).await;
    assert_eq!(router.resident, resident(&node).await);

    worker.save(&prompt(2, 5)).await;
    let both = resident(&node).await;
    assert_eq!(both.len(), 11);
    router.follow(&both).await;

    let sequence_hash = both.iter().next().unwrap().clone();
    let evict = v1::EvictRequest { sequence_hash: sequence_hash.clone(), shard: 0 };
    node.admin().await.evict(evict).await.unwrap();
    let left = resident(&node).await;
    assert!(!left.contains(&sequence_hash));
    router.follow(&left).await;

    // A late router's snapshot is the same, and a restart tells routers to start over.
    assert_eq!(Router::watch(&node).await.resident, left);
    node.stop().await;
    node.start_again();
    let next = Router::watch(&node).await;
    assert_eq!(next.resident, left);
    assert_ne!(next.epoch, router.epoch);
}

#[tokio::test]
async fn a_router_learns_of_what_reclaim_takes() {
    let setup = Setup { capacity: 16 * MIB, segment: 2 * MIB, ..Setup::default() };
    let node = Node::start(&setup);
    let worker = Worker::new(&node, SHAPE).await;
    let mut router = Router::watch(&node).await;
    assert!(router.resident.is_empty());
    for seed in 0..30 {
        worker.save(&prompt(seed, 8)).await;
        let now = resident(&node).await;
        // Reclaim may go on meanwhile: what is followed is a moment that there was.
        if now == resident(&node).await {
            router.follow(&now).await;
        }
    }
    assert!(node.stats().await.evicted_blocks > 0);
}

#[tokio::test]
async fn a_router_that_comes_in_the_middle_of_saves_misses_none_of_them() {
    let node = Node::start(&Setup { capacity: 256 * MIB, ..Setup::default() });
    let worker = Worker::new(&node, Shape::new(1, 1000)).await;
    // The index has more than one page of 4096 blocks.
    for seed in 0..9 {
        worker.save(&prompt(seed, 500)).await;
    }
    let save_more = async {
        for seed in 9..12 {
            worker.save(&prompt(seed, 500)).await;
        }
    };
    let (mut router, ()) = tokio::join!(Router::watch(&node), save_more);
    router.may_be_told_again = true;
    let all = resident(&node).await;
    assert_eq!(all.len(), 12 * 500);
    router.follow(&all).await;
}
