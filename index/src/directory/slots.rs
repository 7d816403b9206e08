//! Where a block's entry lies: a cluster slot, a bucket in it, a field of the bucket.
//!
//! The slot is the hash's first 14 bits, so that a lost range of slots is a range of hashes. Redis
//! hashes a key's tag itself: for each slot there is a tag of at most three characters that it puts
//! there.

use crate::chain::BlockKey;
use std::sync::LazyLock;

/// Slots of every Redis cluster.
pub(super) const SLOTS: u16 = 1 << 14;
/// Slots that are lost and announced again together: those of one first byte of a hash.
pub(super) const GROUPS: usize = 256;
/// Bits of a hash that may number a bucket.
pub(super) const BUCKET_BITS_MAX: u8 = 18;

const ALPHABET: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";

/// A block's place in the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) slot: u16,
    pub(super) bucket: u32,
    pub(super) field: [u8; 6],
}

impl Spot {
    /// Where 2^`bits` buckets a slot put it. Shards of one block differ in their field alone.
    pub(super) fn of(key: BlockKey, bits: u8) -> Self {
        let (head, _) = key.sequence.0.split_first_chunk().expect("32 bytes hold 16");
        let head = u128::from_be_bytes(*head);
        let shifted = (head >> (128 - 14 - u32::from(bits) - 48)).to_be_bytes();
        let turn = u64::from(key.shard).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        let mut field = *shifted.last_chunk::<6>().expect("16 bytes hold 6");
        field.iter_mut().zip(turn).for_each(|(byte, turn)| *byte ^= turn);
        let bucket = (head >> (128 - 14 - u32::from(bits))) & ((1 << bits) - 1);
        Self {
            slot: u16::try_from(head >> 114).expect("14 bits fit"),
            bucket: u32::try_from(bucket).expect("18 bits fit"),
            field,
        }
    }

    /// The key of its bucket, where there are 2^`bits` a slot.
    pub(super) fn bucket_key(&self, bits: u8) -> Vec<u8> {
        bucket_key(self.slot, self.bucket, bits)
    }
}

pub(super) fn bucket_key(slot: u16, bucket: u32, bits: u8) -> Vec<u8> {
    let mut key = tagged(slot);
    for digit in (0..bits.div_ceil(6)).rev() {
        let digit = usize::try_from(bucket >> (6 * digit)).expect("32 bits fit") & 63;
        key.push(ALPHABET[digit]);
    }
    key
}

/// The group of a block: the first byte of its hash, and of the slots of its neighbours.
pub(super) fn group(key: BlockKey) -> usize {
    usize::from(key.sequence.0[0])
}

/// The first slot of a group, which its marker lies in.
pub(super) fn first_slot(group: usize) -> u16 {
    u16::try_from(group * (usize::from(SLOTS) / GROUPS)).expect("groups are of slots")
}

pub(super) fn marker_key(group: usize) -> Vec<u8> {
    let mut key = tagged(first_slot(group));
    key.push(b':');
    key
}

/// The slot that Redis puts a key of ours into.
pub(super) fn slot_of(key: &[u8]) -> u16 {
    let tag = key.strip_prefix(b"{").and_then(|rest| rest.split(|byte| *byte == b'}').next());
    crc16(tag.unwrap_or(key)) % SLOTS
}

fn tagged(slot: u16) -> Vec<u8> {
    let (tag, length) = TAGS[usize::from(slot)];
    let mut key = Vec::with_capacity(8);
    key.push(b'{');
    key.extend_from_slice(&tag[..usize::from(length)]);
    key.push(b'}');
    key
}

/// Of each slot the first tag, the shortest ones before.
static TAGS: LazyLock<Vec<([u8; 3], u8)>> = LazyLock::new(|| {
    let mut tags = vec![([0; 3], 0); usize::from(SLOTS)];
    let mut missing = tags.len();
    for length in 1..=3_u8 {
        for number in 0..64_usize.pow(u32::from(length)) {
            let digit = |place: u32| ALPHABET[(number / 64_usize.pow(place)) % 64];
            let tag = [digit(0), digit(1), digit(2)];
            let slot = crc16(&tag[..usize::from(length)]) % SLOTS;
            let known = &mut tags[usize::from(slot)];
            if known.1 == 0 {
                *known = (tag, length);
                missing -= 1;
            }
        }
    }
    assert_eq!(missing, 0, "three characters reach every slot");
    tags
});

/// CRC-16/XMODEM, as the cluster specification has it.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            let shifted = crc << 1;
            if crc & 0x8000 == 0 { shifted } else { shifted ^ 0x1021 }
        })
    })
}

#[cfg(test)]
mod tests {
    //! Proves that slots are ranges of hashes, and that Redis finds keys where we do.

    use super::*;
    use crate::hash::SequenceHash;
    use proptest::prelude::*;

    fn key(hash: [u8; 32], shard: u32) -> BlockKey {
        BlockKey { sequence: SequenceHash(hash), shard }
    }

    #[test]
    fn the_checksum_is_the_one_of_the_cluster_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
    }

    proptest! {
        #[test]
        fn a_slot_is_the_first_bits_of_a_hash_and_where_its_bucket_lies(
            hash: [u8; 32], shard: u32, bits in 0..=BUCKET_BITS_MAX,
        ) {
            let spot = Spot::of(key(hash, shard), bits);
            let expected = u16::from_be_bytes([hash[0], hash[1]]) >> 2;
            prop_assert_eq!(spot.slot, expected);
            prop_assert_eq!(slot_of(&spot.bucket_key(bits)), expected);
            prop_assert!(spot.bucket < 1 << bits);
            prop_assert_eq!(usize::from(spot.slot) / 64, group(key(hash, shard)));
        }

        #[test]
        fn shards_and_hashes_have_fields_of_their_own(hash: [u8; 32], shard in 1_u32.., byte in 4_usize..8) {
            let (bits, mut other) = (10, hash);
            other[byte] ^= 1;
            let spot = Spot::of(key(hash, 0), bits);
            prop_assert_ne!(spot, Spot::of(key(hash, shard), bits));
            prop_assert_ne!(spot, Spot::of(key(other, 0), bits));
            let shard = Spot::of(key(hash, shard), bits);
            prop_assert_eq!((spot.slot, spot.bucket), (shard.slot, shard.bucket));
        }
    }

    #[test]
    fn no_two_buckets_or_markers_share_a_key() {
        let bits = 4;
        let buckets =
            (0..SLOTS).flat_map(|slot| (0..1 << bits).map(move |b| bucket_key(slot, b, bits)));
        let keys: std::collections::HashSet<_> =
            buckets.chain((0..GROUPS).map(marker_key)).collect();
        assert_eq!(keys.len(), (usize::from(SLOTS) << bits) + GROUPS);
    }
}
