//! Where a block lies on SSD, small enough to stand in the index a million times.

use refrain_index::chain::Place;
use refrain_store::geometry::{PAGE_SIZE, SegmentId};

/// A drive of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DriveId(pub u8);

/// A segment of one of the drives: what is reclaimed, and held, as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Group(u32);

const SEGMENT_BITS: u32 = 24;

impl Group {
    /// `None` for a segment beyond what a drive may have: 2^24 of them.
    pub(crate) fn new(drive: DriveId, segment: SegmentId) -> Option<Self> {
        let fits = segment.0 < 1 << SEGMENT_BITS;
        fits.then(|| Self(u32::from(drive.0) << SEGMENT_BITS | segment.0))
    }

    /// What the index calls it.
    pub(crate) fn number(self) -> u32 {
        self.0
    }

    pub(crate) fn drive(self) -> DriveId {
        DriveId(u8::try_from(self.0 >> SEGMENT_BITS).expect("8 bits are left"))
    }

    pub(crate) fn segment(self) -> SegmentId {
        SegmentId(self.0 & ((1 << SEGMENT_BITS) - 1))
    }
}

/// A namespace by the order in which this process met it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NamespaceId(pub u32);

/// The generation is that of the segment: a block of an older one is in no index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockPlace {
    pub group: Group,
    pub namespace: NamespaceId,
    /// In pages: a segment has at most 2^32 of them.
    page: u32,
    pages: u32,
}

impl BlockPlace {
    /// `offset` and `stored_length` are whole pages of one segment; `None` where they cannot be.
    pub(crate) fn new(
        group: Group,
        namespace: NamespaceId,
        offset: u64,
        stored_length: u64,
    ) -> Option<Self> {
        let whole = offset.is_multiple_of(PAGE_SIZE) && stored_length.is_multiple_of(PAGE_SIZE);
        let page = u32::try_from(offset / PAGE_SIZE).ok().filter(|_| whole)?;
        let pages = u32::try_from(stored_length / PAGE_SIZE).ok()?;
        Some(Self { group, namespace, page, pages })
    }

    pub(crate) fn offset(&self) -> u64 {
        u64::from(self.page) * PAGE_SIZE
    }

    /// Bytes of the record, header and padding included.
    pub(crate) fn stored_length(&self) -> u64 {
        u64::from(self.pages) * PAGE_SIZE
    }
}

impl Place for BlockPlace {
    fn group(&self) -> u32 {
        self.group.number()
    }
}

#[cfg(test)]
mod tests {
    //! Proves that a place gives back what it was made of, and refuses what it cannot hold.

    use super::*;

    #[test]
    fn a_place_is_what_it_was_made_of() {
        let group = Group::new(DriveId(255), SegmentId((1 << 24) - 1)).unwrap();
        assert_eq!((group.drive(), group.segment()), (DriveId(255), SegmentId((1 << 24) - 1)));
        let place = BlockPlace::new(group, NamespaceId(7), 1 << 30, 4_501_504).unwrap();
        assert_eq!((place.offset(), place.stored_length()), (1 << 30, 4_501_504));
        assert_eq!(size_of::<BlockPlace>(), 16);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(Group::new(DriveId(0), SegmentId(1 << 24)), None);
        let group = Group::new(DriveId(0), SegmentId(0)).unwrap();
        assert_eq!(BlockPlace::new(group, NamespaceId(0), 1, 4096), None);
        assert_eq!(BlockPlace::new(group, NamespaceId(0), 1 << 45, 4096), None);
    }
}
