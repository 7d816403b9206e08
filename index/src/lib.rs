//! Prefixes to residency. Knows no disk layout.

pub mod chain;
pub mod hash;
pub mod namespace;
