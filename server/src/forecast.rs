//! How long a load will take: the drives' queues and its own bytes at the rates measured, and what
//! every load takes besides, learned from those before it.

use crate::node::Node;
use crate::place::BlockPlace;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Taken where a drive has not been measured yet.
const RATE_UNKNOWN: u64 = 1_000_000_000;
/// A newcomer counts for one of this many, so that one slow load does not make all look slow.
const MEMORY: u64 = 16;

/// What loads take apart from their bytes: tasks that wake, and reads that are short of a queue.
#[derive(Debug, Default)]
pub(crate) struct Overhead {
    /// Nanoseconds.
    mean: AtomicU64,
}

impl Overhead {
    pub(crate) fn get(&self) -> Duration {
        Duration::from_nanos(self.mean.load(Ordering::Relaxed))
    }

    /// Takes a load in whose bytes alone should have taken `transfer`.
    pub(crate) fn learn(&self, transfer: Duration, elapsed: Duration) {
        let found = elapsed.saturating_sub(transfer).as_nanos();
        let found = u64::try_from(found).unwrap_or(u64::MAX);
        let before = self.mean.load(Ordering::Relaxed);
        let mean = if before == 0 { found } else { before - before / MEMORY + found / MEMORY };
        // Two at once lose one of them, which is as good as any mean.
        self.mean.store(mean, Ordering::Relaxed);
    }
}

impl Node {
    /// Of blocks that must come from the drives: these work side by side, so that the slowest
    /// counts.
    pub(crate) fn transfer_time<'p>(
        &self,
        places: impl Iterator<Item = &'p BlockPlace>,
    ) -> Duration {
        let mut bytes = vec![0u64; self.disks.len()];
        for place in places {
            bytes[usize::from(place.group.drive().0)] += place.stored_length();
        }
        let busy = self.disks.iter().zip(bytes).filter(|(_, bytes)| *bytes > 0);
        let nanos = busy.map(|(disk, bytes)| {
            let stats = disk.drive.stats();
            let rate = match stats.read_bytes_per_second {
                0 => RATE_UNKNOWN,
                measured => measured,
            };
            let queued = u128::from(stats.queued_read_bytes) + u128::from(bytes);
            u64::try_from(queued * 1_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX)
        });
        Duration::from_nanos(nanos.max().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    //! Proves that the overhead comes to what loads take besides their bytes.

    use super::*;

    #[test]
    fn overhead_is_learned_and_outliers_fade() {
        let overhead = Overhead::default();
        let [transfer, usual] = [3, 1].map(Duration::from_millis);
        for _ in 0..200 {
            overhead.learn(transfer, transfer + usual);
        }
        overhead.learn(transfer, transfer + 100 * usual);
        assert!(overhead.get() > 2 * usual);
        for _ in 0..200 {
            overhead.learn(transfer, transfer + usual);
        }
        let error = overhead.get().abs_diff(usual);
        assert!(error < Duration::from_micros(10), "{error:?}");
        // Faster than its bytes should have been: the rate has grown, and nothing is besides.
        (0..400).for_each(|_| overhead.learn(transfer, usual));
        assert!(overhead.get() < Duration::from_micros(10));
    }
}
