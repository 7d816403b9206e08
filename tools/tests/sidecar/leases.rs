//! A lease is a promise while it lasts and nothing after it, and whoever stops waiting for an
//! answer leaves nothing behind.

use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{Node, Setup};
use crate::fixture::raw::Raw;
use crate::fixture::worker::Worker;
use crate::fixture::{PATIENCE, eventually};
use refrain_client::v1;
use std::time::Duration;
use tonic::Code;

const SHAPE: Shape = Shape::new(8, 100_000);

#[tokio::test]
async fn a_lease_whose_time_is_up_is_not_held_and_loads_nothing() {
    let node = Node::start(&Setup::default());
    let ids = prompt(1, 4);
    Worker::new(&node, SHAPE).await.save(&ids).await;
    let mut raw = Raw::connect(&node).await;
    let registered = raw.registered(SHAPE).await;
    let lookup = raw.lookup(registered.registration, &ids, 50).await.unwrap();
    assert_eq!((lookup.matched_blocks, lookup.lease_ms), (4, 50));
    eventually("the lease ends by itself", PATIENCE, async || {
        (node.stats().await.leases == 0).then_some(())
    })
    .await;
    let late = raw.read(lookup.lease, 4).await.unwrap_err();
    assert_eq!((late.code(), late.message()), (Code::NotFound, "lease is not known: it has ended"));
    let renewed = raw.cache.renew(v1::RenewRequest { lease: lookup.lease, lease_ms: 1000 }).await;
    assert!(!renewed.unwrap().into_inner().held);
    assert!(!raw.release(lookup.lease).await);
}

#[tokio::test]
async fn a_lease_lasts_as_long_as_it_is_renewed_and_no_longer_than_the_sidecar_allows() {
    let node = Node::start(&Setup::default().with("lease_max = \"20s\""));
    let ids = prompt(2, 4);
    Worker::new(&node, SHAPE).await.save(&ids).await;
    let mut raw = Raw::connect(&node).await;
    let registered = raw.registered(SHAPE).await;
    let short = raw.lookup(registered.registration, &ids, 50).await.unwrap();
    let long = raw.lookup(registered.registration, &ids, 3_600_000).await.unwrap();
    assert_eq!(long.lease_ms, 20_000);
    let renewed = raw.cache.renew(v1::RenewRequest { lease: short.lease, lease_ms: 20_000 }).await;
    let renewed = renewed.unwrap().into_inner();
    assert_eq!((renewed.held, renewed.lease_ms), (true, 20_000));
    let begun = node.stats().await.uptime_ms;
    eventually("its first time is long over", PATIENCE, async || {
        (node.stats().await.uptime_ms > begun + 200).then_some(())
    })
    .await;
    assert!(raw.release(short.lease).await && raw.release(long.lease).await);
}

#[tokio::test]
async fn whoever_stops_waiting_leaves_nothing_behind() {
    let node = Node::start(&Setup { capacity: 256 << 20, ..Setup::default() });
    let worker = Worker::new(&node, SHAPE).await;
    let ids = prompt(3, 16);
    worker.save(&ids).await;
    let mut random = fastrand::Rng::new();
    println!("seed {:#x}", random.get_seed());
    for round in 0..50 {
        let limit = Duration::from_micros(random.u64(1..6000));
        let fresh = prompt(100 + round, 3);
        // However far they came: what they hold is dropped with them.
        let _ = tokio::time::timeout(limit, worker.try_load(&ids)).await;
        let _ = tokio::time::timeout(limit, worker.try_save(&fresh)).await;
        let loaded = worker.load(&fresh).await;
        assert!(loaded.loaded == loaded.matched && loaded.held, "{loaded:?}");
    }
    eventually("no lease or reservation", Duration::from_secs(1), async || {
        let v1::StatsResponse { leases, reservations, .. } = node.stats().await;
        ((leases, reservations) == (0, 0)).then_some(())
    })
    .await;
    worker.has_all(&ids).await;
}

#[tokio::test]
async fn a_worker_finds_the_next_sidecar_by_itself() {
    let mut node = Node::start(&Setup::default());
    let worker = Worker::new(&node, SHAPE).await;
    let ids = prompt(4, 4);
    worker.save(&ids).await;
    let lookup = worker.lookup(&ids).await.unwrap();
    node.kill();
    assert!(worker.try_load(&ids).await.is_err(), "nobody is there");
    node.start_again();
    let loaded =
        eventually("it is found", PATIENCE, async || worker.try_load(&ids).await.ok()).await;
    assert_eq!((loaded.loaded, loaded.held), (4, true));
    assert!(!lookup.release().await.unwrap(), "a lease ends with its sidecar");
}

#[tokio::test]
async fn many_loads_of_one_block_read_it_once() {
    let node = Node::start(&Setup::default());
    let ids = prompt(5, 16);
    Worker::new(&node, SHAPE).await.save(&ids).await;
    let mut loads = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let worker = Worker::new(&node, SHAPE).await;
        let ids = ids.clone();
        loads.spawn(async move { worker.has_all(&ids).await });
    }
    while let Some(loaded) = loads.join_next().await {
        loaded.unwrap();
    }
    let read = node.stats().await.drives[0].read_bytes;
    let stored: u64 = node.blocks().await.iter().map(|block| block.stored_bytes).sum();
    assert!(read <= stored, "{read} bytes were read for {stored}");
}
