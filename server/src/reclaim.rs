//! Reclaim: the oldest segment is emptied when free ones run low.
//!
//! Blocks that were matched since it was written move on, the most recently matched first, for at
//! most a tenth of the segment's bytes; the rest go, and what stands behind them. A match touches
//! all ancestors, and an ancestor is written before its descendants: so by age of the match, then by
//! place, a block never moves ahead of its parent.
//!
//! Pinned blocks always move on, and count against no budget. A segment that is more than half full of
//! them stays as it is, while there are others: at most a quarter of a drive is pinned, so that there
//! are. For their new place a segment is kept free of saves.
//!
//! Segments that nobody holds go first. Where all are held, the oldest is emptied all the same: the
//! leases on it keep their bytes, and it is used again when the last of them has ended.

use crate::clock::unix_ms;
use crate::disks::Disk;
use crate::fates::{Eviction, Removal};
use crate::node::Node;
use crate::place::{BlockPlace, DriveId, Group};
use crate::save::LastRecords;
use crate::segments::SegmentUse;
use crate::state::State;
use refrain_index::chain::BlockKey;
use refrain_store::arena::Frame;
use refrain_store::check::{ReadError, Shape};
use refrain_store::engine::{
    Append, NewRecord, Payload, ReadSink, RecordRead, SegmentState, SegmentStatus, Stored,
};
use refrain_store::format::RecordHeader;
use refrain_store::geometry::RecordAddress;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;
use tracing::{debug, warn};

/// The end of a read, when it comes.
pub(crate) type ReadOutcome = oneshot::Receiver<Result<(), ReadError>>;

/// Of a segment's bytes, what may be written again.
const MOVED_SHARE: u64 = 10;
/// Records on the way at once while a segment is emptied.
const BATCH: usize = 32;
/// Blocks removed under one lock: lookups wait for no more than that.
const EMPTIED_AT_ONCE: usize = 256;

impl Disk {
    /// Free segments to keep: one that writes go to next, and one in reserve where there are many.
    fn free_wanted(&self) -> u64 {
        if self.drive.stats().segments >= 8 { 2 } else { 1 }
    }

    /// Bytes that records may still take.
    pub(crate) fn free_bytes(&self) -> u64 {
        let bytes = self.drive.stats().segment_bytes;
        let free = |segment: &SegmentStatus| match segment.state {
            SegmentState::Free => bytes,
            SegmentState::Open => bytes.saturating_sub(segment.end),
            SegmentState::Sealed | SegmentState::Lost => 0,
        };
        self.drive.segments().iter().map(free).sum()
    }

    pub(crate) fn reclaim_if_low(&self) {
        if self.drive.stats().segments_free < self.free_wanted() {
            self.reclaim.notify_one();
        }
    }
}

impl Node {
    /// Keeps segments of one drive free, for as long as the node runs.
    pub async fn reclaim(self: Arc<Self>, drive: DriveId) {
        let disk = self.disk(drive);
        loop {
            disk.reclaim.notified().await;
            while self.is_low(drive) && self.reclaim_one(drive).await {}
        }
    }

    /// Whether fewer segments are free than should be. What was given back counts as free: the
    /// drive hears of it a little later.
    fn is_low(&self, drive: DriveId) -> bool {
        let disk = self.disk(drive);
        if !disk.drive.stats().writable {
            // Nothing is written any more: what is there is best left.
            return false;
        }
        let segments = disk.drive.segments();
        let mut state = self.state();
        state.expire_pins(unix_ms());
        let is_free = |segment: &SegmentStatus| {
            segment.state == SegmentState::Free || is_retired(&state, drive, segment)
        };
        let free = segments.iter().filter(|segment| is_free(segment)).count();
        u64::try_from(free).expect("usize fits") < disk.free_wanted()
    }

    /// Whether a segment was given back; if not, none is sealed.
    async fn reclaim_one(&self, drive: DriveId) -> bool {
        let Some(mut group) = self.oldest(drive) else { return false };
        let mut moved = self.move_on(drive, &self.worth_moving(group)).await;
        while !self.begin_leaving(group) {
            // Pinned meanwhile, or there was no room to move what is.
            let again = self.move_on(drive, &self.pinned_in(group)).await;
            moved += again;
            if again == 0 {
                match self.oldest_of(drive, |segment| segment.pinned_bytes() == 0) {
                    Some(other) => group = other,
                    None => self.give_up_pins(group),
                }
            }
        }
        let evicted = self.empty(group);
        self.retire(group).await;
        self.metrics.evicted(Eviction::Reclaim, evicted);
        debug!(drive = drive.0, segment = group.segment().0, moved, evicted, "segment reclaimed");
        let disk = self.disk(drive);
        disk.journal.forget(group.segment());
        while disk.drive.release(group.segment()) == Err(refrain_store::drive::Refused::Busy) {
            tokio::task::yield_now().await;
        }
        true
    }

    fn begin_leaving(&self, group: Group) -> bool {
        self.state().segments.begin_leaving(group)
    }

    /// Writes blocks again where writes go now; how many count there.
    async fn move_on(&self, drive: DriveId, moving: &[(BlockKey, BlockPlace)]) -> u64 {
        let mut copies = Vec::with_capacity(moving.len());
        for batch in moving.chunks(BATCH) {
            copies.extend(self.copy(drive, batch).await);
        }
        self.move_to(drive, &copies).await
    }

    /// Removes what is left in a segment, a few blocks at a time; how many went.
    fn empty(&self, group: Group) -> u64 {
        let (mut evicted, at) = (0, self.clock.tick());
        loop {
            let mut state = self.state();
            let for_whom = state.fates.saver(group.drive());
            let removal = Removal { why: Eviction::Reclaim, at, for_whom };
            let some: Vec<_> = state.chain.group(group.number()).take(EMPTIED_AT_ONCE).collect();
            if some.is_empty() {
                return evicted;
            }
            for (key, place, _) in some {
                // An ancestor may have taken it along already.
                if state.chain.get(key) == Some(place) {
                    let gone = state.remove(key, removal).len();
                    evicted += u64::try_from(gone).expect("usize fits");
                }
            }
        }
    }

    /// Ends the use of an empty segment, once those that hold it have let go. Nobody comes anew, as
    /// its blocks are in no index, and leases end.
    async fn retire(&self, group: Group) {
        loop {
            let ended = self.lease_ended.notified();
            if self.retire_unless_held(group) {
                return;
            }
            ended.await;
        }
    }

    fn retire_unless_held(&self, group: Group) -> bool {
        let mut state = self.state();
        let is_held = state.segments.is_held(group);
        if !is_held {
            state.segments.retire(group);
        }
        !is_held
    }

    /// The segment that was begun first, of those that are not half full of pinned blocks and that
    /// nobody holds; of all, where there is none.
    fn oldest(&self, drive: DriveId) -> Option<Group> {
        self.oldest_of(drive, |_| true)
    }

    fn oldest_of(&self, drive: DriveId, which: impl Fn(SegmentUse) -> bool) -> Option<Group> {
        let disk = &self.disk(drive).drive;
        let half = disk.stats().segment_bytes / 2;
        let mut segments = disk.segments();
        segments.retain(|segment| segment.state == SegmentState::Sealed);
        segments.sort_unstable_by_key(|segment| segment.birth);
        let state = self.state();
        segments.retain(|segment| !is_retired(&state, drive, segment));
        let groups = segments.iter().filter_map(|segment| Group::new(drive, segment.id));
        let groups = groups.filter(|group| which(state.segments.get(*group)));
        // Of equals the first.
        groups.min_by_key(|group| {
            let is_pinned = state.segments.get(*group).pinned_bytes() > half;
            (is_pinned, state.segments.is_held(*group))
        })
    }

    /// Blocks of a segment that are pinned, by their place: so none moves ahead of its parent.
    fn pinned_in(&self, group: Group) -> Vec<(BlockKey, BlockPlace)> {
        let state = self.state();
        let blocks = state.chain.group(group.number()).map(|(key, place, _)| (key, place));
        let mut pinned: Vec<_> = blocks.filter(|(key, _)| state.pins.is_pinned(*key)).collect();
        drop(state);
        pinned.sort_unstable_by_key(|(_, place)| place.offset());
        pinned
    }

    /// What is pinned, and of what was hit as much as the budget allows.
    fn worth_moving(&self, group: Group) -> Vec<(BlockKey, BlockPlace)> {
        let mut moving = self.pinned_in(group);
        let state = self.state();
        let was_hit = |(key, _, touched): &(BlockKey, BlockPlace, u32)| {
            state.segments.was_hit(group, *touched) && !state.pins.is_pinned(*key)
        };
        let mut hit: Vec<_> = state.chain.group(group.number()).filter(was_hit).collect();
        drop(state);
        hit.sort_unstable_by_key(|(_, place, touched)| {
            (std::cmp::Reverse(*touched), place.offset())
        });
        let mut budget = self.disk(group.drive()).drive.stats().segment_bytes / MOVED_SHARE;
        let fits = |(_, place, _): &(BlockKey, BlockPlace, u32)| {
            let left = budget.checked_sub(place.stored_length());
            budget = left.unwrap_or(0);
            left.is_some()
        };
        moving.extend(hit.into_iter().take_while(fits).map(|(key, place, _)| (key, place)));
        moving
    }

    /// Copies records to where writes go now; those that arrived.
    async fn copy(&self, drive: DriveId, batch: &[(BlockKey, BlockPlace)]) -> Vec<Copied> {
        let mut read = Vec::with_capacity(batch.len());
        for &(key, place) in batch {
            if let Some((frame, outcome)) = self.read_record(key, place) {
                read.push((key, place, frame, outcome));
            }
        }
        let mut written = Vec::with_capacity(read.len());
        for (key, place, frame, outcome) in read {
            match outcome.await.unwrap_or(Err(ReadError::Stopped)) {
                Ok(()) => {
                    if let Some(stored) = self.append_again(drive, &frame) {
                        written.push((key, place, stored));
                    }
                }
                Err(error) if error.is_damage() => {
                    let mut state = self.state();
                    self.withdraw(&mut state, key, place, &error);
                }
                Err(error) => warn!(block = %key.sequence, error = %error, "block not moved"),
            }
        }
        let mut copies = Vec::with_capacity(written.len());
        for (key, from, answer) in written {
            if let Ok(Ok(stored)) = answer.await {
                copies.push(Copied { key, from, stored });
            }
        }
        copies
    }

    /// Has copies count in the place of what they were made from, once they would survive a power
    /// loss; how many do. One wait for all: each of them costs a sync.
    async fn move_to(&self, drive: DriveId, copies: &[Copied]) -> u64 {
        let group =
            |address: RecordAddress| Group::new(drive, address.segment).expect("checked at start");
        let mut last = LastRecords::default();
        for address in copies.iter().map(|copied| copied.stored.address) {
            last.add(group(address), address);
        }
        // Where nothing is synced, nothing is waited for.
        if self.is_synced() && !self.all_promised(&last).await {
            return 0;
        }
        let (mut count, mut bytes) = (0, 0);
        let mut state = self.state();
        for &Copied { key, from, stored: Stored { address, stored_length } } in copies {
            let to = BlockPlace::new(group(address), from.namespace, address.offset, stored_length);
            let to = to.expect("the engine places whole pages in a segment");
            if state.moved(key, from, (to, address.generation)) {
                count += 1;
                bytes += stored_length;
            }
        }
        drop(state);
        self.metrics.moved(count, bytes);
        self.disk(drive).moved_bytes.fetch_add(bytes, Ordering::Relaxed);
        count
    }

    /// Whether anything is ever promised.
    pub(crate) fn is_synced(&self) -> bool {
        self.config.durability != refrain_store::engine::Durability::None
    }

    /// Reads a whole record of whatever layout; `None` when there is no memory for it, or the drive
    /// takes no more, or is withdrawn.
    pub(crate) fn read_record(
        &self,
        key: BlockKey,
        place: BlockPlace,
    ) -> Option<(Arc<Frame>, ReadOutcome)> {
        // Nobody should wait for a drive that may never answer.
        if self.withdrawn().holds(&place) {
            return None;
        }
        self.try_record(key, place)
    }

    /// The same of a drive that may be withdrawn.
    pub(crate) fn try_record(
        &self,
        key: BlockKey,
        place: BlockPlace,
    ) -> Option<(Arc<Frame>, ReadOutcome)> {
        let mut state = self.state();
        let frame = Arc::new(self.take_frame(&mut state, place.stored_length())?);
        let (answer, outcome) = oneshot::channel();
        let record = RecordRead {
            address: state.segments.address(&place),
            sequence_hash: key.sequence.0,
            shard: key.shard,
            namespace: state.namespaces.get(place.namespace).digest.0,
            shape: Shape::Stored(place.stored_length()),
            frame: Arc::clone(&frame),
            by_stripe: false,
            deadline: None,
            sink: Arc::new(Answer(Mutex::new(Some(answer)))),
        };
        drop(state);
        let disk = self.disk(place.group.drive());
        disk.asked.notify_one();
        disk.drive.read(vec![record]).ok()?;
        Some((frame, outcome))
    }

    fn append_again(
        &self,
        drive: DriveId,
        frame: &Arc<Frame>,
    ) -> Option<oneshot::Receiver<Result<Stored, refrain_store::engine::AppendError>>> {
        let page = frame.region().bytes().first_chunk()?;
        let header = RecordHeader::decode(page).ok()?;
        let (answer, stored) = oneshot::channel();
        let append = Append {
            header: NewRecord::from(&header),
            payload: Payload::of_record(&header, frame.region()).ok()?,
            keep: Some(Box::new(Arc::clone(frame))),
            reply: Box::new(move |outcome| {
                // Whoever asked has gone; the record is written all the same.
                let _ = answer.send(outcome);
            }),
        };
        self.disk(drive).drive.append(append).ok()?;
        Some(stored)
    }
}

/// A record in its new place, which does not count yet.
#[derive(Clone, Copy)]
struct Copied {
    key: BlockKey,
    from: BlockPlace,
    stored: Stored,
}

/// Whether a segment was given back, and its drive has not heard of it yet.
fn is_retired(state: &State, drive: DriveId, segment: &SegmentStatus) -> bool {
    let group = Group::new(drive, segment.id);
    segment.state == SegmentState::Sealed
        && group.is_some_and(|group| state.segments.is_retired(group, segment.generation))
}

/// Answers one whole read.
struct Answer(Mutex<Option<oneshot::Sender<Result<(), ReadError>>>>);

impl ReadSink for Answer {
    fn stripe(&self, _: usize) {}

    fn done(&self, outcome: Result<(), ReadError>) {
        let answer = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(answer) = answer {
            // Whoever asked has gone; the read ran out all the same.
            let _ = answer.send(outcome);
        }
    }
}

#[cfg(test)]
mod tests;
