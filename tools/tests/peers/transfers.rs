//! Blocks come from a peer as they come from a drive.

use super::*;

/// Room for blocks of 4.5 MB.
fn large() -> Setup {
    Setup { capacity: 192 * MIB, segment: 16 * MIB, ..Setup::default() }
        .with("load_arena = \"96MiB\"")
}

/// Saves on one node what the other loads.
async fn check(shape: Shape, shard: u32, engine: bool) {
    let fleet = Fleet::of(2, &large());
    fleet.is_connected().await;
    let [here, there] = &fleet.nodes[..] else { panic!("two nodes") };
    let ids = prompt(1, 12);
    let saver = Worker::with(there.client().await, shape, shard, engine).await;
    let loader = Worker::with(here.client().await, shape, shard, engine).await;
    assert_eq!(loader.matched(&ids[..2]).await, 0);
    saver.save(&ids).await;
    assert_eq!(tiers(&loader, &ids).await, [0, 0, 12]);
    let loaded = loader.has_all(&ids).await;
    assert_eq!((loaded.from_host, loaded.from_peer), (0, 12), "{loaded:?}");
    // They stay in memory, and the peer is not asked for them.
    assert_eq!(tiers(&loader, &ids).await, [12, 0, 0]);
    let loaded = loader.has_all(&ids).await;
    assert_eq!((loaded.from_host, loaded.from_peer), (12, 0), "{loaded:?}");
    nothing_is_left(here).await;
    nothing_is_left(there).await;
    let stats = there.stats().await;
    assert_eq!((stats.sent_blocks, stats.links), (12, 1));
}

#[tokio::test]
async fn blocks_of_any_size_come_back_from_a_peer() {
    for shape in SHAPES {
        check(shape, 0, false).await;
    }
}

#[tokio::test]
async fn shards_and_engine_hashes_come_back_from_a_peer() {
    let shape = Shape { shards: 3, ..SMALL };
    check(shape, 2, false).await;
    check(shape, 1, true).await;
}

#[tokio::test]
async fn what_a_node_has_itself_comes_from_there_and_the_rest_from_a_peer() {
    let fleet = Fleet::two();
    fleet.is_connected().await;
    let [here, there] = &fleet.nodes[..] else { panic!("two nodes") };
    let (near, far) = (Worker::new(here, SMALL).await, Worker::new(there, SMALL).await);
    let ids = prompt(2, 60);
    far.save(&ids).await;
    // Before any peer is up a node would save all of it itself.
    let own = Worker::new(here, SMALL).await;
    save_own(&own, &ids[..10]).await;
    assert_eq!(tiers(&near, &ids).await, [0, 10, 50]);
    let loaded = near.has_all(&ids).await;
    assert_eq!((loaded.from_host, loaded.from_peer), (0, 50), "{loaded:?}");
    // Behind what the peer has, nothing is.
    let longer = [&ids[..], &prompt(3, 5)[..]].concat();
    assert_eq!(near.matched(&longer).await, 60);
    // Part of it alone may be asked for.
    let other = prompt(4, 20);
    far.save(&other).await;
    let lookup = near.lookup(&other).await.unwrap();
    let mut load = lookup.load(5, 10, None).await.unwrap();
    while load.next().await.unwrap().is_some() {}
    let done = load.done().unwrap();
    assert_eq!((done.loaded_blocks, done.peer_blocks), (10, 10), "{done:?}");
}

/// Saves blocks that a peer has already, as if it had not been asked.
async fn save_own(worker: &Worker, ids: &[u64]) {
    let lookup = worker.lookup(ids).await.unwrap();
    let saved = worker.save_from(&lookup, ids, 0).await.unwrap();
    assert_eq!(usize::try_from(saved.saved).unwrap(), ids.len(), "{saved:?}");
    lookup.release().await.unwrap();
}

#[tokio::test]
async fn the_longest_prefix_of_several_peers_is_taken() {
    let fleet = Fleet::of(3, &Setup::default());
    fleet.is_connected().await;
    let mut workers = Vec::new();
    for node in &fleet.nodes {
        workers.push(Worker::new(node, SMALL).await);
    }
    let ids = prompt(5, 30);
    workers[1].save(&ids[..20]).await;
    save_own(&workers[2], &ids).await;
    assert_eq!(tiers(&workers[0], &ids).await, [0, 0, 30]);
    workers[0].has_all(&ids).await;
    assert_eq!(fleet.nodes[1].stats().await.sent_blocks, 0);
}

#[tokio::test]
async fn blocks_of_a_peer_that_are_wanted_twice_are_kept_on_own_drives() {
    let fleet = Fleet::two();
    fleet.is_connected().await;
    let [here, there] = &fleet.nodes[..] else { panic!("two nodes") };
    let ids = prompt(6, 16);
    Worker::new(there, SMALL).await.save(&ids).await;
    let near = Worker::new(here, SMALL).await;
    near.has_all(&ids).await;
    assert_eq!(here.stats().await.saved_blocks, 0, "once is not hot");
    near.has_all(&ids).await;
    eventually("all are kept", PATIENCE, async || {
        (here.stats().await.saved_blocks == 16).then_some(())
    })
    .await;
    let kept: Vec<_> = here.blocks().await;
    assert_eq!(kept.len(), 16);
    let mut fleet = fleet;
    fleet.nodes[1].kill();
    fleet.nodes[0].stop().await;
    fleet.nodes[0].start_again();
    let loaded = Worker::new(&fleet.nodes[0], SMALL).await.has_all(&ids).await;
    assert_eq!((loaded.from_host, loaded.from_peer), (0, 0), "{loaded:?}");
}

#[tokio::test]
async fn a_prefill_node_hands_over_to_a_decode_node_block_by_block() {
    let fleet = Fleet::two();
    fleet.is_connected().await;
    let [decode, prefill] = &fleet.nodes[..] else { panic!("two nodes") };
    let (saver, loader) = (Worker::new(prefill, SMALL).await, Worker::new(decode, SMALL).await);
    let ids = prompt(7, 24);
    for blocks in (4..=24).step_by(4) {
        saver.save(&ids[..blocks]).await;
        let loaded = loader.has_all(&ids[..blocks]).await;
        let new = if blocks == 4 { 4 } else { loaded.from_peer };
        // What came before is in memory, or kept.
        assert!(new >= 4 && loaded.from_peer == new, "{blocks}: {loaded:?}");
    }
}
