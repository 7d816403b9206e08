//! Whether bytes that were read are the record that was asked for. Every read passes here.

use crate::format::{HeaderBytes, HeaderError, RecordHeader, checksum};
use crate::geometry::{Layout, RecordAddress, StripeRange};
use rustix::io::Errno;
use thiserror::Error;

/// The record that a reader wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub store_id: [u8; 16],
    pub address: RecordAddress,
    pub sequence_hash: [u8; 32],
    pub shard: u32,
    pub namespace: [u8; 32],
}

/// What a reader knows beforehand of a record's stripes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Those of a layout: others are refused, and each may be read by itself.
    Layout(Layout),
    /// Only the bytes that the record takes on disk: the stripes are what its header says.
    Stored(u64),
}

impl Shape {
    /// Bytes of the record, header and padding included.
    pub fn stored_length(&self) -> u64 {
        match self {
            Self::Layout(layout) => layout.stored_length(),
            Self::Stored(length) => *length,
        }
    }
}

/// Why a record was not read. To whoever asked for the block it is a miss.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadError {
    #[error("read record")]
    Io(#[source] Errno),
    #[error("read record: the file ends inside it")]
    Truncated,
    #[error("read record: no header where one should be")]
    Header(#[source] HeaderError),
    #[error("record is of another generation, place or store")]
    Stale,
    #[error("record is of another block than the one asked for")]
    OtherBlock,
    #[error("record was withdrawn by a repair")]
    Withdrawn,
    #[error("record has other stripes than its namespace's layout")]
    Layout,
    #[error("stripe {stripe} has checksum {found:#018x}, its header says {expected:#018x}")]
    Checksum { stripe: usize, expected: u64, found: u64 },
    #[error("deadline passed before the record was read")]
    Deadline,
    #[error("drive is stopping")]
    Stopped,
}

impl ReadError {
    /// What reports count it as.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Io(_) => "unreadable record",
            Self::Truncated => "record cut short",
            Self::Header(_) => "header",
            Self::Stale | Self::OtherBlock | Self::Layout => "other record",
            Self::Withdrawn => "withdrawn",
            Self::Checksum { .. } => "payload",
            Self::Deadline | Self::Stopped => "not read",
        }
    }

    /// Whether what is on disk is at fault, so that another try would end alike.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Io(_) | Self::Deadline | Self::Stopped => false,
            Self::Truncated
            | Self::Header(_)
            | Self::Stale
            | Self::OtherBlock
            | Self::Withdrawn
            | Self::Layout
            | Self::Checksum { .. } => true,
        }
    }
}

/// The header in `bytes`, if it is the one wanted.
pub fn header(bytes: &[u8], wanted: &Wanted) -> Result<RecordHeader, ReadError> {
    let page: &HeaderBytes = bytes.first_chunk().ok_or(ReadError::Truncated)?;
    let header = RecordHeader::decode(page).map_err(ReadError::Header)?;
    if header.store_id != wanted.store_id || header.address != wanted.address {
        return Err(ReadError::Stale);
    }
    let block = (header.sequence_hash, header.shard, header.namespace);
    if block != (wanted.sequence_hash, wanted.shard, wanted.namespace) {
        return Err(ReadError::OtherBlock);
    }
    if header.withdrawn {
        return Err(ReadError::Withdrawn);
    }
    Ok(header)
}

/// Whether the stripes are those that the reader has room for.
pub fn shape(header: &RecordHeader, shape: &Shape) -> Result<(), ReadError> {
    let found = header.stripes.iter();
    let found = found.map(|stripe| StripeRange { offset: stripe.offset, length: stripe.length });
    let fits = match shape {
        Shape::Layout(layout) => found.eq(layout.stripes.iter().copied()),
        Shape::Stored(length) => header.stored_length() == *length,
    };
    if fits { Ok(()) } else { Err(ReadError::Layout) }
}

/// Whether `bytes` are stripe number `index`.
pub fn stripe(header: &RecordHeader, index: usize, bytes: &[u8]) -> Result<(), ReadError> {
    let expected = header.stripes[index].checksum;
    let found = checksum(bytes);
    if found == expected {
        Ok(())
    } else {
        Err(ReadError::Checksum { stripe: index, expected, found })
    }
}
