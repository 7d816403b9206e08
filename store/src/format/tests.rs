//! Proves that a header comes back as it was written, that any flipped bit is seen, and that
//! no bytes at all make the decoder panic.

use super::*;
use proptest::prelude::*;

fn header(lengths: &[u64]) -> RecordHeader {
    let mut offset = 0;
    let mut end = 0;
    let stripes = lengths
        .iter()
        .map(|&length| {
            let stripe = Stripe { offset, length, checksum: length ^ 0x5555 };
            end = offset + length;
            offset = page_aligned(end).unwrap();
            stripe
        })
        .collect();
    RecordHeader {
        store_id: [1; 16],
        address: RecordAddress {
            segment: SegmentId(7),
            generation: Generation(3),
            offset: 8 * PAGE_SIZE,
        },
        key_scheme: 1,
        sequence_hash: [2; 32],
        shard: 4,
        parent: [5; 32],
        namespace: [6; 32],
        epoch: 9,
        position: 11,
        payload_length: end,
        withdrawn: false,
        stripes,
    }
}

#[test]
fn crc64_nvme_matches_its_published_check_value() {
    assert_eq!(checksum(b"123456789"), 0xae8b_1486_0a79_9888);
}

#[test]
fn record_with_a_block_of_deepseek_v3_takes_its_bytes_and_one_page() {
    // 61 layers x 73,728 bytes, in stripes of four layers and one of one.
    let mut lengths = vec![4 * 73_728; 15];
    lengths.push(73_728);
    let header = header(&lengths);
    assert_eq!(header.payload_length, 4_497_408);
    assert_eq!(header.stored_length(), 4_497_408 + 4096);
}

#[test]
fn the_checksum_of_a_header_is_the_one_it_ends_with() {
    let bytes = header(&[4096, 5000]).encode().unwrap();
    let (_, last) = bytes.split_last_chunk().unwrap();
    let ends_with = u64::from_le_bytes(*last);
    assert_eq!(RecordHeader::checksum_of(&bytes), ends_with);
    assert_eq!(checksum(&bytes[..CHECKSUM]), ends_with);
}

#[test]
fn a_withdrawn_record_says_so_and_any_other_flag_is_refused() {
    let withdrawn = RecordHeader { withdrawn: true, ..header(&[4096]) };
    let mut bytes = withdrawn.encode().unwrap();
    assert_eq!(RecordHeader::decode(&bytes), Ok(withdrawn));
    let plain = header(&[4096]).encode().unwrap();
    let at = (0..CHECKSUM).find(|&at| bytes[at] != plain[at]).unwrap();
    bytes[at] = 2;
    let sum = checksum(&bytes[..CHECKSUM]);
    bytes[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(RecordHeader::decode(&bytes), Err(HeaderError::Flags { flags: 2 }));
}

#[test]
fn a_newer_version_is_refused_by_number() {
    let mut bytes = header(&[4096]).encode().unwrap();
    bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
    let sum = checksum(&bytes[..CHECKSUM]);
    bytes[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(RecordHeader::decode(&bytes), Err(HeaderError::NewerVersion { found: 2 }));
}

#[test]
fn stripes_that_overlap_or_do_not_fill_the_payload_are_refused() {
    let mut overlapping = header(&[4096, 4096]);
    overlapping.stripes[1].offset = 0;
    assert!(matches!(overlapping.encode(), Err(HeaderError::StripeRange { index: 1, .. })));
    let mut longer = header(&[4096]);
    longer.payload_length = 8192;
    let expected = HeaderError::PayloadLength { declared: 8192, end: 4096 };
    assert_eq!(longer.encode(), Err(expected));
    assert_eq!(header(&[]).encode(), Err(HeaderError::StripeCount { count: 0 }));
}

#[test]
fn a_header_has_room_for_all_stripes_that_a_record_may_have_and_no_more() {
    let full = header(&[4096; STRIPES_MAX]);
    let mut bytes = full.encode().unwrap();
    assert_eq!(RecordHeader::decode(&bytes), Ok(full));
    let refused = HeaderError::StripeCount { count: STRIPES_MAX + 1 };
    assert_eq!(header(&[4096; STRIPES_MAX + 1]).encode(), Err(refused));
    let count = u32::try_from(STRIPES_MAX).unwrap();
    let at = (0..STRIPE_TABLE).rfind(|&at| bytes[at..at + 4] == count.to_le_bytes()).unwrap();
    for count in [count + 1, u32::MAX] {
        bytes[at..at + 4].copy_from_slice(&count.to_le_bytes());
        let sum = checksum(&bytes[..CHECKSUM]);
        bytes[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
        let refused = HeaderError::StripeCount { count: usize::try_from(count).unwrap() };
        assert_eq!(RecordHeader::decode(&bytes), Err(refused));
    }
}

#[test]
fn every_single_flipped_bit_is_refused() {
    let bytes = header(&[4096, 100]).encode().unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(RecordHeader::decode(&damaged).is_err(), "bit {bit} went unseen");
    }
}

proptest! {
    #[test]
    fn decode_returns_what_encode_took(lengths in prop::collection::vec(1u64..1 << 22, 1..=STRIPES_MAX)) {
        let header = header(&lengths);
        prop_assert_eq!(RecordHeader::decode(&header.encode().unwrap()), Ok(header));
    }

    #[test]
    fn bytes_with_a_right_checksum_never_panic(seed in prop::collection::vec(any::<u8>(), CHECKSUM - 8)) {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..CHECKSUM].copy_from_slice(&seed);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let sum = checksum(&bytes[..CHECKSUM]);
        bytes[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
        if let Ok(header) = RecordHeader::decode(&bytes) {
            prop_assert!(header.encode().is_ok());
        }
    }
}
