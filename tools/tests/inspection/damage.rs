//! Every kind of damage is found, left as it is, repaired where that is asked for, and then gone.

use crate::fixture::{BLOCKS, SEALED, SEGMENT, Store};
use refrain_store::geometry::HEADER_SIZE;

/// Does `damage` to a store; `kinds` must be found, one of each. After a repair `left` blocks are
/// there, `orphans` of them behind one that is not.
fn check(damage: impl FnOnce(&Store), kinds: &[&str], left: u64, orphans: u64) {
    let store = Store::new();
    damage(&store);
    let before = store.state();
    let found = store.verify();
    assert_eq!(store.state(), before, "looking changed something");
    assert_eq!(found.code, 1, "{}", found.error);
    let expected: serde_json::Map<_, _> =
        kinds.iter().map(|kind| ((*kind).to_owned(), 1.into())).collect();
    let report = found.json();
    assert_eq!(report["damaged_by_kind"], serde_json::Value::from(expected), "{report}");
    assert_eq!(report["repaired"], 0);

    let repaired = store.repair();
    let report = repaired.json();
    assert_eq!(repaired.code, 0, "{report}");
    assert_eq!(
        (&report["damaged"], &report["repaired"]),
        (&kinds.len().into(), &kinds.len().into())
    );

    let clean = store.verify();
    let report = clean.json();
    assert_eq!((clean.code, &report["damaged"]), (0, &0.into()), "{report}");
    assert_eq!(report["blocks"], left, "{report}");
    assert_eq!(report["orphans"], orphans, "{report}");
}

#[test]
fn a_whole_store_is_found_whole() {
    let store = Store::new();
    let before = store.state();
    let clean = store.verify();
    assert_eq!(store.state(), before);
    let report = clean.json();
    assert_eq!(clean.code, 0);
    assert_eq!((&report["blocks"], &report["damaged"]), (&BLOCKS.into(), &0.into()));
    assert_eq!(report["orphans"], 0);
    // And a repair has nothing to do.
    assert_eq!(store.repair().json()["repaired"], 0);
}

#[test]
fn a_flipped_byte_of_a_payload_costs_its_block() {
    let payload = |store: &Store| {
        store.flip(0, store.entry(0, 5).offset + HEADER_SIZE + 700_001);
    };
    check(payload, &["payload"], BLOCKS - 1, 14);
    let open = |store: &Store| store.flip(1, store.entry(1, 2).offset + HEADER_SIZE);
    check(open, &["payload"], BLOCKS - 1, 2);
}

#[test]
fn a_flipped_byte_of_a_header_in_a_sealed_segment_costs_its_block() {
    // Magic, store, generation, segment, hash, stripe table, checksum.
    for byte in [0, 17, 33, 49, 57, 300, 4090] {
        let header = |store: &Store| store.flip(0, store.entry(0, 5).offset + byte);
        check(header, &["header"], BLOCKS - 1, 14);
    }
}

#[test]
fn a_flipped_byte_of_a_header_in_an_open_segment_hides_nothing_behind_it() {
    for byte in [0, 17, 33, 41, 49, 160, 4090] {
        let header = |store: &Store| store.flip(1, store.entry(1, 2).offset + byte);
        check(header, &["header"], BLOCKS - 1, 2);
    }
    let last = |store: &Store| store.flip(1, store.entry(1, 4).offset + 57);
    check(last, &["header"], BLOCKS - 1, 0);
}

#[test]
fn several_damaged_headers_in_a_row_are_found() {
    let store = Store::new();
    for index in [1, 2] {
        store.flip(1, store.entry(1, 0).offset + index * (HEADER_SIZE + (1 << 20)) + 57);
    }
    let report = store.verify().json();
    // Nobody knows how many blocks a gap held: it counts once.
    assert_eq!((&report["damaged"], &report["blocks"]), (&1.into(), &(BLOCKS - 2).into()));
    assert_eq!(store.repair().code, 0);
    let report = store.verify().json();
    assert_eq!((&report["damaged"], &report["blocks"]), (&0.into(), &(BLOCKS - 2).into()));
}

#[test]
fn a_damaged_footer_costs_nothing() {
    check(|store| store.flip(0, store.end(0) + 20), &["footer"], BLOCKS, 0);
    check(|store| store.flip(0, SEGMENT - 4096 + 41), &["footer"], BLOCKS, 0);
}

#[test]
fn a_damaged_footer_beside_a_damaged_header_is_written_anew() {
    let both = |store: &Store| {
        store.flip(0, store.entry(0, 7).offset + 57);
        store.flip(0, SEGMENT - 4096 + 41);
    };
    check(both, &["footer", "header"], BLOCKS - 1, 12);
}

#[test]
fn a_damaged_head_is_told_again_by_the_records() {
    check(|store| store.flip(0, 4096 + 33), &["head"], BLOCKS, 0);
    check(|store| store.flip(1, 4096 + 300), &["head"], BLOCKS, 0);
}

#[test]
fn a_cut_segment_loses_what_lay_behind_alone() {
    let inside_a_record = |store: &Store| store.cut(0, store.entry(0, 6).offset + 8192);
    check(inside_a_record, &["segment cut short", "record cut short"], BLOCKS - SEALED + 6, 5);
    let between_two = |store: &Store| store.cut(0, store.entry(0, 6).offset);
    check(between_two, &["segment cut short"], BLOCKS - SEALED + 6, 5);
    let to_nothing = |store: &Store| store.cut(0, 0);
    check(to_nothing, &["segment cut short"], BLOCKS - SEALED, 5);
}

#[test]
fn swapped_segments_are_put_back() {
    let store = Store::new();
    store.swap(0, 1);
    let before = store.state();
    let found = store.verify();
    assert_eq!((found.code, store.state()), (1, before));
    assert_eq!(found.json()["damaged_by_kind"]["segment swapped"], 2);
    assert_eq!(store.repair().code, 0);
    let report = store.verify().json();
    assert_eq!((&report["damaged"], &report["blocks"]), (&0.into(), &BLOCKS.into()));
}

#[test]
fn a_head_that_was_written_to_another_segment_costs_nothing() {
    let store = Store::new();
    let heads = [0, 1].map(|segment| store.page(segment, 4096));
    store.write(0, 0, &heads[1]);
    store.write(1, 0, &heads[0]);
    let report = store.verify().json();
    assert_eq!(
        (&report["damaged_by_kind"]["head"], &report["blocks"]),
        (&2.into(), &BLOCKS.into())
    );
    // Neither file is in a wrong place: to exchange them would never end.
    assert_eq!(store.repair().code, 0);
    let report = store.verify().json();
    assert_eq!((&report["damaged"], &report["blocks"]), (&0.into(), &BLOCKS.into()));
}

#[test]
fn a_segment_of_another_store_is_emptied() {
    let (store, other) = (Store::new(), Store::new());
    std::fs::copy(other.file(0), store.file(0)).unwrap();
    let found = store.verify();
    assert_eq!(found.code, 1);
    assert_eq!(found.json()["damaged_by_kind"]["segment of another store"], 1);
    assert_eq!(store.repair().code, 0);
    let report = store.verify().json();
    assert_eq!((&report["damaged"], &report["blocks"]), (&0.into(), &(BLOCKS - SEALED).into()));
}

#[test]
fn a_damaged_catalogue_is_of_no_account() {
    let store = Store::new();
    std::fs::create_dir(store.path.join("catalog")).unwrap();
    std::fs::write(store.path.join("catalog/CURRENT"), b"no catalogue").unwrap();
    let clean = store.verify();
    assert_eq!((clean.code, &clean.json()["blocks"]), (0, &BLOCKS.into()));
}
