//! What a fork leaves of us: nothing. The threads of a client exist in the process that made it, so
//! its child may neither wait for them nor end them.

use crate::error::closed;
use pyo3::PyResult;
use std::sync::atomic::{AtomicU64, Ordering};

/// How often this process has come out of a fork as the child.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// Called in the child.
pub(crate) fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// A value that other processes neither use nor drop.
#[derive(Debug)]
pub(crate) struct OfProcess<T> {
    value: Option<T>,
    forks: u64,
}

impl<T> OfProcess<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: Some(value), forks: FORKS.load(Ordering::Relaxed) }
    }

    pub(crate) fn get(&self) -> PyResult<&T> {
        let value = self.value.as_ref().filter(|_| self.is_ours());
        value.ok_or_else(|| closed("made before a fork: make another in the child"))
    }

    fn is_ours(&self) -> bool {
        self.forks == FORKS.load(Ordering::Relaxed)
    }
}

impl<T> Drop for OfProcess<T> {
    #[expect(clippy::mem_forget, reason = "a lock inside may be held by a thread that is no more")]
    fn drop(&mut self) {
        if !self.is_ours() {
            std::mem::forget(self.value.take());
        }
    }
}
