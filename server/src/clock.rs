//! The node's clock for what is older than what: tenths of a second since it started.

use std::time::{Duration, Instant, SystemTime};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

const TICK: Duration = Duration::from_millis(100);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Ticks since the start, from 1 on; 32 bits last for 13 years.
    pub(crate) fn now(self) -> u32 {
        let ticks = self.0.elapsed().as_millis() / TICK.as_millis();
        u32::try_from(ticks).unwrap_or(u32::MAX - 1) + 1
    }

    pub(crate) fn uptime(self) -> Duration {
        self.0.elapsed()
    }

    /// Time since a tick.
    pub(crate) fn since(self, tick: u32) -> Duration {
        TICK * self.now().saturating_sub(tick)
    }
}

/// What outlives a start is timed by the machine's clock: milliseconds of the Unix epoch.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
