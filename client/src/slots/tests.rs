//! Proves that slots of any sizes never overlap, that all of them come back, and that one which
//! somebody may still read does not.

use super::*;
use std::collections::VecDeque;
use std::time::Duration;

const ARENA: u64 = 64 * PAGE_SIZE;

fn slots() -> Arc<Slots> {
    Slots::new(Mapping::create("slots", ARENA).unwrap())
}

#[test]
fn slots_of_mixed_sizes_are_aligned_apart_and_all_come_back() {
    let slots = slots();
    let mut sizes = (0..10_000_u64).map(|step| step * step * 37 % (9 * PAGE_SIZE));
    let mut held = VecDeque::<Slot>::new();
    for bytes in &mut sizes {
        let Some(slot) = slots.take(bytes) else {
            // Both ends in turn, so that holes come to lie between slots.
            drop(if bytes.is_multiple_of(2) { held.pop_front() } else { held.pop_back() });
            continue;
        };
        let (start, end) = (slot.region().offset(), slot.region().offset() + bytes);
        assert!(start.is_multiple_of(PAGE_SIZE) && end <= ARENA);
        for other in held.iter().map(Slot::region) {
            assert!(end <= other.offset() || other.offset() + other.length() <= start);
        }
        held.push_back(slot);
    }
    drop(held);
    assert_eq!(*slots.lock(), BTreeMap::from([(0, ARENA)]));
}

#[test]
fn arena_of_one_block_has_one_slot_at_a_time() {
    let slots = slots();
    let first = slots.take(ARENA).unwrap();
    assert!(slots.take(1).is_none());
    drop(first);
    assert!(slots.take(ARENA).is_some());
    assert!(slots.take(ARENA + 1).is_none());
    assert!(slots.take(u64::MAX).is_none());
}

#[test]
fn slot_that_may_still_be_read_is_never_given_again() {
    let slots = slots();
    slots.take(ARENA / 2).unwrap().abandon();
    assert!(slots.take(ARENA / 2 + 1).is_none());
    let rest = slots.take(ARENA / 2).unwrap();
    assert_eq!(rest.region().offset(), ARENA / 2);
}

#[tokio::test]
async fn waiting_ends_with_a_slot_or_at_the_deadline() {
    let slots = slots();
    let held = slots.take(ARENA).unwrap();
    assert!(slots.wait(1, Deadline::after(Duration::from_millis(1))).await.is_none());
    let waiting = tokio::spawn({
        let slots = Arc::clone(&slots);
        async move { slots.wait(1, Deadline::after(Duration::from_mins(1))).await }
    });
    tokio::task::yield_now().await;
    drop(held);
    assert!(waiting.await.unwrap().is_some());
}

#[tokio::test]
async fn waiting_that_is_given_up_holds_nothing() {
    let slots = slots();
    let held = slots.take(ARENA).unwrap();
    let mut waiting = Box::pin(slots.wait(1, Deadline::after(Duration::from_mins(1))));
    tokio::select! {
        biased;
        _ = &mut waiting => panic!("the arena is full"),
        () = std::future::ready(()) => {}
    }
    drop(held);
    drop(waiting);
    assert_eq!(*slots.lock(), BTreeMap::from([(0, ARENA)]));
}
