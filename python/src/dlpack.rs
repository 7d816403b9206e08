//! Arrays by DLPack: the one home of its structures.
#![expect(unsafe_code, reason = "reads a structure that another library made")]

use crate::array::Array;
use crate::error::of_cache;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use std::ffi::{CStr, c_void};

const NAME: &CStr = c"dltensor";
const CPU: i32 = 1;
const CUDA: i32 = 2;
/// Pinned memory of the host.
const CUDA_HOST: i32 = 3;

/// `DLTensor`, as every version of DLPack has it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Tensor {
    data: *mut c_void,
    device_type: i32,
    device: i32,
    dimensions: i32,
    type_code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

/// What an object's `__dlpack__` says. The capsule is kept with the array: it frees the memory when
/// nobody has taken that over.
pub(crate) fn array(object: &Bound<'_, PyAny>) -> PyResult<Array> {
    let capsule = object.call_method0("__dlpack__")?;
    let capsule = capsule.cast_into::<PyCapsule>()?;
    let tensor = capsule.pointer_checked(Some(NAME))?.cast::<Tensor>();
    // SAFETY: a capsule of that name holds a `DLManagedTensor`, which begins with its `DLTensor` and
    // lives as long as the capsule, whose name would be another if it had been consumed.
    let tensor = unsafe { tensor.read() };
    let device = match tensor.device_type {
        CPU | CUDA_HOST => None,
        CUDA => Some(u32::try_from(tensor.device)?),
        other => return Err(of_cache(format!("an array on a device of DLPack's kind {other}"))),
    };
    let bits = u64::from(tensor.bits) * u64::from(tensor.lanes);
    if !bits.is_multiple_of(8) {
        return Err(of_cache(format!("an array of {bits} bits an element")));
    }
    let dimensions = usize::try_from(tensor.dimensions)?;
    // SAFETY: the shape has so many numbers.
    let shape = unsafe { numbers(tensor.shape, dimensions) };
    let shape = shape.unwrap_or_default();
    // SAFETY: so have the strides, where there are any.
    let strides = unsafe { numbers(tensor.strides, dimensions) };
    let shape = shape.iter().map(|it| u64::try_from(*it)).collect::<Result<Vec<_>, _>>()?;
    let item_bytes = bits / 8;
    let bytes = |stride: i64| stride.saturating_mul(i64::try_from(item_bytes).unwrap_or(i64::MAX));
    let strides = strides.map(|strides| strides.into_iter().map(bytes).collect());
    let address = u64::try_from(tensor.data.addr())? + tensor.byte_offset;
    Ok(Array::new(device, address, item_bytes, shape, strides, capsule.into_any().unbind()))
}

/// `None` for a null pointer.
///
/// # Safety
///
/// Another pointer is one to `count` numbers.
unsafe fn numbers(pointer: *const i64, count: usize) -> Option<Vec<i64>> {
    let number = |index| {
        // SAFETY: within the numbers, by the promise of the caller.
        let place = unsafe { pointer.add(index) };
        // SAFETY: a number is there.
        unsafe { place.read() }
    };
    (!pointer.is_null()).then(|| (0..count).map(number).collect())
}
