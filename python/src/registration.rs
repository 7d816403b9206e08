//! What a worker caches, and the prompts that it looks up.

use crate::answers::{Loaded, Saved};
use crate::asked::Asked;
use crate::cache::KvCache;
use crate::lookup::{Found, Lookup};
use crate::named::Named;
use crate::numbers;
use crate::pending::Pending;
use crate::session::{Held, Session};
use crate::task::Task;
use pyo3::prelude::*;
use refrain_client::ClientError;
use std::sync::Arc;

/// A namespace and shard that lookups are made in.
#[pyclass(frozen, module = "refrain_kv")]
#[derive(Debug)]
pub(crate) struct Registration {
    held: Held<refrain_client::Registration>,
    block_tokens: u32,
}

impl Registration {
    pub(crate) fn new(
        session: &Arc<Session>,
        registration: refrain_client::Registration,
        block_tokens: u32,
    ) -> PyResult<Self> {
        Ok(Self { held: Held::new(session, registration)?, block_tokens })
    }

    fn looking_up(&self, prompt: Asked, deadline: Option<f64>) -> PyResult<Task<Found>> {
        let registration = self.held.get()?;
        let deadline = deadline.map(numbers::duration).transpose()?;
        let blocks = prompt.blocks(self.block_tokens);
        self.held.session().spawn(async move {
            match registration.lookup_within(prompt.prompt(), deadline).await {
                Ok(lookup) => Ok(Found::Answer(lookup)),
                Err(ClientError::Absent { .. }) => Ok(Found::Absent { blocks }),
                Err(error) => Err(error),
            }
        })
    }
}

#[pymethods]
impl Registration {
    /// The longest resident prefix of a prompt, leased.
    #[pyo3(signature = (tokens, *, extra_keys=vec![], deadline=None))]
    fn lookup(
        &self,
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        extra_keys: Vec<Vec<u8>>,
        deadline: Option<f64>,
    ) -> PyResult<Lookup> {
        let task = self.looking_up(Asked::tokens(tokens, extra_keys)?, deadline)?;
        Lookup::new(self.held.session(), task.answer(py)?)
    }

    #[pyo3(signature = (tokens, *, extra_keys=vec![], deadline=None))]
    fn begin_lookup(
        &self,
        tokens: &Bound<'_, PyAny>,
        extra_keys: Vec<Vec<u8>>,
        deadline: Option<f64>,
    ) -> PyResult<Pending> {
        let task = self.looking_up(Asked::tokens(tokens, extra_keys)?, deadline)?;
        Ok(Pending::new(self.held.session(), task, Lookup::build))
    }

    /// The same by names that an engine has for its blocks, each naming the whole prefix.
    #[pyo3(signature = (hashes, *, separate=false, deadline=None))]
    fn lookup_hashes(
        &self,
        py: Python<'_>,
        hashes: Vec<Vec<u8>>,
        separate: bool,
        deadline: Option<f64>,
    ) -> PyResult<Lookup> {
        let task = self.looking_up(Asked::hashes(hashes, separate), deadline)?;
        Lookup::new(self.held.session(), task.answer(py)?)
    }

    #[pyo3(signature = (hashes, *, separate=false, deadline=None))]
    fn begin_lookup_hashes(
        &self,
        hashes: Vec<Vec<u8>>,
        separate: bool,
        deadline: Option<f64>,
    ) -> PyResult<Pending> {
        let task = self.looking_up(Asked::hashes(hashes, separate), deadline)?;
        Ok(Pending::new(self.held.session(), task, Lookup::build))
    }

    /// Loads blocks by an engine's names into pages, as far as they are there in time.
    #[pyo3(signature = (hashes, cache, pages, *, first=0, separate=false, deadline, after=None))]
    #[expect(clippy::too_many_arguments, reason = "Python names them")]
    fn begin_load_hashes(
        &self,
        hashes: Vec<Vec<u8>>,
        cache: &KvCache,
        pages: &Bound<'_, PyAny>,
        first: u32,
        separate: bool,
        deadline: f64,
        after: Option<u64>,
    ) -> PyResult<Pending> {
        let named =
            Named::new(Asked::hashes(hashes, separate), cache, pages, first, deadline, after)?;
        let registration = self.held.get()?;
        let loading = async move { named.load(&registration).await };
        Ok(Pending::new(self.held.session(), self.held.session().spawn(loading)?, Loaded::build))
    }

    /// Saves them, and tries again while the sidecar is busy, until the deadline.
    #[pyo3(signature = (hashes, cache, pages, *, first=0, separate=false, deadline, after=None))]
    #[expect(clippy::too_many_arguments, reason = "Python names them")]
    fn begin_save_hashes(
        &self,
        hashes: Vec<Vec<u8>>,
        cache: &KvCache,
        pages: &Bound<'_, PyAny>,
        first: u32,
        separate: bool,
        deadline: f64,
        after: Option<u64>,
    ) -> PyResult<Pending> {
        let named =
            Named::new(Asked::hashes(hashes, separate), cache, pages, first, deadline, after)?;
        let registration = self.held.get()?;
        let saving = async move { named.save(&registration).await };
        Ok(Pending::new(self.held.session(), self.held.session().spawn(saving)?, Saved::build))
    }

    /// Layers that are announced, and can be waited for, together.
    #[getter]
    fn layers_per_stripe(&self, py: Python<'_>) -> PyResult<u32> {
        let registration = self.held.get()?;
        let layout = self.held.session().spawn(async move { registration.layout().await })?;
        Ok(layout.answer(py)?.layers_per_stripe)
    }

    fn close(&self, py: Python<'_>) {
        self.held.end(py);
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyAny>) {
        self.close(py);
    }
}
