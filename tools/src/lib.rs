//! What the commands of `refrain` are made of.

pub mod admin;
pub mod block;
pub mod cluster;
pub mod commands;
pub mod hex;
pub mod namespace;
pub mod network;
pub mod prefix;
mod process;
pub mod prompt;
pub mod rows;
pub mod sidecar;
pub mod spoiler;
pub mod stopped;
pub mod subject;
pub mod target;
pub mod trace;
pub mod workload;
