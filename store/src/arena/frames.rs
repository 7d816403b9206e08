//! Frames of any size out of one mapping, without fragmenting it.
//!
//! The mapping is cut into slabs. A slab serves frames of one size at a time, and becomes free for
//! another size when its last frame is given back; so no mix of sizes can wedge the arena.

use super::{Mapping, Region};
use crate::geometry::page_aligned;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Least size of a slab: several frames of the largest models' blocks.
const SLAB_MIN: u64 = 16 << 20;
/// A small arena is still cut into this many slabs, where frames stay small enough for that.
const SLABS: u64 = 16;

/// Frames over a mapping.
#[derive(Debug)]
pub struct Arena {
    mapping: Arc<Mapping>,
    slab_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    slabs: Vec<Slab>,
    free_slabs: Vec<usize>,
    /// Slabs of each frame size that have a frame to give.
    open: HashMap<u64, Vec<usize>>,
    allocated_bytes: u64,
}

#[derive(Debug, Default)]
struct Slab {
    frame_bytes: u64,
    frames_used: u64,
    free: Vec<u64>,
    listed: bool,
}

/// A page-aligned piece of an arena; dropping it gives it back.
#[derive(Debug)]
pub struct Frame {
    arena: Arc<Arena>,
    region: Region,
    slab: usize,
}

impl Arena {
    pub fn new(mapping: Arc<Mapping>) -> Arc<Self> {
        let bytes = mapping.bytes_len();
        let slab_bytes = (bytes / SLABS).max(SLAB_MIN).min(bytes);
        let slab_bytes = slab_bytes - slab_bytes % crate::geometry::PAGE_SIZE;
        let count = usize::try_from(bytes / slab_bytes).expect("addresses have 64 bits");
        let state = State {
            slabs: (0..count).map(|_| Slab::default()).collect(),
            free_slabs: (0..count).rev().collect(),
            open: HashMap::new(),
            allocated_bytes: 0,
        };
        Arc::new(Self { mapping, slab_bytes, state: Mutex::new(state) })
    }

    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// The largest frame that can be had.
    pub fn frame_bytes_max(&self) -> u64 {
        self.slab_bytes
    }

    /// Bytes of all frames that are out.
    pub fn allocated_bytes(&self) -> u64 {
        self.lock().allocated_bytes
    }

    /// A frame of at least `bytes`; `None` when no slab has one to give.
    pub fn allocate(self: &Arc<Self>, bytes: u64) -> Option<Frame> {
        let bytes = page_aligned(bytes.max(1)).filter(|&bytes| bytes <= self.slab_bytes)?;
        let mut state = self.lock();
        let (slab, index) = state.take(bytes, self.slab_bytes)?;
        state.allocated_bytes += bytes;
        drop(state);
        let base = self.slab_bytes * u64::try_from(slab).expect("usize fits");
        let region = self.mapping.region(base + index * bytes, bytes).expect("slabs tile it");
        Some(Frame { arena: Arc::clone(self), region, slab })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // No code of ours panics half-way through a change of the state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, frame_bytes: u64, slab_bytes: u64) -> Option<(usize, u64)> {
        let open = self.open.entry(frame_bytes).or_default();
        let slab = if let Some(&slab) = open.last() {
            slab
        } else {
            let slab = self.free_slabs.pop()?;
            let frames = slab_bytes / frame_bytes;
            let free = (0..frames).rev().collect();
            self.slabs[slab] = Slab { frame_bytes, frames_used: 0, free, listed: true };
            open.push(slab);
            slab
        };
        let entry = &mut self.slabs[slab];
        let index = entry.free.pop().expect("a listed slab has a free frame");
        entry.frames_used += 1;
        if entry.free.is_empty() {
            entry.listed = false;
            open.pop();
        }
        Some((slab, index))
    }

    fn give_back(&mut self, slab: usize, index: u64) {
        let entry = &mut self.slabs[slab];
        let open = self.open.entry(entry.frame_bytes).or_default();
        entry.free.push(index);
        entry.frames_used -= 1;
        if entry.frames_used == 0 {
            if entry.listed {
                open.retain(|&listed| listed != slab);
            }
            *entry = Slab::default();
            self.free_slabs.push(slab);
        } else if !entry.listed {
            entry.listed = true;
            open.push(slab);
        }
    }
}

impl Frame {
    pub fn region(&self) -> &Region {
        &self.region
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let bytes = self.region.length();
        let mut state = self.arena.lock();
        state.allocated_bytes -= bytes;
        let base = self.arena.slab_bytes * u64::try_from(self.slab).expect("usize fits");
        state.give_back(self.slab, (self.region.offset() - base) / bytes);
    }
}
