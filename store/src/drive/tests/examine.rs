//! Proves what is found of damage that a scan passes over, and that nothing is where there is none.

use super::*;
use crate::recover::{Damage, Examined};
use std::collections::BTreeSet;

const FIRST: SegmentId = SegmentId(0);

/// A segment that is still open, with the offsets of its records.
fn open_segment(blocks: u64) -> (Fixture, Vec<u64>) {
    let fixture = Fixture::new(IoEngine::Auto, 2, Layout::new(8, 131_072).unwrap());
    let (drive, _) = fixture.start();
    let offsets = (0..blocks).map(|block| fixture.append(&drive, block).unwrap().address.offset);
    let offsets = offsets.collect();
    drop(drive);
    (fixture, offsets)
}

fn examine(fixture: &Fixture) -> Examined {
    fixture.open().examine(FIRST).unwrap()
}

#[test]
fn nothing_is_damaged_in_a_segment_that_is_open_unused_or_sealed() {
    let (fixture, offsets) = open_segment(5);
    let Examined { scan, damage } = examine(&fixture);
    assert_eq!((scan.entries.len(), damage), (offsets.len(), vec![]));
    assert_eq!(fixture.open().examine(SegmentId(1)).unwrap().damage, []);
    let (drive, _) = fixture.start();
    while fixture.append(&drive, 9).unwrap().address.segment == FIRST {}
    drop(drive);
    let Examined { scan, damage } = examine(&fixture);
    assert!(scan.sealed && damage.is_empty(), "{damage:?}");
}

#[test]
fn a_damaged_header_is_told_from_a_place_where_none_ever_was() {
    // What tells a header's place: who wrote it, whose store it is, and then where it stands.
    for (offset, bytes) in [(0, 32), (40, 56), (100, 1)] {
        let (fixture, offsets) = open_segment(5);
        fixture.spoil(FIRST, &vec![0xff; bytes], offsets[2] + offset);
        let Examined { scan, damage } = examine(&fixture);
        let next = Some(offsets[3]);
        assert_eq!(damage, [Damage::Header { segment: FIRST, offset: offsets[2], next }]);
        assert_eq!(scan.entries.iter().map(block_of).collect::<Vec<_>>(), [0, 1, 3, 4]);
    }
    // Nothing in it tells more of a header than any page.
    let (fixture, offsets) = open_segment(5);
    fixture.spoil(FIRST, &[0; 48], offsets[2]);
    assert_eq!(examine(&fixture).damage, []);
}

#[test]
fn a_damaged_footer_costs_no_record() {
    let (fixture, _) = open_segment(1);
    let (drive, _) = fixture.start();
    while fixture.append(&drive, 9).unwrap().address.segment == FIRST {}
    drop(drive);
    let before = examine(&fixture).scan;
    fixture.spoil(FIRST, &[0xff], before.end + 1);
    let Examined { scan, damage } = examine(&fixture);
    assert_eq!(damage, [Damage::Footer { segment: FIRST }]);
    assert_eq!(scan.entries, before.entries);
}

#[test]
fn each_damage_is_of_a_kind_of_its_own() {
    let segment = FIRST;
    let all = [
        Damage::Head { segment },
        Damage::Footer { segment },
        Damage::Header { segment, offset: 8192, next: None },
    ];
    let kinds: BTreeSet<_> = all.iter().map(Damage::kind).collect();
    assert!(kinds.len() == all.len() && !kinds.contains(""));
}

#[test]
fn a_segment_that_was_cut_within_its_head_is_told_of_once() {
    let (fixture, _) = open_segment(1);
    let file = File::options().write(true).open(fixture.segment_file(0)).unwrap();
    file.set_len(100).unwrap();
    let cut = SegmentProblem::Truncated { id: FIRST, found: 100 };
    // Whoever only looks does not make it as long as it was.
    let opening = Opening::open_read_only(&fixture.parent.path().join("store")).unwrap();
    assert_eq!(opening.problems(), [cut]);
    assert_eq!(opening.scan(FIRST, 0).unwrap().entries, []);
}

#[test]
fn a_segment_that_was_cut_and_has_a_damaged_head_is_told_of_for_both() {
    let (fixture, offsets) = open_segment(3);
    fixture.spoil(FIRST, &[0xff; 8192], 0);
    let file = File::options().write(true).open(fixture.segment_file(0)).unwrap();
    file.set_len(offsets[2]).unwrap();
    let opening = fixture.open();
    let cut = SegmentProblem::Truncated { id: FIRST, found: offsets[2] };
    assert_eq!(opening.problems(), [cut, SegmentProblem::DamagedHead { id: FIRST }]);
}

#[test]
fn one_damaged_copy_of_a_head_is_damage_and_two_are_a_problem_of_their_segment() {
    let (fixture, _) = open_segment(1);
    fixture.spoil(FIRST, &[0xff; 4096], SegmentHead::offset(Generation(0)));
    let other = SegmentId(1);
    fixture.spoil(other, &[0xff; 8192], 0);
    let opening = fixture.open();
    assert_eq!(opening.problems(), [SegmentProblem::DamagedHead { id: other }]);
    assert_eq!(opening.examine(FIRST).unwrap().damage, [Damage::Head { segment: FIRST }]);
    assert_eq!(opening.examine(other).unwrap().damage, []);
}
