//! Proves what is told of damage, and what is no more than an end or a page of an earlier use.

use super::*;

#[test]
fn a_page_was_a_header_if_three_of_five_fields_tell_its_place() {
    let at = RECORDS_START;
    for (id, fill) in [(3, 0xff), (3, 0), (0, 0xff), (0, 0)] {
        let head = SegmentHead { id: SegmentId(id), ..HEAD };
        let mut whole = header(at, 4096);
        whole.address.segment = head.id;
        let whole = whole.encode().unwrap();
        for kept in 0..32u32 {
            let mut page = [fill; 4096];
            let fields = [0..8, 16..32, 32..40, 40..48, 48..52];
            for (bit, field) in fields.into_iter().enumerate() {
                if kept & 1 << bit != 0 {
                    page[field.clone()].copy_from_slice(&whole[field]);
                }
            }
            let mut memory = Memory::new(SEGMENT);
            memory.put(at, &page);
            let found = examine(&SegmentFile { head, ..memory.segment() }).unwrap();
            // The number of segment 0 stands in every page of zeros, where it tells nothing.
            let is_zero = fill == 0 && kept & 1 == 0;
            let has_id = kept & 16 != 0 || (id, fill) == (0, 0);
            let same = (kept & 15).count_ones() + u32::from(has_id && !is_zero);
            assert_eq!(found.damage.len() == 1, same >= 3, "{kept:05b}, {fill}, segment {id}");
        }
    }
}

#[test]
fn a_segment_that_was_never_used_has_no_damage() {
    let (mut memory, _) = Memory::with_records(SEGMENT, 4096, 2);
    memory.bytes[as_index(RECORDS_START) + 100] ^= 1;
    let unused = SegmentHead { generation: Generation(0), ..HEAD };
    let found = examine(&SegmentFile { head: unused, ..memory.segment() }).unwrap();
    assert_eq!((found.damage, found.scan.end), (vec![], RECORDS_START));
}

#[test]
fn whole_headers_of_an_earlier_use_are_no_damage_and_nothing_is_found_behind_them() {
    let (mut memory, entries) = Memory::with_records(SEGMENT, 4096, 2);
    let end = end_of(&entries);
    let mut stale = header(end, 4096);
    stale.address.generation.0 -= 1;
    memory.put_header(&stale);
    memory.put_header(&header(end + 8192, 4096));
    let found = examine(&memory.segment()).unwrap();
    assert_eq!((found.damage, found.scan.entries, found.scan.end), (vec![], entries, end));
}

#[test]
fn behind_a_damaged_header_the_next_whole_one_of_this_use_counts() {
    let (mut memory, entries) = Memory::with_records(SEGMENT, 4096, 400);
    for damaged in [100, 101, 399] {
        memory.bytes[as_index(entries[damaged].offset) + 100] ^= 1;
    }
    let mut stale = header(entries[102].offset, 4096);
    stale.address.generation.0 -= 1;
    memory.put_header(&stale);
    let found = examine(&memory.segment()).unwrap();
    let gap = |offset: u64, next| Damage::Header { segment: HEAD.id, offset, next };
    let gaps =
        [gap(entries[100].offset, Some(entries[103].offset)), gap(entries[399].offset, None)];
    assert_eq!(found.damage, gaps);
    assert_eq!(found.scan.entries, [&entries[..100], &entries[103..399]].concat());
    assert_eq!(found.scan.end, entries[399].offset);
}

#[test]
fn a_damaged_trailer_is_damage_of_the_footer_unless_it_was_cut_off() {
    let (mut memory, entries) = Memory::with_records(SEGMENT, 4096, 2);
    memory.seal(end_of(&entries), &entries);
    assert_eq!(examine(&memory.segment()).unwrap().damage, []);
    let last = SEGMENT - TRAILER_SIZE;
    memory.bytes[as_index(last) + 100] ^= 1;
    let found = examine(&memory.segment()).unwrap();
    assert_eq!(found.damage, [Damage::Footer { segment: HEAD.id }]);
    assert_eq!((found.scan.entries, found.scan.sealed), (entries.clone(), false));
    let found = examine(&SegmentFile { available: last, ..memory.segment() }).unwrap();
    assert_eq!((found.damage, found.scan.entries), (vec![], entries));
}

#[test]
fn a_copy_of_the_head_is_damaged_unless_it_is_this_segments_or_unwritten() {
    let of = |second: &[u8]| {
        let mut memory = Memory::new(SEGMENT);
        memory.put(0, &HEAD.encode(STORE)[..]);
        memory.put(PAGE_SIZE, second);
        has_damaged_head(&memory, HEAD.id, STORE)
    };
    assert!(!of(&[0; 4096]) && !of(&HEAD.encode(STORE)[..]));
    assert!(of(&[1; 4096]) && of(&HEAD.encode([8; 16])[..]));
    assert!(of(&SegmentHead { id: SegmentId(4), ..HEAD }.encode(STORE)[..]));
    let mut unreadable = Memory::new(SEGMENT);
    unreadable.broken = 0..8192;
    assert!(!has_damaged_head(&unreadable, HEAD.id, STORE));
}

#[test]
fn the_last_use_is_the_newer_of_what_first_record_and_trailer_tell() {
    let last = |change: fn(&mut RecordHeader, &mut Trailer)| {
        let mut memory = Memory::new(SEGMENT);
        let mut first = header(RECORDS_START, 4096);
        let mut trailer = memory.seal(RECORDS_START + 8192, &[]);
        change(&mut first, &mut trailer);
        memory.put(RECORDS_START, &first.encode().unwrap()[..]);
        memory.put_trailer(&trailer);
        // The head says nothing of it: it is not to be believed.
        let head = SegmentHead { generation: Generation(1), ..HEAD };
        last_generation(&SegmentFile { head, ..memory.segment() }).map(|last| last.0)
    };
    assert_eq!(last(|first, _| first.address.generation.0 = 7), Some(7));
    assert_eq!(last(|_, trailer| trailer.generation.0 = 8), Some(8));
    // What is another segment's tells of no use of this one.
    assert_eq!(
        last(|first, _| (first.address.generation.0, first.store_id) = (7, [8; 16])),
        Some(5)
    );
    assert_eq!(last(|_, trailer| (trailer.generation.0, trailer.id.0) = (8, 4)), Some(5));
    assert_eq!(last(|first, trailer| (first.store_id, trailer.id.0) = ([8; 16], 4)), None);
}
