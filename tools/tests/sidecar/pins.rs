//! What is pinned stays, whatever is saved, over kills, until its time is up or it is let go; and
//! whatever is pinned, what is saved goes on. Each sidecar is written three times over.

use crate::fixture::content::{Shape, prompt, tokens};
use crate::fixture::node::{MIB, Node, Setup, home, refrain};
use crate::fixture::worker::Worker;
use crate::fixture::{PATIENCE, eventually};
use refrain_client::v1::{self, pin_request, prompt_name, unpin_request};
use std::fs;
use tonic::{Code, Status};

const SHAPE: Shape = Shape::new(4, 31_000);
/// Of a record.
const STORED: u64 = 32 * 4096;
const CAPACITY: u64 = 32 * MIB;
const SEGMENT: u64 = 4 * MIB;
const BLOCKS: u64 = 8;
/// Prompts of [`BLOCKS`] that may be pinned: a quarter of the capacity.
const PINNED_MAX: u64 = CAPACITY / 4 / (BLOCKS * STORED);

fn setup() -> Setup {
    Setup { capacity: CAPACITY, segment: SEGMENT, ..Setup::default() }
}

/// Three times the capacity.
fn seeds() -> std::ops::Range<u64> {
    1000..1000 + 3 * CAPACITY / (STORED * BLOCKS)
}

async fn write(worker: &Worker) {
    for seed in seeds() {
        worker.save(&prompt(seed, BLOCKS)).await;
    }
}

/// Of the namespace that all workers here have.
async fn digest(node: &Node) -> Vec<u8> {
    let request = v1::ListRequest { what: v1::list_request::What::Namespaces.into(), limit: 0 };
    let mut listed = node.admin().await.list(request).await.unwrap().into_inner();
    let entry = listed.message().await.unwrap().unwrap().entry;
    let Some(v1::list_entry::Entry::Namespace(namespace)) = entry else { panic!("{entry:?}") };
    namespace.digest
}

async fn name(node: &Node, ids: &[u64]) -> v1::PromptName {
    let bytes: Vec<u8> = tokens(ids).into_iter().flat_map(u32::to_le_bytes).collect();
    v1::PromptName {
        namespace_digest: digest(node).await,
        shard: 0,
        prompt: Some(prompt_name::Prompt::Tokens(bytes.into())),
        extra_keys: Vec::new(),
    }
}

async fn pin(node: &Node, ids: &[u64], ttl_ms: u64) -> Result<v1::PinResponse, Status> {
    let prefix = Some(pin_request::Prefix::Prompt(name(node, ids).await));
    let pinned = node.admin().await.pin(v1::PinRequest { prefix, ttl_ms }).await;
    pinned.map(tonic::Response::into_inner)
}

async fn unpin(node: &Node, ids: &[u64]) -> u64 {
    let prefix = Some(unpin_request::Prefix::Prompt(name(node, ids).await));
    let unpinned = node.admin().await.unpin(v1::UnpinRequest { prefix }).await;
    unpinned.unwrap().into_inner().pins
}

/// Pins, and bytes that are pinned.
async fn pinned(node: &Node) -> (u64, u64) {
    let stats = node.stats().await;
    (stats.pins, stats.drives[0].pinned_bytes)
}

#[tokio::test]
async fn pinned_prefixes_outlast_three_times_the_capacity_and_a_kill_half_way() {
    let mut node = Node::start(&setup());
    let worker = Worker::new(&node, SHAPE).await;
    let mut kept = Vec::new();
    for seed in 0..PINNED_MAX / 2 {
        let ids = prompt(seed, BLOCKS);
        worker.save(&ids).await;
        kept.push(ids);
    }
    let cold = prompt(99, BLOCKS);
    worker.save(&cold).await;
    for ids in &kept {
        let answer = pin(&node, ids, 0).await.unwrap();
        assert_eq!((answer.blocks, answer.bytes), (BLOCKS, BLOCKS * STORED));
    }
    write(&worker).await;
    let pins = (PINNED_MAX / 2, PINNED_MAX / 2 * BLOCKS * STORED);
    assert_eq!(pinned(&node).await, pins);
    assert_eq!(worker.matched(&cold).await, 0);
    node.kill();
    node.start_again();
    assert_eq!(pinned(&node).await, pins, "a start knows them again");
    let worker = Worker::new(&node, SHAPE).await;
    write(&worker).await;
    for ids in &kept {
        worker.has_all(ids).await;
    }
    assert_eq!(pinned(&node).await, pins);
    assert!(node.stats().await.drives[0].moved_bytes > 0, "they were moved on");
}

#[tokio::test]
async fn a_full_quarter_of_pins_stops_no_save_and_no_more_is_pinned() {
    let node = Node::start(&setup());
    let worker = Worker::new(&node, SHAPE).await;
    // One pinned prompt in each segment, or nearly: the worst for reclaim.
    let mut kept = Vec::new();
    for seed in 0..PINNED_MAX {
        let ids = prompt(seed, BLOCKS);
        worker.save(&ids).await;
        pin(&node, &ids, 0).await.unwrap();
        kept.push(ids);
        for other in 0..SEGMENT / (BLOCKS * STORED) / 2 {
            worker.save(&prompt(100 + 10 * seed + other, BLOCKS)).await;
        }
    }
    let more = prompt(999, 1);
    worker.save(&more).await;
    let refused = pin(&node, &more, 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("a quarter of its capacity: unpin others"), "{refused:?}");
    write(&worker).await;
    write(&worker).await;
    for ids in &kept {
        worker.has_all(ids).await;
    }
    assert_eq!(unpin(&node, &kept[0]).await, 1);
    worker.save(&more).await;
    pin(&node, &more, 0).await.unwrap();
    assert_eq!(pinned(&node).await.0, PINNED_MAX);
    assert!(!node.said().contains("pins given up"), "there was always room to move them to");
}

#[tokio::test]
async fn a_pin_keeps_ancestors_that_lie_in_older_segments() {
    let node = Node::start(&setup());
    let worker = Worker::new(&node, SHAPE).await;
    let ids = prompt(1, 12);
    worker.save(&ids[..4]).await;
    for seed in 0..SEGMENT / (BLOCKS * STORED) {
        worker.save(&prompt(500 + seed, BLOCKS)).await;
    }
    worker.save(&ids).await;
    pin(&node, &ids, 0).await.unwrap();
    let segments: std::collections::BTreeSet<_> = {
        let blocks = node.blocks().await.into_iter().filter(|block| block.pinned);
        blocks.map(|block| block.segment).collect()
    };
    assert!(segments.len() > 1, "they lie apart");
    write(&worker).await;
    assert_eq!(worker.has_all(&ids).await.loaded, 12);
}

#[tokio::test]
async fn a_pin_whose_time_is_up_and_one_that_is_ended_keep_nothing() {
    let node = Node::start(&setup());
    let worker = Worker::new(&node, SHAPE).await;
    let (timed, ended) = (prompt(1, BLOCKS), prompt(2, BLOCKS));
    worker.save(&timed).await;
    worker.save(&ended).await;
    pin(&node, &timed, 3_600_000).await.unwrap();
    pin(&node, &timed[..3], 3_600_000).await.unwrap();
    pin(&node, &ended, 0).await.unwrap();
    // Pinned again, it takes the new time.
    pin(&node, &timed, 1).await.unwrap();
    eventually("its time is up", PATIENCE, async || {
        (pinned(&node).await == (2, (3 + BLOCKS) * STORED)).then_some(())
    })
    .await;
    assert_eq!((unpin(&node, &timed).await, unpin(&node, &ended).await), (1, 1));
    assert_eq!((unpin(&node, &ended).await, pinned(&node).await), (0, (0, 0)));
    // Nobody has asked for them since they were saved: they go as others do.
    write(&worker).await;
    assert_eq!((worker.matched(&timed).await, worker.matched(&ended).await), (0, 0));
}

#[tokio::test]
async fn pins_and_their_ends_outlive_a_kill_right_after_the_answer_without_a_catalogue() {
    let mut node = Node::start(&setup());
    let worker = Worker::new(&node, SHAPE).await;
    let (kept, ended, timed) = (prompt(1, 3), prompt(2, 3), prompt(3, 3));
    for ids in [&kept, &ended, &timed] {
        worker.save_durably(ids).await;
    }
    pin(&node, &ended, 0).await.unwrap();
    pin(&node, &timed, 1).await.unwrap();
    pin(&node, &kept, 3_600_000).await.unwrap();
    assert_eq!(unpin(&node, &ended).await, 1);
    node.kill();
    fs::remove_dir_all(node.drive(0).join("catalog")).unwrap();
    node.start_again();
    assert_eq!(pinned(&node).await, (1, 3 * STORED));
    let block = node.blocks().await.into_iter().find(|block| block.pinned).unwrap();
    let listed = refrain(["ls", "pins", "--json", "--addr", &node.address().to_string()]).json();
    assert_eq!(listed["blocks"], 3);
    let left = listed["left_ms"].as_u64().unwrap();
    assert!((3_500_000..=3_600_000).contains(&left), "{listed}");
    assert_eq!(listed["namespace"], refrain::hex::hex(&block.namespace_digest));
}

#[tokio::test]
async fn what_removes_a_pinned_block_ends_its_pin_and_leaves_others() {
    let mut node = Node::start(&setup());
    let worker = Worker::new(&node, SHAPE).await;
    let ids = prompt(1, 6);
    worker.save_durably(&ids).await;
    pin(&node, &ids, 0).await.unwrap();
    pin(&node, &ids[..2], 0).await.unwrap();
    let mut blocks = node.blocks().await;
    blocks.sort_unstable_by_key(|block| block.offset);
    let evict = v1::EvictRequest { sequence_hash: blocks[4].sequence_hash.clone(), shard: 0 };
    assert_eq!(node.admin().await.evict(evict).await.unwrap().into_inner().blocks, 2);
    assert_eq!(pinned(&node).await, (1, 2 * STORED));
    node.kill();
    node.start_again();
    // It does not come back with its block.
    worker.save_durably(&ids).await;
    node.kill();
    node.start_again();
    assert_eq!(pinned(&node).await, (1, 2 * STORED));
    // Damage takes the other one.
    node.flip(blocks[1].segment, blocks[1].offset + 4096 + 100);
    assert_eq!(worker.load(&ids).await.loaded, 1);
    assert_eq!(pinned(&node).await, (0, 0));
}

#[tokio::test]
async fn a_damaged_list_of_pins_costs_the_pins_and_nothing_else() {
    let mut node = Node::start(&setup());
    let worker = Worker::new(&node, SHAPE).await;
    let ids = prompt(1, 3);
    worker.save_durably(&ids).await;
    pin(&node, &ids, 0).await.unwrap();
    node.kill();
    let path = node.drive(0).join("pins");
    let good = fs::read(&path).unwrap();
    fs::write(&path, &good[..good.len() - 1]).unwrap();
    node.start_again();
    assert_eq!(pinned(&node).await, (0, 0));
    assert!(node.said().contains("pins not read"), "{}", node.said());
    worker.has_all(&ids).await;
    pin(&node, &ids, 0).await.unwrap();
    node.kill();
    node.start_again();
    assert_eq!(pinned(&node).await, (1, 3 * STORED));
}

#[tokio::test]
async fn nothing_is_pinned_that_is_not_there_or_on_a_drive_of_few_segments() {
    let node = Node::start(&Setup { capacity: 7 * SEGMENT, ..setup() });
    let worker = Worker::new(&node, SHAPE).await;
    let ids = prompt(1, 2);
    let absent = pin(&node, &ids, 0).await;
    assert_eq!(absent.unwrap_err().code(), Code::NotFound, "the namespace is known");
    worker.save(&ids).await;
    let small = pin(&node, &ids, 0).await.unwrap_err();
    assert_eq!(small.code(), Code::FailedPrecondition);
    assert!(small.message().contains("drive 0 has 7 segments, and needs 8"), "{small:?}");
    assert_eq!(pinned(&node).await, (0, 0));
}

#[tokio::test]
async fn commands_pin_list_and_unpin_a_prefix() {
    let node = Node::start(&setup());
    let worker = Worker::new(&node, SHAPE).await;
    let ids = prompt(1, 4);
    worker.save(&ids).await;
    let (address, folder) = (node.address().to_string(), home());
    let path = folder.path().join("prompt");
    fs::write(&path, format!("{:?}", tokens(&ids))).unwrap();
    let path = path.display().to_string();
    let made = refrain(["pin", "--tokens", &path, "--ttl", "12h", "--json", "--addr", &address]);
    let made = made.json()["pinned"][0].clone();
    assert_eq!((&made["blocks"], &made["bytes"]), (&4.into(), &(4 * STORED).into()));
    let last = made["sequence_hash"].as_str().unwrap();
    let listed = refrain(["ls", "pins", "--addr", &address]);
    assert!(listed.out.contains(&last[..16]) && listed.out.contains(" 4 "), "{listed:?}");
    let shown = refrain(["inspect", last, "--json", "--addr", &address]).json();
    assert_eq!(shown["records"][0]["pinned"], true);
    assert_eq!(refrain(["unpin", &last[..17], "--addr", &address]).out, "ended 1 pins\n");
    refrain(["unpin", last, "--addr", &address]).refused("no pin ends with it");
    refrain(["pin", &last[..16], "--addr", &address]);
    assert_eq!(pinned(&node).await, (1, 4 * STORED));
    assert_eq!(refrain(["unpin", "--tokens", &path, "--addr", &address]).out, "ended 1 pins\n");
    refrain(["pin", "--addr", &address]).refused("give the last block of a prefix");
}
