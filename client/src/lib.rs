//! What a worker links: prefixes in, their KV back.
//!
//! A [`Client`] is one session with the sidecar of its node: control goes over gRPC, bytes through
//! two arenas of shared memory. The way of a prompt: [`Registration::lookup`] says how much of it
//! is there, [`Lookup::load`] brings that, the worker copies it out of the arena stripe by stripe,
//! and [`Lookup::release`] says whether what was copied counts. [`Lookup::save`] stores the rest.
//!
//! A [`Remote`] is the same for a sidecar of another machine, without shared memory.
//!
//! The cache is never the reason that a request fails. A sidecar that stops in the middle makes
//! misses; one that starts again is found by itself. Any future may be dropped at any point.

mod address;
mod admin;
mod cache;
mod call;
mod client;
mod connection;
mod error;
mod events;
mod gather;
mod keeper;
mod layered;
mod layout;
mod lease;
mod line;
mod load;
mod lookup;
mod registration;
pub mod remote;
mod reservation;
mod save;
mod slots;

pub use address::{Address, AddressError};
pub use admin::admin;
pub use cache::KvCache;
pub use client::{Client, ClientConfig};
pub use error::{Absence, ClientError, Place};
pub use events::Watch;
pub use layered::LayeredLoad;
pub use layout::{Layout, Stripe};
pub use load::{Done, Load, Ready};
pub use lookup::Lookup;
pub use refrain_gpu_transfer as gpu_transfer;
pub use refrain_proto::v1;
pub use registration::{Prompt, Registration};
pub use remote::{Remote, RemoteAddress, RemoteConfig};
pub use save::Saved;

#[cfg(test)]
mod tests;
