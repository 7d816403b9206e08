//! The sidecar: joins store and index behind gRPC.

pub mod address_file;
mod admin_service;
mod announce;
mod cache_service;
mod clock;
pub mod config;
mod epochs;
mod events;
mod events_service;
mod forecast;
mod host_tier;
mod inspect;
mod journal;
mod leases;
mod load;
mod lookup;
pub mod metrics;
mod metrics_http;
mod namespaces;
pub mod node;
mod place;
mod private_file;
mod reclaim;
mod recovery;
mod save;
pub mod secret;
mod segments;
mod serve;
mod sessions;
pub mod sockets;
mod state;
mod status;
mod wire;
mod withdrawal;

pub use serve::{ServeError, serve};
