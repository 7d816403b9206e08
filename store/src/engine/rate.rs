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

#[cfg(test)]
mod tests {
    //! Proves that a rate is of the time in which something was in flight, and follows slowly.

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn time_without_anything_in_flight_does_not_count() {
        let (mut rate, gauge) = (Rate::default(), Gauge::default());
        let mut now = Instant::now();
        for _ in 0..2 {
            rate.begin(now);
            assert_eq!(gauge.get(), 0);
            now += WINDOW / 2;
            rate.add(MIB, now, false, &gauge);
            now += Duration::from_secs(1);
        }
        assert_eq!(gauge.get(), 2 * MIB * 50);
    }

    #[test]
    fn what_overlaps_counts_once_and_a_change_is_followed_by_a_quarter() {
        let (mut rate, gauge) = (Rate::default(), Gauge::default());
        let mut now = Instant::now();
        rate.begin(now);
        rate.begin(now + WINDOW / 4);
        now += WINDOW / 2;
        rate.add(MIB, now, true, &gauge);
        now += WINDOW / 2;
        rate.add(MIB, now, true, &gauge);
        assert_eq!(gauge.get(), 2 * MIB * 50);
        now += WINDOW;
        rate.add(4 * MIB, now, false, &gauge);
        assert_eq!(gauge.get(), (3 * 2 + 4) * MIB * 50 / 4);
    }
}
