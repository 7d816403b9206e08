//! A full store takes new blocks for old ones: within its bytes, never a leased one, never a parent
//! before its child, and blocks that are hit stay longer. Each sidecar is written three times over.

use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{MIB, Node, Setup};
use crate::fixture::worker::Worker;
use crate::fixture::{PATIENCE, eventually};
use refrain_client::v1::{self, MissReason, inspect_request::Subject};
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;

const SHAPE: Shape = Shape::new(4, 31_000);
/// Of a record.
const STORED: u64 = 32 * 4096;
const CAPACITY: u64 = 32 * MIB;
const SEGMENT: u64 = 4 * MIB;
const BLOCKS: u64 = 8;
/// Prompts that fill a segment.
const PER_SEGMENT: u64 = SEGMENT / (STORED * BLOCKS);

fn setup() -> Setup {
    Setup { capacity: CAPACITY, segment: SEGMENT, ..Setup::default() }
        .with("lease_default = \"60s\"")
}

/// The place and size of every segment file.
fn footprint(node: &Node) -> Vec<(u64, u64)> {
    let segments = u32::try_from(CAPACITY / SEGMENT).unwrap();
    let of = |segment| {
        let data = node.segment(segment).metadata().unwrap();
        (data.len(), data.blocks() * 512)
    };
    (0..segments).map(of).collect()
}

/// Prompts of these seeds are saved, as far as there is room.
async fn write(worker: &Worker, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        worker.save(&prompt(seed, BLOCKS)).await;
    }
}

/// Three times the capacity.
fn seeds() -> std::ops::Range<u64> {
    1000..1000 + 3 * CAPACITY / (STORED * BLOCKS)
}

/// What there is once reclaim has done its work: two segments are kept free, where there are eight.
async fn settled(node: &Node, worker: &Worker) -> v1::StatsResponse {
    eventually("reclaim has done its work", PATIENCE, async || {
        // It looks again whenever a lease ends.
        worker.matched(&prompt(seeds().end - 1, BLOCKS)).await;
        Some(node.stats().await).filter(|stats| stats.drives[0].segments_free >= 2)
    })
    .await
}

#[tokio::test]
async fn the_byte_bound_holds_and_what_is_left_is_right() {
    let node = Node::start(&setup());
    let before = footprint(&node);
    let reserved: u64 = before.iter().map(|(length, _)| length).sum();
    assert_eq!(reserved, CAPACITY);
    let worker = Worker::new(&node, SHAPE).await;
    write(&worker, seeds()).await;
    assert_eq!(footprint(&node), before);
    let stats = settled(&node, &worker).await;
    assert!(stats.drives[0].live_bytes <= CAPACITY && stats.evicted_blocks > 0, "{stats:?}");
    let mut left = 0;
    for seed in seeds() {
        let loaded = worker.load(&prompt(seed, BLOCKS)).await;
        assert_eq!((loaded.loaded, loaded.reason), (loaded.matched, MissReason::None));
        left += u64::from(loaded.loaded);
    }
    assert_eq!(left, stats.blocks, "every resident block is reached by its prompt");
    // The latest half of the capacity is there whole.
    for seed in seeds().rev().take(usize::try_from(CAPACITY / (STORED * BLOCKS * 2)).unwrap()) {
        worker.has_all(&prompt(seed, BLOCKS)).await;
    }
}

#[tokio::test]
async fn no_child_outlives_its_parent() {
    let mut node = Node::start(&setup());
    let worker = Worker::new(&node, SHAPE).await;
    // Every prompt goes on where an earlier one ends, so that parents lie in older segments.
    let trunk = prompt(1, 4);
    for seed in seeds() {
        let ids =
            [&trunk[..usize::try_from(seed % 5).unwrap()], &prompt(seed, BLOCKS)[..]].concat();
        worker.save(&ids).await;
    }
    settled(&node, &worker).await;
    for restarted in [false, true] {
        let blocks = node.blocks().await;
        let resident: HashSet<_> = blocks.iter().map(|block| block.sequence_hash.clone()).collect();
        let mut admin = node.admin().await;
        for block in &blocks {
            let subject = Some(Subject::HashPrefix(block.sequence_hash.clone()));
            let found = admin
                .inspect(v1::InspectRequest { subject, hash_digits: 0 })
                .await
                .unwrap()
                .into_inner();
            let record = &found.records[0];
            let rooted = record.position == 0 || resident.contains(&record.parent);
            assert!(rooted && record.verdict == "good", "restarted: {restarted}: {record:?}");
        }
        if !restarted {
            drop(admin);
            node.stop().await;
            node.start_again();
        }
    }
}

#[tokio::test]
async fn a_leased_block_stays_until_its_lease_ends() {
    let node = Node::start(&setup());
    let worker = Worker::new(&node, SHAPE).await;
    let ids = prompt(1, BLOCKS);
    worker.save(&ids).await;
    let lookup = worker.lookup(&ids).await.unwrap();
    write(&worker, seeds()).await;
    let loaded = worker.load_under(lookup, &ids).await.unwrap();
    assert_eq!((loaded.loaded, loaded.from_host, loaded.held), (8, 0, true));
    // Its segment is the oldest by far, and free to go now. A tenth of a segment moves on.
    write(&worker, seeds().end..seeds().end + 4 * PER_SEGMENT).await;
    let moved_on = u32::try_from(SEGMENT / 10 / STORED).unwrap();
    eventually("the rest goes when nobody holds it", PATIENCE, async || {
        (worker.matched(&ids).await <= moved_on).then_some(())
    })
    .await;
}

#[tokio::test]
async fn blocks_that_are_hit_stay_and_others_go() {
    let node = Node::start(&setup());
    let worker = Worker::new(&node, SHAPE).await;
    // No more than moves on with a segment.
    let (hot, cold) = (prompt(1, 2), prompt(2, 2));
    worker.save(&hot).await;
    worker.save(&cold).await;
    for (turn, seed) in (0..).zip(seeds()) {
        worker.save(&prompt(seed, BLOCKS)).await;
        if turn % PER_SEGMENT == 0 {
            // The sidecar tells hits from saves by tenths of a second.
            let now = node.stats().await.uptime_ms;
            eventually("its clock goes on", PATIENCE, async || {
                (node.stats().await.uptime_ms > now + 200).then_some(())
            })
            .await;
            worker.has_all(&hot).await;
        }
    }
    worker.has_all(&hot).await;
    assert_eq!(worker.matched(&cold).await, 0);
    let drive = &node.stats().await.drives[0];
    assert!(drive.moved_bytes > 0 && drive.moved_bytes * 10 <= drive.written_bytes, "{drive:?}");
}

#[tokio::test]
async fn what_reclaim_has_moved_is_found_after_a_kill() {
    let mut node = Node::start(&setup());
    let worker = Worker::new(&node, SHAPE).await;
    let hot = prompt(1, 2);
    worker.save(&hot).await;
    let mut seeds = 1000..;
    for _ in 0..2 {
        let moved = node.stats().await.drives[0].moved_bytes;
        eventually("it is moved", PATIENCE, async || {
            worker.has_all(&hot).await;
            worker.save(&prompt(seeds.next().unwrap(), BLOCKS)).await;
            let now = node.stats().await;
            (now.drives[0].moved_bytes > moved).then_some(())
        })
        .await;
        node.kill();
        node.start_again();
        eventually("it is found", PATIENCE, async || {
            let loaded = worker.try_load(&hot).await.ok()?;
            assert_eq!((loaded.loaded, loaded.held), (2, true));
            Some(())
        })
        .await;
    }
}
