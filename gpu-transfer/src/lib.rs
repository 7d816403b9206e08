//! Frames to device memory and back. Knows no server.
//!
//! A [`plan::Plan`] says which bytes go where; an engine runs it. [`host`] does so with memcpy, for
//! workers without a GPU and as the measure of what other engines must do.

pub mod host;
pub mod plan;

pub use refrain_store::arena;
