//! Proves what a repair gives back, and that it costs nothing else.

use super::*;
use crate::engine::entry_of;
use crate::format::{RecordHeader, Stripe};
use crate::geometry::{PAGE_SIZE, TRAILER_SIZE};
use crate::recover::Damage;

#[test]
fn files_that_were_swapped_are_put_back() {
    // One of them in use, then both.
    for with in [SegmentId(3), SegmentId(1)] {
        let fixture = Fixture::new(IoEngine::Auto, 4, Layout::new(8, 131_072).unwrap());
        let (drive, _) = fixture.start();
        for block in 0.. {
            if fixture.append(&drive, block).unwrap().address.segment == SegmentId(1) {
                break;
            }
        }
        drop(drive);
        let before = fixture.open().segments().to_vec();
        let found = fixture.open().scan(SegmentId(0), RECORDS_START).unwrap();
        assert!(found.entries.len() > 3);
        let (one, other) = (fixture.segment_file(0), fixture.segment_file(with.0));
        let aside = fixture.parent.path().join("aside");
        for (from, to) in [(&one, &aside), (&other, &one), (&aside, &other)] {
            std::fs::rename(from, to).unwrap();
        }
        let mut opening = fixture.open();
        assert!(!opening.problems().is_empty());
        opening.repair_segments().unwrap();
        assert_eq!((opening.problems(), opening.segments()), (&[][..], &before[..]));
        drop(opening);
        let opening = fixture.open();
        assert_eq!((opening.problems(), opening.segments()), (&[][..], &before[..]));
        assert_eq!(opening.scan(SegmentId(0), RECORDS_START).unwrap(), found);
    }
}

#[test]
fn what_is_whole_is_not_written_to() {
    let fixture = Fixture::new(IoEngine::Auto, 4, Layout::new(8, 131_072).unwrap());
    let (drive, _) = fixture.start();
    fixture.append(&drive, 0).unwrap();
    drop(drive);
    let heads = || {
        [0, 1, 2, 3].map(|id| {
            let mut head = vec![0; 8192];
            File::open(fixture.segment_file(id)).unwrap().read_exact_at(&mut head, 0).unwrap();
            head
        })
    };
    let before = heads();
    fixture.spoil(SegmentId(2), &[0xff; 8192], 0);
    fixture.open().repair_segments().unwrap();
    let after = heads();
    for (id, (before, after)) in before.iter().zip(&after).enumerate() {
        assert_eq!(before == after, id != 2, "segment {id}");
    }
}

#[test]
fn of_two_files_of_one_segment_the_one_in_its_place_stays() {
    let fixture = Fixture::new(IoEngine::Auto, 3, Layout::new(8, 131_072).unwrap());
    let (drive, _) = fixture.start();
    fixture.append(&drive, 0).unwrap();
    drop(drive);
    let found = fixture.open().scan(SegmentId(0), RECORDS_START).unwrap();
    std::fs::copy(fixture.segment_file(0), fixture.segment_file(2)).unwrap();
    let mut opening = fixture.open();
    opening.repair_segments().unwrap();
    assert_eq!(opening.problems(), []);
    drop(opening);
    assert_eq!(fixture.open().scan(SegmentId(0), RECORDS_START).unwrap(), found);
}

#[test]
fn a_file_of_a_segment_that_the_store_does_not_have_begins_anew() {
    let fixture = Fixture::new(IoEngine::Auto, 2, Layout::new(8, 131_072).unwrap());
    let beyond = SegmentHead { id: SegmentId(2), generation: Generation(1), birth: 1 };
    let page = beyond.encode(fixture.open().store_id());
    fixture.spoil(SegmentId(0), &page[..], 0);
    fixture.spoil(SegmentId(0), &page[..], 4096);
    let mut opening = fixture.open();
    let swapped = SegmentProblem::Swapped { id: SegmentId(0), found: beyond.id };
    assert_eq!(opening.problems(), [swapped]);
    opening.repair_segments().unwrap();
    assert_eq!(opening.problems(), []);
    drop(opening);
    let (drive, _) = fixture.start();
    fixture.append(&drive, 0).unwrap();
}

#[test]
fn a_head_whose_newer_copy_is_damaged_is_of_the_last_use_again() {
    let fixture = Fixture::new(IoEngine::Auto, 2, Layout::new(8, 131_072).unwrap());
    let (drive, _) = fixture.start();
    let first = fixture.append(&drive, 0).unwrap().address.segment;
    let mut blocks = 1..;
    for segment in [first, SegmentId(1 - first.0)] {
        while fixture.append(&drive, blocks.next().unwrap()).is_ok() {}
        drive.release(segment).unwrap();
    }
    fixture.append(&drive, blocks.next().unwrap()).unwrap();
    drive.stop();
    drop(drive);
    let opening = fixture.open();
    let head = opening.segments()[first.index()];
    let before = opening.scan(first, RECORDS_START).unwrap();
    drop(opening);
    assert!(head.generation == Generation(2) && !before.entries.is_empty());

    fixture.spoil(first, &[0xff; 4096], SegmentHead::offset(head.generation));
    let mut opening = fixture.open();
    // The older copy is whole, and of a use that has ended.
    assert_eq!(opening.problems(), []);
    assert_eq!(opening.segments()[first.index()].generation, Generation(1));
    let damage = opening.examine(first).unwrap().damage;
    assert!(damage.contains(&Damage::Head { segment: first }), "{damage:?}");
    opening.repair_segments().unwrap();
    assert_eq!(opening.segments()[first.index()].generation, head.generation);
    assert_eq!(opening.scan(first, RECORDS_START).unwrap(), before);
    assert_eq!(opening.examine(first).unwrap().damage, []);
}

#[test]
fn a_head_whose_older_copy_is_damaged_stays_what_it_is() {
    let fixture = Fixture::new(IoEngine::Auto, 3, Layout::new(8, 131_072).unwrap());
    let (drive, _) = fixture.start();
    while fixture.append(&drive, 0).unwrap().address.segment == SegmentId(0) {}
    drop(drive);
    let before = fixture.open().segments().to_vec();
    let older = Generation(before[0].generation.0 - 1);
    fixture.spoil(SegmentId(0), &[0xff; 4096], SegmentHead::offset(older));
    let mut opening = fixture.open();
    let damaged = Damage::Head { segment: SegmentId(0) };
    assert_eq!(opening.examine(SegmentId(0)).unwrap().damage, [damaged]);
    opening.repair_segments().unwrap();
    assert_eq!(opening.segments(), before);
    assert_eq!(opening.examine(SegmentId(0)).unwrap().damage, []);
}

#[test]
fn a_segment_without_a_head_gets_that_of_its_last_use_back() {
    let fixture = Fixture::new(IoEngine::Auto, 2, Layout::new(8, 131_072).unwrap());
    let (drive, _) = fixture.start();
    let stored = fixture.append(&drive, 0).unwrap();
    let first = stored.address;
    let file = File::open(fixture.segment_file(first.segment.0)).unwrap();
    let mut stale = [0; 4096];
    file.read_exact_at(&mut stale, first.offset).unwrap();
    let mut blocks = 1..;
    for segment in [first.segment, SegmentId(1 - first.segment.0)] {
        while fixture.append(&drive, blocks.next().unwrap()).is_ok() {}
        drive.release(segment).unwrap();
    }
    // The next segment's first record seals the one before.
    fixture.append(&drive, blocks.next().unwrap()).unwrap();
    drive.stop();
    drop(drive);
    let before = fixture.open().scan(first.segment, RECORDS_START).unwrap();
    assert!(before.sealed && before.entries.len() > 1);

    // Its first page is of the use before, and nothing but the trailer knows better.
    fixture.spoil(first.segment, &stale, first.offset);
    fixture.spoil(first.segment, &[0xff; 8192], 0);
    let mut opening = fixture.open();
    assert_eq!(opening.problems(), [SegmentProblem::DamagedHead { id: first.segment }]);
    assert_eq!(opening.scan(first.segment, RECORDS_START).unwrap().entries, []);
    opening.repair_segments().unwrap();
    assert_eq!(opening.problems(), []);
    assert_eq!(opening.scan(first.segment, RECORDS_START).unwrap(), before);
}

#[test]
fn heads_that_are_made_up_anew_are_younger_than_all_others_one_after_the_other() {
    let fixture = Fixture::new(IoEngine::Auto, 4, Layout::new(8, 131_072).unwrap());
    let (drive, _) = fixture.start();
    for block in 0.. {
        if fixture.append(&drive, block).unwrap().address.segment == SegmentId(3) {
            break;
        }
    }
    drop(drive);
    for segment in [1, 2] {
        fixture.spoil(SegmentId(segment), &[0xff; 8192], 0);
    }
    let mut opening = fixture.open();
    // Each is told of once, and stands for no use that there was.
    let generations = opening.segments().iter().map(|it| it.generation.0).collect::<Vec<_>>();
    assert_eq!(generations, [1, 2, 2, 1]);
    for id in [1, 2].map(SegmentId) {
        assert!(opening.problems().contains(&SegmentProblem::DamagedHead { id }));
        let damage = opening.examine(id).unwrap().damage;
        assert!(!damage.contains(&Damage::Head { segment: id }), "{damage:?}");
    }
    opening.repair_segments().unwrap();
    let births =
        |opening: &Opening| opening.segments().iter().map(|it| it.birth).collect::<Vec<_>>();
    let [first, one, other, last] = births(&opening)[..] else { panic!("{opening:?}") };
    assert!(first < last && last < one && one < other, "{:?}", births(&opening));
    let repaired = births(&opening);
    drop(opening);
    assert_eq!(births(&fixture.open()), repaired);
}

#[test]
fn a_segment_that_lost_its_footer_and_trailer_is_sealed_anew_from_its_headers() {
    let fixture = Fixture::new(IoEngine::Auto, 2, Layout::new(8, 131_072).unwrap());
    let (drive, _) = fixture.start();
    let first = fixture.append(&drive, 0).unwrap().address.segment;
    for block in 1.. {
        if fixture.append(&drive, block).unwrap().address.segment != first {
            break;
        }
    }
    drop(drive);
    let sealed = fixture.open().scan(first, RECORDS_START).unwrap();
    assert!(sealed.sealed);
    fixture.spoil(first, &[0; 4096], sealed.end);
    fixture.spoil(first, &[0; 4096], SEGMENT - 4096);
    let opening = fixture.open();
    let found = opening.scan(first, RECORDS_START).unwrap();
    assert_eq!((&found.entries, found.sealed), (&sealed.entries, false));
    opening.reseal(first).unwrap();
    drop(opening);
    assert_eq!(fixture.open().scan(first, RECORDS_START).unwrap(), sealed);
}

#[test]
fn a_segment_is_sealed_anew_if_its_footer_fits_and_left_open_if_not() {
    let trailer_offset = SEGMENT - TRAILER_SIZE;
    for (footer_offset, sealed) in [(trailer_offset - PAGE_SIZE, true), (trailer_offset, false)] {
        let fixture = Fixture::new(IoEngine::Auto, 2, Layout::new(8, 131_072).unwrap());
        let (drive, _) = fixture.start();
        let first = fixture.append(&drive, 0).unwrap().address.segment;
        drop(drive);
        // One more record takes all the room that there is.
        let opening = fixture.open();
        let Scan { mut entries, end, .. } = opening.scan(first, RECORDS_START).unwrap();
        let segment = opening.segment(first);
        let mut last = opening.read_record(first, &entries[0]).unwrap();
        last.address = segment.address(end);
        last.payload_length = footer_offset - end - HEADER_SIZE;
        last.stripes = vec![Stripe { offset: 0, length: last.payload_length, checksum: 0 }];
        let bytes = last.encode().unwrap();
        entries.push(entry_of(&last, RecordHeader::checksum_of(&bytes)));
        fixture.spoil(first, &bytes[..], end);
        fixture.spoil(first, &[0xff; 4096], trailer_offset);
        opening.reseal(first).unwrap();
        let found = Scan { entries, end: footer_offset, sealed };
        assert_eq!(opening.scan(first, RECORDS_START).unwrap(), found);
        assert_eq!(opening.examine(first).unwrap().damage, []);
    }
}

#[test]
fn what_lies_behind_a_damaged_header_is_found_again_once_its_gap_is_closed() {
    let fixture = Fixture::new(IoEngine::Auto, 2, Layout::new(8, 131_072).unwrap());
    let (drive, _) = fixture.start();
    let stored: Vec<_> = (0..5).map(|block| fixture.append(&drive, block).unwrap()).collect();
    drop(drive);
    let segment = stored[2].address.segment;
    fixture.spoil(segment, &[0xff], stored[2].address.offset + 100);
    let opening = fixture.open();
    assert_eq!(opening.scan(segment, RECORDS_START).unwrap().entries.len(), 2);
    let (offset, next) = (stored[2].address.offset, Some(stored[3].address.offset));
    opening.close_gap(segment, offset, next).unwrap();
    drop(opening);
    let opening = fixture.open();
    let blocks = opening.scan(segment, RECORDS_START).unwrap().entries;
    assert_eq!(blocks.iter().map(block_of).collect::<Vec<_>>(), [0, 1, 3, 4]);
    assert_eq!(opening.examine(segment).unwrap().damage, []);
}
