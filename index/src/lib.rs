//! Prefixes to residency. Knows no disk layout.

pub mod catalog;
pub mod chain;
pub mod directory;
pub mod hash;
pub mod namespace;
pub mod recent;
