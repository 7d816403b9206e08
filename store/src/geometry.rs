//! Sizes and addresses: every offset on disk is computed here and nowhere else.

/// What O_DIRECT asks of offsets and lengths, and the unit in which a device may tear a write.
pub const PAGE_SIZE: u64 = 4096;

/// Size of a record header.
pub const HEADER_SIZE: u64 = PAGE_SIZE;

/// A segment file of one drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(pub u32);

/// Count of a segment's reuses; an address of an older one is a miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// Where a record's header starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordAddress {
    pub segment: SegmentId,
    pub generation: Generation,
    /// Bytes from the start of the segment file, a multiple of [`PAGE_SIZE`].
    pub offset: u64,
}

/// The least multiple of [`PAGE_SIZE`] that is at least `bytes`; `None` on overflow.
pub fn page_aligned(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(PAGE_SIZE)
}
