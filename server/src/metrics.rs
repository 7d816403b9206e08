//! What a sidecar counts, and how it tells Prometheus.
//!
//! The core bumps plain atomics; names, help texts and buckets stand here. Every counter is there
//! from the start, as 0. Gauges of drives are asked for at each scrape.

use crate::fates::Eviction;
use crate::load::Miss;
use crate::peers::{Asked, Fetched};
use crate::save::Refusal;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use refrain_index::directory::Membership;
use refrain_store::drive::DriveStats;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;

mod drives;
mod fleet;
mod labels;
mod record;

pub use labels::{CounterBy, Label, Source};

use drives::{AskDrives, DriveCollector};
use fleet::FleetCollector;

/// A number that goes up and down.
pub type Level = Gauge<u64, AtomicU64>;
/// Seconds, or another fraction, as it stands.
pub type Seconds = Gauge<f64, AtomicU64>;

/// Everything that is counted; shared by reference, bumped from any thread.
#[derive(Debug)]
pub struct Metrics {
    pub lookups: Counter,
    /// Full blocks of the prompts that were looked up.
    pub lookup_blocks: Counter,
    pub matched_blocks: Counter,
    pub lookup_seconds: Histogram,
    pub loads: Counter,
    pub loaded_blocks: CounterBy<Source>,
    pub loaded_bytes: CounterBy<Source>,
    /// Matched, and not loaded in the end.
    pub missed_blocks: CounterBy<Miss>,
    pub load_seconds: Histogram,
    /// Blocks that a load wanted while another one was reading them already.
    pub shared_reads: Counter,
    /// By how much a load took longer or shorter than its lookup had said.
    pub expected_load_error_seconds: Histogram,
    pub saves: Counter,
    pub saved_blocks: Counter,
    pub saved_bytes: Counter,
    pub refused_blocks: CounterBy<Refusal>,
    pub save_seconds: Histogram,
    pub evicted_blocks: CounterBy<Eviction>,
    /// Kept by reclaim: written again elsewhere.
    pub moved_blocks: Counter,
    pub moved_bytes: Counter,
    pub damaged_blocks: Counter,
    pub leases_expired: Counter,
    /// Sent to peers.
    pub sent_blocks: Counter,
    pub sent_bytes: Counter,
    /// Blocks of peers that were saved on this node's own drives.
    pub kept_blocks: Counter,
    /// Questions to peers of lookups, by how they ended.
    pub offers: CounterBy<Asked>,
    pub fetches: CounterBy<Fetched>,
    /// Bytes that peers were promised, and not sent yet.
    pub send_queue_bytes: Level,
    /// Connections of peers.
    pub links: Level,
    pub sessions: Level,
    pub leases: Level,
    pub reservations: Level,
    pub blocks: Level,
    /// Of the resident blocks, bytes that reclaim keeps.
    pub pinned_bytes: Level,
    pub index_bytes: Level,
    pub host_frames: Level,
    pub host_bytes: Level,
    pub arena_bytes: Level,
    /// Saves that wait for a drive.
    pub save_queue_bytes: Level,
    /// From the start of the process until it served.
    pub restart_seconds: Seconds,
    drives: DriveCollector,
    fleet: FleetCollector,
    registry: Registry,
}

/// What of [`Metrics`] belongs together, so that each is made in one piece.
struct Registrar {
    registry: Registry,
}

impl Registrar {
    fn counter(&mut self, name: &str, help: &str) -> Counter {
        let counter = Counter::default();
        self.registry.register(name, help, counter.clone());
        counter
    }

    fn counter_by<L: Label>(&mut self, name: &str, help: &str) -> CounterBy<L> {
        CounterBy::register(&mut self.registry, name, help)
    }

    fn level(&mut self, name: &str, help: &str) -> Level {
        let level = Level::default();
        self.registry.register(name, help, level.clone());
        level
    }

    /// Buckets double from `first` seconds on.
    fn seconds(&mut self, name: &str, help: &str, first: f64, buckets: u16) -> Histogram {
        let histogram = Histogram::new(exponential_buckets(first, 2.0, buckets));
        self.registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        histogram
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let mut make = Registrar { registry: Registry::with_prefix("refrain") };
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        make.registry.register("build", "What this sidecar is", version);
        let restart_seconds = Seconds::default();
        let help = "From the start of the process until it served";
        let restart = restart_seconds.clone();
        make.registry.register_with_unit("restart", help, Unit::Seconds, restart);
        let drives = DriveCollector { ask: std::sync::Arc::default() };
        make.registry.register_collector(Box::new(drives.clone()));
        let fleet = FleetCollector::default();
        make.registry.register_collector(Box::new(fleet.clone()));
        Self {
            lookups: make.counter("lookups", "Prompts looked up"),
            lookup_blocks: make.counter("lookup_blocks", "Full blocks of prompts looked up"),
            matched_blocks: make.counter("matched_blocks", "Blocks of prefix matches"),
            // 10 us to 1.3 s.
            lookup_seconds: make.seconds("lookup", "Time of a lookup", 10e-6, 18),
            loads: make.counter("loads", "Loads begun"),
            loaded_blocks: make.counter_by("loaded_blocks", "Blocks loaded, by where they were"),
            loaded_bytes: make.counter_by("loaded_bytes", "Payload of loaded blocks"),
            missed_blocks: make.counter_by("missed_blocks", "Blocks matched, but not loaded"),
            // 100 us to 13 s.
            load_seconds: make.seconds("load", "Time of a load", 100e-6, 18),
            shared_reads: make.counter("shared_reads", "Blocks that shared another load's read"),
            expected_load_error_seconds: make.seconds(
                "expected_load_error",
                "Distance of a load's time from what its lookup expected",
                100e-6,
                18,
            ),
            saves: make.counter("saves", "Saves begun"),
            saved_blocks: make.counter("saved_blocks", "Blocks saved"),
            saved_bytes: make.counter("saved_bytes", "Payload of saved blocks"),
            refused_blocks: make.counter_by("refused_blocks", "Blocks refused to be saved"),
            save_seconds: make.seconds("save", "Time of a save", 100e-6, 18),
            evicted_blocks: make.counter_by("evicted_blocks", "Blocks gone, by why"),
            moved_blocks: make.counter("moved_blocks", "Blocks that reclaim kept and moved"),
            moved_bytes: make.counter("moved_bytes", "Bytes that reclaim wrote again"),
            damaged_blocks: make.counter("damaged_blocks", "Blocks that did not pass a check"),
            leases_expired: make.counter("leases_expired", "Leases that nobody released in time"),
            sent_blocks: make.counter("sent_blocks", "Blocks sent to peers"),
            sent_bytes: make.counter("sent_bytes", "Bytes sent to peers"),
            kept_blocks: make.counter("kept_blocks", "Blocks of peers saved on own drives"),
            offers: make.counter_by("offers", "Questions of lookups to peers, by their end"),
            fetches: make.counter_by("fetches", "Transfers from peers, by their end"),
            send_queue_bytes: make.level("send_queue_bytes", "Promised to peers, not sent yet"),
            links: make.level("links", "Connections of peers"),
            sessions: make.level("sessions", "Workers connected"),
            leases: make.level("leases", "Leases held"),
            reservations: make.level("reservations", "Saves reserved, not yet committed"),
            blocks: make.level("blocks", "Blocks resident"),
            pinned_bytes: make.level("pinned_bytes", "Stored bytes of pinned blocks"),
            index_bytes: make.level("index_bytes", "Memory of the index"),
            host_frames: make.level("host_frames", "Blocks in the host tier"),
            host_bytes: make.level("host_bytes", "Memory of the host tier in use"),
            arena_bytes: make.level("arena_bytes", "Memory of the load arena"),
            save_queue_bytes: make.level("save_queue_bytes", "Saves that wait for a drive"),
            restart_seconds,
            drives,
            fleet,
            registry: make.registry,
        }
    }

    /// Has `ask` answer for the drives, by path, at each scrape; once only. It should hold the
    /// drives, and nothing that holds these metrics.
    pub fn watch_drives(
        &self,
        ask: impl Fn() -> Vec<(PathBuf, DriveStats)> + Send + Sync + 'static,
    ) {
        let ask: AskDrives = Box::new(ask);
        assert!(self.drives.ask.set(ask).is_ok(), "drives start once");
    }

    /// Tells of a fleet's directory from now on.
    pub(crate) fn watch_fleet(&self, membership: &Membership) {
        self.fleet.membership.get_or_init(|| membership.clone());
    }

    /// All of it in the `OpenMetrics` text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("a string takes all that is written to it");
        text
    }
}

#[cfg(test)]
mod tests;
