//! The record header: what it holds, byte by byte, and how it is refused.
//!
//! The layout is specified in `docs/on-disk-format.md`. A header names the place it was written to,
//! so that a misdirected write cannot vouch for itself, and holds the checksums of the stripes, so
//! that a stripe cannot vouch for itself either.

use crate::geometry::{
    Generation, HEADER_SIZE, PAGE_SIZE, RecordAddress, STRIPES_MAX, SegmentId, page_aligned,
};
use thiserror::Error;

/// First bytes of every record header.
pub const MAGIC: [u8; 8] = *b"REFRAINR";
/// The version written; every version up to it is read.
pub const VERSION: u32 = 1;

const STRIPE_TABLE: usize = 256;
const STRIPE_ENTRY: usize = 24;
const CHECKSUM: usize = 4088;
const HEADER_BYTES: usize = 4096;
const _: () = assert!(HEADER_BYTES as u64 == HEADER_SIZE);
const _: () = assert!(STRIPE_TABLE + STRIPES_MAX * STRIPE_ENTRY <= CHECKSUM);

/// One header as it stands on disk.
pub type HeaderBytes = [u8; HEADER_BYTES];

/// A whole number of layers of one block: the unit of reading in order and of checking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stripe {
    /// Bytes from the start of the payload, a multiple of 4 KiB.
    pub offset: u64,
    /// Bytes that count; the rest up to the next page is padding.
    pub length: u64,
    pub checksum: u64,
}

/// All that a record says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub store_id: [u8; 16],
    pub address: RecordAddress,
    pub key_scheme: u32,
    pub sequence_hash: [u8; 32],
    pub shard: u32,
    pub parent: [u8; 32],
    pub namespace: [u8; 32],
    /// The namespace's epoch when the block was saved.
    pub epoch: u64,
    /// Blocks before this one in its chain.
    pub position: u32,
    /// Bytes from the start of the first stripe to the end of the last.
    pub payload_length: u64,
    /// Set by a repair: the record keeps its place in the segment and no longer counts.
    pub withdrawn: bool,
    pub stripes: Vec<Stripe>,
}

/// Why bytes are not a record header, or not one that can be written.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeaderError {
    #[error("read record header: no magic")]
    Magic,
    #[error("read record header: checksum {found:#018x}, computed {computed:#018x}")]
    Checksum { found: u64, computed: u64 },
    #[error("read record header: format version {found}, this build reads up to {VERSION}")]
    NewerVersion { found: u32 },
    #[error("record header has {count} stripes, a record holds 1 to {STRIPES_MAX}")]
    StripeCount { count: usize },
    #[error("stripe {index} spans bytes {offset}+{length}, outside its place in the payload")]
    StripeRange { index: usize, offset: u64, length: u64 },
    #[error("payload of {declared} bytes declared, stripes end at {end}")]
    PayloadLength { declared: u64, end: u64 },
    #[error("record header has unknown flags {flags:#x}")]
    Flags { flags: u32 },
    #[error("record at byte {offset} is not on a 4 KiB boundary")]
    Unaligned { offset: u64 },
}

/// CRC-64/NVME of `bytes`.
pub fn checksum(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

impl RecordHeader {
    /// The header as bytes, its own checksum included.
    pub fn encode(&self) -> Result<Box<HeaderBytes>, HeaderError> {
        self.check()?;
        let mut bytes = Box::new([0; HEADER_BYTES]);
        let mut out = Cursor { bytes: &mut bytes[..], at: 0 };
        out.put(&MAGIC);
        out.put(&VERSION.to_le_bytes());
        out.put(&self.key_scheme.to_le_bytes());
        out.put(&self.store_id);
        out.put(&self.address.generation.0.to_le_bytes());
        out.put(&self.address.offset.to_le_bytes());
        out.put(&self.address.segment.0.to_le_bytes());
        out.put(&self.shard.to_le_bytes());
        out.put(&self.sequence_hash);
        out.put(&self.parent);
        out.put(&self.namespace);
        out.put(&self.epoch.to_le_bytes());
        out.put(&self.payload_length.to_le_bytes());
        out.put(&self.position.to_le_bytes());
        let count = u32::try_from(self.stripes.len()).expect("checked: at most STRIPES_MAX");
        out.put(&count.to_le_bytes());
        out.put(&u32::from(self.withdrawn).to_le_bytes());
        out.at = STRIPE_TABLE;
        for stripe in &self.stripes {
            out.put(&stripe.offset.to_le_bytes());
            out.put(&stripe.length.to_le_bytes());
            out.put(&stripe.checksum.to_le_bytes());
        }
        let sum = checksum(&bytes[..CHECKSUM]);
        bytes[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
        Ok(bytes)
    }

    /// Reads a header and checks all that it says of itself; whether it is the record that was
    /// asked for, the caller compares.
    pub fn decode(bytes: &HeaderBytes) -> Result<Self, HeaderError> {
        let mut input = Reader { bytes: &bytes[..], at: 0 };
        if input.array::<8>() != MAGIC {
            return Err(HeaderError::Magic);
        }
        let found = u64::from_le_bytes(Reader { bytes, at: CHECKSUM }.array());
        let computed = checksum(&bytes[..CHECKSUM]);
        if found != computed {
            return Err(HeaderError::Checksum { found, computed });
        }
        let version = input.u32();
        if version > VERSION {
            return Err(HeaderError::NewerVersion { found: version });
        }
        let key_scheme = input.u32();
        let store_id = input.array();
        let generation = Generation(input.u64());
        let offset = input.u64();
        let segment = SegmentId(input.u32());
        let shard = input.u32();
        let (sequence_hash, parent, namespace) = (input.array(), input.array(), input.array());
        let (epoch, payload_length, position) = (input.u64(), input.u64(), input.u32());
        let count = usize::try_from(input.u32()).unwrap_or(usize::MAX);
        if count > STRIPES_MAX {
            return Err(HeaderError::StripeCount { count });
        }
        let flags = input.u32();
        if flags > 1 {
            return Err(HeaderError::Flags { flags });
        }
        input.at = STRIPE_TABLE;
        let stripes = (0..count)
            .map(|_| Stripe { offset: input.u64(), length: input.u64(), checksum: input.u64() })
            .collect();
        let header = Self {
            store_id,
            address: RecordAddress { segment, generation, offset },
            key_scheme,
            sequence_hash,
            shard,
            parent,
            namespace,
            epoch,
            position,
            payload_length,
            withdrawn: flags == 1,
            stripes,
        };
        header.check()?;
        Ok(header)
    }

    /// Bytes that the record takes on disk, header and padding included.
    pub fn stored_length(&self) -> u64 {
        crate::geometry::stored_length(self.payload_length)
    }

    /// The checksum that stands at the end of an encoded header.
    pub fn checksum_of(bytes: &HeaderBytes) -> u64 {
        u64::from_le_bytes(Reader { bytes, at: CHECKSUM }.array())
    }

    fn check(&self) -> Result<(), HeaderError> {
        if !self.address.offset.is_multiple_of(PAGE_SIZE) {
            return Err(HeaderError::Unaligned { offset: self.address.offset });
        }
        let count = self.stripes.len();
        if !(1..=STRIPES_MAX).contains(&count) {
            return Err(HeaderError::StripeCount { count });
        }
        let (mut expected, mut end) = (0, 0);
        for (index, &Stripe { offset, length, .. }) in self.stripes.iter().enumerate() {
            let range = HeaderError::StripeRange { index, offset, length };
            if offset != expected || length == 0 {
                return Err(range);
            }
            end = offset.checked_add(length).ok_or(range)?;
            expected =
                page_aligned(end).ok_or(HeaderError::StripeRange { index, offset, length })?;
        }
        if end != self.payload_length {
            return Err(HeaderError::PayloadLength { declared: self.payload_length, end });
        }
        Ok(())
    }
}

struct Cursor<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Cursor<'_> {
    fn put(&mut self, field: &[u8]) {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.bytes[self.at..self.at + N]);
        self.at += N;
        field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

#[cfg(test)]
mod tests;
