//! Between arenas and a worker's paged KV cache, in the memory of a GPU or of the host. Knows no
//! server.
//!
//! A [`layout::KvLayout`] says where the cache keeps its bytes; a [`paged::Batch`] is copies between
//! it and an arena; a [`copier::Copier`] makes them, in the order of deadlines, on a GPU's copy
//! engine, with a kernel of its own, or with memcpy where there is no GPU.

pub mod copier;
pub mod cuda;
mod host;
pub mod layout;
pub mod memory;
pub mod paged;
mod plan;

pub use refrain_store::arena;
