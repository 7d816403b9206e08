//! Memory of a GPU, and memory of the host that a GPU can use.

use super::{CudaError, Gpu, check};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

/// Memory of a GPU.
#[derive(Debug)]
pub struct DeviceMemory {
    gpu: Arc<Gpu>,
    address: u64,
    bytes: u64,
}

impl DeviceMemory {
    /// Zeroed memory.
    pub fn new(gpu: &Arc<Gpu>, bytes: u64) -> Result<Self, CudaError> {
        let _current = gpu.enter()?;
        let mut address = 0;
        // SAFETY: writes to the integer; freed when this is dropped.
        let allocated = unsafe { sys::cuMemAlloc_v2(&raw mut address, length(bytes)) };
        check("cuMemAlloc", allocated)?;
        let memory = Self { gpu: Arc::clone(gpu), address, bytes };
        // SAFETY: the range is the allocation.
        let zeroed = unsafe { sys::cuMemsetD8_v2(memory.address, 0, length(bytes)) };
        check("cuMemsetD8", zeroed)?;
        // SAFETY: the context is current; nothing else of this process is on it that must not be
        // waited for.
        check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })?;
        Ok(memory)
    }

    pub fn ordinal(&self) -> u32 {
        self.gpu.ordinal()
    }

    pub fn addresses(&self) -> Range<u64> {
        self.address..self.address + self.bytes
    }

    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), CudaError> {
        let source = self.place(offset, bytes.len())?;
        let _current = self.gpu.enter()?;
        // SAFETY: both ranges lie in their memory, and the call returns when it has copied.
        check("cuMemcpyDtoH", unsafe {
            sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), source, bytes.len())
        })
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), CudaError> {
        let target = self.place(offset, bytes.len())?;
        let _current = self.gpu.enter()?;
        // SAFETY: both ranges lie in their memory, and the call returns when `bytes` was read.
        check("cuMemcpyHtoD", unsafe {
            sys::cuMemcpyHtoD_v2(target, bytes.as_ptr().cast(), bytes.len())
        })?;
        // SAFETY: the context is current; pageable memory may still be on its way to the device.
        check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
    }

    fn place(&self, offset: u64, bytes: usize) -> Result<u64, CudaError> {
        let end = u64::try_from(bytes).ok().and_then(|bytes| offset.checked_add(bytes));
        if end.is_none_or(|end| end > self.bytes) {
            let (length, bytes) = (bytes, self.bytes);
            return Err(CudaError::OutOfRange { offset, length, bytes });
        }
        Ok(self.address + offset)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let Ok(_current) = self.gpu.enter() else { return };
        // SAFETY: allocated once, freed once; the driver waits for what uses it.
        let _ = unsafe { sys::cuMemFree_v2(self.address) };
    }
}

/// Pinned memory of the host that the GPU reads and writes at its own address.
#[derive(Debug)]
pub(super) struct HostBuffer {
    gpu: Arc<Gpu>,
    pointer: *mut c_void,
    bytes: usize,
}

// SAFETY: plain memory, of one owner.
unsafe impl Send for HostBuffer {}

impl HostBuffer {
    /// Zeroed memory.
    pub(super) fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self, CudaError> {
        let _current = gpu.enter()?;
        let mut pointer = std::ptr::null_mut();
        let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
        // SAFETY: writes to the pointer. Not write-combined, so that the CPU may read it too.
        let answer = unsafe { sys::cuMemHostAlloc(&raw mut pointer, bytes, flags) };
        check("cuMemHostAlloc", answer)?;
        let buffer = Self { gpu: Arc::clone(gpu), pointer, bytes };
        // SAFETY: the range is the allocation, which nobody else knows yet.
        unsafe { std::ptr::write_bytes(pointer.cast::<u8>(), 0, bytes) };
        Ok(buffer)
    }

    pub(super) fn address(&self) -> u64 {
        u64::try_from(self.pointer.expose_provenance()).expect("addresses have 64 bits")
    }

    /// All of it. Nothing on the GPU uses it meanwhile: its owner has waited for that.
    pub(super) fn words(&mut self) -> &mut [u64] {
        // SAFETY: allocated with this length, zeroed, aligned to pages, and borrowed by one.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.cast(), self.bytes / 8) }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        let Ok(_current) = self.gpu.enter() else { return };
        // SAFETY: allocated once, freed once; its owner has waited for what uses it.
        let _ = unsafe { sys::cuMemFreeHost(self.pointer) };
    }
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).expect("addresses have 64 bits")
}
