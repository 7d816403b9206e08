//! Bytes at addresses on SSD. Knows no prefix, no network, no GPU.

pub mod format;
pub mod geometry;
