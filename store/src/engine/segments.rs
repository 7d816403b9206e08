//! The segments of a drive and what each is good for.

use crate::geometry::{Generation, SegmentId};
use crate::segment::Entry;

/// What a segment is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// Holds nothing that anybody wants.
    Free,
    /// Takes records, or will as soon as its head is durable.
    Open,
    /// Full: read, until it is reclaimed.
    Sealed,
    /// A write or sync of it failed: read where the checksums allow, never written again.
    Lost,
}

/// One segment as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentStatus {
    pub id: SegmentId,
    pub generation: Generation,
    pub birth: u64,
    pub state: SegmentState,
    /// End of its last record.
    pub end: u64,
}

/// A segment as an engine begins with it.
#[derive(Clone, Debug)]
pub struct SegmentSetup {
    pub status: SegmentStatus,
    /// All records of the open one; of others they are not needed.
    pub entries: Vec<Entry>,
}
