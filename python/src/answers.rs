//! How loads and saves ended.

use crate::session::Session;
use pyo3::prelude::*;
use refrain_client::Done;
use std::sync::Arc;

/// How a load ended.
#[pyclass(frozen, module = "refrain_kv")]
#[derive(Debug)]
pub(crate) struct Loaded(pub(crate) Done);

/// What became of a save.
#[pyclass(frozen, module = "refrain_kv")]
#[derive(Debug)]
pub(crate) struct Saved(pub(crate) refrain_client::Saved);

impl Loaded {
    pub(crate) fn build(py: Python<'_>, _: &Arc<Session>, done: Done) -> PyResult<Py<PyAny>> {
        Ok(Py::new(py, Self(done))?.into_any())
    }
}

#[pymethods]
impl Loaded {
    /// Blocks from this one on are misses.
    #[getter]
    fn blocks(&self) -> u32 {
        self.0.loaded_blocks
    }

    /// Why they are; `none` where there are none.
    #[getter]
    fn reason(&self) -> String {
        name("MISS_REASON_", self.0.reason.as_str_name())
    }

    #[getter]
    fn host_blocks(&self) -> u32 {
        self.0.host_blocks
    }

    #[getter]
    fn ssd_blocks(&self) -> u32 {
        self.0.ssd_blocks
    }

    #[getter]
    fn peer_blocks(&self) -> u32 {
        self.0.peer_blocks
    }

    fn __repr__(&self) -> String {
        format!(
            "Loaded(blocks={}, reason={:?}, host_blocks={}, ssd_blocks={}, peer_blocks={})",
            self.blocks(),
            self.reason(),
            self.host_blocks(),
            self.ssd_blocks(),
            self.peer_blocks()
        )
    }
}

impl Saved {
    pub(crate) fn build(
        py: Python<'_>,
        _: &Arc<Session>,
        saved: refrain_client::Saved,
    ) -> PyResult<Py<PyAny>> {
        Ok(Py::new(py, Self(saved))?.into_any())
    }
}

#[pymethods]
impl Saved {
    /// Blocks that the sidecar wanted.
    #[getter]
    fn offered(&self) -> u32 {
        self.0.offered
    }

    /// How many of them are known to be stored, from the first one on.
    #[getter]
    fn saved(&self) -> u32 {
        self.0.saved
    }

    /// Why it is not all; `none` where it is.
    #[getter]
    fn refusal(&self) -> String {
        name("REFUSAL_", self.0.refusal.as_str_name())
    }

    /// Whether what was saved would survive a power loss.
    #[getter]
    fn durable(&self) -> bool {
        self.0.durable
    }

    fn __repr__(&self) -> String {
        let durable = if self.0.durable { "True" } else { "False" };
        format!(
            "Saved(offered={}, saved={}, refusal={:?}, durable={durable})",
            self.offered(),
            self.saved(),
            self.refusal()
        )
    }
}

/// A name of the API without what all of its kind begin with.
pub(crate) fn name(kind: &str, name: &str) -> String {
    name.strip_prefix(kind).unwrap_or(name).to_lowercase()
}
