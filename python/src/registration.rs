//! What a worker caches, and the prompts that it looks up.

use crate::lookup::Lookup;
use crate::numbers;
use crate::pending::Pending;
use crate::session::{Held, Session};
use crate::task::Task;
use pyo3::prelude::*;
use refrain_client::Prompt;
use std::sync::Arc;

/// A namespace and shard that lookups are made in.
#[pyclass(frozen, module = "refrain_kv")]
#[derive(Debug)]
pub(crate) struct Registration(Held<refrain_client::Registration>);

impl Registration {
    pub(crate) fn new(
        session: &Arc<Session>,
        registration: refrain_client::Registration,
    ) -> PyResult<Self> {
        Ok(Self(Held::new(session, registration)?))
    }

    fn tokens(
        &self,
        tokens: &Bound<'_, PyAny>,
        extra_keys: Vec<Vec<u8>>,
    ) -> PyResult<Task<refrain_client::Lookup>> {
        let (registration, tokens) = (self.0.get()?, numbers::integers(tokens)?);
        self.0.session().spawn(async move {
            let (tokens, extra_keys) = (&*tokens, &*extra_keys);
            registration.lookup(Prompt::Keyed { tokens, extra_keys }).await
        })
    }

    fn hashes(
        &self,
        hashes: Vec<Vec<u8>>,
        separate: bool,
    ) -> PyResult<Task<refrain_client::Lookup>> {
        let registration = self.0.get()?;
        let looking_up = async move {
            let prompt = if separate { Prompt::Separate } else { Prompt::Engine };
            registration.lookup(prompt(&hashes)).await
        };
        self.0.session().spawn(looking_up)
    }
}

#[pymethods]
impl Registration {
    /// The longest resident prefix of a prompt, leased.
    #[pyo3(signature = (tokens, *, extra_keys=vec![]))]
    fn lookup(
        &self,
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        extra_keys: Vec<Vec<u8>>,
    ) -> PyResult<Lookup> {
        Lookup::new(self.0.session(), self.tokens(tokens, extra_keys)?.answer(py)?)
    }

    #[pyo3(signature = (tokens, *, extra_keys=vec![]))]
    fn begin_lookup(
        &self,
        tokens: &Bound<'_, PyAny>,
        extra_keys: Vec<Vec<u8>>,
    ) -> PyResult<Pending> {
        let task = self.tokens(tokens, extra_keys)?;
        Ok(Pending::new(self.0.session(), task, Lookup::build))
    }

    /// The same by names that an engine has for its blocks, each naming the whole prefix.
    #[pyo3(signature = (hashes, *, separate=false))]
    fn lookup_hashes(
        &self,
        py: Python<'_>,
        hashes: Vec<Vec<u8>>,
        separate: bool,
    ) -> PyResult<Lookup> {
        Lookup::new(self.0.session(), self.hashes(hashes, separate)?.answer(py)?)
    }

    #[pyo3(signature = (hashes, *, separate=false))]
    fn begin_lookup_hashes(&self, hashes: Vec<Vec<u8>>, separate: bool) -> PyResult<Pending> {
        let task = self.hashes(hashes, separate)?;
        Ok(Pending::new(self.0.session(), task, Lookup::build))
    }

    /// Layers that are announced, and can be waited for, together.
    #[getter]
    fn layers_per_stripe(&self) -> PyResult<u32> {
        Ok(self.0.get()?.layout().layers_per_stripe)
    }

    fn close(&self, py: Python<'_>) {
        self.0.end(py);
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyAny>) {
        self.close(py);
    }
}
