//! A record as it is asked for, and what becomes of it.

use super::Payload;
use crate::format::{RecordHeader, Stripe};
use crate::geometry::RecordAddress;
use crate::segment::Entry;
use rustix::io::Errno;
use std::any::Any;
use thiserror::Error;

/// What a record says of its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewRecord {
    pub key_scheme: u32,
    pub sequence_hash: [u8; 32],
    pub shard: u32,
    pub parent: [u8; 32],
    pub namespace: [u8; 32],
    pub epoch: u64,
    pub position: u32,
}

impl From<&RecordHeader> for NewRecord {
    /// The same block again, for another place.
    fn from(header: &RecordHeader) -> Self {
        Self {
            key_scheme: header.key_scheme,
            sequence_hash: header.sequence_hash,
            shard: header.shard,
            parent: header.parent,
            namespace: header.namespace,
            epoch: header.epoch,
            position: header.position,
        }
    }
}

impl NewRecord {
    pub(crate) fn header(
        self,
        store_id: [u8; 16],
        address: RecordAddress,
        payload_length: u64,
        stripes: Vec<Stripe>,
    ) -> RecordHeader {
        RecordHeader {
            store_id,
            address,
            key_scheme: self.key_scheme,
            sequence_hash: self.sequence_hash,
            shard: self.shard,
            parent: self.parent,
            namespace: self.namespace,
            epoch: self.epoch,
            position: self.position,
            payload_length,
            withdrawn: false,
            stripes,
        }
    }
}

/// Called on the drive's thread, when a record can be read or never will be.
pub type Reply = Box<dyn FnOnce(Result<Stored, AppendError>) + Send>;

/// A record to be appended.
pub struct Append {
    pub header: NewRecord,
    pub payload: Payload,
    /// Dropped when the device is done with the payload.
    pub keep: Option<Box<dyn Any + Send>>,
    pub reply: Reply,
}

impl std::fmt::Debug for Append {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Append").field("header", &self.header).finish_non_exhaustive()
    }
}

/// Where a record went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    pub address: RecordAddress,
    pub stored_length: u64,
}

/// Why a record was not stored.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum AppendError {
    #[error("record of {length} bytes does not fit a segment, which holds {limit}")]
    TooLarge { length: u64, limit: u64 },
    #[error("payload of {found} bytes given, its pages take {expected}")]
    Payload { found: u64, expected: u64 },
    #[error("no segment is free: reclaim is behind")]
    NoSpace,
    #[error("write record")]
    Io(#[source] Errno),
    #[error("drive takes no writes since one failed")]
    ReadOnly,
    #[error("drive is stopping")]
    Stopped,
}

/// What the footer will repeat of `header`.
pub(crate) fn entry_of(header: &RecordHeader, header_checksum: u64) -> Entry {
    Entry {
        offset: header.address.offset,
        payload_length: header.payload_length,
        sequence_hash: header.sequence_hash,
        shard: header.shard,
        position: header.position,
        parent: header.parent,
        namespace: header.namespace,
        epoch: header.epoch,
        key_scheme: header.key_scheme,
        header_checksum,
    }
}
