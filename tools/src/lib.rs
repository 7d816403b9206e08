//! What the commands of `refrain` are made of.

pub mod trace;
pub mod workload;
