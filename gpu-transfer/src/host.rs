//! Runs a plan with memcpy, from bytes to bytes of this process.

use crate::plan::{Copy, Plan};
use std::ops::Range;
use thiserror::Error;

/// Why a plan is not run.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransferError {
    #[error("{copy:?} leaves a source of {source_bytes} or a target of {target_bytes} bytes")]
    OutOfRange { copy: Copy, source_bytes: usize, target_bytes: usize },
}

/// Makes all copies of a plan; or none, when one of them lies outside.
pub fn run(plan: &Plan, source: &[u8], target: &mut [u8]) -> Result<(), TransferError> {
    let (source_bytes, target_bytes) = (source.len(), target.len());
    let ranges = |&copy: &Copy| {
        range(copy.source, copy.length, source_bytes)
            .zip(range(copy.target, copy.length, target_bytes))
            .ok_or(TransferError::OutOfRange { copy, source_bytes, target_bytes })
    };
    plan.copies().iter().try_for_each(|copy| ranges(copy).map(drop))?;
    for copy in plan.copies() {
        let (from, to) = ranges(copy)?;
        target[to].copy_from_slice(&source[from]);
    }
    Ok(())
}

fn range(start: u64, length: u64, bytes: usize) -> Option<Range<usize>> {
    let start = usize::try_from(start).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    (end <= bytes).then_some(start..end)
}

#[cfg(test)]
mod tests;
