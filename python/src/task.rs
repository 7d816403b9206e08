//! A call under way on the runtime's threads, while Python's thread does something else or sleeps.
//!
//! Who waits has given the GIL away and sleeps on a futex, which a signal wakes: Ctrl-C ends the
//! wait, and the call with it. A call that was ended is over only when its future is gone, with all
//! that it copied: the caller's memory is then the caller's.

use crate::error::{cancelled, closed, of_client};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use refrain_client::ClientError;
use rustix::thread::futex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

const RUNNING: u32 = 0;
const OVER: u32 = 1;
const PANICKED: u32 = 2;

/// A signal that comes just before the sleep does not wake it; it is seen this much later.
const SIGNAL_LATE_MAX: Duration = Duration::from_secs(1);

/// Ended when dropped, which waits until it has.
#[derive(Debug)]
pub(crate) struct Task<T> {
    slot: Arc<Slot<T>>,
    abort: AbortHandle,
    ended: AtomicBool,
}

#[derive(Debug)]
struct Slot<T> {
    state: AtomicU32,
    /// None also when it is over, if it was ended or has panicked.
    outcome: Mutex<Option<Result<T, ClientError>>>,
}

/// Says that it is over, however that came.
struct Over<T>(Arc<Slot<T>>);

impl<T> Drop for Over<T> {
    fn drop(&mut self) {
        let state = if std::thread::panicking() { PANICKED } else { OVER };
        self.0.state.store(state, Ordering::Release);
        // Nobody may be waiting.
        let _ = futex::wake(&self.0.state, futex::Flags::PRIVATE, i32::MAX.unsigned_abs());
    }
}

impl<T> Slot<T> {
    fn is_over(&self) -> bool {
        self.state.load(Ordering::Acquire) != RUNNING
    }

    /// Returns when it is over, at a signal, or after `limit`.
    fn sleep(&self, limit: Option<Duration>) {
        let limit = limit.and_then(|limit| limit.try_into().ok());
        // Whatever ended the sleep, the state says whether it is over.
        let _ = futex::wait(&self.state, futex::Flags::PRIVATE, RUNNING, limit.as_ref());
    }
}

impl<T: Send + 'static> Task<T> {
    pub(crate) fn spawn(
        runtime: &Handle,
        future: impl Future<Output = Result<T, ClientError>> + Send + 'static,
    ) -> Self {
        let slot = Arc::new(Slot { state: AtomicU32::new(RUNNING), outcome: Mutex::new(None) });
        let over = Over(Arc::clone(&slot));
        let task = runtime.spawn(async move {
            // Dropped behind the future.
            let over = over;
            let outcome = future.await;
            *over.0.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        });
        Self { slot, abort: task.abort_handle(), ended: AtomicBool::new(false) }
    }

    /// Waits for the answer and takes it; at a signal, ends the call.
    pub(crate) fn answer(self, py: Python<'_>) -> PyResult<T> {
        match self.wait(py, None) {
            Ok(_) => self.take(),
            Err(signal) => {
                self.end(py);
                Err(signal)
            }
        }
    }

    /// `false`: it is not over after `limit`.
    pub(crate) fn wait(&self, py: Python<'_>, limit: Option<Duration>) -> PyResult<bool> {
        let end = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            if self.is_over() {
                return Ok(true);
            }
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(false);
            }
            let slice = left.unwrap_or(SIGNAL_LATE_MAX).min(SIGNAL_LATE_MAX);
            py.detach(|| self.slot.sleep(Some(slice)));
            if !self.is_over() {
                py.check_signals()?;
            }
        }
    }

    /// What it came to, once it is over; once only.
    pub(crate) fn take(&self) -> PyResult<T> {
        match self.slot.outcome.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => Err(of_client(&error)),
            None if self.slot.state.load(Ordering::Relaxed) == PANICKED => {
                Err(PyRuntimeError::new_err("a call of refrain_kv panicked; it said why"))
            }
            None if self.ended.load(Ordering::Relaxed) => Err(cancelled()),
            None => Err(closed("client was closed meanwhile")),
        }
    }
}

impl<T> Task<T> {
    pub(crate) fn is_over(&self) -> bool {
        self.slot.is_over()
    }
}

impl<T: Send> Task<T> {
    /// Ends the call if it is not over; returns when it is, and what it came to is dropped.
    pub(crate) fn end(&self, py: Python<'_>) {
        py.detach(|| self.end_detached());
    }

    fn end_detached(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.abort.abort();
        while !self.slot.is_over() {
            self.slot.sleep(None);
        }
        drop(self.slot.outcome.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
