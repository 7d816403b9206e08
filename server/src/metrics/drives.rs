//! What drives say of themselves, asked at each scrape.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use refrain_store::drive::DriveStats;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// Asks every drive, by its path.
pub(super) type AskDrives = Box<dyn Fn() -> Vec<(PathBuf, DriveStats)> + Send + Sync>;

/// Reports drives, once there are any.
#[derive(Clone)]
pub(super) struct DriveCollector {
    pub(super) ask: Arc<OnceLock<AskDrives>>,
}

impl fmt::Debug for DriveCollector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let started = self.ask.get().is_some();
        out.debug_struct("DriveCollector").field("started", &started).finish()
    }
}

struct DriveMetric {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    value: fn(&DriveStats) -> u64,
}

const fn gauge(
    name: &'static str,
    help: &'static str,
    value: fn(&DriveStats) -> u64,
) -> DriveMetric {
    DriveMetric { name, help, kind: MetricType::Gauge, value }
}

const fn counter(
    name: &'static str,
    help: &'static str,
    value: fn(&DriveStats) -> u64,
) -> DriveMetric {
    DriveMetric { name, help, kind: MetricType::Counter, value }
}

/// Also in bytes where the name says so: a unit would add its name a second time.
const METRICS: &[DriveMetric] = &[
    gauge("drive_writable", "1, or 0 once a write or a sync went wrong", |d| d.writable.into()),
    gauge("drive_withdrawn", "1 while it hangs or its reads fail, and it is asked nothing", |d| {
        d.withdrawn.is_some().into()
    }),
    gauge("drive_uring", "1 where io_uring drives it, 0 where the thread pool does", |d| {
        d.io_engine.starts_with("uring").into()
    }),
    gauge("drive_capacity_bytes", "Bound on all segments together", |d| d.capacity_bytes),
    gauge("drive_segment_bytes", "Size of one segment", |d| d.segment_bytes),
    gauge("drive_segments", "Segments in all", |d| d.segments.into()),
    gauge("drive_segments_free", "Segments that hold nothing", |d| d.segments_free),
    gauge("drive_queued_read_bytes", "Reads that are not done", |d| d.queued_read_bytes),
    gauge("drive_queued_write_bytes", "Writes that are not done", |d| d.queued_write_bytes),
    gauge("drive_read_bytes_per_second", "Measured while it was busy, 0 before", |d| {
        d.read_bytes_per_second
    }),
    gauge("drive_write_bytes_per_second", "Measured while it was busy, 0 before", |d| {
        d.write_bytes_per_second
    }),
    counter("drive_read_bytes", "Read from the device", |d| d.read_bytes),
    counter("drive_written_bytes", "Written to the device", |d| d.written_bytes),
    counter("drive_checksum_failures", "Reads that were not what was written", |d| {
        d.checksum_failures
    }),
    counter("drive_read_errors", "Reads that the device refused", |d| d.read_errors),
    counter("drive_write_errors", "Writes that the device refused", |d| d.write_errors),
    counter("drive_syncs", "Syncs", |d| d.syncs),
];

impl Collector for DriveCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let drives = self.ask.get().map_or_else(Vec::new, |ask| ask());
        if drives.is_empty() {
            return Ok(());
        }
        for metric in METRICS {
            let mut all = encoder.encode_descriptor(metric.name, metric.help, None, metric.kind)?;
            for (path, stats) in &drives {
                let label = [("drive", path.to_string_lossy())];
                let mut one = all.encode_family(&label)?;
                let value = (metric.value)(stats);
                if matches!(metric.kind, MetricType::Counter) {
                    one.encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
                } else {
                    one.encode_gauge(&value)?;
                }
            }
        }
        Ok(())
    }
}
