//! Proves that heads, trailers and footers come back as written, that no flipped bit of a page
//! passes, and that a full segment always has room for its seal.

use super::*;

const STORE: [u8; 16] = [5; 16];

fn head() -> SegmentHead {
    SegmentHead { id: SegmentId(7), generation: Generation(3), birth: 99 }
}

fn entry(offset: u64) -> Entry {
    Entry {
        offset,
        payload_length: 5000,
        sequence_hash: [1; 32],
        shard: 2,
        position: 3,
        parent: [4; 32],
        namespace: [5; 32],
        epoch: 6,
        key_scheme: 1,
        header_checksum: 7,
    }
}

#[test]
fn pages_come_back_as_written() {
    assert_eq!(SegmentHead::decode(&head().encode(STORE), STORE), HeadPage::Head(head()));
    let trailer = Trailer {
        id: SegmentId(7),
        generation: Generation(3),
        footer_offset: 8192,
        entries: 2,
        footer_checksum: 11,
    };
    assert_eq!(Trailer::decode(&trailer.encode(STORE), STORE), Some(trailer));
    assert_eq!(Trailer::decode(&trailer.encode(STORE), [6; 16]), None);
    let entries = vec![entry(8192), entry(20_480)];
    let mut bytes = vec![1; usize::try_from(footer_length(2)).unwrap()];
    assert_eq!(encode_footer(&entries, &mut bytes), checksum(&bytes));
    assert_eq!(decode_footer(&bytes, 2), entries);
}

#[test]
fn any_flipped_bit_of_a_head_is_seen() {
    let page = head().encode(STORE);
    for bit in 0..PAGE * 8 {
        let mut damaged = page.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(SegmentHead::decode(&damaged, STORE), HeadPage::Damaged, "bit {bit}");
    }
}

#[test]
fn a_trailer_is_whole_and_of_a_version_and_a_kind_that_is_known_or_none() {
    let (id, generation) = (SegmentId(7), Generation(3));
    let trailer = Trailer { id, generation, footer_offset: 8192, entries: 0, footer_checksum: 0 };
    let page = trailer.encode(STORE);
    for bit in 0..PAGE * 8 {
        let mut damaged = page.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Trailer::decode(&damaged, STORE), None, "bit {bit}");
    }
    let mut newer = page;
    newer[8..12].copy_from_slice(&2u32.to_le_bytes());
    seal(&mut newer);
    assert_eq!(Trailer::decode(&newer, STORE), None);
    assert_eq!(Trailer::decode(&head().encode(STORE), STORE), None);
    assert_eq!(SegmentHead::decode(&trailer.encode(STORE), STORE), HeadPage::Damaged);
}

#[test]
fn the_copies_of_a_head_take_turns() {
    let offsets = [0, 1, 2, 3, 4].map(|generation| SegmentHead::offset(Generation(generation)));
    assert_eq!(offsets, [0, PAGE_SIZE, 0, PAGE_SIZE, 0]);
}

#[test]
fn an_unused_head_another_store_and_a_newer_version_are_told_apart() {
    assert_eq!(SegmentHead::decode(&[0; PAGE], STORE), HeadPage::Empty);
    assert_eq!(SegmentHead::decode(&head().encode([6; 16]), STORE), HeadPage::OtherStore);
    let mut page = head().encode(STORE);
    page[8..12].copy_from_slice(&2u32.to_le_bytes());
    seal(&mut page);
    assert_eq!(SegmentHead::decode(&page, STORE), HeadPage::NewerVersion(2));
}

#[test]
fn a_segment_filled_to_the_last_record_has_room_for_its_seal() {
    let segment = 16 << 20;
    for length in [8192, 20_480, 1 << 20, record_max(segment)] {
        let (mut cursor, mut entries) = (RECORDS_START, 0);
        while has_room(segment, cursor, length, entries) {
            cursor += length;
            entries += 1;
        }
        assert!(entries > 0);
        assert!(cursor + footer_length(entries) + TRAILER_SIZE <= segment);
    }
    assert!(!has_room(segment, RECORDS_START, record_max(segment) + PAGE_SIZE, 0));
}

#[test]
fn a_footer_of_all_records_fits_its_frame_and_one_more_would_not() {
    assert!(footer_length(ENTRIES_MAX) <= 16 << 20);
    assert!(footer_length(ENTRIES_MAX + 1) > 16 << 20);
    assert!(has_room(u64::MAX >> 1, RECORDS_START, 8192, ENTRIES_MAX - 1));
    assert!(!has_room(u64::MAX >> 1, RECORDS_START, 8192, ENTRIES_MAX));
}

#[test]
fn a_trailer_is_damaged_where_something_else_stands_in_its_place() {
    let (id, generation) = (SegmentId(7), Generation(3));
    let trailer = Trailer { id, generation, footer_offset: 8192, entries: 0, footer_checksum: 0 };
    let mut page = trailer.encode(STORE);
    assert!(!Trailer::is_damaged(&page));
    page[100] ^= 1;
    assert!(Trailer::is_damaged(&page));
    assert!(!Trailer::is_damaged(&[0; PAGE]));
}
