//! Arrays of numpy's, PyTorch's and others' kind, down to addresses and strides.

use crate::dlpack;
use crate::error::of_cache;
use pyo3::exceptions::{PyAttributeError, PyTypeError};
use pyo3::prelude::*;
use refrain_client::gpu_transfer::layout::Plane;

/// An array in memory of the host, or of the GPU of a number.
#[derive(Debug)]
pub(crate) struct Array {
    pub(crate) device: Option<u32>,
    address: u64,
    item_bytes: u64,
    shape: Vec<u64>,
    /// Bytes.
    strides: Vec<i64>,
    /// What frees the memory.
    pub(crate) keeper: Py<PyAny>,
}

impl Array {
    /// Without strides, the last axis is the innermost, and there are no gaps.
    pub(crate) fn new(
        device: Option<u32>,
        address: u64,
        item_bytes: u64,
        shape: Vec<u64>,
        strides: Option<Vec<i64>>,
        keeper: Py<PyAny>,
    ) -> Self {
        let strides = strides.unwrap_or_else(|| {
            let mut stride = item_bytes;
            let mut strides: Vec<_> = shape
                .iter()
                .rev()
                .map(|length| {
                    let this = stride;
                    stride = stride.saturating_mul(*length);
                    i64::try_from(this).unwrap_or(i64::MAX)
                })
                .collect();
            strides.reverse();
            strides
        });
        Self { device, address, item_bytes, shape, strides, keeper }
    }

    /// By whichever of the three protocols the object has.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Some(interface) = attribute(object, "__array_interface__")? {
            return Self::of_interface(object, &interface, None);
        }
        if object.hasattr("__dlpack__")? {
            return dlpack::array(object);
        }
        if let Some(interface) = attribute(object, "__cuda_array_interface__")? {
            let device = object.getattr("device").and_then(|device| device.getattr("index"));
            let device = device.and_then(|index| index.extract::<Option<u32>>());
            return Self::of_interface(
                object,
                &interface,
                Some(device.ok().flatten().unwrap_or(0)),
            );
        }
        let kind = object.get_type().name()?;
        Err(PyTypeError::new_err(format!(
            "{kind} is no array: it has none of __array_interface__, __dlpack__ and \
             __cuda_array_interface__"
        )))
    }

    /// `__array_interface__`, or the one like it for the memory of a GPU.
    fn of_interface(
        object: &Bound<'_, PyAny>,
        interface: &Bound<'_, PyAny>,
        device: Option<u32>,
    ) -> PyResult<Self> {
        let (address, read_only): (u64, bool) = interface.get_item("data")?.extract()?;
        if read_only {
            return Err(of_cache("an array that is read-only".to_owned()));
        }
        let kind: String = interface.get_item("typestr")?.extract()?;
        let item_bytes = kind.trim_start_matches(|it: char| !it.is_ascii_digit()).parse();
        let item_bytes =
            item_bytes.map_err(|_| of_cache(format!("an array of elements {kind:?}")))?;
        let strides = match interface.get_item("strides") {
            Ok(strides) => strides.extract()?,
            Err(_) => None,
        };
        let shape = interface.get_item("shape")?.extract()?;
        let keeper = object.clone().unbind();
        Ok(Self::new(device, address, item_bytes, shape, strides, keeper))
    }

    /// Its pages, one after the other along the first axis, and how many there are.
    ///
    /// The other axes must lie in memory in their order, with at most one gap: a payload has a
    /// page's bytes in that order, so axes that are swapped would make others of them.
    pub(crate) fn plane(&self) -> PyResult<(Plane, u32)> {
        let unfit = |why: &str| {
            let Self { shape, strides, .. } = self;
            of_cache(format!("array of shape {shape:?} and strides {strides:?} in bytes: {why}"))
        };
        let (pages, page_stride) = match (self.shape.first(), self.strides.first()) {
            (Some(&pages), Some(&stride)) if self.shape.len() == self.strides.len() => {
                (pages, stride)
            }
            _ => return Err(unfit("it has no axis of pages")),
        };
        let pages = u32::try_from(pages).map_err(|_| unfit("that many pages have no numbers"))?;
        let unsigned =
            |stride: i64| u64::try_from(stride).map_err(|_| unfit("an axis runs backwards"));
        let page_stride = if pages == 1 { 0 } else { unsigned(page_stride)? };
        let (mut rows, mut row_bytes, mut row_stride) = (1_u64, self.item_bytes, 0);
        for (&length, &stride) in self.shape.iter().zip(&self.strides).skip(1).rev() {
            let stride = unsigned(stride)?;
            match length {
                1 => {}
                _ if rows == 1 && stride == row_bytes => row_bytes *= length,
                _ if rows == 1 && stride > row_bytes => (rows, row_stride) = (length, stride),
                _ if rows > 1 && stride == rows * row_stride => rows *= length,
                _ => return Err(unfit("its axes within a page are not in order, or not dense")),
            }
        }
        let rows_end = if rows == 1 { row_bytes } else { (rows - 1) * row_stride + row_bytes };
        if pages > 1 && page_stride < rows_end {
            return Err(unfit("its pages overlap"));
        }
        let rows = u32::try_from(rows).map_err(|_| unfit("a page has too many rows"))?;
        let base = self.address;
        Ok((Plane { base, page_stride, rows, row_bytes, row_stride }, pages))
    }
}

fn attribute<'py>(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
    match object.getattr(name) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_instance_of::<PyAttributeError>(object.py()) => Ok(None),
        Err(error) => Err(error),
    }
}
