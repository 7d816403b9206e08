//! What comes and goes at a sidecar.

use crate::client::address;
use crate::numbers;
use crate::session::{Held, Session};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use refrain_client::v1;
use refrain_client::v1::change::Change as Kind;
use std::time::Duration;
use tokio::sync::Mutex;

/// Every change at one sidecar, from a snapshot of what is resident on.
#[pyclass(frozen, module = "refrain_kv")]
#[derive(Debug)]
pub(crate) struct Watch(Held<Mutex<refrain_client::Watch>>);

/// Blocks of one namespace and shard that came or went.
#[pyclass(frozen, module = "refrain_kv")]
#[derive(Debug)]
pub(crate) struct Change {
    #[pyo3(get)]
    epoch: u64,
    #[pyo3(get)]
    sequence: u64,
    #[pyo3(get)]
    kind: &'static str,
    names: v1::BlockNames,
}

#[pymethods]
impl Watch {
    #[new]
    #[pyo3(signature = (address=None, *, deadline=5.0))]
    fn new(py: Python<'_>, address: Option<String>, deadline: f64) -> PyResult<Self> {
        let (address, limit) = (self::address(address)?, numbers::duration(deadline)?);
        let session = Session::start()?;
        let opening = async move { refrain_client::Watch::open(address, limit).await };
        let watch = session.spawn(opening)?.answer(py)?;
        Ok(Self(Held::new(&session, Mutex::new(watch))?))
    }

    /// `None` when none comes within `timeout` seconds.
    #[pyo3(signature = (timeout=None))]
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Change>> {
        let limit = timeout.map_or(Ok(Duration::MAX), numbers::duration)?;
        let watch = self.0.get()?;
        let waiting = async move {
            let mut watch = watch.lock().await;
            // A message is taken whole or not at all.
            tokio::time::timeout(limit, watch.next()).await.ok().transpose()
        };
        Ok(self.0.session().spawn(waiting)?.answer(py)?.map(Change::new))
    }

    fn close(&self, py: Python<'_>) {
        self.0.session().close(py);
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyAny>) {
        self.close(py);
    }
}

impl Change {
    fn new(change: v1::Change) -> Self {
        let v1::Change { epoch, sequence, change } = change;
        let (kind, names) = match change {
            Some(Kind::Stored(names)) => ("stored", names),
            Some(Kind::Removed(names)) => ("removed", names),
            Some(Kind::SnapshotEnd(_)) => ("snapshot_end", v1::BlockNames::default()),
            None => ("unknown", v1::BlockNames::default()),
        };
        Self { epoch, sequence, kind, names }
    }
}

#[pymethods]
impl Change {
    #[getter]
    fn namespace_digest<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.names.namespace_digest)
    }

    #[getter]
    fn model(&self) -> &str {
        &self.names.model
    }

    #[getter]
    fn block_tokens(&self) -> u32 {
        self.names.block_tokens
    }

    #[getter]
    fn shard(&self) -> u32 {
        self.names.shard
    }

    #[getter]
    fn shards(&self) -> u32 {
        self.names.shards
    }

    #[getter]
    fn sequence_hashes<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        self.names.sequence_hashes.iter().map(|hash| PyBytes::new(py, hash)).collect()
    }

    #[getter]
    fn engine_hashes<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        self.names.engine_hashes.iter().map(|hash| PyBytes::new(py, hash)).collect()
    }
}
