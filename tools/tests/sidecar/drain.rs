//! A sidecar that is told to stop finishes what runs, takes nothing new, says so, and leaves
//! neither sockets nor an address behind; one whose worker never ends stops all the same.

use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{Node, Setup, refrain};
use crate::fixture::raw::Raw;
use crate::fixture::worker::Worker;
use crate::fixture::{PATIENCE, eventually};
use refrain_client::v1;
use refrain_proto::session::socket_path;
use rustix::process::Signal;
use std::path::Path;
use tonic::Code;

const SHAPE: Shape = Shape::new(4, 65_536);

/// Has the sidecar told to stop while a worker is half-way, and lets the worker finish.
async fn check(tell: impl AsyncFnOnce(&Node)) {
    let mut node = Node::start(&Setup::default());
    let (ids, fresh) = (prompt(1, 8), prompt(2, 2));
    Worker::new(&node, SHAPE).await.save(&ids).await;
    let worker = Worker::new(&node, SHAPE).await;
    let mut raw = Raw::connect(&node).await;
    let registered = raw.registered(SHAPE).await;
    let saving = raw.lookup(registered.registration, &fresh, 0).await.unwrap();
    let reserved = raw.reserve(saving.lease, 0, 2).await.unwrap();
    let lookup = worker.lookup(&ids).await.unwrap();

    tell(&node).await;
    let refused = eventually("new work is refused", PATIENCE, async || {
        raw.lookup(registered.registration, &ids, 0).await.err()
    })
    .await;
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(refused.message(), "sidecar is draining: go on without it");
    let refused = raw.reserve(saving.lease, 0, 2).await.unwrap();
    assert_eq!((refused.blocks.len(), refused.refusal()), (0, v1::Refusal::Draining));

    // What was begun is finished: a load, and a save that had its room.
    let loaded = worker.load_under(lookup, &ids).await.unwrap();
    assert_eq!((loaded.loaded, loaded.held), (8, true));
    let bytes = vec![7; usize::try_from(registered.payload_bytes).unwrap() * 2];
    let saved = raw.write(reserved.reservation, &bytes).await.unwrap();
    assert_eq!(saved.saved_blocks, 2);
    assert!(node.socket().exists() && raw.release(saving.lease).await);
    drop((raw, worker));

    let status = node.end().await;
    assert!(status.success(), "{status}: {}", node.said());
    let gone = |path: &Path| !path.exists();
    assert!(gone(&node.socket()) && gone(&socket_path(&node.socket())));
    assert!(gone(&node.drive(0).join("address")));

    node.start_again();
    let worker = Worker::new(&node, SHAPE).await;
    worker.has_all(&ids).await;
    assert_eq!(worker.matched(&fresh).await, 2);
    assert_eq!(node.stats().await.restart_source, "catalog");
}

#[tokio::test]
async fn sigterm_finishes_what_runs_and_leaves_nothing_behind() {
    check(async |node| node.signal(Signal::TERM)).await;
}

#[tokio::test]
async fn a_drain_over_grpc_does_the_same() {
    check(async |node| {
        node.admin().await.drain(v1::DrainRequest {}).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn the_drain_command_does_the_same() {
    check(async |node| {
        let address = node.address().to_string();
        let drained = refrain(["drain", "--addr", &address]);
        assert_eq!(drained.code, 0, "{drained:?}");
    })
    .await;
}

#[tokio::test]
async fn a_lease_that_is_never_given_back_delays_an_end_no_longer_than_configured() {
    let setup = Setup::default().with("drain = \"300ms\"").with("lease_default = \"60s\"");
    let mut node = Node::start(&setup);
    let ids = prompt(3, 2);
    let worker = Worker::new(&node, SHAPE).await;
    worker.save(&ids).await;
    let _held = worker.lookup(&ids).await.unwrap();
    node.stop().await;
    node.start_again();
    Worker::new(&node, SHAPE).await.has_all(&ids).await;
}

#[tokio::test]
async fn workers_that_stay_connected_do_not_delay_an_end() {
    let mut node = Node::start(&Setup::default().with("drain = \"10m\""));
    let worker = Worker::new(&node, SHAPE).await;
    let admin = node.admin().await;
    node.stop().await;
    drop((worker, admin));
}
