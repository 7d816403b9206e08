//! Why a measurement of the store has no result.

use crate::arena::ArenaError;
use crate::check::ReadError;
use crate::drive::{OpenError, Refused};
use crate::engine::AppendError;
use crate::recover::ScanError;
use std::io;
use thiserror::Error;

/// Why a pass did not end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreProbeError {
    #[error("take memory for a measurement")]
    Memory(#[from] ArenaError),
    #[error("make the memory of a measurement resident")]
    Populate(#[source] io::Error),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("append block {block}")]
    Append { block: u64, source: AppendError },
    #[error("read block {block}")]
    Read { block: u64, source: ReadError },
    #[error("read before anything was written")]
    Unwritten,
    #[error("drive ended in the middle of a pass")]
    Ended,
    #[error("measurement was interrupted")]
    Interrupted,
}
