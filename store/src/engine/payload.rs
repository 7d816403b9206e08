//! What a record will hold, with the checksums that its header will hold.

use super::AppendError;
use crate::arena::Region;
use crate::format::{RecordHeader, Stripe, checksum};
use crate::geometry::{HEADER_SIZE, Layout, PAGE_SIZE, stored_length};

/// A block's stripes and their checksums.
#[derive(Clone, Debug)]
pub struct Payload {
    pub(super) region: Region,
    pub(super) stripes: Vec<Stripe>,
    pub(super) length: u64,
}

impl Payload {
    /// A block in `region`, up to the end of its last page. Its checksums are computed here, on the
    /// caller's thread: the drive's own has reads to check, and a device to keep busy.
    pub fn new(layout: &Layout, region: Region) -> Result<Self, AppendError> {
        let length = layout.payload_length;
        let (found, expected) = (region.length(), length.next_multiple_of(PAGE_SIZE));
        if found != expected {
            return Err(AppendError::Payload { found, expected });
        }
        let bytes = region.bytes();
        let stripes = layout.stripes.iter().map(|range| {
            let start = usize::try_from(range.offset).expect("memory is addressed");
            let length = usize::try_from(range.length).expect("memory is addressed");
            let checksum = checksum(&bytes[start..start + length]);
            Stripe { offset: range.offset, length: range.length, checksum }
        });
        let stripes = stripes.collect();
        Ok(Self { region, stripes, length })
    }

    /// That of a record that was read and checked. It keeps its checksums: bytes that rot on their
    /// way to a new place do not pass for right ones there.
    pub fn of_record(header: &RecordHeader, record: &Region) -> Result<Self, AppendError> {
        let (found, expected) = (record.length(), header.stored_length());
        if found < expected {
            return Err(AppendError::Payload { found, expected });
        }
        let region = record.slice(HEADER_SIZE, expected - HEADER_SIZE);
        Ok(Self { region, stripes: header.stripes.clone(), length: header.payload_length })
    }

    /// Bytes that its record takes.
    pub fn stored_length(&self) -> u64 {
        stored_length(self.length)
    }
}
