//! A lookup's answer: what is resident of a prompt, and the lease on it.

use crate::answers::{Saved, name};
use crate::cache::KvCache;
use crate::load::{Load, Loading};
use crate::numbers;
use crate::pending::Pending;
use crate::session::{Held, Session};
use crate::task::Task;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use refrain_client::gpu_transfer::copier::Stream;
use refrain_client::gpu_transfer::layout::Pages;
use refrain_client::{ClientError, v1};
use std::sync::Arc;
use std::time::Duration;

/// What a lookup came to.
pub(crate) enum Found {
    Answer(refrain_client::Lookup),
    /// No sidecar has answered: none of the prompt's blocks is there.
    Absent {
        blocks: u32,
    },
}

/// The blocks of a prompt and those of them that are resident, leased.
#[pyclass(frozen, module = "refrain_kv")]
#[derive(Debug)]
pub(crate) struct Lookup {
    session: Arc<Session>,
    /// None where no sidecar has answered.
    held: Option<Held<refrain_client::Lookup>>,
    prompt_blocks: u32,
    matched_blocks: u32,
    tiers: Vec<v1::TierRun>,
    expected_load: Duration,
    expected_peer: Duration,
}

impl Lookup {
    pub(crate) fn new(session: &Arc<Session>, found: Found) -> PyResult<Self> {
        let lookup = match found {
            Found::Answer(lookup) => lookup,
            Found::Absent { blocks } => {
                return Ok(Self {
                    session: Arc::clone(session),
                    held: None,
                    prompt_blocks: blocks,
                    matched_blocks: 0,
                    tiers: Vec::new(),
                    expected_load: Duration::ZERO,
                    expected_peer: Duration::ZERO,
                });
            }
        };
        let refrain_client::Lookup { prompt_blocks, matched_blocks, .. } = lookup;
        let (expected_load, expected_peer) = (lookup.expected_load, lookup.expected_peer);
        let (session, tiers) = (Arc::clone(session), lookup.tiers.clone());
        let held = Some(Held::new(&session, lookup)?);
        Ok(Self {
            session,
            held,
            prompt_blocks,
            matched_blocks,
            tiers,
            expected_load,
            expected_peer,
        })
    }

    pub(crate) fn build(
        py: Python<'_>,
        session: &Arc<Session>,
        found: Found,
    ) -> PyResult<Py<PyAny>> {
        Ok(Py::new(py, Self::new(session, found)?)?.into_any())
    }

    /// None where there is nobody to ask.
    fn lookup(&self) -> PyResult<Option<Arc<refrain_client::Lookup>>> {
        self.held.as_ref().map(Held::get).transpose()
    }

    fn loading(
        &self,
        cache: &KvCache,
        pages: &Bound<'_, PyAny>,
        first: u32,
        deadline: Option<f64>,
        after: Option<u64>,
    ) -> PyResult<Task<Loading>> {
        let lookup = self.lookup()?;
        let (pages, cache) = (pages_of(cache, pages)?, cache.get()?);
        let deadline = deadline.map(numbers::duration).transpose()?;
        self.session.spawn(async move {
            let Some(lookup) = lookup else {
                let layers = cache.paged().layout().layers.len();
                check_range(first, pages.blocks(), 0)?;
                return Ok(Loading::Nothing { layers: u32::try_from(layers).unwrap_or(u32::MAX) });
            };
            let load = lookup.load_into(&cache, first, pages, deadline, after.map(Stream)).await?;
            Ok(Loading::Blocks(load))
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
        let lookup = self.lookup()?;
        let (pages, cache) = (pages_of(cache, pages)?, cache.get()?);
        let (first, available) = (first.unwrap_or(self.matched_blocks), self.prompt_blocks);
        self.session.spawn(async move {
            let Some(lookup) = lookup else {
                check_range(first, pages.blocks(), available)?;
                return Ok(NOT_SAVED);
            };
            lookup.save_from(&cache, first, pages, after.map(Stream), durable).await
        })
    }

    fn releasing(&self) -> PyResult<Task<bool>> {
        let lookup = self.lookup()?;
        self.session.spawn(async move {
            match lookup {
                Some(lookup) => lookup.release().await,
                None => Ok(false),
            }
        })
    }
}

/// What becomes of a save that there is no sidecar for.
pub(crate) const NOT_SAVED: refrain_client::Saved = refrain_client::Saved {
    offered: 0,
    saved: 0,
    refusal: v1::Refusal::Unspecified,
    durable: false,
};

/// Runs of blocks, by the name of where they lie.
pub(crate) fn tiers(runs: &[v1::TierRun]) -> Vec<(String, u32)> {
    runs.iter().map(|run| (name("TIER_", run.tier().as_str_name()), run.blocks)).collect()
}

pub(crate) fn check_range(first: u32, blocks: u32, available: u32) -> Result<(), ClientError> {
    match first.checked_add(blocks) {
        Some(end) if end <= available => Ok(()),
        _ => Err(ClientError::BlocksOutOfRange { first, blocks, available }),
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

    /// Whether no sidecar has answered in time.
    #[getter]
    fn absent(&self) -> bool {
        self.held.is_none()
    }

    /// Where the matched blocks lie, in order.
    #[getter]
    fn tiers(&self) -> Vec<(String, u32)> {
        tiers(&self.tiers)
    }

    /// Seconds that a load of all matched blocks should take.
    #[getter]
    fn expected_load(&self) -> f64 {
        self.expected_load.as_secs_f64()
    }

    /// Seconds that its blocks of tier `peer` alone should take, which stand behind all others.
    #[getter]
    fn expected_peer(&self) -> f64 {
        self.expected_peer.as_secs_f64()
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
        Load::new(&self.session, task.answer(py)?)
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
        Ok(Pending::new(&self.session, task, Load::build))
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
        Ok(Pending::new(&self.session, task, Saved::build))
    }

    /// Prolongs the lease; `False`: it was over.
    #[pyo3(signature = (seconds=0.0))]
    fn renew(&self, py: Python<'_>, seconds: f64) -> PyResult<bool> {
        let (lookup, lease) = (self.lookup()?, numbers::duration(seconds)?);
        let renewing = async move {
            match lookup {
                Some(lookup) => lookup.renew(lease).await,
                None => Ok(false),
            }
        };
        self.session.spawn(renewing)?.answer(py)
    }

    /// Ends the lease; `False`: it did not hold all the while, and what was loaded does not count.
    fn release(&self, py: Python<'_>) -> PyResult<bool> {
        let held = self.releasing()?.answer(py);
        self.close(py);
        held
    }

    fn begin_release(&self) -> PyResult<Pending> {
        let build = |py: Python<'_>, _: &Arc<Session>, held: bool| {
            Ok(held.into_pyobject(py)?.to_owned().into_any().unbind())
        };
        Ok(Pending::new(&self.session, self.releasing()?, build))
    }

    /// Has the lease released, without waiting for the answer.
    fn close(&self, py: Python<'_>) {
        if let Some(held) = &self.held {
            held.end(py);
        }
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
    let groups = numbers::groups(value)?;
    let each = cache.pages_per_block();
    let pages = groups.first().map_or(0, Vec::len);
    let blocks = u32::try_from(pages).ok().filter(|pages| pages.is_multiple_of(each));
    let blocks = blocks.map(|pages| pages / each).ok_or_else(|| {
        PyValueError::new_err(format!("{pages} pages are not {each} for each of some blocks"))
    })?;
    Ok(Pages::new(blocks, groups))
}
