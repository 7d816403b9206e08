//! The sidecar: joins store and index, and serves them over gRPC.

pub mod address_file;
mod announce;
pub mod config;
pub mod metrics;
pub mod metrics_http;
mod private_file;
pub mod secret;
mod serve;
pub mod sockets;

pub use serve::{ServeError, serve};
