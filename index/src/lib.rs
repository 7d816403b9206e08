//! Prefixes to residency. Knows no disk layout.

pub mod hash;
pub mod namespace;
