//! What operators remove is gone, with all that stands behind it, and no restart brings it back:
//! not a stop, and not a kill right after the answer.

use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{Node, Setup, refrain};
use crate::fixture::worker::Worker;
use refrain::hex::hex;
use refrain_client::v1::{self, inspect_request::Subject};

const SHAPE: Shape = Shape::new(4, 20_000);

/// The hash of a prompt's block, of which the store holds no other.
async fn hash(node: &Node, position: u32) -> Vec<u8> {
    for block in node.blocks().await {
        let subject = Some(Subject::HashPrefix(block.sequence_hash.clone()));
        let found = node
            .admin()
            .await
            .inspect(v1::InspectRequest { subject, hash_digits: 0 })
            .await
            .unwrap();
        if found.into_inner().records[0].position == position {
            return block.sequence_hash;
        }
    }
    panic!("no block at {position}");
}

async fn restart(node: &mut Node, kill: bool) {
    if kill {
        node.kill();
    } else {
        node.stop().await;
    }
    node.start_again();
}

async fn check_evicted(kill: bool) {
    let mut node = Node::start(&Setup::default());
    let (ids, other) = (prompt(1, 10), prompt(2, 4));
    let worker = Worker::new(&node, SHAPE).await;
    worker.save(&ids).await;
    let evicted = v1::EvictRequest { sequence_hash: hash(&node, 6).await, shard: 0 };
    worker.save(&other).await;
    let gone = node.admin().await.evict(evicted).await.unwrap().into_inner();
    assert_eq!(gone.blocks, 4, "it and the three behind it");
    if !kill {
        assert_eq!(worker.matched(&ids).await, 6);
    }
    restart(&mut node, kill).await;
    let worker = Worker::new(&node, SHAPE).await;
    assert_eq!(worker.load(&ids).await.loaded, 6, "killed: {kill}");
    worker.has_all(&other).await;
    // It may come back from where it came first.
    worker.save(&ids).await;
    restart(&mut node, kill).await;
    Worker::new(&node, SHAPE).await.has_all(&ids).await;
}

#[tokio::test]
async fn an_evicted_block_stays_away_over_a_stop() {
    check_evicted(false).await;
}

#[tokio::test]
async fn an_evicted_block_stays_away_over_a_kill() {
    for _ in 0..5 {
        check_evicted(true).await;
    }
}

async fn check_dropped(kill: bool) {
    let mut node = Node::start(&Setup::default());
    let ids = prompt(3, 6);
    let kept = Worker::new(&node, SHAPE).await;
    let dropped = Worker::of_tenant(&node, SHAPE, "other tenant").await;
    kept.save(&ids).await;
    let digest = node.blocks().await[0].namespace_digest.clone();
    dropped.save(&ids).await;
    let of_other = |block: &v1::BlockInfo| block.namespace_digest != digest;
    let found = node.blocks().await.into_iter().find(of_other).unwrap();
    let request = v1::DropNamespaceRequest { namespace_digest: found.namespace_digest };
    let gone = node.admin().await.drop_namespace(request).await.unwrap().into_inner();
    assert_eq!(gone.blocks, 6);
    restart(&mut node, kill).await;
    dropped.sees_its_sidecar().await;
    kept.sees_its_sidecar().await;
    assert_eq!(dropped.matched(&ids).await, 0, "killed: {kill}");
    kept.has_all(&ids).await;
}

#[tokio::test]
async fn a_dropped_namespace_stays_away_and_takes_no_other_along() {
    check_dropped(false).await;
    for _ in 0..5 {
        check_dropped(true).await;
    }
}

#[tokio::test]
async fn a_command_evicts_and_shows_all_shards_of_a_block() {
    let node = Node::start(&Setup::default());
    let (shape, ids) = (Shape { shards: 2, ..SHAPE }, prompt(5, 3));
    let mut workers = Vec::new();
    for shard in 0..2 {
        let worker = Worker::with(node.client().await, shape, shard, false).await;
        worker.save(&ids).await;
        workers.push(worker);
    }
    let address = node.address().to_string();
    let second = hex(&hash(&node, 1).await);
    // An odd number of digits means what it says.
    let odd = refrain(["inspect", &second[..63], "--json", "--addr", &address]);
    assert_eq!(odd.json()["records"].as_array().map(Vec::len), Some(2), "{odd:?}");
    let shown = refrain(["inspect", &second, "--json", "--addr", &address]);
    assert_eq!(shown.code, 0, "{shown:?}");
    let records = shown.json()["records"].as_array().unwrap().clone();
    assert_eq!(records.len(), 2, "{shown:?}");
    assert!(records.iter().all(|record| record["verdict"] == "good"), "{shown:?}");
    let evicted = refrain(["evict", &second, "--json", "--addr", &address]);
    assert_eq!((evicted.code, &evicted.json()["blocks"]), (0, &4.into()), "{evicted:?}");
    for worker in workers {
        assert_eq!(worker.matched(&ids).await, 1);
    }
}

#[tokio::test]
async fn commands_evict_and_drop_what_they_name() {
    let node = Node::start(&Setup::default());
    let ids = prompt(4, 5);
    let worker = Worker::new(&node, SHAPE).await;
    worker.save(&ids).await;
    let address = node.address().to_string();
    let third = hex(&hash(&node, 2).await);
    let evicted = refrain(["evict", &third, "--addr", &address]);
    assert_eq!(evicted.code, 0, "{evicted:?}");
    assert_eq!(worker.matched(&ids).await, 2);
    refrain(["evict", &third, "--addr", &address])
        .refused("no resident block has a hash that begins so");
    let digest = hex(&node.blocks().await[0].namespace_digest);
    let dropped = refrain(["drop", &digest, "--addr", &address]);
    assert_eq!(dropped.code, 0, "{dropped:?}");
    assert_eq!(worker.matched(&ids).await, 0);
    assert_eq!(node.stats().await.blocks, 0);
}
