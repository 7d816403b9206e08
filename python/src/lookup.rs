//! A lookup's answer: what is resident of a prompt, and the lease on it.

use crate::answers::{Saved, name};
use crate::cache::KvCache;
use crate::load::Load;
use crate::numbers;
use crate::pending::Pending;
use crate::session::{Held, Session};
use crate::task::Task;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use refrain_client::gpu_transfer::copier::Stream;
use refrain_client::gpu_transfer::layout::Pages;
use refrain_client::{LayeredLoad, v1};
use std::sync::Arc;
use std::time::Duration;

/// The blocks of a prompt and those of them that are resident, leased.
#[pyclass(frozen, module = "refrain_kv")]
#[derive(Debug)]
pub(crate) struct Lookup {
    held: Held<refrain_client::Lookup>,
    prompt_blocks: u32,
    matched_blocks: u32,
    tiers: Vec<v1::TierRun>,
    expected_load: Duration,
}

impl Lookup {
    pub(crate) fn new(session: &Arc<Session>, lookup: refrain_client::Lookup) -> PyResult<Self> {
        let refrain_client::Lookup { prompt_blocks, matched_blocks, expected_load, .. } = lookup;
        let tiers = lookup.tiers.clone();
        let held = Held::new(session, lookup)?;
        Ok(Self { held, prompt_blocks, matched_blocks, tiers, expected_load })
    }

    pub(crate) fn build(
        py: Python<'_>,
        session: &Arc<Session>,
        lookup: refrain_client::Lookup,
    ) -> PyResult<Py<PyAny>> {
        Ok(Py::new(py, Self::new(session, lookup)?)?.into_any())
    }

    fn loading(
        &self,
        cache: &KvCache,
        pages: &Bound<'_, PyAny>,
        first: u32,
        deadline: Option<f64>,
        after: Option<u64>,
    ) -> PyResult<Task<LayeredLoad>> {
        let lookup = self.held.get()?;
        let (pages, cache) = (pages_of(cache, pages)?, cache.get()?);
        let deadline = deadline.map(numbers::duration).transpose()?;
        self.held.session().spawn(async move {
            lookup.load_into(&cache, first, pages, deadline, after.map(Stream)).await
        })
    }

    fn saving(
        &self,
        cache: &KvCache,
        pages: &Bound<'_, PyAny>,
        first: Option<u32>,
        after: Option<u64>,
        durable: bool,
    ) -> PyResult<Task<refrain_client::Saved>> {
        let lookup = self.held.get()?;
        let (pages, cache) = (pages_of(cache, pages)?, cache.get()?);
        let first = first.unwrap_or(self.matched_blocks);
        self.held.session().spawn(async move {
            lookup.save_from(&cache, first, pages, after.map(Stream), durable).await
        })
    }
}

#[pymethods]
impl Lookup {
    /// Full blocks of the prompt, resident or not.
    #[getter]
    fn prompt_blocks(&self) -> u32 {
        self.prompt_blocks
    }

    /// How many of them are resident, from the first one on.
    #[getter]
    fn matched_blocks(&self) -> u32 {
        self.matched_blocks
    }

    /// Where the matched blocks lie, in order.
    #[getter]
    fn tiers(&self) -> Vec<(String, u32)> {
        let tier = |run: &v1::TierRun| (name("TIER_", run.tier().as_str_name()), run.blocks);
        self.tiers.iter().map(tier).collect()
    }

    /// Seconds that a load of all matched blocks should take.
    #[getter]
    fn expected_load(&self) -> f64 {
        self.expected_load.as_secs_f64()
    }

    /// Brings leased blocks into the pages of a cache, layer by layer.
    #[pyo3(signature = (cache, pages, *, first=0, deadline=None, after=None))]
    fn load_into(
        &self,
        py: Python<'_>,
        cache: &KvCache,
        pages: &Bound<'_, PyAny>,
        first: u32,
        deadline: Option<f64>,
        after: Option<u64>,
    ) -> PyResult<Load> {
        let task = self.loading(cache, pages, first, deadline, after)?;
        Load::new(self.held.session(), task.answer(py)?)
    }

    #[pyo3(signature = (cache, pages, *, first=0, deadline=None, after=None))]
    fn begin_load_into(
        &self,
        cache: &KvCache,
        pages: &Bound<'_, PyAny>,
        first: u32,
        deadline: Option<f64>,
        after: Option<u64>,
    ) -> PyResult<Pending> {
        let task = self.loading(cache, pages, first, deadline, after)?;
        Ok(Pending::new(self.held.session(), task, Load::build))
    }

    /// Saves blocks of the prompt out of the pages of a cache.
    #[pyo3(signature = (cache, pages, *, first=None, after=None, durable=false))]
    fn save_from(
        &self,
        py: Python<'_>,
        cache: &KvCache,
        pages: &Bound<'_, PyAny>,
        first: Option<u32>,
        after: Option<u64>,
        durable: bool,
    ) -> PyResult<Saved> {
        Ok(Saved(self.saving(cache, pages, first, after, durable)?.answer(py)?))
    }

    #[pyo3(signature = (cache, pages, *, first=None, after=None, durable=false))]
    fn begin_save_from(
        &self,
        cache: &KvCache,
        pages: &Bound<'_, PyAny>,
        first: Option<u32>,
        after: Option<u64>,
        durable: bool,
    ) -> PyResult<Pending> {
        let task = self.saving(cache, pages, first, after, durable)?;
        Ok(Pending::new(self.held.session(), task, Saved::build))
    }

    /// Prolongs the lease; `False`: it was over.
    #[pyo3(signature = (seconds=0.0))]
    fn renew(&self, py: Python<'_>, seconds: f64) -> PyResult<bool> {
        let (lookup, lease) = (self.held.get()?, numbers::duration(seconds)?);
        self.held.session().spawn(async move { lookup.renew(lease).await })?.answer(py)
    }

    /// Ends the lease; `False`: it did not hold all the while, and what was loaded does not count.
    fn release(&self, py: Python<'_>) -> PyResult<bool> {
        let lookup = self.held.get()?;
        let held = self.held.session().spawn(async move { lookup.release().await })?.answer(py);
        self.held.end(py);
        held
    }

    fn begin_release(&self) -> PyResult<Pending> {
        let lookup = self.held.get()?;
        let task = self.held.session().spawn(async move { lookup.release().await })?;
        let build = |py: Python<'_>, _: &Arc<Session>, held: bool| {
            Ok(held.into_pyobject(py)?.to_owned().into_any().unbind())
        };
        Ok(Pending::new(self.held.session(), task, build))
    }

    /// Has the lease released, without waiting for the answer.
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

/// Page numbers of one attention group, or a list of them for each.
fn pages_of(cache: &KvCache, value: &Bound<'_, PyAny>) -> PyResult<Pages> {
    let groups = match numbers::integers(value) {
        Ok(pages) => vec![pages],
        Err(one) => {
            let groups: PyResult<Vec<_>> =
                value.try_iter()?.map(|group| numbers::integers(&group?)).collect();
            groups.map_err(|_| one)?
        }
    };
    let each = cache.pages_per_block();
    let pages = groups.first().map_or(0, Vec::len);
    let blocks = u32::try_from(pages).ok().filter(|pages| pages.is_multiple_of(each));
    let blocks = blocks.map(|pages| pages / each).ok_or_else(|| {
        PyValueError::new_err(format!("{pages} pages are not {each} for each of some blocks"))
    })?;
    Ok(Pages::new(blocks, groups))
}
