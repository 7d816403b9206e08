//! The wire: gRPC messages, and the handshake of a session.
//!
//! `src/generated` is written from `proto/refrain/v1/refrain.proto` by `codegen`, and
//! committed, so that no build needs a generator.

pub mod data;
pub mod session;

pub use prost::bytes::Bytes;

/// What reflection answers with.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/refrain.v1.bin");

#[expect(
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod v1 {
    include!("generated/refrain.v1.rs");
}
