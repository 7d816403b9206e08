//! Damage on the disk makes misses, never wrong bytes, and of the damaged blocks alone (and those
//! behind them, which nobody can use without). `refrain verify` finds and withdraws it.

use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{MIB, Node, Setup, refrain};
use crate::fixture::worker::Worker;
use refrain_client::v1::{self, MissReason, inspect_request::Subject};
use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};

/// Two stripes a block.
const SHAPE: Shape = Shape::new(4, 131_072);
const HEADER: u64 = 4096;
const BLOCKS: u32 = 6;

/// Saved prompts and where each of their blocks lies, in order.
struct Saved {
    node: Node,
    prompts: Vec<(Vec<u64>, Vec<v1::BlockInfo>)>,
}

impl Saved {
    async fn new(prompts: u64) -> Self {
        let node = Node::start(&Setup { segment: 4 * MIB, ..Setup::default() });
        let mut saved = Self { node, prompts: Vec::new() };
        let worker = saved.worker().await;
        let mut known = HashSet::new();
        for seed in 0..prompts {
            let ids = prompt(seed, BLOCKS.into());
            worker.save_durably(&ids).await;
            let mut blocks = Vec::new();
            for block in saved.node.blocks().await {
                if known.insert(block.sequence_hash.clone()) {
                    blocks.push((saved.inspect(&block).await.position, block));
                }
            }
            blocks.sort_unstable_by_key(|(position, _)| *position);
            saved.prompts.push((ids, blocks.into_iter().map(|(_, block)| block).collect()));
        }
        saved
    }

    async fn worker(&self) -> Worker {
        Worker::new(&self.node, SHAPE).await
    }

    async fn inspect(&self, block: &v1::BlockInfo) -> v1::RecordInfo {
        let subject = Some(Subject::HashPrefix(block.sequence_hash.clone()));
        let request = v1::InspectRequest { subject, hash_digits: 0 };
        let found = self.node.admin().await.inspect(request).await.unwrap().into_inner();
        assert_eq!(found.records.len(), 1);
        found.records.into_iter().next().unwrap()
    }

    /// Every prompt is served up to its first block in one of these segments, and no further.
    async fn check_lost(&self, lost: &[u32]) {
        let worker = self.worker().await;
        for (ids, blocks) in &self.prompts {
            let good = blocks.iter().take_while(|block| !lost.contains(&block.segment)).count();
            let loaded = worker.load(ids).await;
            let good = u32::try_from(good).unwrap();
            assert_eq!(
                (loaded.matched, loaded.loaded, loaded.held),
                (good, good, true),
                "{lost:?}"
            );
        }
    }

    fn segments(&self) -> Vec<u32> {
        let blocks = self.prompts.iter().flat_map(|(_, blocks)| blocks);
        let used: BTreeSet<_> = blocks.map(|block| block.segment).collect();
        used.into_iter().collect()
    }

    /// Does something to the stopped store; its catalogue goes too if it should.
    async fn stopped(&mut self, with_catalogue: bool, damage: impl FnOnce(&Node)) {
        self.node.stop().await;
        if !with_catalogue {
            fs::remove_dir_all(self.node.drive(0).join("catalog")).unwrap();
        }
        damage(&self.node);
        self.node.start_again();
    }
}

/// Flips a bit of the fourth block's record while the sidecar runs.
async fn check_flip(place: u64) {
    let saved = Saved::new(3).await;
    let (ids, blocks) = &saved.prompts[1];
    saved.node.flip(blocks[3].segment, blocks[3].offset + place);
    let worker = saved.worker().await;
    let loaded = worker.load(ids).await;
    assert_eq!((loaded.matched, loaded.loaded), (BLOCKS, 3), "byte {place}");
    assert_eq!((loaded.reason, loaded.held), (MissReason::Damaged, true), "byte {place}");
    assert_eq!(worker.matched(ids).await, 3, "it is not offered again");
    for (other, _) in [&saved.prompts[0], &saved.prompts[2]] {
        worker.has_all(other).await;
    }
    let stats = saved.node.stats().await;
    assert_eq!((stats.damaged_blocks, stats.drives[0].checksum_failures), (1, 1), "byte {place}");
    // The worker has made what it lacked, and saves it again.
    worker.save(ids).await;
    worker.has_all(ids).await;
}

#[tokio::test]
async fn a_flipped_bit_is_a_miss_wherever_it_is() {
    let end_of_header = HEADER - 1;
    let (first_stripe, last_byte) = (HEADER, HEADER + SHAPE.block_bytes() - 1);
    for place in [0, 60, 300, end_of_header, first_stripe, HEADER + 300_000, last_byte] {
        check_flip(place).await;
    }
}

#[tokio::test]
async fn verify_withdraws_what_is_damaged_and_finds_nothing_the_second_time() {
    let mut saved = Saved::new(3).await;
    let address = saved.node.address().to_string();
    let verify = || refrain(["verify", "--json", "--addr", &address]);
    assert_eq!(verify().code, 0);
    let block = saved.prompts[1].1[4].clone();
    saved.node.flip(block.segment, block.offset + HEADER + 70_000);
    let found = verify();
    let report = found.json();
    // What a running sidecar finds it mends: nothing is left to be done.
    assert_eq!((found.code, &report["damaged"], &report["repaired"]), (0, &1.into(), &1.into()));
    let again = verify();
    assert_eq!((again.code, &again.json()["damaged"]), (0, &0.into()), "{again:?}");
    let left = u64::from(BLOCKS) * 3 - 2;
    assert_eq!(again.json()["blocks"], left, "it and the one behind it are gone");

    // It stays away, also from whoever starts next.
    for kill in [false, true] {
        if kill {
            saved.node.kill();
        } else {
            saved.node.stop().await;
        }
        saved.node.start_again();
        assert_eq!(saved.node.stats().await.blocks, left);
        let worker = saved.worker().await;
        assert_eq!(worker.load(&saved.prompts[1].0).await.loaded, 4);
        worker.has_all(&saved.prompts[0].0).await;
    }
}

async fn check_truncated(with_catalogue: bool, bytes: u64) {
    let mut saved = Saved::new(4).await;
    let segment = saved.segments()[1];
    saved
        .stopped(with_catalogue, |node| {
            let file = File::options().write(true).open(node.segment(segment)).unwrap();
            file.set_len(bytes).unwrap();
        })
        .await;
    let worker = saved.worker().await;
    for (ids, blocks) in &saved.prompts {
        let cut = |block: &v1::BlockInfo| {
            block.segment == segment && block.offset + block.stored_bytes > bytes
        };
        let good = blocks.iter().take_while(|block| !cut(block)).count();
        let loaded = worker.load(ids).await;
        assert_eq!((loaded.loaded, loaded.held), (u32::try_from(good).unwrap(), true), "{bytes}");
        worker.save(ids).await;
        worker.has_all(ids).await;
    }
}

#[tokio::test]
async fn a_truncated_segment_loses_what_was_cut_off_and_nothing_else() {
    check_truncated(true, 0).await;
    check_truncated(true, 2 * MIB).await;
}

#[tokio::test]
async fn a_truncated_segment_does_not_spoil_a_start_from_the_disk() {
    check_truncated(false, 5000).await;
    check_truncated(false, 2 * MIB).await;
}

async fn check_swapped(with_catalogue: bool) {
    let mut saved = Saved::new(4).await;
    let [one, _, other, ..] = saved.segments()[..] else { panic!("{:?}", saved.segments()) };
    saved
        .stopped(with_catalogue, |node| {
            let aside = node.drive(0).join("aside");
            fs::rename(node.segment(one), &aside).unwrap();
            fs::rename(node.segment(other), node.segment(one)).unwrap();
            fs::rename(&aside, node.segment(other)).unwrap();
        })
        .await;
    saved.check_lost(&[one, other]).await;
    let worker = saved.worker().await;
    for (ids, _) in &saved.prompts {
        worker.save(ids).await;
        worker.has_all(ids).await;
    }
}

#[tokio::test]
async fn segments_swapped_with_each_other_are_misses() {
    check_swapped(true).await;
    check_swapped(false).await;
}

#[tokio::test]
async fn a_deleted_segment_is_a_miss() {
    for with_catalogue in [true, false] {
        let mut saved = Saved::new(4).await;
        let segment = saved.segments()[1];
        saved.stopped(with_catalogue, |node| fs::remove_file(node.segment(segment)).unwrap()).await;
        saved.check_lost(&[segment]).await;
    }
}

#[tokio::test]
async fn a_segment_of_another_store_is_a_miss() {
    let (mut saved, mut other) = (Saved::new(4).await, Saved::new(4).await);
    let segment = saved.segments()[1];
    other.node.stop().await;
    saved
        .stopped(true, |node| {
            fs::copy(other.node.segment(segment), node.segment(segment)).unwrap();
        })
        .await;
    saved.check_lost(&[segment]).await;
}
