//! Bytes at addresses on SSD. Knows no prefix, no network, no GPU.

pub mod answers;
pub mod arena;
pub mod blocking;
pub mod check;
pub mod device;
pub mod directory;
pub mod drive;
pub mod engine;
pub mod files;
pub mod format;
pub mod geometry;
pub mod probe;
pub mod recover;
pub mod segment;
pub mod stats;
pub mod superblock;
pub mod uring;
