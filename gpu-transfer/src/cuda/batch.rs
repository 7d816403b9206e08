//! Copies made by the copy engine, many a call.

use super::registered::PIECE_BYTES;
use super::stream::OwnStream;
use super::{CudaError, check};
use crate::plan::Copy;
use cudarc::driver::sys;

/// `cuMemcpyBatchAsync` as CUDA 12.8 has it; from CUDA 13 on a second one without the failed index
/// stands beside it under another name.
type Call = unsafe extern "C" fn(
    targets: *mut sys::CUdeviceptr,
    sources: *mut sys::CUdeviceptr,
    sizes: *mut usize,
    count: usize,
    attributes: *mut sys::CUmemcpyAttributes,
    attribute_starts: *mut usize,
    attribute_count: usize,
    failed: *mut usize,
    stream: sys::CUstream,
) -> sys::CUresult;

#[derive(Clone, Copy, Debug)]
pub(super) struct BatchedCopy(Call);

/// Room for the arguments of a call.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    targets: Vec<u64>,
    sources: Vec<u64>,
    sizes: Vec<usize>,
}

impl BatchedCopy {
    /// `None` in drivers older than CUDA 12.8.
    pub(super) fn find() -> Option<Self> {
        // SAFETY: the library is there, as a context was opened with it.
        let library = unsafe { sys::culib() };
        // SAFETY: the driver's symbol of this name has this type since it exists.
        let call = unsafe { library.get::<Call>(b"cuMemcpyBatchAsync\0") };
        call.ok().map(|call| Self(*call))
    }

    /// Puts copies between an arena and the device on `stream`, in the current context.
    pub(super) fn submit(
        self,
        stream: &OwnStream,
        copies: &[Copy],
        arena: Arena,
        arguments: &mut Arguments,
    ) -> Result<(), CudaError> {
        arguments.fill(copies, arena);
        if arguments.sizes.is_empty() {
            return Ok(());
        }
        let nowhere = sys::CUmemLocation {
            type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_INVALID,
            id: 0,
        };
        let mut attributes = sys::CUmemcpyAttributes {
            srcAccessOrder: sys::CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM,
            srcLocHint: nowhere,
            dstLocHint: nowhere,
            flags: sys::CUmemcpyFlags::CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE as u32,
        };
        let (mut start, mut failed) = (0, usize::MAX);
        // SAFETY: three arrays of the same length, one attribute that begins at copy 0, and an
        // integer to write to; all are read before the call returns. The addresses are memory by
        // the rules of `Batch`, and no copy crosses two registrations.
        let answer = unsafe {
            (self.0)(
                arguments.targets.as_mut_ptr(),
                arguments.sources.as_mut_ptr(),
                arguments.sizes.as_mut_ptr(),
                arguments.sizes.len(),
                &raw mut attributes,
                &raw mut start,
                1,
                &raw mut failed,
                stream.handle(),
            )
        };
        check("cuMemcpyBatchAsync", answer)
    }
}

/// Where an arena begins, and which side of the copies it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arena {
    Source(u64),
    Target(u64),
}

impl Arguments {
    fn fill(&mut self, copies: &[Copy], arena: Arena) {
        self.targets.clear();
        self.sources.clear();
        self.sizes.clear();
        for copy in copies {
            let mut done = 0;
            while done < copy.length {
                let (source, target) = (copy.source + done, copy.target + done);
                let offset = match arena {
                    Arena::Source(base) => source - base,
                    Arena::Target(base) => target - base,
                };
                let length = (copy.length - done).min(PIECE_BYTES - offset % PIECE_BYTES);
                self.targets.push(target);
                self.sources.push(source);
                self.sizes.push(usize::try_from(length).expect("addresses have 64 bits"));
                done += length;
            }
        }
    }
}

#[cfg(test)]
mod tests;
