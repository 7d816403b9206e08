//! Points in a stream that others can wait for.

use super::stream::handle;
use super::{CudaError, Gpu, check};
use crate::copier::Stream;
use cudarc::driver::sys::{self, CUevent_flags_enum as Flags};
use std::sync::Arc;

/// A point behind some work on a GPU. Who waits for it on the CPU sleeps.
#[derive(Debug)]
pub(crate) struct Event {
    gpu: Arc<Gpu>,
    event: sys::CUevent,
}

// SAFETY: an event may be used from any thread, and from several at once.
unsafe impl Send for Event {}
// SAFETY: as for `Send`.
unsafe impl Sync for Event {}

impl Event {
    /// A point behind all that is on `stream` by now.
    pub(crate) fn behind(gpu: &Arc<Gpu>, stream: Stream) -> Result<Self, CudaError> {
        let _current = gpu.enter()?;
        let flags = Flags::CU_EVENT_BLOCKING_SYNC as u32 | Flags::CU_EVENT_DISABLE_TIMING as u32;
        let mut event = std::ptr::null_mut();
        // SAFETY: writes to the pointer; destroyed when this is dropped.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut event, flags) })?;
        let event = Self { gpu: Arc::clone(gpu), event };
        // SAFETY: the event is one, of the current context; the stream is the caller's word.
        let recorded = unsafe { sys::cuEventRecord(event.event, handle(stream)) };
        check("cuEventRecord", recorded)?;
        Ok(event)
    }

    /// Has what is put on `stream` from now on wait for this point.
    pub(crate) fn hold_back(&self, stream: Stream) -> Result<(), CudaError> {
        let _current = self.gpu.enter()?;
        // SAFETY: the event is recorded and of the current context; the stream is the caller's word.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(handle(stream), self.event, 0) })
    }

    /// Sleeps until the point is reached.
    pub(crate) fn wait(&self) -> Result<(), CudaError> {
        let _current = self.gpu.enter()?;
        // SAFETY: the event is recorded, and lives while `self` does.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.event) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let Ok(_current) = self.gpu.enter() else { return };
        // SAFETY: created once, destroyed once; streams that still wait for it go on to do so.
        let _ = unsafe { sys::cuEventDestroy_v2(self.event) };
    }
}
