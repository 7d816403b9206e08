//! Bytes at addresses on SSD. Knows no prefix, no network, no GPU.

pub mod directory;
pub mod format;
pub mod geometry;
pub mod superblock;
