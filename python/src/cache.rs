//! A paged KV cache that lies in arrays, or at addresses, of the caller's.
#![expect(unsafe_code, reason = "takes the caller's word for what lies at an address")]

use crate::array::Array;
use crate::error::{closed, of_cache, of_client};
use crate::fork::OfProcess;
use crate::session::lock;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};
use refrain_client::ClientError;
use refrain_client::gpu_transfer::copier::{Copier, CopyError};
use refrain_client::gpu_transfer::cuda::Way;
use refrain_client::gpu_transfer::layout::{KvLayout, Layer, LayoutError, Plane as Place};
use refrain_client::gpu_transfer::paged::PagedCache;
use std::sync::Mutex;

/// One array of pages by its address.
#[pyclass(frozen, module = "refrain_kv")]
#[derive(Debug)]
pub(crate) struct Plane(Place);

#[pymethods]
impl Plane {
    /// A page is `rows` runs of `row_bytes`, each `row_stride` behind the one before.
    #[new]
    #[pyo3(signature = (address, page_stride, row_bytes, *, rows=1, row_stride=None))]
    fn new(
        address: u64,
        page_stride: u64,
        row_bytes: u64,
        rows: u32,
        row_stride: Option<u64>,
    ) -> Self {
        let row_stride = row_stride.unwrap_or(row_bytes);
        Self(Place { base: address, page_stride, rows, row_bytes, row_stride })
    }
}

/// A paged KV cache that loads go into and saves come from.
#[pyclass(frozen, module = "refrain_kv")]
#[derive(Debug)]
pub(crate) struct KvCache {
    cache: OfProcess<Mutex<Option<refrain_client::KvCache>>>,
    pages: u32,
    pages_per_block: u32,
    layer_bytes: u64,
    layers: usize,
    device: Option<u32>,
}

impl KvCache {
    pub(crate) fn get(&self) -> PyResult<refrain_client::KvCache> {
        let cache = lock(self.cache.get()?).clone();
        cache.ok_or_else(|| closed("cache is closed"))
    }

    pub(crate) fn pages_per_block(&self) -> u32 {
        self.pages_per_block
    }
}

#[pymethods]
impl KvCache {
    /// `layers` has a layer's array of pages each, or a list of them, keys and values say.
    #[new]
    #[pyo3(signature = (layers, *, pages_per_block=1, groups=None, pages=None, device=None))]
    fn new(
        py: Python<'_>,
        layers: &Bound<'_, PyAny>,
        pages_per_block: u32,
        groups: Option<Vec<usize>>,
        pages: Option<u32>,
        device: Option<u32>,
    ) -> PyResult<Self> {
        let mut found = Found { pages, device, arrays: false, keepers: Vec::new() };
        let planes: PyResult<Vec<_>> =
            layers.try_iter()?.map(|layer| found.planes(&layer?)).collect();
        let planes = planes?;
        let groups = groups.unwrap_or_else(|| vec![0; planes.len()]);
        if groups.len() != planes.len() {
            let (groups, layers) = (groups.len(), planes.len());
            return Err(PyValueError::new_err(format!("{groups} groups for {layers} layers")));
        }
        let layers = groups.into_iter().zip(planes);
        let layers = layers.map(|(group, planes)| Layer { group, planes }).collect();
        let pages = found.pages.ok_or_else(|| {
            PyValueError::new_err("give the number of pages: planes alone do not tell it")
        })?;
        let (device, keepers) = (found.device, found.keepers);
        let layout = KvLayout { layers, pages, pages_per_block };
        let (layer_bytes, layers) = (layout.layer_bytes(), layout.layers.len());
        // SAFETY: the arrays are kept, and say where they lie and that it may be written to; for
        // planes, the caller of this constructor promises it. The copier is of the same device.
        let cache = unsafe { PagedCache::at_addresses(layout, Box::new(keepers)) };
        let cache = cache.map_err(of_layout)?;
        let copier = py.detach(|| match device {
            Some(ordinal) => Copier::cuda(ordinal, Way::Measured),
            None => Copier::host(),
        });
        let cache = refrain_client::KvCache::new(copier.map_err(of_copy)?, cache);
        let cache = OfProcess::new(Mutex::new(Some(cache)));
        Ok(Self { cache, pages, pages_per_block, layer_bytes, layers, device })
    }

    /// Of each array.
    #[getter]
    fn pages(&self) -> u32 {
        self.pages
    }

    #[getter]
    fn layers(&self) -> usize {
        self.layers
    }

    /// Of one layer of one block.
    #[getter]
    fn layer_bytes(&self) -> u64 {
        self.layer_bytes
    }

    /// The number of the GPU that it lies on; `None` for the host.
    #[getter]
    fn device(&self) -> Option<u32> {
        self.device
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let cache = lock(self.cache.get()?).take();
        // Arenas may have to be taken from the GPU.
        py.detach(|| drop(cache));
        Ok(())
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py)
    }
}

/// What the layers agree on, as far as they were looked at.
struct Found {
    pages: Option<u32>,
    device: Option<u32>,
    arrays: bool,
    keepers: Vec<Py<PyAny>>,
}

impl Found {
    /// Those of one layer.
    fn planes(&mut self, layer: &Bound<'_, PyAny>) -> PyResult<Vec<Place>> {
        if layer.is_instance_of::<PyList>() || layer.is_instance_of::<PyTuple>() {
            return layer.try_iter()?.map(|plane| self.plane(&plane?)).collect();
        }
        Ok(vec![self.plane(layer)?])
    }

    fn plane(&mut self, object: &Bound<'_, PyAny>) -> PyResult<Place> {
        if let Ok(plane) = object.cast::<Plane>() {
            return Ok(plane.get().0);
        }
        let array = Array::of(object)?;
        let (plane, pages) = array.plane()?;
        let expected = *self.pages.get_or_insert(pages);
        if pages != expected {
            return Err(of_cache(format!("an array of {pages} pages among those of {expected}")));
        }
        if self.arrays || self.device.is_some() {
            if array.device != self.device {
                return Err(of_cache("arrays of several devices".to_owned()));
            }
        } else {
            (self.device, self.arrays) = (array.device, true);
        }
        self.keepers.push(array.keeper);
        Ok(plane)
    }
}

fn of_layout(source: LayoutError) -> PyErr {
    of_client(&ClientError::Cache { source })
}

fn of_copy(source: CopyError) -> PyErr {
    of_client(&ClientError::Transfer { source })
}
