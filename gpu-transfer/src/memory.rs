//! Memory for a paged KV cache where no engine brings its own: in tests and benchmarks.

use crate::arena::{ArenaError, Mapping, Region};
use crate::cuda::{CudaError, DeviceMemory, Gpu};
use std::ops::Range;
use std::sync::Arc;
use thiserror::Error;

/// Whose memory it is: the host's, or that of the GPU of this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Host,
    Gpu(u32),
}

/// Memory of the host or of a GPU.
#[derive(Debug)]
pub enum Memory {
    Host(Arc<Mapping>),
    Device(DeviceMemory),
}

/// Why there is no memory, or none at a place.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MemoryError {
    #[error("use memory of the host")]
    Host(#[from] ArenaError),
    #[error("use memory of a GPU")]
    Device(#[from] CudaError),
}

impl Memory {
    /// Zeroed memory of this process, in whole pages.
    pub fn host(bytes: u64) -> Result<Self, MemoryError> {
        Ok(Self::Host(Mapping::create("refrain-cache", bytes)?))
    }

    /// Zeroed memory of a GPU.
    pub fn device(gpu: &Arc<Gpu>, bytes: u64) -> Result<Self, MemoryError> {
        Ok(Self::Device(DeviceMemory::new(gpu, bytes)?))
    }

    pub fn place(&self) -> Place {
        match self {
            Self::Host(_) => Place::Host,
            Self::Device(memory) => Place::Gpu(memory.ordinal()),
        }
    }

    pub fn addresses(&self) -> Range<u64> {
        match self {
            Self::Host(mapping) => mapping.address()..mapping.address() + mapping.bytes_len(),
            Self::Device(memory) => memory.addresses(),
        }
    }

    /// Bytes from `offset` on.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        match self {
            Self::Host(mapping) => {
                bytes.copy_from_slice(part(mapping, offset, bytes.len())?.bytes());
            }
            Self::Device(memory) => memory.read(offset, bytes)?,
        }
        Ok(())
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        match self {
            Self::Host(mapping) => part(mapping, offset, bytes.len())?.copy_from(0, bytes),
            Self::Device(memory) => memory.write(offset, bytes)?,
        }
        Ok(())
    }
}

fn part(mapping: &Arc<Mapping>, offset: u64, bytes: usize) -> Result<Region, ArenaError> {
    mapping.region(offset, u64::try_from(bytes).expect("usize fits"))
}
