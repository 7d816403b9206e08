//! The superblock: who a store directory is, in two copies.
//!
//! A copy is one page. They are written one after the other with a sync between, so that a torn
//! write costs at most one; of two good copies the one with the higher sequence counts.

use crate::format::checksum;
use crate::geometry::PAGE_SIZE;
use thiserror::Error;

/// First bytes of each copy.
pub const MAGIC: [u8; 8] = *b"REFRAINS";
/// The version written; every version up to it is read.
pub const VERSION: u32 = 1;
/// Copies, one page each, back to back.
pub const COPIES: usize = 2;

const PAGE: usize = 4096;
const CHECKSUM: usize = PAGE - 8;
const _: () = assert!(PAGE as u64 == PAGE_SIZE);

/// One copy as it stands on disk.
pub type Page = [u8; PAGE];

/// What a store is, for as long as it lives; the capacity alone may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Random; every record names it.
    pub store_id: [u8; 16],
    pub segment_bytes: u64,
    /// The hard bound on all segments together.
    pub capacity_bytes: u64,
    /// Counts rewrites.
    pub sequence: u64,
}

/// Why no copy can be used.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SuperblockError {
    #[error("superblock is damaged in both copies")]
    Damaged,
    #[error("store has format version {found}, this build reads up to {VERSION}: use a newer one")]
    NewerVersion { found: u32 },
}

impl Superblock {
    pub fn encode(&self) -> Box<Page> {
        let mut page = Box::new([0; PAGE]);
        page[..8].copy_from_slice(&MAGIC);
        page[8..12].copy_from_slice(&VERSION.to_le_bytes());
        page[16..32].copy_from_slice(&self.store_id);
        page[32..40].copy_from_slice(&self.segment_bytes.to_le_bytes());
        page[40..48].copy_from_slice(&self.capacity_bytes.to_le_bytes());
        page[48..56].copy_from_slice(&self.sequence.to_le_bytes());
        let sum = checksum(&page[..CHECKSUM]);
        page[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
        page
    }

    /// The newest good copy among the bytes of a superblock file, which may be cut short.
    pub fn decode(bytes: &[u8]) -> Result<Self, SuperblockError> {
        let (pages, _) = bytes.as_chunks::<PAGE>();
        let good = pages.iter().take(COPIES).filter(|page| is_whole(page));
        let mut copies = Vec::new();
        for page in good {
            let version = u32::from_le_bytes(field(page, 8));
            // Refused even beside an older copy: the newer build has begun to change the store.
            if version > VERSION {
                return Err(SuperblockError::NewerVersion { found: version });
            }
            let copy = Self {
                store_id: field(page, 16),
                segment_bytes: u64::from_le_bytes(field(page, 32)),
                capacity_bytes: u64::from_le_bytes(field(page, 40)),
                sequence: u64::from_le_bytes(field(page, 48)),
            };
            // A checksum that fits does not make a size of nothing one that can be divided by.
            let is_sized = copy.segment_bytes > 0
                && copy.segment_bytes.is_multiple_of(PAGE_SIZE)
                && copy.segment_bytes <= copy.capacity_bytes;
            copies.extend(is_sized.then_some(copy));
        }
        copies.into_iter().max_by_key(|copy| copy.sequence).ok_or(SuperblockError::Damaged)
    }
}

fn is_whole(page: &Page) -> bool {
    page[..8] == MAGIC && u64::from_le_bytes(field(page, CHECKSUM)) == checksum(&page[..CHECKSUM])
}

fn field<const N: usize>(page: &Page, at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&page[at..at + N]);
    field
}

#[cfg(test)]
mod tests {
    //! Proves that one damaged copy costs nothing, and two are refused.

    use super::*;

    fn superblock(sequence: u64) -> Superblock {
        Superblock { store_id: [3; 16], segment_bytes: 1 << 26, capacity_bytes: 1 << 30, sequence }
    }

    fn file(first: u64, second: u64) -> Vec<u8> {
        [*superblock(first).encode(), *superblock(second).encode()].concat()
    }

    #[test]
    fn the_newer_copy_counts_on_either_side() {
        assert_eq!(Superblock::decode(&file(1, 2)), Ok(superblock(2)));
        assert_eq!(Superblock::decode(&file(3, 2)), Ok(superblock(3)));
    }

    #[test]
    fn any_flipped_bit_of_one_copy_leaves_the_other() {
        let bytes = file(4, 5);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let expected = if bit / 8 < PAGE { superblock(5) } else { superblock(4) };
            assert_eq!(Superblock::decode(&damaged), Ok(expected), "bit {bit}");
        }
    }

    #[test]
    fn two_damaged_copies_or_a_short_file_are_refused() {
        let mut bytes = file(1, 2);
        bytes[100] ^= 1;
        bytes[PAGE + 100] ^= 1;
        assert_eq!(Superblock::decode(&bytes), Err(SuperblockError::Damaged));
        assert_eq!(Superblock::decode(&file(1, 2)[..PAGE - 1]), Err(SuperblockError::Damaged));
        assert_eq!(Superblock::decode(&[]), Err(SuperblockError::Damaged));
    }

    #[test]
    fn sizes_that_hold_no_segment_are_refused() {
        let of = |segment_bytes, capacity_bytes| {
            let superblock = Superblock { segment_bytes, capacity_bytes, ..superblock(1) };
            Superblock::decode(&superblock.encode()[..])
        };
        for (segment, capacity) in [(0, 1 << 30), (4095, 1 << 30), (1 << 20, (1 << 20) - 1)] {
            assert_eq!(of(segment, capacity), Err(SuperblockError::Damaged));
        }
        assert!(of(4096, 4096).is_ok());
    }

    #[test]
    fn a_newer_version_is_refused_by_number() {
        let mut bytes = file(1, 2);
        bytes[8..12].copy_from_slice(&9u32.to_le_bytes());
        let sum = checksum(&bytes[..CHECKSUM]);
        bytes[CHECKSUM..PAGE].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(Superblock::decode(&bytes), Err(SuperblockError::NewerVersion { found: 9 }));
    }
}
