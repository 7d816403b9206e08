//! A load under way.

use crate::answers::Loaded;
use crate::pending::Pending;
use crate::session::{Held, Session};
use crate::task::Task;
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use refrain_client::gpu_transfer::copier::Stream;
use refrain_client::v1::MissReason;
use refrain_client::{Done, LayeredLoad};
use std::sync::Arc;

/// What a load is of.
pub(crate) enum Loading {
    Blocks(LayeredLoad),
    /// No block, of a prompt that no sidecar was there for.
    Nothing {
        layers: u32,
    },
}

/// Blocks on their way into the pages of a cache; dropping it cancels it.
#[pyclass(frozen, module = "refrain_kv")]
#[derive(Debug)]
pub(crate) struct Load {
    session: Arc<Session>,
    /// None where it is of nothing.
    held: Option<Held<LayeredLoad>>,
    layers: u32,
}

impl Load {
    pub(crate) fn new(session: &Arc<Session>, loading: Loading) -> PyResult<Self> {
        let (layers, held) = match loading {
            Loading::Blocks(load) => (load.layers(), Some(Held::new(session, load)?)),
            Loading::Nothing { layers } => (layers, None),
        };
        Ok(Self { session: Arc::clone(session), held, layers })
    }

    pub(crate) fn build(
        py: Python<'_>,
        session: &Arc<Session>,
        loading: Loading,
    ) -> PyResult<Py<PyAny>> {
        Ok(Py::new(py, Self::new(session, loading)?)?.into_any())
    }

    fn load(&self) -> PyResult<Option<Arc<LayeredLoad>>> {
        self.held.as_ref().map(Held::get).transpose()
    }

    fn finishing(&self) -> PyResult<Task<Done>> {
        let load = self.load()?;
        self.session.spawn(async move {
            match load {
                Some(load) => load.finish().await,
                None => Ok(NOTHING),
            }
        })
    }
}

/// How a load of nothing ends.
const NOTHING: Done = Done {
    loaded_blocks: 0,
    reason: MissReason::Unspecified,
    host_blocks: 0,
    ssd_blocks: 0,
    peer_blocks: 0,
};

#[pymethods]
impl Load {
    /// Waits until a layer is on its way, then has `stream` wait for it; says how many blocks may
    /// be read.
    #[pyo3(signature = (layer, stream=0))]
    fn layer(&self, py: Python<'_>, layer: u32, stream: u64) -> PyResult<u32> {
        if layer >= self.layers {
            return Err(PyIndexError::new_err(format!("layer {layer} of {}", self.layers)));
        }
        let Some(load) = self.load()? else { return Ok(0) };
        let waiting = async move { load.layer(layer, Stream(stream)).await };
        self.session.spawn(waiting)?.answer(py)
    }

    /// How many layers `layer` does not wait for.
    #[getter]
    fn layers_on_their_way(&self) -> PyResult<u32> {
        Ok(self.load()?.map_or(self.layers, |load| load.layers_on_their_way()))
    }

    /// Waits until all is copied.
    fn finish(&self, py: Python<'_>) -> PyResult<Loaded> {
        Ok(Loaded(self.finishing()?.answer(py)?))
    }

    fn begin_finish(&self) -> PyResult<Pending> {
        Ok(Pending::new(&self.session, self.finishing()?, Loaded::build))
    }

    /// Ends it. Afterwards none of its pages is written; those of blocks that had not come hold
    /// anything.
    fn cancel(&self, py: Python<'_>) {
        let Some(held) = &self.held else { return };
        if let Ok(load) = held.get() {
            py.detach(|| {
                load.cancel();
                drop(load);
            });
        }
        held.end(py);
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
