//! Proves, on real clusters of six Redis processes with the configuration that is handed out, that
//! the fleet's directory finds what nodes hold, and that whatever happens to it costs hits of other
//! nodes' blocks and nothing else, and is whole again by itself.
//!
//! `entries` asks the directory's client itself, for nodes that hold nothing but names; `sidecars`
//! asks sidecars, whose blocks are real.
#![expect(clippy::unwrap_used, reason = "a claim that meets an error has failed")]

#[path = "../fixture/mod.rs"]
#[expect(dead_code, reason = "other claims use more of it")]
mod fixture;

mod entries;
mod failures;
mod peers;
mod rig;
mod security;
mod sidecars;
