//! How long a load will take, learned from how long loads took.
//!
//! A load is counted in a few units of work, each of which takes a time of its own; the times are
//! learned from what workers say of their loads, as the crossings of the socket and their own waits
//! are a large part of a small one. Of a load that took longer or shorter than expected, each time
//! is corrected by the root of its share, by ratios: so none falls below zero, none that had no part is
//! touched, small ones are found too, and of two that always come together either may be right.
//! One slow load moves them by a few percent at most.

use crate::node::Node;
use crate::place::BlockPlace;
use refrain_store::geometry::PAGE_SIZE;
use std::time::Duration;

/// How much of a difference is taken over.
const STEP: f64 = 0.1;
/// The first loads after a start are believed more, the first of all ten times as much.
const HASTE: f64 = 9.0;
/// A difference beyond this counts as this: it is somebody else's doing.
const SURPRISE_MAX: f64 = 0.5;

/// What a load is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) host_blocks: u32,
    pub(crate) host_pages: u32,
    /// Of the drive that has most to do, what waits there included.
    pub(crate) ssd_blocks: u32,
    pub(crate) ssd_pages: u32,
}

impl Work {
    /// Units of each kind, in the order of [`Forecast::micros`].
    fn units(self) -> [f64; KINDS] {
        let Self { host_blocks, host_pages, ssd_blocks, ssd_pages } = self;
        let from_ssd = u32::from(ssd_blocks > 0);
        [1, host_blocks, host_pages, from_ssd, ssd_blocks, ssd_pages].map(f64::from)
    }
}

const KINDS: usize = 6;

#[derive(Debug)]
pub(crate) struct Forecast {
    /// What a load takes, a block in the host tier and a page of it (which a worker may copy into a
    /// GPU), the first read, a block on SSD and a page of it.
    micros: [f64; KINDS],
    haste: f64,
}

impl Default for Forecast {
    /// Of a virtual machine with a drive of 1 GB/s and a GPU behind 50: soon forgotten.
    fn default() -> Self {
        Self { micros: [150.0, 2.0, 0.08, 200.0, 10.0, 4.0], haste: HASTE }
    }
}

impl Forecast {
    pub(crate) fn expected(&self, work: Work) -> Duration {
        Duration::from_secs_f64(self.expected_micros(work) / 1e6)
    }

    fn expected_micros(&self, work: Work) -> f64 {
        self.micros.iter().zip(work.units()).map(|(micros, units)| micros * units).sum()
    }

    /// Takes in how long a load took.
    pub(crate) fn learn(&mut self, work: Work, took: Duration) {
        let (expected, found) = (self.expected_micros(work), took.as_secs_f64() * 1e6);
        let surprise = (found - expected) / found.max(expected);
        let step = STEP * (1.0 + self.haste) * surprise.clamp(-SURPRISE_MAX, SURPRISE_MAX);
        self.haste *= 0.9;
        for (micros, units) in self.micros.iter_mut().zip(work.units()) {
            let share = *micros * units / expected;
            *micros *= 1.0 + step * share.sqrt();
        }
    }
}

impl Node {
    /// The work of a load, of blocks in the host tier by their bytes, as the drives stand now: they
    /// work side by side, so that the one with most to do counts.
    pub(crate) fn work<'p>(
        &self,
        in_host: impl Iterator<Item = u64>,
        on_ssd: impl Iterator<Item = &'p BlockPlace>,
    ) -> Work {
        let add = |(blocks, bytes): (u32, u64), stored| (blocks + 1, bytes + stored);
        let (host_blocks, host_bytes) = in_host.fold((0, 0), add);
        let mut wanted = vec![(0u64, 0u32); self.disks.len()];
        for place in on_ssd {
            let (bytes, blocks) = &mut wanted[usize::from(place.group.drive().0)];
            *bytes += place.stored_length();
            *blocks += 1;
        }
        let wanted = self.numbered_disks().map(|(id, disk)| (disk, wanted[usize::from(id.0)]));
        let busy = wanted.filter(|(_, (bytes, _))| *bytes > 0);
        let with_queue = busy
            .map(|(disk, (bytes, blocks))| (disk.drive.stats().queued_read_bytes + bytes, blocks));
        let (bytes, ssd_blocks) = with_queue.max().unwrap_or_default();
        let pages = |bytes: u64| u32::try_from(bytes.div_ceil(PAGE_SIZE)).unwrap_or(u32::MAX);
        Work { host_blocks, host_pages: pages(host_bytes), ssd_blocks, ssd_pages: pages(bytes) }
    }
}

#[cfg(test)]
mod tests {
    //! Proves that times are learned from loads of mixed sizes, and that one slow load is not
    //! believed.

    use super::*;

    fn work(random: &mut fastrand::Rng, block_pages: u32) -> Work {
        let (host_blocks, ssd_blocks) = (random.u32(0..40), random.u32(0..40));
        let (host_pages, ssd_pages) = (host_blocks * block_pages, ssd_blocks * block_pages);
        Work { host_blocks, host_pages, ssd_blocks, ssd_pages }
    }

    /// Of many loads of blocks of `block_pages`, nine of ten of the last are foretold within 5 %.
    fn check(block_pages: u32, truth: [f64; KINDS]) {
        let (mut forecast, truth) = (Forecast::default(), Forecast { micros: truth, haste: 0.0 });
        let mut random = fastrand::Rng::with_seed(5);
        let mut errors = Vec::new();
        for _ in 0..4000 {
            let work = work(&mut random, block_pages);
            let took = truth.expected(work);
            errors.push((forecast.expected(work).div_duration_f64(took) - 1.0).abs());
            forecast.learn(work, took);
        }
        let last = &mut errors[3000..];
        last.sort_unstable_by(f64::total_cmp);
        assert!(last[900] < 0.05, "{} of blocks of {block_pages} pages, {forecast:?}", last[900]);
    }

    #[test]
    fn loads_of_small_and_large_blocks_are_foretold_on_slow_and_fast_machines() {
        check(5, [120.0, 3.0, 0.01, 250.0, 15.0, 2.0]);
        check(5, [20.0, 0.5, 0.1, 60.0, 3.0, 0.6]);
        check(1099, [100.0, 2.0, 0.09, 100.0, 20.0, 4.0]);
        check(1099, [1000.0, 20.0, 0.4, 1000.0, 100.0, 1.0]);
    }

    #[test]
    fn one_load_that_takes_long_moves_the_forecast_by_a_twentieth_at_most() {
        let work = Work { host_blocks: 3, host_pages: 15, ssd_blocks: 10, ssd_pages: 50 };
        let mut forecast = Forecast { haste: 0.0, ..Forecast::default() };
        let before = forecast.expected(work);
        forecast.learn(work, 1000 * before);
        let after = forecast.expected(work);
        assert!(after > before && after < before.mul_f64(1.05), "{before:?}, {after:?}");
    }

    #[test]
    fn what_had_no_part_in_a_load_is_not_changed_by_it() {
        let mut forecast = Forecast::default();
        let on_ssd = Work { ssd_blocks: 1, ssd_pages: 5, ..Work::default() };
        let in_host = Work { host_blocks: 7, host_pages: 35, ..Work::default() };
        let before = forecast.expected(on_ssd).saturating_sub(forecast.expected(Work::default()));
        (0..100).for_each(|_| forecast.learn(in_host, Duration::from_secs(1)));
        let after = forecast.expected(on_ssd).saturating_sub(forecast.expected(Work::default()));
        assert!(before.abs_diff(after) < Duration::from_micros(1));
    }
}
