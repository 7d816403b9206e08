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
}

impl SegmentUse {
    pub(crate) fn written(&self) -> u32 {
        self.written
    }
}

/// All segments of all drives.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    drives: Vec<Vec<SegmentUse>>,
}

impl Segments {
    pub(crate) fn add_drive(&mut self, generations: impl Iterator<Item = Generation>) -> DriveId {
        let drive = u8::try_from(self.drives.len()).expect("a node has at most 256 drives");
        let uses = generations.map(|g| SegmentUse { generation: g.0, ..SegmentUse::default() });
        self.drives.push(uses.collect());
        DriveId(drive)
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

    /// Counts a block in; `false` where its segment has been used again since it was written.
    pub(crate) fn enter(&mut self, place: &BlockPlace, generation: Generation, now: u32) -> bool {
        let segment = self.get_mut(place.group);
        if generation.0 < segment.generation {
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

    /// Whether a block was matched after its segment had been written.
    pub(crate) fn was_hit(&self, group: Group, touched: u32) -> bool {
        touched > self.get(group).written
    }

    /// Empties a segment that nobody holds: no record of this generation is let in any more.
    pub(crate) fn retire(&mut self, group: Group) {
        let segment = self.get_mut(group);
        assert_eq!((segment.holds, segment.live_blocks), (0, 0), "an empty, unheld segment");
        segment.generation += 1;
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
