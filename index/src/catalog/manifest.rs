//! Whether RocksDB's list of its own files is what it wrote.
//!
//! `RocksDB` 11.8 reads on for ever where a flipped bit makes one of its records look like one of a
//! recycled log, and nothing ends an `open` from outside. So whoever opens a catalogue looks first.
//! The list is a log in `RocksDB`'s format: blocks of 32 KiB, and in them records, each with a masked
//! CRC-32C, a length and a type before its bytes.

use std::path::Path;

const BLOCK: usize = 32 << 10;
const HEADER: usize = 7;
/// Whole, first, middle and last part: all that such a list is made of.
const TYPES: std::ops::RangeInclusive<u8> = 1..=4;

/// `false` where some record is not what was written. A list that ends inside a record is whole: so
/// a kill leaves it, and `RocksDB` knows of that.
pub(super) fn is_whole(catalogue: &Path) -> bool {
    let Ok(current) = std::fs::read_to_string(catalogue.join("CURRENT")) else { return false };
    let name = current.trim_end();
    let number = name.strip_prefix("MANIFEST-").unwrap_or("none");
    if !number.bytes().all(|digit| digit.is_ascii_digit()) {
        return false;
    }
    std::fs::read(catalogue.join(name)).is_ok_and(|bytes| is_whole_log(&bytes))
}

fn is_whole_log(bytes: &[u8]) -> bool {
    bytes.chunks(BLOCK).all(|block| {
        let mut rest = block;
        while let Some((header, after)) = rest.split_first_chunk::<HEADER>() {
            let [c0, c1, c2, c3, l0, l1, kind] = *header;
            let (sum, length) =
                (u32::from_le_bytes([c0, c1, c2, c3]), u16::from_le_bytes([l0, l1]));
            if *header == [0; HEADER] {
                // Reserved for what is to come.
                return true;
            }
            let Some((_, next)) = after.split_at_checked(length.into()) else {
                // Only the last block ends early.
                return block.len() < BLOCK && TYPES.contains(&kind);
            };
            let checked = &rest[HEADER - 1..HEADER + usize::from(length)];
            if !TYPES.contains(&kind) || masked(checked) != sum {
                return false;
            }
            rest = next;
        }
        true
    })
}

/// So that a checksum of bytes that hold checksums is none of them.
fn masked(bytes: &[u8]) -> u32 {
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    let sum = u32::try_from(sum).expect("it has 32 bits");
    sum.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    //! Proves that a list as `RocksDB` writes it is whole, and that no flipped bit leaves it so.

    use super::*;
    use crate::catalog::{Catalog, OpenState};

    const STORE: [u8; 16] = [7; 16];

    #[test]
    fn every_flipped_bit_of_a_real_list_is_found_and_none_keeps_a_catalogue_from_opening() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("catalog");
        drop(Catalog::open(&path, STORE).unwrap());
        drop(Catalog::open(&path, STORE).unwrap());
        assert!(is_whole(&path));
        let name = std::fs::read_to_string(path.join("CURRENT")).unwrap();
        let list = std::fs::read(path.join(name.trim_end())).unwrap();
        assert!(list.len() > 100);
        for bit in 0..list.len() * 8 {
            let mut damaged = list.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // A longer last record is one that was cut.
            let cut = is_whole_log(&damaged);
            assert!(!cut || list.len() - bit / 8 < 4096, "bit {bit}");
        }
        // The type of a record of one part: that of a recycled log's.
        let second = HEADER + usize::from(u16::from_le_bytes([list[4], list[5]]));
        let mut damaged = list.clone();
        damaged[second + HEADER - 1] ^= 4;
        std::fs::write(path.join(name.trim_end()), &damaged).unwrap();
        assert!(!is_whole(&path));
        let (_, state) = Catalog::open(&path, STORE).unwrap();
        assert_eq!(state, OpenState::Damaged);
    }
}
