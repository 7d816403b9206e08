//! What a peer has promised it keeps until it is told, or whoever asked has gone.

use super::*;

#[tokio::test]
async fn leases_end_with_the_node_that_was_given_them() {
    let mut fleet = Fleet::two();
    fleet.is_connected().await;
    let ids = prompt(50, 8);
    Worker::new(&fleet.nodes[1], SMALL).await.save(&ids).await;
    let near = Worker::new(&fleet.nodes[0], SMALL).await;
    let lookup = near.lookup(&ids).await.unwrap();
    assert_eq!(lookup.matched_blocks, 8);
    assert_eq!(fleet.nodes[1].stats().await.leases, 1);
    fleet.nodes[0].kill();
    nothing_is_left(&fleet.nodes[1]).await;
    eventually("its connection is over", PATIENCE, async || {
        (fleet.nodes[1].stats().await.links == 0).then_some(())
    })
    .await;
    drop(lookup);
}

#[tokio::test]
async fn leases_end_with_the_worker_that_asked() {
    let fleet = Fleet::two();
    fleet.is_connected().await;
    let [here, there] = &fleet.nodes[..] else { panic!("two nodes") };
    let ids = prompt(51, 8);
    Worker::new(there, SMALL).await.save(&ids).await;
    let near = Worker::new(here, SMALL).await;
    let lookup = near.lookup(&ids).await.unwrap();
    assert_eq!((there.stats().await.leases, lookup.matched_blocks), (1, 8));
    drop((lookup, near));
    nothing_is_left(there).await;
    nothing_is_left(here).await;
}

#[tokio::test]
async fn a_lease_that_is_renewed_here_is_renewed_there() {
    let fleet = Fleet::of(2, &Setup::default().with("lease_default = \"1s\""));
    fleet.is_connected().await;
    let [here, there] = &fleet.nodes[..] else { panic!("two nodes") };
    let ids = prompt(52, 8);
    Worker::new(there, SMALL).await.save(&ids).await;
    let near = Worker::new(here, SMALL).await;
    let lookup = near.lookup(&ids).await.unwrap();
    assert!(lookup.renew(PATIENCE * 2).await.unwrap());
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(there.stats().await.leases, 1);
    let loaded = near.load_under(lookup, &ids).await.unwrap();
    assert_eq!((loaded.loaded, loaded.from_peer), (8, 8), "{loaded:?}");
}

#[tokio::test]
async fn a_node_that_drains_offers_nothing_and_finishes() {
    let mut fleet = Fleet::two();
    fleet.is_connected().await;
    let ids = prompt(53, 8);
    Worker::new(&fleet.nodes[1], SMALL).await.save(&ids).await;
    let near = Worker::new(&fleet.nodes[0], SMALL).await;
    let lookup = near.lookup(&ids).await.unwrap();
    assert_eq!(lookup.matched_blocks, 8);
    fleet.nodes[1].signal(rustix::process::Signal::TERM);
    eventually("it drains", PATIENCE, async || {
        fleet.nodes[1].said().contains("draining").then_some(())
    })
    .await;
    // What was promised still comes.
    let loaded = near.load_under(lookup, &ids).await.unwrap();
    assert_eq!((loaded.loaded, loaded.from_peer), (8, 8), "{loaded:?}");
    assert!(fleet.nodes[1].end().await.success());
    assert_eq!(near.matched(&prompt(54, 3)).await, 0);
}

#[tokio::test]
async fn what_is_computed_behind_a_peers_prefix_is_saved_with_it() {
    let mut fleet = Fleet::two();
    fleet.is_connected().await;
    let long = prompt(55, 20);
    Worker::new(&fleet.nodes[1], SMALL).await.save(&long[..12]).await;
    let near = Worker::new(&fleet.nodes[0], SMALL).await;
    let lookup = near.lookup(&long).await.unwrap();
    assert_eq!(lookup.matched_blocks, 12);
    let mut load = lookup.load(0, 12, None).await.unwrap();
    while load.next().await.unwrap().is_some() {}
    assert_eq!(load.done().unwrap().peer_blocks, 12);
    let saved = near.save_under(&lookup, &long, false).await.unwrap();
    assert_eq!(saved.saved, 8, "{saved:?}");
    lookup.release().await.unwrap();
    fleet.nodes[1].kill();
    let loaded = near.has_all(&long).await;
    assert_eq!(loaded.from_peer, 0);
    assert_eq!(fleet.nodes[0].blocks().await.len(), 20);
}

#[tokio::test]
async fn a_dropped_namespace_is_gone_from_memory_and_is_not_offered() {
    let fleet = Fleet::two();
    fleet.is_connected().await;
    let [here, there] = &fleet.nodes[..] else { panic!("two nodes") };
    let ids = prompt(56, 8);
    Worker::new(there, SMALL).await.save(&ids).await;
    let near = Worker::new(here, SMALL).await;
    near.has_all(&ids).await;
    let digest = there.blocks().await[0].namespace_digest.clone();
    let set =
        |epoch| refrain_client::v1::SetEpochRequest { namespace_digest: digest.clone(), epoch };
    here.admin().await.set_epoch(set(1)).await.unwrap();
    // Its guests have gone, and blocks of the epoch before are nobody's.
    assert_eq!(near.matched(&ids).await, 0);
    assert!(here.said().contains("in another epoch there"), "{}", here.said());
    there.admin().await.set_epoch(set(1)).await.unwrap();
    assert_eq!(near.matched(&ids).await, 0);
    Worker::new(there, SMALL).await.save(&ids).await;
    assert_eq!(near.has_all(&ids).await.from_peer, 8);
}
