//! Copies made by a kernel that reads and writes host memory over PCIe by itself.

use super::memory::HostBuffer;
use super::stream::OwnStream;
use super::{CudaError, Gpu, check};
use crate::plan::Copy;
use cudarc::driver::sys;
use std::ffi::c_void;
use std::sync::Arc;

/// Compiled by the driver for the GPU at hand.
const PTX: &str = concat!(include_str!("copy.ptx"), "\0");

/// Enough to fill PCIe 5: on an H100 no more blocks and no more threads were faster.
const THREAD_BLOCKS: u32 = 32;
const THREADS: u32 = 256;
/// Longer copies are cut, so that all thread blocks have as much to do. A multiple of 16.
const PIECE_BYTES: u64 = 32 << 10;
/// `Piece` in `copy.cu`: source, target, length.
const PIECE_WORDS: usize = 3;

#[derive(Debug)]
pub(super) struct CopyKernel {
    module: sys::CUmodule,
    function: sys::CUfunction,
}

// SAFETY: a function may be launched from any thread.
unsafe impl Send for CopyKernel {}
// SAFETY: as for `Send`.
unsafe impl Sync for CopyKernel {}

/// The pieces of one launch, in memory that the GPU reads.
#[derive(Debug)]
pub(super) struct Pieces(HostBuffer);

impl CopyKernel {
    /// In the current context.
    pub(super) fn load() -> Result<Self, CudaError> {
        let mut module = std::ptr::null_mut();
        // SAFETY: writes to the pointer; the text ends with a zero.
        let answer = unsafe { sys::cuModuleLoadData(&raw mut module, PTX.as_ptr().cast()) };
        check("cuModuleLoadData", answer)?;
        let mut function = std::ptr::null_mut();
        // SAFETY: writes to the pointer; the module is one, and the name ends with a zero.
        let answer =
            unsafe { sys::cuModuleGetFunction(&raw mut function, module, c"copy_pieces".as_ptr()) };
        let kernel = Self { module, function };
        check("cuModuleGetFunction", answer).inspect_err(|_| kernel.unload())?;
        Ok(kernel)
    }

    /// Launches on `stream` in the current context. `pieces` are the kernel's until it has ended.
    pub(super) fn launch(
        &self,
        stream: &OwnStream,
        copies: &[Copy],
        pieces: &mut Pieces,
    ) -> Result<(), CudaError> {
        let mut count = pieces.fill(copies);
        let mut address = pieces.0.address();
        let mut parameters: [*mut c_void; 2] = [(&raw mut address).cast(), (&raw mut count).cast()];
        // SAFETY: the parameters are those of `copy_pieces`; they are read before the call returns.
        // The addresses in the pieces are memory by the rules of `Batch`.
        let answer = unsafe {
            sys::cuLaunchKernel(
                self.function,
                THREAD_BLOCKS.min(count),
                1,
                1,
                THREADS,
                1,
                1,
                0,
                stream.handle(),
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check("cuLaunchKernel", answer)
    }

    pub(super) fn unload(&self) {
        // SAFETY: loaded once, unloaded once by the owner's drop, when nothing runs any more.
        let _ = unsafe { sys::cuModuleUnload(self.module) };
    }
}

impl Pieces {
    /// Room for `copies` of `bytes` together.
    pub(super) fn new(gpu: &Arc<Gpu>, copies: usize, bytes: u64) -> Result<Self, CudaError> {
        let cuts = usize::try_from(bytes / PIECE_BYTES).expect("addresses have 64 bits");
        Ok(Self(HostBuffer::new(gpu, (copies + cuts) * PIECE_WORDS * 8)?))
    }

    fn fill(&mut self, copies: &[Copy]) -> u32 {
        let mut count = 0;
        let (words, _) = self.0.words().as_chunks_mut::<PIECE_WORDS>();
        let mut places = words.iter_mut();
        for copy in copies {
            for at in (0..copy.length).step_by(usize::try_from(PIECE_BYTES).expect("it fits")) {
                let length = PIECE_BYTES.min(copy.length - at);
                let place = places.next().expect("there is room for as many as a lane takes");
                *place = [copy.source + at, copy.target + at, length];
                count += 1;
            }
        }
        count
    }
}
