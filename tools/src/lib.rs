//! What the commands of `refrain` are made of.

pub mod commands;
pub mod trace;
pub mod workload;
