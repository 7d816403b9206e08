//! The answer of a call that was begun and not waited for.

use crate::fork::OfProcess;
use crate::numbers;
use crate::session::Session;
use crate::task::Task;
use pyo3::exceptions::PyTimeoutError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use std::sync::Arc;

/// What arrived, as an object.
pub(crate) type Build<T> = fn(Python<'_>, &Arc<Session>, T) -> PyResult<Py<PyAny>>;

/// A call under way; dropping it ends it.
#[pyclass(frozen, generic, module = "refrain_kv")]
pub(crate) struct Pending {
    session: Arc<Session>,
    call: OfProcess<Box<dyn Call>>,
    answer: PyOnceLock<PyResult<Py<PyAny>>>,
}

/// A task whose answer becomes an object.
trait Call: Send + Sync {
    fn is_over(&self) -> bool;
    fn wait(&self, py: Python<'_>, limit: Option<std::time::Duration>) -> PyResult<bool>;
    fn take(&self, py: Python<'_>, session: &Arc<Session>) -> PyResult<Py<PyAny>>;
    fn end(&self, py: Python<'_>);
}

struct Built<T> {
    task: Task<T>,
    build: Build<T>,
}

impl<T: Send + 'static> Call for Built<T> {
    fn is_over(&self) -> bool {
        self.task.is_over()
    }

    fn wait(&self, py: Python<'_>, limit: Option<std::time::Duration>) -> PyResult<bool> {
        self.task.wait(py, limit)
    }

    fn take(&self, py: Python<'_>, session: &Arc<Session>) -> PyResult<Py<PyAny>> {
        (self.build)(py, session, self.task.take()?)
    }

    fn end(&self, py: Python<'_>) {
        self.task.end(py);
    }
}

impl Pending {
    pub(crate) fn new<T: Send + 'static>(
        session: &Arc<Session>,
        task: Task<T>,
        build: Build<T>,
    ) -> Self {
        let call: Box<dyn Call> = Box::new(Built { task, build });
        let session = Arc::clone(session);
        Self { session, call: OfProcess::new(call), answer: PyOnceLock::new() }
    }
}

#[pymethods]
impl Pending {
    /// Whether `result` would not wait. Neither does this.
    fn done(&self) -> PyResult<bool> {
        Ok(self.call.get()?.is_over())
    }

    #[pyo3(signature = (timeout=None))]
    fn result(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        let limit = timeout.map(numbers::duration).transpose()?;
        let call = self.call.get()?;
        if self.answer.get(py).is_none() && !call.wait(py, limit)? {
            return Err(PyTimeoutError::new_err("it is not over yet"));
        }
        let answer = self.answer.get_or_init(py, || call.take(py, &self.session));
        answer.as_ref().map(|answer| answer.clone_ref(py)).map_err(|error| error.clone_ref(py))
    }

    /// Ends it if it is not over. Afterwards none of its pages is read or written.
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        self.call.get()?.end(py);
        Ok(())
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.cancel(py)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // A child of the process that made it leaves it alone.
        if let Ok(call) = self.call.get() {
            Python::attach(|py| call.end(py));
        }
    }
}
