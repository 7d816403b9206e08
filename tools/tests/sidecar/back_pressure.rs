//! A save that would have to wait is refused, at once, and the worker goes on.

use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{Node, Setup};
use crate::fixture::raw::Raw;
use crate::fixture::worker::Worker;
use refrain_client::v1::{AbortRequest, Refusal};
use std::time::{Duration, Instant};

const SHAPE: Shape = Shape::new(4, 65_536);
/// Records of that shape that a queue of 1 MiB has room for.
const ROOM: u32 = 3;
/// Far below anything that waits for a disk that is behind.
const AT_ONCE: Duration = Duration::from_secs(2);

#[tokio::test]
async fn what_the_queue_has_no_room_for_is_refused_busy_at_once() {
    let node = Node::start(&Setup::default().with("save_queue = \"1MiB\""));
    let mut raw = Raw::with_session(&node, 1 << 20).await;
    let registered = raw.registered(SHAPE).await;
    let begun = Instant::now();
    let first = raw.lookup(registered.registration, &prompt(1, 64), 0).await.unwrap();
    let some = raw.reserve(first.lease, 0, 64).await.unwrap();
    assert_eq!((some.blocks.len(), some.refusal()), (3, Refusal::Busy));
    // Reserved room is taken, though nothing is written yet.
    let second = raw.lookup(registered.registration, &prompt(2, 64), 0).await.unwrap();
    let none = raw.reserve(second.lease, 0, 64).await.unwrap();
    assert_eq!((none.reservation, none.blocks.len(), none.refusal()), (0, 0, Refusal::Busy));
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    assert_eq!(node.stats().await.refused_blocks, u64::from(64 - ROOM + 64));
    raw.cache.abort(AbortRequest { reservation: some.reservation }).await.unwrap();
    let freed = raw.reserve(second.lease, 0, 64).await.unwrap();
    assert_eq!(freed.blocks.len(), 3);
}

#[tokio::test]
async fn a_large_save_is_taken_as_far_as_there_is_room_and_no_worker_waits() {
    let node = Node::start(&Setup::default().with("save_queue = \"1MiB\""));
    let worker = Worker::new(&node, SHAPE).await;
    let ids = prompt(3, 64);
    let begun = Instant::now();
    let (found, saved) = worker.try_save(&ids).await.unwrap();
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    assert_eq!((found, saved.offered, saved.refusal), (ROOM, ROOM, Refusal::Busy));
    assert_eq!(worker.load(&ids).await.loaded, ROOM);
    // The rest is taken by and by.
    worker.save(&ids).await;
    worker.has_all(&ids).await;
}

#[tokio::test]
async fn a_block_larger_than_the_queue_is_still_taken_by_an_idle_sidecar() {
    let setup = Setup { segment: 16 << 20, ..Setup::default() };
    let node = Node::start(&setup.with("save_queue = \"1MiB\""));
    let worker = Worker::new(&node, Shape::new(61, 73_728)).await;
    let ids = prompt(4, 3);
    worker.save(&ids).await;
    worker.has_all(&ids).await;
}
