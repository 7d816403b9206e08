//! What a node says of its fleet's directory, asked at each scrape.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use refrain_index::directory::{Counts, Membership, NodeState};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Reports a fleet, once the node is part of one.
#[derive(Clone, Debug, Default)]
pub(super) struct FleetCollector {
    pub(super) membership: Arc<OnceLock<Membership>>,
}

type Of = fn(&Counts) -> &AtomicU64;

const COUNTERS: [(&str, &str, Of); 14] = [
    ("locates", "Prompts looked up in the directory", |c| &c.locates),
    ("probes", "Blocks looked up in the directory", |c| &c.probes),
    ("unknown_probes", "Of these, those that nobody answered for", |c| &c.unknown_probes),
    ("published", "Own entries acknowledged, repeats too", |c| &c.published),
    ("unpublished", "Own entries taken out", |c| &c.unpublished),
    ("failed_writes", "Entries that no server took in time", |c| &c.failed_writes),
    ("dropped_changes", "Changes too many to remember: announced anew", |c| &c.dropped_changes),
    ("forgotten", "Entries of others that proved wrong and were taken out", |c| &c.forgotten),
    ("foreign_values", "Values that no node of a fleet writes", |c| &c.foreign_values),
    ("refused_commands", "Commands that a server refused", |c| &c.refused_commands),
    ("audited", "Own blocks whose entry was looked for", |c| &c.audited),
    ("audited_missing", "Of these, those without one", |c| &c.audited_missing),
    ("announced_groups", "Groups of slots announced, of 256", |c| &c.announced_groups),
    ("swept", "Entries of dead epochs taken out", |c| &c.swept),
];

impl Collector for FleetCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(membership) = self.membership.get() else { return Ok(()) };
        let counts = membership.directory().counts();
        for (name, help, of) in COUNTERS {
            let value = ConstCounter::new(of(counts).load(Ordering::Relaxed));
            let name = format!("directory_{name}");
            let encoder = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            value.encode(encoder)?;
        }
        let size = |size: usize| u64::try_from(size).unwrap_or(u64::MAX);
        let live = membership.directory().members();
        let live = live.iter().filter(|member| member.state == NodeState::Live).count();
        let levels = [
            ("up", "Whether a server of the directory answers", u64::from(counts.is_reached())),
            ("joined", "Whether the fleet finds this node's blocks", membership.is_joined().into()),
            ("epoch", "This node's epoch", membership.epoch().into()),
            ("live_nodes", "Nodes that are live", size(live)),
            ("pending", "Own entries still to be written", size(membership.pending())),
        ];
        for (name, help, level) in levels {
            let name = format!("directory_{name}");
            let encoder = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            ConstGauge::new(level).encode(encoder)?;
        }
        Ok(())
    }
}
