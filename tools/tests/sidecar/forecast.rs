//! How long a load is expected to take is learned from what workers say of theirs, and from nothing
//! else.

use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{Node, Setup};
use crate::fixture::raw::Raw;
use crate::fixture::worker::Worker;

const SHAPE: Shape = Shape::new(4, 20_000);
const BLOCKS: u32 = 5;

/// Looks a prompt up, reads it where that is wanted, and says that it took `load_us`; returns what
/// was expected.
async fn load(raw: &mut Raw, registration: u64, ids: &[u64], read: bool, load_us: u64) -> u64 {
    let found = raw.lookup(registration, ids, 0).await.unwrap();
    assert_eq!(found.matched_blocks, BLOCKS);
    if read {
        let (_, done) = raw.read(found.lease, BLOCKS).await.unwrap();
        assert_eq!(done.loaded_blocks, BLOCKS);
    }
    assert!(raw.release_after(found.lease, load_us).await);
    found.expected_load_us
}

#[tokio::test]
async fn a_load_is_expected_to_take_what_such_loads_took() {
    let node = Node::start(&Setup::default());
    let worker = Worker::new(&node, SHAPE).await;
    let ids = prompt(1, BLOCKS.into());
    worker.save(&ids).await;
    worker.has_all(&ids).await;
    let mut raw = Raw::connect(&node).await;
    let registration = raw.registered(SHAPE).await.registration;
    for took in [2_000_000, 30_000] {
        for _ in 0..200 {
            load(&mut raw, registration, &ids, true, took).await;
        }
        let expected = load(&mut raw, registration, &ids, true, 0).await;
        assert!(expected.abs_diff(took) < took / 20, "{expected} instead of {took}");
        // Neither without a load, nor without a time, is anything learned.
        load(&mut raw, registration, &ids, false, 1).await;
        assert_eq!(load(&mut raw, registration, &ids, true, 0).await, expected);
    }
}

#[tokio::test]
async fn nothing_to_load_takes_no_time() {
    let node = Node::start(&Setup::default());
    let mut raw = Raw::connect(&node).await;
    let registration = raw.registered(SHAPE).await.registration;
    let found = raw.lookup(registration, &prompt(2, 3), 0).await.unwrap();
    assert_eq!((found.matched_blocks, found.expected_load_us), (0, 0));
}
