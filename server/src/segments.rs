//! What the index holds in each segment, and who must not lose it.

use crate::place::{BlockPlace, DriveId, Group};
use refrain_store::geometry::{Generation, RecordAddress, SegmentId};

/// One segment, as far as blocks in it are concerned.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SegmentUse {
    generation: u64,
    pub(crate) live_blocks: u64,
    pub(crate) live_bytes: u64,
    /// Leases on blocks in it, one each.
    holds: u32,
    /// When the last record came, in ticks of the node's clock.
    written: u32,
    /// Of its live bytes, those that reclaim moves on in any case.
    pinned_bytes: u64,
    /// It is being emptied: nothing comes into it, and nothing in it is pinned.
    leaving: bool,
}

impl SegmentUse {
    pub(crate) fn written(&self) -> u32 {
        self.written
    }

    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.pinned_bytes
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving
    }
}

/// All segments of all drives.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    drives: Vec<Vec<SegmentUse>>,
    /// Of each drive.
    pinned_bytes: Vec<u64>,
}

impl Segments {
    pub(crate) fn add_drive(&mut self, generations: impl Iterator<Item = Generation>) -> DriveId {
        let drive = u8::try_from(self.drives.len()).expect("a node has at most 256 drives");
        self.drives.push(Vec::new());
        self.pinned_bytes.push(0);
        self.set_drive(DriveId(drive), generations);
        DriveId(drive)
    }

    /// A drive of which nothing was known is there.
    pub(crate) fn set_drive(&mut self, id: DriveId, generations: impl Iterator<Item = Generation>) {
        let uses = generations.map(|g| SegmentUse { generation: g.0, ..SegmentUse::default() });
        let drive = &mut self.drives[usize::from(id.0)];
        assert!(drive.is_empty(), "a drive comes once");
        drive.extend(uses);
    }

    pub(crate) fn get(&self, group: Group) -> SegmentUse {
        self.drives[usize::from(group.drive().0)][index(group.segment())]
    }

    fn get_mut(&mut self, group: Group) -> &mut SegmentUse {
        &mut self.drives[usize::from(group.drive().0)][index(group.segment())]
    }

    pub(crate) fn live_bytes(&self, drive: DriveId) -> u64 {
        self.drives[usize::from(drive.0)].iter().map(|segment| segment.live_bytes).sum()
    }

    /// Where the record of a block in the index starts.
    pub(crate) fn address(&self, place: &BlockPlace) -> RecordAddress {
        RecordAddress {
            segment: place.group.segment(),
            generation: Generation(self.get(place.group).generation),
            offset: place.offset(),
        }
    }

    /// Counts a block in; `false` where its segment has been used again since it was written, or is
    /// being emptied.
    pub(crate) fn enter(&mut self, place: &BlockPlace, generation: Generation, now: u32) -> bool {
        let segment = self.get_mut(place.group);
        if generation.0 < segment.generation || segment.leaving {
            return false;
        }
        segment.generation = generation.0;
        segment.live_blocks += 1;
        segment.live_bytes += place.stored_length();
        segment.written = now;
        true
    }

    pub(crate) fn leave(&mut self, place: &BlockPlace) {
        let segment = self.get_mut(place.group);
        segment.live_blocks -= 1;
        segment.live_bytes -= place.stored_length();
    }

    /// A block in the index is pinned from now on.
    pub(crate) fn pin(&mut self, place: &BlockPlace) {
        self.get_mut(place.group).pinned_bytes += place.stored_length();
        self.pinned_bytes[usize::from(place.group.drive().0)] += place.stored_length();
    }

    pub(crate) fn unpin(&mut self, place: &BlockPlace) {
        self.get_mut(place.group).pinned_bytes -= place.stored_length();
        self.pinned_bytes[usize::from(place.group.drive().0)] -= place.stored_length();
    }

    pub(crate) fn pinned_bytes(&self, drive: DriveId) -> u64 {
        self.pinned_bytes[usize::from(drive.0)]
    }

    /// Has nothing come into a segment any more; `false` while anything in it is pinned.
    pub(crate) fn begin_leaving(&mut self, group: Group) -> bool {
        let segment = self.get_mut(group);
        segment.leaving = segment.pinned_bytes == 0;
        segment.leaving
    }

    pub(crate) fn hold(&mut self, group: Group) {
        self.get_mut(group).holds += 1;
    }

    /// Whether that was the last hold.
    pub(crate) fn let_go(&mut self, group: Group) -> bool {
        let segment = self.get_mut(group);
        segment.holds -= 1;
        segment.holds == 0
    }

    pub(crate) fn is_held(&self, group: Group) -> bool {
        self.get(group).holds > 0
    }

    /// Of all leases on all segments.
    pub(crate) fn holds(&self) -> u64 {
        self.drives.iter().flatten().map(|segment| u64::from(segment.holds)).sum()
    }

    /// Whether a block was matched after its segment had been written.
    pub(crate) fn was_hit(&self, group: Group, touched: u32) -> bool {
        touched > self.get(group).written
    }

    /// Empties a segment that nobody holds: no record of this generation is let in any more.
    pub(crate) fn retire(&mut self, group: Group) {
        let segment = self.get_mut(group);
        assert_eq!((segment.holds, segment.live_blocks), (0, 0), "an empty, unheld segment");
        segment.generation += 1;
        segment.leaving = false;
    }

    /// Whether a segment was emptied that its drive says is in use `generation`: it has not heard
    /// of it yet.
    pub(crate) fn is_retired(&self, group: Group, generation: Generation) -> bool {
        self.get(group).generation > generation.0
    }
}

fn index(segment: SegmentId) -> usize {
    usize::try_from(segment.0).expect("32 bits fit")
}

#[cfg(test)]
mod tests {
    //! Proves that nothing comes into a segment from when it is emptied until it is used again.

    use super::*;
    use crate::place::NamespaceId;

    #[test]
    fn a_segment_that_is_being_emptied_takes_no_block_of_its_old_use() {
        let mut segments = Segments::default();
        let drive = segments.add_drive([Generation(3)].into_iter());
        let group = Group::new(drive, SegmentId(0)).unwrap();
        let place = BlockPlace::new(group, NamespaceId(0), 8192, 4096).unwrap();
        assert!(segments.enter(&place, Generation(3), 1));
        segments.pin(&place);
        assert!(!segments.begin_leaving(group), "what is pinned is moved first");
        segments.unpin(&place);
        assert!(segments.begin_leaving(group));
        assert!(!segments.enter(&place, Generation(3), 1), "its save has answered too late");
        segments.leave(&place);
        segments.retire(group);
        assert!(!segments.enter(&place, Generation(3), 1));
        assert!(segments.enter(&place, Generation(4), 1));
    }
}
