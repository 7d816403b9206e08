//! Slots: pieces of the session arena that blocks to save are put into.
//!
//! Free memory is kept as extents in order of place, joined where they touch. Slots are few and
//! short-lived, so first fit is enough, and any sizes may be mixed.

use crate::call::Deadline;
use crate::layout::PAGE_SIZE;
use refrain_gpu_transfer::arena::{Mapping, Region};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// A session arena and what of it is free.
#[derive(Debug)]
pub(crate) struct Slots {
    mapping: Arc<Mapping>,
    /// Length by offset; no two extents touch.
    free: Mutex<BTreeMap<u64, u64>>,
    freed: Notify,
}

/// A page-aligned piece of the session arena; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    region: Region,
    abandoned: bool,
}

impl Slots {
    pub(crate) fn new(mapping: Arc<Mapping>) -> Arc<Self> {
        let free = BTreeMap::from([(0, mapping.bytes_len() / PAGE_SIZE * PAGE_SIZE)]);
        Arc::new(Self { mapping, free: Mutex::new(free), freed: Notify::new() })
    }

    pub(crate) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.mapping.bytes_len() / PAGE_SIZE * PAGE_SIZE
    }

    /// A slot of `bytes`, if there is room now.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> Option<Slot> {
        let length = extent(bytes)?;
        let mut free = self.lock();
        let (&offset, &available) = free.iter().find(|(_, available)| **available >= length)?;
        free.remove(&offset);
        if available > length {
            free.insert(offset + length, available - length);
        }
        drop(free);
        let region = self.mapping.region(offset, bytes).expect("extents lie in the arena");
        Some(Slot { slots: Arc::clone(self), region, abandoned: false })
    }

    /// A slot of `bytes` as soon as there is room; `None` when there is none in time.
    pub(crate) async fn wait(self: &Arc<Self>, bytes: u64, deadline: Deadline) -> Option<Slot> {
        deadline
            .bound(async {
                loop {
                    let mut freed = std::pin::pin!(self.freed.notified());
                    // Listens before it looks, so that what is freed in between is not missed.
                    freed.as_mut().enable();
                    match self.take(bytes) {
                        Some(slot) => return slot,
                        None => freed.await,
                    }
                }
            })
            .await
    }

    fn give_back(&self, offset: u64, length: u64) {
        let mut free = self.lock();
        let (mut start, mut end) = (offset, offset + length);
        if let Some((&before, &bytes)) = free.range(..start).next_back() {
            assert!(before + bytes <= start, "a slot is given back once");
            if before + bytes == start {
                free.remove(&before);
                start = before;
            }
        }
        if let Some((&after, &bytes)) = free.range(offset..).next() {
            assert!(after >= end, "a slot is given back once");
            if after == end {
                free.remove(&after);
                end += bytes;
            }
        }
        free.insert(start, end - start);
        drop(free);
        self.freed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        // Its assertions come before any change.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    /// Never gives the bytes back: somebody may still read them, for as long as the arena exists.
    pub(crate) fn abandon(mut self) {
        self.abandoned = true;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.abandoned {
            let length = extent(self.region.length()).expect("it was taken with this length");
            self.slots.give_back(self.region.offset(), length);
        }
    }
}

/// What a slot of `bytes` takes of the arena.
fn extent(bytes: u64) -> Option<u64> {
    bytes.max(1).checked_next_multiple_of(PAGE_SIZE)
}

#[cfg(test)]
mod tests;
