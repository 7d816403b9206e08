//! Streams.

use super::{CudaError, Gpu, check};
use crate::copier::Stream;
use cudarc::driver::sys;
use std::sync::Arc;

/// Does not wait for the default stream, nor it for this one.
const NON_BLOCKING: u32 = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;

/// A stream of ours.
#[derive(Debug)]
pub struct OwnStream {
    gpu: Arc<Gpu>,
    stream: sys::CUstream,
}

// SAFETY: a stream may be used from any thread, and from several at once.
unsafe impl Send for OwnStream {}
// SAFETY: as for `Send`.
unsafe impl Sync for OwnStream {}

/// When a GPU takes what is on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// As streams have that are made without one: after all others.
    Least,
    /// Before those.
    Raised,
}

impl OwnStream {
    pub fn new(gpu: &Arc<Gpu>, priority: Priority) -> Result<Self, CudaError> {
        let _current = gpu.enter()?;
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: writes to the two integers.
        let range = unsafe { sys::cuCtxGetStreamPriorityRange(&raw mut least, &raw mut greatest) };
        check("cuCtxGetStreamPriorityRange", range)?;
        let priority = match priority {
            Priority::Least => least,
            // One above that of streams made without one, which have the least.
            Priority::Raised => greatest.max(least - 1),
        };
        let mut stream = std::ptr::null_mut();
        // SAFETY: writes to the pointer; destroyed when this is dropped.
        let created =
            unsafe { sys::cuStreamCreateWithPriority(&raw mut stream, NON_BLOCKING, priority) };
        check("cuStreamCreateWithPriority", created)?;
        Ok(Self { gpu: Arc::clone(gpu), stream })
    }

    /// As others name it.
    pub fn name(&self) -> Stream {
        Stream(u64::try_from(self.stream.addr()).expect("addresses have 64 bits"))
    }

    /// Waits until all on it is done.
    pub fn wait(&self) -> Result<(), CudaError> {
        let _current = self.gpu.enter()?;
        // SAFETY: the stream is one, in its own context.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    pub(super) fn handle(&self) -> sys::CUstream {
        self.stream
    }
}

impl Drop for OwnStream {
    fn drop(&mut self) {
        let Ok(_current) = self.gpu.enter() else { return };
        // SAFETY: created once, destroyed once; what is on it runs out.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.stream) };
    }
}

/// What the driver takes for a stream's name.
pub(super) fn handle(stream: Stream) -> sys::CUstream {
    let address = usize::try_from(stream.0).expect("addresses have 64 bits");
    std::ptr::with_exposed_provenance_mut(address)
}
