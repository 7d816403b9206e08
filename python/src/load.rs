//! A load under way.

use crate::answers::Loaded;
use crate::pending::Pending;
use crate::session::{Held, Session};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use refrain_client::LayeredLoad;
use refrain_client::gpu_transfer::copier::Stream;
use std::sync::Arc;

/// Blocks on their way into the pages of a cache; dropping it cancels it.
#[pyclass(frozen, module = "refrain_kv")]
#[derive(Debug)]
pub(crate) struct Load(Held<LayeredLoad>);

impl Load {
    pub(crate) fn new(session: &Arc<Session>, load: LayeredLoad) -> PyResult<Self> {
        Ok(Self(Held::new(session, load)?))
    }

    pub(crate) fn build(
        py: Python<'_>,
        session: &Arc<Session>,
        load: LayeredLoad,
    ) -> PyResult<Py<PyAny>> {
        Ok(Py::new(py, Self::new(session, load)?)?.into_any())
    }
}

#[pymethods]
impl Load {
    /// Waits until a layer is on its way, then has `stream` wait for it; says how many blocks may
    /// be read.
    #[pyo3(signature = (layer, stream=0))]
    fn layer(&self, py: Python<'_>, layer: u32, stream: u64) -> PyResult<u32> {
        let load = self.0.get()?;
        if layer >= load.layers() {
            let message = format!("layer {layer} of {}", load.layers());
            return Err(PyIndexError::new_err(message));
        }
        let waiting = async move { load.layer(layer, Stream(stream)).await };
        self.0.session().spawn(waiting)?.answer(py)
    }

    /// How many layers `layer` does not wait for.
    #[getter]
    fn layers_on_their_way(&self) -> PyResult<u32> {
        Ok(self.0.get()?.layers_on_their_way())
    }

    /// Waits until all is copied.
    fn finish(&self, py: Python<'_>) -> PyResult<Loaded> {
        let load = self.0.get()?;
        let done = self.0.session().spawn(async move { load.finish().await })?.answer(py)?;
        Ok(Loaded(done))
    }

    fn begin_finish(&self) -> PyResult<Pending> {
        let load = self.0.get()?;
        let task = self.0.session().spawn(async move { load.finish().await })?;
        Ok(Pending::new(self.0.session(), task, Loaded::build))
    }

    /// Ends it. Afterwards none of its pages is written; those of blocks that had not come hold
    /// anything.
    fn cancel(&self, py: Python<'_>) {
        if let Ok(load) = self.0.get() {
            py.detach(|| {
                load.cancel();
                drop(load);
            });
        }
        self.0.end(py);
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyAny>) {
        self.cancel(py);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        Python::attach(|py| self.cancel(py));
    }
}
