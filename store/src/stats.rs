//! What a drive counts. Written by its thread, read by anybody.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread writes and any thread reads.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn add(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }
}

/// Counters and levels of one drive.
#[derive(Debug, Default)]
pub struct Counters {
    pub read_bytes: Gauge,
    pub written_bytes: Gauge,
    pub queued_read_bytes: Gauge,
    pub queued_write_bytes: Gauge,
    pub read_bytes_per_second: Gauge,
    pub write_bytes_per_second: Gauge,
    pub checksum_failures: Gauge,
    pub read_errors: Gauge,
    pub write_errors: Gauge,
    pub syncs: Gauge,
    pub segments_free: Gauge,
    /// Reads that failed since one went well.
    pub read_errors_in_row: Gauge,
    /// When the operation that runs the longest was begun, in milliseconds since the drive was, and
    /// one more; 0 while none runs.
    pub oldest_operation_ms: Gauge,
    /// 1 after a failed write or sync: reads go on.
    pub read_only: Gauge,
}
