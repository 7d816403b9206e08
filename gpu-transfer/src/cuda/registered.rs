//! Arenas that a GPU knows.

use super::{CudaError, Gpu, check};
use crate::arena::Mapping;
use cudarc::driver::sys;
use std::ffi::c_void;
use std::sync::Arc;

/// Bytes registered by one call. The driver pins a piece's pages under a lock that other calls wait
/// for, so a large arena must not be one piece; a copy must not reach from one into the next.
pub(super) const PIECE_BYTES: u64 = 1 << 30;

/// An arena whose pages are pinned and mapped for a GPU.
#[derive(Debug)]
pub(crate) struct Registered {
    gpu: Arc<Gpu>,
    arena: Arc<Mapping>,
    /// Bytes from the start that are registered.
    bytes: u64,
}

impl Registered {
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        arena: &Arc<Mapping>,
        writable: bool,
    ) -> Result<Self, CudaError> {
        let _current = gpu.enter()?;
        let usual = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;
        let flags = if writable { usual } else { usual | sys::CU_MEMHOSTREGISTER_READ_ONLY };
        let mut registered = Self { gpu: Arc::clone(gpu), arena: Arc::clone(arena), bytes: 0 };
        while registered.bytes < arena.bytes_len() {
            let length = PIECE_BYTES.min(arena.bytes_len() - registered.bytes);
            let piece = pointer(arena.address() + registered.bytes);
            let size = usize::try_from(length).expect("addresses have 64 bits");
            // SAFETY: the range lies in the mapping, which this keeps until it is unregistered.
            let answer = unsafe { sys::cuMemHostRegister_v2(piece, size, flags) };
            check("cuMemHostRegister", answer)?;
            registered.bytes += length;
        }
        Ok(registered)
    }

    pub(crate) fn ordinal(&self) -> u32 {
        self.gpu.ordinal()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let Ok(_current) = self.gpu.enter() else { return };
        for offset in (0..self.bytes).step_by(usize::try_from(PIECE_BYTES).expect("it fits")) {
            // SAFETY: registered once at this address, unregistered once. Copies that use it hold
            // it: none is under way.
            let _ = unsafe { sys::cuMemHostUnregister(pointer(self.arena.address() + offset)) };
        }
    }
}

fn pointer(address: u64) -> *mut c_void {
    let address = usize::try_from(address).expect("addresses have 64 bits");
    std::ptr::with_exposed_provenance_mut(address)
}
