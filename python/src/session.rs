//! The life of a client: a runtime, and what must end before its threads do.

use crate::error::closed;
use crate::fork::OfProcess;
use crate::task::Task;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use refrain_client::ClientError;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::runtime::{Builder, Handle, Runtime};

/// Both control and announcements are small: on one node, bytes go through shared memory.
const THREADS: usize = 2;
/// A call that does not end by then ends with the process.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// A runtime, and all that was made with it.
#[derive(Debug)]
pub(crate) struct Session(OfProcess<Inner>);

#[derive(Debug)]
struct Inner {
    runtime: Mutex<Option<Runtime>>,
    handle: Handle,
    held: Mutex<Vec<Weak<dyn Ends>>>,
}

/// Something that a closed client no longer has.
trait Ends: Send + Sync + fmt::Debug {
    fn end(&self);
}

type Cell<T> = Mutex<Option<Arc<T>>>;

impl<T: Send + Sync + fmt::Debug> Ends for Cell<T> {
    fn end(&self) {
        let value = lock(self).take();
        drop(value);
    }
}

/// A value of a session's, until that is closed or the value is ended by itself.
#[derive(Debug)]
pub(crate) struct Held<T> {
    session: Arc<Session>,
    cell: OfProcess<Arc<Cell<T>>>,
}

impl Session {
    pub(crate) fn start() -> PyResult<Arc<Self>> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("refrain-kv")
            .enable_all()
            .build()
            .map_err(|error| {
                PyOSError::new_err(format!("start the threads of a client: {error}"))
            })?;
        let handle = runtime.handle().clone();
        let (runtime, held) = (Mutex::new(Some(runtime)), Mutex::new(Vec::new()));
        Ok(Arc::new(Self(OfProcess::new(Inner { runtime, handle, held }))))
    }

    pub(crate) fn is_open(&self) -> bool {
        self.0.get().is_ok_and(|inner| lock(&inner.runtime).is_some())
    }

    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T, ClientError>> + Send + 'static,
    ) -> PyResult<Task<T>> {
        let inner = self.0.get()?;
        if lock(&inner.runtime).is_none() {
            return Err(closed("client is closed"));
        }
        Ok(Task::spawn(&inner.handle, future))
    }

    /// Ends all calls under way, and then what they worked for: when it returns, no page is read or
    /// written any more.
    pub(crate) fn close(&self, py: Python<'_>) {
        // A child has nothing to close.
        let Ok(inner) = self.0.get() else { return };
        py.detach(|| inner.close(CLOSE_LIMIT));
    }

    fn hold<T: Send + Sync + fmt::Debug + 'static>(&self, cell: &Arc<Cell<T>>) -> PyResult<()> {
        let inner = self.0.get()?;
        let mut held = lock(&inner.held);
        // Whatever has gone is swept out when the list is as long again as what is there.
        if held.len() == held.capacity() {
            held.retain(|it| it.strong_count() > 0);
            let there = held.len();
            held.reserve(there.max(16));
        }
        let cell: Arc<dyn Ends> = Arc::<Cell<T>>::clone(cell);
        held.push(Arc::downgrade(&cell));
        Ok(())
    }
}

impl Inner {
    fn close(&self, limit: Duration) {
        let runtime = lock(&self.runtime).take();
        if let Some(runtime) = runtime {
            runtime.shutdown_timeout(limit);
        }
        let held = std::mem::take(&mut *lock(&self.held));
        for it in held.iter().filter_map(Weak::upgrade) {
            it.end();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // What could be waited for would have kept the session.
        if let Some(runtime) = lock(&self.runtime).take() {
            runtime.shutdown_background();
        }
    }
}

impl<T: Send + Sync + fmt::Debug + 'static> Held<T> {
    pub(crate) fn new(session: &Arc<Session>, value: T) -> PyResult<Self> {
        let cell = Arc::new(Mutex::new(Some(Arc::new(value))));
        session.hold(&cell)?;
        Ok(Self { session: Arc::clone(session), cell: OfProcess::new(cell) })
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    pub(crate) fn get(&self) -> PyResult<Arc<T>> {
        let value = lock(self.cell.get()?).clone();
        value.ok_or_else(|| closed("it was closed, or its client was"))
    }

    /// Drops the value, as soon as no call works with it any more.
    pub(crate) fn end(&self, py: Python<'_>) {
        if let Ok(cell) = self.cell.get() {
            py.detach(|| cell.end());
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here panics half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
