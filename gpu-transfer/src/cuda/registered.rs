//! Arenas that a GPU knows.

use super::{CudaError, Gpu, check};
use crate::arena::Mapping;
use cudarc::driver::sys;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes registered by one call. The driver pins a piece's pages under a lock that other calls wait
/// for, so a large arena must not be one piece; a copy must not reach from one into the next.
pub(super) const PIECE_BYTES: u64 = 1 << 30;

/// What the driver knows, by where it lies. It takes no memory twice, and a worker with several
/// caches has as many copiers, which all copy between their cache and the arenas of one session.
static KNOWN: Mutex<BTreeMap<u64, Pages>> = Mutex::new(BTreeMap::new());

/// An arena whose pages are pinned and mapped for all GPUs, as long as anybody has it so.
#[derive(Debug)]
pub(crate) struct Registered {
    gpu: Arc<Gpu>,
    arena: Arc<Mapping>,
}

impl Registered {
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        arena: &Arc<Mapping>,
        writable: bool,
    ) -> Result<Self, CudaError> {
        let mut known = known();
        let pages = match known.entry(arena.address()) {
            Entry::Occupied(pages) => pages.into_mut(),
            Entry::Vacant(place) => place.insert(Pages::register(gpu, arena, writable)?),
        };
        pages.holders += 1;
        Ok(Self { gpu: Arc::clone(gpu), arena: Arc::clone(arena) })
    }

    pub(crate) fn ordinal(&self) -> u32 {
        self.gpu.ordinal()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut known = known();
        if let Entry::Occupied(mut pages) = known.entry(self.arena.address()) {
            pages.get_mut().holders -= 1;
            if pages.get().holders == 0 {
                // Before anybody registers them anew.
                pages.remove();
            }
        }
    }
}

/// Pages that are registered, in the context of one GPU; all others see them at the same address.
#[derive(Debug)]
struct Pages {
    gpu: Arc<Gpu>,
    address: u64,
    /// Bytes from the start that are registered.
    bytes: u64,
    /// Each keeps the mapping.
    holders: usize,
}

impl Pages {
    fn register(gpu: &Arc<Gpu>, arena: &Mapping, writable: bool) -> Result<Self, CudaError> {
        let _current = gpu.enter()?;
        let usual = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;
        let flags = if writable { usual } else { usual | sys::CU_MEMHOSTREGISTER_READ_ONLY };
        let mut pages =
            Self { gpu: Arc::clone(gpu), address: arena.address(), bytes: 0, holders: 0 };
        while pages.bytes < arena.bytes_len() {
            let length = PIECE_BYTES.min(arena.bytes_len() - pages.bytes);
            let piece = pointer(pages.address + pages.bytes);
            let size = usize::try_from(length).expect("addresses have 64 bits");
            // SAFETY: the range lies in the mapping, which whoever holds these pages keeps until
            // they are unregistered.
            let answer = unsafe { sys::cuMemHostRegister_v2(piece, size, flags) };
            check("cuMemHostRegister", answer)?;
            pages.bytes += length;
        }
        Ok(pages)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let Ok(_current) = self.gpu.enter() else { return };
        for offset in (0..self.bytes).step_by(usize::try_from(PIECE_BYTES).expect("it fits")) {
            // SAFETY: registered once at this address, unregistered once. Copies that use it hold
            // it: none is under way.
            let _ = unsafe { sys::cuMemHostUnregister(pointer(self.address + offset)) };
        }
    }
}

fn known() -> MutexGuard<'static, BTreeMap<u64, Pages>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pointer(address: u64) -> *mut c_void {
    let address = usize::try_from(address).expect("addresses have 64 bits");
    std::ptr::with_exposed_provenance_mut(address)
}
