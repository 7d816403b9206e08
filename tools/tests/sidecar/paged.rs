//! What goes between a paged KV cache and a sidecar arrives layer by layer and right, or is known to
//! be a miss before anybody reads it; and whoever cancels, or dies, in the middle leaves nothing
//! behind. In memory of the host; with `REFRAIN_TEST_GPU=0` in that of a GPU.

use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{MIB, Node, Setup};
use crate::fixture::paged::{PagedWorker, STREAM, gpu};
use crate::fixture::{PATIENCE, eventually};
use refrain_client::gpu_transfer::layout::{LayoutError, NO_PAGE, Pages};
use refrain_client::v1::{MissReason, Refusal};
use refrain_client::{Client, ClientConfig, ClientError};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Four stripes of two layers a block.
const SHAPE: Shape = Shape::new(8, 131_072);
const BLOCKS: u32 = 16;
const LAYERS: u32 = SHAPE.layers;

fn setup() -> Setup {
    Setup { capacity: 256 * MIB, segment: 16 * MIB, ..Setup::default() }
}

/// A worker, and a prompt whose blocks are all saved.
async fn saved(node: &Node) -> (PagedWorker, Vec<u64>) {
    let worker = PagedWorker::new(node, SHAPE, BLOCKS).await;
    let ids = prompt(1, BLOCKS.into());
    worker.worker.save_durably(&ids).await;
    (worker, ids)
}

#[tokio::test]
async fn each_layer_of_a_prefix_is_in_its_pages_when_its_turn_comes() {
    let mut node = Node::start(&setup());
    let (worker, ids) = saved(&node).await;
    drop(worker);
    // Once from the drive and once from the host tier.
    node.stop().await;
    node.start_again();
    let worker = PagedWorker::new(&node, SHAPE, BLOCKS).await;
    for (seed, from_host) in [(1, 0), (2, BLOCKS)] {
        worker.fill(0);
        let pages = worker.pages(seed);
        let lookup = worker.worker.lookup(&ids).await.unwrap();
        assert_eq!(lookup.matched_blocks, BLOCKS);
        let load = worker.load(&lookup, &pages).await;
        for layer in 0..LAYERS {
            assert_eq!(load.layer(layer, STREAM).await.unwrap(), BLOCKS);
            assert!(load.layers_on_their_way() > layer);
            assert!(worker.has(&lookup, (&ids, &pages), BLOCKS, layer..layer + 1), "{layer}");
        }
        let done = load.finish().await.unwrap();
        let (loaded, reason, host) = (done.loaded_blocks, done.reason, done.host_blocks);
        assert_eq!((loaded, reason, host), (BLOCKS, MissReason::None, from_host));
        assert!(lookup.release().await.unwrap());
    }
    assert!(worker.cache.registering().await.is_some());
}

#[tokio::test]
async fn part_of_a_prefix_leaves_all_other_pages_as_they_were() {
    let node = Node::start(&setup());
    let (worker, ids) = saved(&node).await;
    worker.fill(0x5a);
    let pages = worker.pages(3);
    let lookup = worker.worker.lookup(&ids).await.unwrap();
    let run = PagedWorker::run(&pages, 4, 5);
    let load = lookup.load_into(&worker.cache, 4, run, None, None).await.unwrap();
    assert_eq!(load.finish().await.unwrap().loaded_blocks, 5);
    let touched = worker.bytes().iter().filter(|byte| **byte != 0x5a).count();
    let loaded = usize::try_from(5 * SHAPE.block_bytes()).unwrap();
    // Random bytes: one of 256 is as it was.
    assert!(touched <= loaded && touched > loaded - loaded / 128, "{touched} of {loaded}");
    assert!(!worker.has(&lookup, (&ids, &pages), 1, 0..LAYERS));
}

#[tokio::test]
async fn a_rotten_stripe_shortens_the_prefix_before_its_layer_is_read() {
    let node = Node::start(&setup());
    let (worker, ids) = saved(&node).await;
    let mut blocks = node.blocks().await;
    blocks.sort_unstable_by_key(|block| (block.segment, block.offset));
    // The third stripe of the sixth block: layers 4 and 5.
    let header_and_stripes = 4096 + 2 * 2 * SHAPE.layer_bytes;
    node.flip(blocks[5].segment, blocks[5].offset + header_and_stripes + 77);
    let pages = worker.pages(4);
    let lookup = worker.worker.lookup(&ids).await.unwrap();
    assert_eq!(lookup.matched_blocks, BLOCKS);
    let load = worker.load(&lookup, &pages).await;
    for layer in 0..LAYERS {
        let usable = load.layer(layer, STREAM).await.unwrap();
        assert!(usable == 5 || (usable == BLOCKS && layer < 4), "layer {layer}: {usable}");
        assert!(worker.has(&lookup, (&ids, &pages), usable, layer..layer + 1), "{layer}");
    }
    let done = load.finish().await.unwrap();
    assert_eq!((done.loaded_blocks, done.reason), (5, MissReason::Damaged));
    assert!(worker.has(&lookup, (&ids, &pages), 5, 0..LAYERS));
    assert!(lookup.release().await.unwrap());
    let (matched, again) = worker.check(&ids, &pages).await;
    assert_eq!((matched, again.loaded_blocks), (5, 5));
}

/// Saves and loads prompts of its own for as long as there is a sidecar.
async fn work(worker: &PagedWorker, first_prompt: u64) {
    for seed in first_prompt.. {
        let (ids, pages) = (prompt(seed, BLOCKS.into()), worker.pages(seed));
        worker.save(&ids, &pages).await;
        worker.fill(0);
        worker.check(&ids, &worker.pages(seed + 1)).await;
    }
}

/// The other process of the tests below runs this one, told so by its environment.
#[tokio::test]
async fn what_is_saved_out_of_pages_is_loaded_into_others() {
    if let Ok(address) = std::env::var("REFRAIN_TEST_WORKER") {
        let (address, session_arena_bytes) = (address.parse().unwrap(), 8 * MIB);
        let config = ClientConfig { address, session_arena_bytes, deadline: PATIENCE };
        let client = Client::connect(config).await.unwrap();
        let worker = PagedWorker::with(client, SHAPE, BLOCKS).await;
        return work(&worker, u64::from(std::process::id()) << 20).await;
    }
    let node = Node::start(&setup());
    let worker = PagedWorker::new(&node, SHAPE, BLOCKS).await;
    let ids = prompt(5, BLOCKS.into());
    let saved = worker.save(&ids, &worker.pages(1)).await;
    assert_eq!((saved.offered, saved.saved, saved.refusal), (BLOCKS, BLOCKS, Refusal::None));
    worker.fill(0);
    let (matched, done) = worker.check(&ids, &worker.pages(2)).await;
    assert_eq!((matched, done.loaded_blocks), (BLOCKS, BLOCKS));
    // A client without pages finds the same bytes.
    worker.worker.has_all(&ids).await;
}

#[tokio::test]
async fn a_refused_save_is_dropped_without_an_error() {
    let mut node = Node::start(&setup());
    let worker = PagedWorker::new(&node, SHAPE, BLOCKS).await;
    let ids = prompt(6, BLOCKS.into());
    let lookup = worker.worker.lookup(&ids).await.unwrap();
    node.kill();
    let pages = PagedWorker::run(&worker.pages(1), 0, BLOCKS);
    let saved = lookup.save_from(&worker.cache, 0, pages, None, false).await.unwrap();
    assert_eq!((saved.offered, saved.saved, saved.refusal), (0, 0, Refusal::Unspecified));
}

#[tokio::test]
async fn a_sidecar_that_dies_in_a_load_leaves_no_block_to_use() {
    let mut node = Node::start(&setup());
    let (worker, ids) = saved(&node).await;
    let pages = worker.pages(7);
    let lookup = worker.worker.lookup(&ids).await.unwrap();
    node.signal(rustix::process::Signal::STOP);
    let load = async {
        let pages = PagedWorker::run(&pages, 0, BLOCKS);
        lookup.load_into(&worker.cache, 0, pages, None, None).await.unwrap()
    };
    let killing = async { node.kill() };
    let (load, ()) = tokio::join!(load, killing);
    assert_eq!(load.layer(LAYERS - 1, STREAM).await.unwrap(), 0);
    let done = load.finish().await.unwrap();
    assert_eq!(done.loaded_blocks, 0);
    assert_ne!(done.reason, MissReason::None);
    assert!(!lookup.release().await.unwrap());
    node.start_again();
    worker.worker.sees_its_sidecar().await;
    let (matched, done) = worker.check(&ids, &pages).await;
    assert_eq!((matched, done.loaded_blocks), (BLOCKS, BLOCKS));
}

#[tokio::test]
async fn loads_cancelled_at_any_moment_touch_no_page_afterwards_and_hold_nothing() {
    let loads = if gpu().is_some() { 1000 } else { 200 };
    let mut random = fastrand::Rng::new();
    println!("seed {:#x}", random.get_seed());
    // Half of the prompts fit into the host tier.
    let node = Node::start(&setup().with("load_arena = \"40MiB\""));
    let worker = PagedWorker::new(&node, SHAPE, BLOCKS).await;
    let prompts: Vec<_> = (0..4).map(|seed| prompt(seed, BLOCKS.into())).collect();
    for ids in &prompts {
        worker.worker.save_durably(ids).await;
    }
    let mut ended = 0;
    for step in 0..loads {
        let pages = worker.pages(step);
        let lookup = worker.worker.lookup(random.choice(&prompts).unwrap()).await.unwrap();
        worker.fill(0x11);
        let loading = async { worker.load(&lookup, &pages).await.finish().await.unwrap() };
        let patience = Duration::from_micros(random.u64(0..20_000));
        ended += u64::from(tokio::time::timeout(patience, loading).await.is_ok());
        // The pages are somebody else's now.
        worker.fill(0x22);
        drop(lookup);
        let next = worker.worker.lookup(&prompts[0]).await.unwrap();
        assert!(worker.bytes().iter().all(|byte| *byte == 0x22), "step {step}");
        drop(next);
    }
    println!("{ended} of {loads} loads had ended before they were cancelled");
    assert!(ended < loads, "none was cancelled");
    let pages = worker.pages(1);
    for ids in &prompts {
        let (matched, done) = worker.check(ids, &pages).await;
        assert_eq!((matched, done.loaded_blocks), (BLOCKS, BLOCKS));
    }
    drop(worker);
    node.nothing_is_held(PATIENCE).await;
}

/// This program, once more, as a worker of its own.
struct Process(Child);

impl Process {
    fn start(node: &Node) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "paged::what_is_saved_out_of_pages_is_loaded_into_others"])
            .env("REFRAIN_TEST_WORKER", node.address().to_string())
            .stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn workers_killed_in_loads_and_saves_leave_nothing_behind_and_spoil_nothing() {
    let mut random = fastrand::Rng::new();
    println!("seed {:#x}", random.get_seed());
    let node = Node::start(&setup());
    let (worker, ids) = saved(&node).await;
    for _ in 0..10 {
        let before = node.stats().await.lookups;
        let process = Process::start(&node);
        let until = before + random.u64(1..8);
        eventually("it is at work", PATIENCE, async || {
            (node.stats().await.lookups >= until).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_micros(random.u64(0..10_000))).await;
        drop(process);
        // Of sessions, ours is left.
        eventually("its session has ended", Duration::from_secs(1), async || {
            let stats = node.stats().await;
            ((stats.sessions, stats.leases, stats.reservations) == (1, 0, 0)).then_some(())
        })
        .await;
        worker.check(&ids, &worker.pages(random.u64(..))).await;
    }
    // What they left is right too: anybody may find it.
    for block in node.blocks().await {
        assert!(block.sequence_hash.len() == 32);
    }
    let address = node.address().to_string();
    let verified = crate::fixture::node::refrain(["verify", "--json", "--addr", &address]);
    assert_eq!(verified.code, 0, "{verified:?}");
}

#[tokio::test]
async fn a_cache_of_other_blocks_or_pages_it_has_not_are_refused() {
    let node = Node::start(&setup());
    let (worker, ids) = saved(&node).await;
    let lookup = worker.worker.lookup(&ids).await.unwrap();
    let pages = |pages| Pages::new(1, vec![pages]);
    let outside = lookup.load_into(&worker.cache, 0, pages(vec![0, 32]), None, None).await;
    assert!(
        matches!(
            outside,
            Err(ClientError::Cache { source: LayoutError::PageOutOfRange { page: 32, .. } })
        ),
        "{outside:?}"
    );
    let gap = lookup.save_from(&worker.cache, 0, pages(vec![0, NO_PAGE]), None, false).await;
    assert!(
        matches!(gap, Err(ClientError::Cache { source: LayoutError::PageNotKept { .. } })),
        "{gap:?}"
    );
    let fewer = PagedWorker::new(&node, Shape::new(4, SHAPE.layer_bytes), BLOCKS).await;
    let other = lookup.load_into(&fewer.cache, 0, pages(vec![0, 1]), None, None).await;
    assert!(
        matches!(other, Err(ClientError::Cache { source: LayoutError::OtherBlocks { .. } })),
        "{other:?}"
    );
}
