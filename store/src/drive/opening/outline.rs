//! Records without payloads: what a restart and a lookup see of a store, and nothing else of it.
//!
//! A million blocks of 4.5 MB are 4.5 TB; their heads, headers and footers are a few hundred
//! megabytes over reserved space. Whoever reads such a record is told that it is damaged.

use super::{Entry, Generation, Mapping, Opening, RecordHeader, SegmentHead, SegmentId};
use crate::device::Medium;
use crate::engine::{NewRecord, entry_of};
use crate::format::Stripe;
use crate::geometry::{HEADER_SIZE, PAGE_SIZE, RECORDS_START, RecordAddress};
use crate::segment::{Trailer, encode_footer, footer_length, has_room};
use std::io;

impl<M: Medium> Opening<M> {
    /// Begins a segment anew with as many of `records` as it holds, payloads left out: sealed with
    /// a footer alone, or open with the headers alone, which is what recovery reads of either.
    pub fn outline(
        &mut self,
        segment: SegmentId,
        payload_length: u64,
        records: &mut dyn Iterator<Item = NewRecord>,
        sealed: bool,
    ) -> io::Result<Vec<Entry>> {
        let birth = self.heads.iter().map(|head| head.birth).max().unwrap_or(0) + 1;
        let store_id = self.store_id();
        let segment_bytes = self.segment_bytes();
        let index = segment.index();
        let generation = Generation(self.heads[index].generation.0 + 1);
        let head = SegmentHead { id: segment, generation, birth };
        let file = &self.media[index];
        write_page(file, SegmentHead::offset(generation), &head.encode(store_id)[..])?;
        let (mut entries, mut offset) = (Vec::new(), RECORDS_START);
        let length = crate::geometry::stored_length(payload_length);
        while has_room(segment_bytes, offset, length, entries.len())
            && let Some(record) = records.next()
        {
            let address = RecordAddress { segment, generation, offset };
            let stripe = Stripe { offset: 0, length: payload_length, checksum: 0 };
            let header = record.header(store_id, address, payload_length, vec![stripe]);
            let bytes = header.encode().map_err(io::Error::other)?;
            if !sealed {
                write_page(file, offset, &bytes[..])?;
            }
            entries.push(entry_of(&header, RecordHeader::checksum_of(&bytes)));
            offset += length;
        }
        if sealed {
            seal(file, (head, store_id), (offset, segment_bytes), &entries)?;
        }
        file.sync()?;
        self.heads[index] = head;
        Ok(entries)
    }
}

fn seal(
    file: &dyn Medium,
    (head, store_id): (SegmentHead, [u8; 16]),
    (footer_offset, segment_bytes): (u64, u64),
    entries: &[Entry],
) -> io::Result<()> {
    let length = footer_length(entries.len());
    let mut footer_checksum = crate::format::checksum(&[]);
    if length > 0 {
        let memory = Mapping::create("refrain-outline", length).map_err(io::Error::other)?;
        let region = memory.region(0, length).map_err(io::Error::other)?;
        footer_checksum = region.fill_with(|bytes| encode_footer(entries, bytes));
        file.write_all_at(region.bytes(), footer_offset)?;
    }
    let trailer = Trailer {
        id: head.id,
        generation: head.generation,
        footer_offset,
        entries: u64::try_from(entries.len()).expect("usize fits"),
        footer_checksum,
    };
    write_page(file, segment_bytes - PAGE_SIZE, &trailer.encode(store_id)[..])
}

/// O_DIRECT asks for memory on a page, which a mapping has.
fn write_page(file: &dyn Medium, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let page = Mapping::create("refrain-outline", HEADER_SIZE).map_err(io::Error::other)?;
    let region = page.region(0, HEADER_SIZE).map_err(io::Error::other)?;
    region.copy_from(0, bytes);
    file.write_all_at(region.bytes(), offset)
}

#[cfg(test)]
mod tests {
    //! Proves that recovery finds an outlined segment's records, sealed or not, and that none of
    //! them can be read.

    use super::super::{Durability, IoEngine};
    use super::*;
    use crate::drive::DriveConfig;

    const SEGMENT: u64 = 16 << 20;

    fn record(id: u8) -> NewRecord {
        NewRecord {
            key_scheme: 1,
            sequence_hash: [id; 32],
            shard: 0,
            parent: [0; 32],
            namespace: [9; 32],
            epoch: 0,
            position: u32::from(id),
        }
    }

    #[test]
    fn outlined_records_are_recovered_and_never_read() {
        let parent = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let config = DriveConfig {
            path: parent.path().join("store"),
            capacity_bytes: 2 * SEGMENT,
            segment_bytes: Some(SEGMENT),
            io_engine: IoEngine::Auto,
            durability: Durability::Group,
        };
        let mut opening = Opening::open(&config).unwrap();
        let mut records = (0..=255).map(record);
        let full = opening.outline(SegmentId(1), 200_000, &mut records, true).unwrap();
        let open = opening.outline(SegmentId(0), 200_000, &mut records.take(3), false).unwrap();
        assert!(full.len() > 3, "a segment takes as many as it holds");
        drop(opening);
        let mut opening = Opening::open(&config).unwrap();
        let (sealed, unsealed) =
            (opening.scan(SegmentId(1), 0).unwrap(), opening.scan(SegmentId(0), 0).unwrap());
        assert_eq!((sealed.entries, sealed.sealed), (full, true));
        assert_eq!((&unsealed.entries, unsealed.sealed), (&open, false));
        assert!(opening.segments()[0].birth > opening.segments()[1].birth);
        assert!(opening.segments().iter().all(|head| head.generation == Generation(1)));
        let read = opening.read_record(SegmentId(0), &open[0]);
        assert!(read.unwrap_err().is_damage());
        // A segment may be sealed without any.
        assert_eq!(opening.outline(SegmentId(1), 1, &mut std::iter::empty(), true).unwrap(), []);
        let empty = opening.scan(SegmentId(1), 0).unwrap();
        assert!(empty.sealed && empty.entries.is_empty());
    }
}
