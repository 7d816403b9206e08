//! How fast a drive is, measured while it is busy.

use crate::stats::Gauge;
use std::time::{Duration, Instant};

/// Long enough to even out, short enough to follow a drive that slows down.
const WINDOW: Duration = Duration::from_millis(20);

/// Bytes a second over the time in which anything was in flight.
#[derive(Debug, Default)]
pub(super) struct Rate {
    since: Option<Instant>,
    busy: Duration,
    bytes: u64,
}

impl Rate {
    /// Something is in flight from now on.
    pub(super) fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// `bytes` are through; `busy` says whether more is in flight. The gauge follows slowly.
    pub(super) fn add(&mut self, bytes: u64, now: Instant, busy: bool, gauge: &Gauge) {
        if let Some(since) = self.since {
            self.busy += now.saturating_duration_since(since);
        }
        self.since = busy.then_some(now);
        self.bytes += bytes;
        if self.busy >= WINDOW {
            let micros = u64::try_from(self.busy.as_micros()).unwrap_or(u64::MAX).max(1);
            let found = self.bytes.saturating_mul(1_000_000) / micros;
            let before = gauge.get();
            gauge.set(if before == 0 { found } else { (3 * before + found) / 4 });
            (self.busy, self.bytes) = (Duration::ZERO, 0);
        }
    }
}
