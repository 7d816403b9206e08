//! Proves, against pins counted anew from the forest, which blocks are pinned and how many bytes of
//! which segment; and what is refused.

use super::*;
use crate::fates::{Eviction, Removal};
use crate::place::NamespaceId;
use refrain_index::hash::SequenceHash;
use refrain_index::namespace::NamespaceDigest;
use refrain_store::geometry::{Generation, SegmentId};
use std::collections::HashSet;

const PAGE: u64 = 4096;

fn key(id: u8) -> BlockKey {
    BlockKey { sequence: SequenceHash([id; 32]), shard: 0 }
}

fn group(segment: u32) -> Group {
    Group::new(DriveId(0), SegmentId(segment)).unwrap()
}

fn place(segment: u32, page: u8) -> BlockPlace {
    BlockPlace::new(group(segment), NamespaceId(0), u64::from(page) * PAGE, PAGE).unwrap()
}

const REMOVAL: Removal = Removal { why: Eviction::Evict, at: 1, for_whom: None };
const ROOMY: [Room; 1] = [Room { segments: 8, capacity: 1 << 30 }];

/// Eight segments with blocks `0..blocks`, the parents of which `parent` names.
fn forest(blocks: u8, parent: impl Fn(u8) -> Option<u8>) -> State {
    let mut state = State::default();
    state.segments.add_drive((0..8).map(|_| Generation(1)));
    state.namespaces.meet(NamespaceDigest([1; 32]));
    for id in 0..blocks {
        let parent = parent(id).map(|parent| key(parent).sequence);
        let at = (place(u32::from(id % 8), id), Generation(1));
        state.enter(key(id), parent, at, 1);
    }
    state
}

fn chain(blocks: u8) -> State {
    forest(blocks, |id| id.checked_sub(1))
}

/// Counts everything anew.
fn check(state: &State) {
    let mut pinned: HashSet<BlockKey> = HashSet::new();
    for (top, _) in state.pins.all() {
        let path = state.path(top);
        assert!(!path.is_empty(), "a pin on a block that is not there");
        pinned.extend(path.iter().map(|(key, _)| *key));
    }
    let mut bytes = [0; 8];
    for (key, place, _) in state.chain.iter() {
        assert_eq!(state.pins.is_pinned(key), pinned.contains(&key), "{key:?}");
        if pinned.contains(&key) {
            bytes[usize::try_from(place.group.segment().0).unwrap()] += place.stored_length();
        }
    }
    assert_eq!(state.pins.under.len(), pinned.len());
    let found: Vec<_> = (0..8).map(|at| state.segments.get(group(at)).pinned_bytes()).collect();
    assert_eq!(found, bytes);
    assert_eq!(state.segments.pinned_bytes(DriveId(0)), bytes.iter().sum());
}

#[test]
fn blocks_are_pinned_exactly_while_a_pin_takes_them_in() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let parents: Vec<_> = (0..40).map(|id| (id > 2).then(|| random.u8(0..id))).collect();
        let mut state = forest(40, |id| parents[usize::from(id)]);
        for step in 0..60 {
            let id = random.u8(0..40);
            match random.u8(0..5) {
                0 | 1 => {
                    let until = random.bool().then(|| random.u64(0..100));
                    let is_there = state.chain.get(key(id)).is_some();
                    assert_eq!(state.pin(key(id), until, &ROOMY).is_ok(), is_there);
                }
                2 => {
                    state.unpin(key(id));
                }
                3 => {
                    state.remove(key(id), REMOVAL);
                }
                _ => {
                    if let Some(from) = state.chain.get(key(id)) {
                        let to = place(random.u32(0..8), 100 + step);
                        assert!(state.moved(key(id), from, (to, Generation(1))));
                    }
                }
            }
            state.expire_pins(u64::from(step));
            check(&state);
        }
    }
}

#[test]
fn a_pin_ends_when_its_time_is_up_or_another_time_is_given() {
    let mut state = chain(3);
    assert_eq!(state.pin(key(2), Some(10), &ROOMY), Ok(Pinned { blocks: 3, bytes: 3 * PAGE }));
    state.pin(key(0), None, &ROOMY).unwrap();
    state.expire_pins(9);
    assert!(state.pins.is_pinned(key(2)));
    state.pin(key(2), Some(20), &ROOMY).unwrap();
    state.expire_pins(10);
    assert!(state.pins.is_pinned(key(2)));
    state.expire_pins(20);
    assert!(!state.pins.is_pinned(key(2)) && state.pins.is_pinned(key(0)));
    assert!(state.unpin(key(0)) && !state.unpin(key(0)));
    assert_eq!((state.pins.len(), state.pins.take_changed()), (0, false));
}

#[test]
fn what_is_beyond_the_share_of_a_drive_is_refused_and_pins_nothing() {
    let mut state = chain(6);
    let rooms = [Room { segments: 8, capacity: 4 * 4 * PAGE }];
    state.pin(key(3), None, &rooms).unwrap();
    let (drive, wanted, limit) = (DriveId(0), 5 * PAGE, 4 * PAGE);
    assert_eq!(state.pin(key(4), None, &rooms), Err(PinError::Share { drive, wanted, limit }));
    check(&state);
    // What is pinned already takes nothing more.
    state.pin(key(2), None, &rooms).unwrap();
    let small = [Room { segments: 7, capacity: 1 << 30 }];
    assert_eq!(state.pin(key(5), None, &small), Err(PinError::Small { drive, segments: 7 }));
    assert_eq!(state.pin(key(9), None, &rooms), Err(PinError::Absent));
    check(&state);
}

#[test]
fn a_segment_that_is_being_emptied_takes_no_pin_and_its_pins_can_be_given_up() {
    let mut state = chain(3);
    state.pin(key(1), None, &ROOMY).unwrap();
    assert!(!state.segments.begin_leaving(group(1)), "block 1 lies in it");
    assert!(state.segments.begin_leaving(group(2)));
    assert_eq!(state.pin(key(2), None, &ROOMY), Err(PinError::Leaving));
    assert_eq!(state.give_up_pins(group(0)), 1, "it takes in block 0");
    check(&state);
    assert!(state.segments.begin_leaving(group(0)) && state.pins.take_changed());
}
