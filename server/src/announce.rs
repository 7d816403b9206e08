//! The one line that says what a sidecar has become: everything given and everything derived.

use crate::config::{Config, Listen};
use bytesize::ByteSize;
use refrain_store::engine::Durability;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tracing::info;

/// A drive as it was opened.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) path: PathBuf,
    pub(crate) capacity_bytes: u64,
    pub(crate) segment_bytes: u64,
    /// What drives it in the end.
    pub(crate) io_engine: &'static str,
}

/// Logs that the sidecar serves. `metrics` and `peers` are the addresses that were bound.
pub(crate) fn serving(
    (config, listen): (&Config, &Listen),
    drives: &[Opened],
    (metrics, peers): (Option<SocketAddr>, Option<SocketAddr>),
    restart: Duration,
) {
    let all = |one: fn(&Opened) -> String| drives.iter().map(one).collect::<Vec<_>>().join(" ");
    let durability = match config.durability {
        Durability::None => "none",
        Durability::Group => "group",
        Durability::Sync => "sync",
    };
    info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = listen.to_string(),
        metrics = metrics.map(|address| address.to_string()),
        peers = peers.map(|address| address.to_string()),
        peers_asked = config.peers.ask.len(),
        peers_tls = config.peers.tls_ca.is_some(),
        directories = all(|drive| drive.path.display().to_string()),
        capacity = all(|drive| ByteSize(drive.capacity_bytes).to_string().replace(' ', "")),
        segment = all(|drive| ByteSize(drive.segment_bytes).to_string().replace(' ', "")),
        io_engine = all(|drive| drive.io_engine.to_owned()),
        durability,
        load_arena = ByteSize(config.load_arena).to_string().replace(' ', ""),
        session_arena_max = ByteSize(config.session_arena_max).to_string().replace(' ', ""),
        sessions_max = config.sessions_max,
        save_queue = ByteSize(config.save_queue).to_string().replace(' ', ""),
        lease_default = ?config.lease_default,
        lease_max = ?config.lease_max,
        load_deadline = ?config.load_deadline,
        drain = ?config.drain,
        restart = ?restart,
        "serving"
    );
}
