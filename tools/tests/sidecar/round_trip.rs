//! What was saved comes back byte for byte: whatever its layout, its shard, its names, the engine
//! that drives the disk, the way it travels, and after a restart.

use crate::fixture::content::{self, Shape, prompt};
use crate::fixture::node::{MIB, Node, Setup};
use crate::fixture::raw::Raw;
use crate::fixture::worker::Worker;
use refrain_client::{Layout, Stripe, v1};

/// One layer of odd bytes; a block of DeepSeek-V3; four pages.
const SHAPES: [Shape; 3] = [Shape::new(1, 5003), Shape::new(61, 73_728), Shape::new(4, 4096)];

/// Room for blocks of 4.5 MB.
fn large() -> Setup {
    Setup { capacity: 192 * MIB, segment: 16 * MIB, ..Setup::default() }
        .with("load_arena = \"96MiB\"")
}

/// Saves prompts of every shape that share a prefix, and loads them from the disk.
async fn check(setup: &Setup) -> Node {
    let mut node = Node::start(setup);
    let long = prompt(1, 12);
    let fork = [&long[..5], &prompt(2, 4)[..]].concat();
    for shape in SHAPES {
        let worker = Worker::new(&node, shape).await;
        worker.save(&long).await;
        assert_eq!(worker.matched(&fork).await, 5, "{shape:?}");
        worker.save(&fork).await;
        worker.has_all(&long).await;
    }
    node.stop().await;
    node.start_again();
    for shape in SHAPES {
        let worker = Worker::new(&node, shape).await;
        let from_disk = worker.has_all(&long).await;
        assert_eq!(from_disk.from_host, 0, "a new sidecar has nothing in memory");
        worker.has_all(&fork).await;
        assert_eq!(worker.has_all(&long[..5]).await.from_host, 5);
    }
    node
}

#[tokio::test]
async fn blocks_come_back_through_io_uring() {
    let node = check(&large().with("io_engine = \"uring\"")).await;
    assert_eq!(node.stats().await.drives[0].io_engine, "uring");
}

#[tokio::test]
async fn blocks_come_back_through_the_thread_pool() {
    let node = check(&large().with("io_engine = \"blocking\"")).await;
    assert_eq!(node.stats().await.drives[0].io_engine, "blocking");
}

#[tokio::test]
async fn blocks_come_back_from_two_drives() {
    let node = check(&Setup { drives: 2, ..large() }).await;
    let live: Vec<_> = node.stats().await.drives.iter().map(|drive| drive.live_bytes).collect();
    assert!(live.len() == 2 && live.iter().all(|bytes| *bytes > 0), "{live:?}");
}

#[tokio::test]
async fn shards_of_a_block_are_kept_apart() {
    let node = Node::start(&Setup::default());
    let shape = Shape { shards: 3, ..Shape::new(4, 20_000) };
    let ids = prompt(3, 6);
    let client = node.client().await;
    let mut workers = Vec::new();
    for shard in 0..3 {
        workers.push(Worker::with(client.clone(), shape, shard, false).await);
    }
    workers[0].save(&ids).await;
    assert_eq!(workers[1].matched(&ids).await, 0);
    for worker in &workers {
        worker.save(&ids).await;
    }
    for worker in &workers {
        worker.has_all(&ids).await;
    }
}

#[tokio::test]
async fn engine_hashes_name_blocks_as_tokens_do_and_are_not_taken_for_them() {
    let node = Node::start(&Setup::default());
    let (shape, ids) = (Shape::new(2, 300_000), prompt(4, 8));
    let engine = Worker::with(node.client().await, shape, 0, true).await;
    engine.save(&ids).await;
    engine.has_all(&ids).await;
    assert_eq!(engine.has_all(&ids[..3]).await.matched, 3);
    assert_eq!(Worker::new(&node, shape).await.matched(&ids).await, 0);
}

#[tokio::test]
async fn another_namespace_finds_nothing() {
    let node = Node::start(&Setup::default());
    let (shape, ids) = (Shape::new(4, 4096), prompt(5, 4));
    Worker::new(&node, shape).await.save(&ids).await;
    let changes: [fn(&mut v1::Namespace); 5] = [
        |it| it.tenant.push('2'),
        |it| it.weights.push('2'),
        |it| it.config_digest.push(2),
        |it| it.adapter_digest.push(2),
        |it| it.salt.push(2),
    ];
    let client = node.client().await;
    for change in changes {
        let mut namespace = shape.namespace("tenant");
        change(&mut namespace);
        let other = client.register(namespace, 0, shape.block_bytes()).await.unwrap();
        let tokens = content::tokens(&ids);
        let lookup = other.lookup(refrain_client::Prompt::Tokens(&tokens)).await.unwrap();
        assert_eq!((lookup.prompt_blocks, lookup.matched_blocks), (4, 0));
    }
}

/// What the library makes of an answer.
fn layout(answer: &v1::RegisterResponse) -> Layout {
    let stripe = |s: &v1::Stripe| Stripe { offset: s.offset, length: s.length };
    Layout {
        stripes: answer.stripes.iter().map(stripe).collect(),
        layers_per_stripe: answer.layers_per_stripe,
        payload_bytes: answer.payload_bytes,
    }
}

/// Saves through chunks what is loaded through the arena, and the other way round.
async fn check_chunks(shape: Shape) {
    let node = Node::start(&large());
    let worker = Worker::new(&node, shape).await;
    let mut raw = Raw::connect(&node).await;
    let registered = raw.registered(shape).await;
    let layout = layout(&registered);
    let payloads = |ids: &[u64]| {
        let mut bytes = Vec::new();
        for identity in content::identities(ids, 0) {
            let mut payload = vec![0; usize::try_from(layout.payload_bytes).unwrap()];
            content::fill(identity, &layout, &mut payload);
            bytes.extend(payload);
        }
        bytes
    };

    let written = prompt(6, 3);
    let lookup = raw.lookup(registered.registration, &written, 0).await.unwrap();
    let reserved = raw.reserve(lookup.lease, 0, 3).await.unwrap();
    assert_eq!(reserved.blocks, [0, 1, 2]);
    let saved = raw.write(reserved.reservation, &payloads(&written)).await.unwrap();
    assert_eq!((saved.saved_blocks, saved.refusal()), (3, v1::Refusal::None));
    assert!(raw.release(lookup.lease).await);
    worker.has_all(&written).await;

    let read = prompt(7, 3);
    worker.save(&read).await;
    for ids in [written, read] {
        let lookup = raw.lookup(registered.registration, &ids, 0).await.unwrap();
        assert_eq!(lookup.matched_blocks, 3);
        let (bytes, done) = raw.read(lookup.lease, 3).await.unwrap();
        assert_eq!((done.loaded_blocks, done.reason()), (3, v1::MissReason::None));
        assert!(bytes == payloads(&ids), "{shape:?}");
        assert!(raw.release(lookup.lease).await);
    }
}

#[tokio::test]
async fn blocks_come_back_in_chunks_to_clients_without_shared_memory() {
    for shape in SHAPES {
        check_chunks(shape).await;
    }
}

#[tokio::test]
async fn a_load_beyond_the_arena_is_cut_short_and_the_log_says_once_what_to_do() {
    let node = Node::start(&Setup::default().with("load_arena = \"1MiB\""));
    let worker = Worker::new(&node, Shape::new(4, 31_000)).await;
    let ids = prompt(77, 16);
    worker.save(&ids).await;
    for _ in 0..2 {
        let loaded = worker.load(&ids).await;
        assert_eq!((loaded.matched, loaded.reason), (16, v1::MissReason::NoMemory));
        assert!((1..16).contains(&loaded.loaded), "{loaded:?}");
    }
    let said = node.said();
    assert_eq!(said.matches("give a larger load_arena, or load fewer blocks").count(), 1, "{said}");
}
