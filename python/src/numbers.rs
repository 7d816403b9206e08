//! Numbers of Python's.

use crate::error::chain;
use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::num::TryFromIntError;
use std::time::Duration;

/// Token ids or page numbers: of an array of integers, a list, or whatever else has `tolist`.
pub(crate) fn integers(value: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    // Arrays of integers are read without an object a number.
    if let Ok(buffer) = PyBuffer::<u32>::get(value) {
        return buffer.to_vec(value.py());
    }
    if let Some(found) = wider::<i64>(value).or_else(|| wider::<i32>(value)) {
        return found;
    }
    if value.hasattr("tolist")? {
        return value.call_method0("tolist")?.extract();
    }
    value.extract()
}

/// Page numbers of one attention group, or a list of them for each.
pub(crate) fn groups(value: &Bound<'_, PyAny>) -> PyResult<Vec<Vec<u32>>> {
    match integers(value) {
        Ok(pages) => Ok(vec![pages]),
        Err(one) => {
            let groups: PyResult<_> = value.try_iter()?.map(|group| integers(&group?)).collect();
            groups.map_err(|_| one)
        }
    }
}

fn wider<T: Element + TryInto<u32, Error = TryFromIntError>>(
    value: &Bound<'_, PyAny>,
) -> Option<PyResult<Vec<u32>>> {
    let numbers = PyBuffer::<T>::get(value).ok()?.to_vec(value.py());
    let narrow = |number: T| number.try_into();
    let narrow = |numbers: Vec<T>| {
        let found: Result<_, _> = numbers.into_iter().map(narrow).collect();
        found.map_err(|error: TryFromIntError| PyValueError::new_err(chain(&error)))
    };
    Some(numbers.and_then(narrow))
}

/// Seconds.
pub(crate) fn duration(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds).map_err(|error| PyValueError::new_err(chain(&error)))
}
