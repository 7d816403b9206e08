//! Seeds, one after the other or side by side, and what to say of those that fail.

use crate::world::{Summary, run};
use std::io;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The seeds that have found something, each with what that was.
pub const FOUND: &str = include_str!("../seeds.txt");

/// What many runs came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Total {
    pub seeds: u64,
    pub steps: u64,
    pub loaded: u64,
    pub missed: u64,
    pub saved: u64,
    pub promised: u64,
    pub refused: u64,
}

impl Total {
    fn add(&mut self, summary: Summary) {
        self.seeds += 1;
        self.steps += summary.steps;
        self.loaded += summary.loaded;
        self.missed += summary.missed;
        self.saved += summary.saved;
        self.promised += summary.promised;
        self.refused += summary.refused;
    }
}

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    Seeds(u64),
    Elapsed(Duration),
}

/// Where the little lies that is not simulated: in memory where there is such a place, as its syncs
/// cost nothing there.
pub fn scratch() -> io::Result<TempDir> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        return tempfile::tempdir_in(memory);
    }
    tempfile::tempdir()
}

/// The committed seeds.
pub fn found() -> impl Iterator<Item = u64> {
    let seeds = FOUND.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    seeds.filter(|seed| !seed.is_empty()).map(|seed| seed.parse().expect("a seed is a number"))
}

/// Runs seeds from `first` on, on `threads` threads; the first that fails ends it.
pub fn hunt(first: u64, until: Until, threads: usize) -> io::Result<Result<Total, u64>> {
    let (next, total) = (AtomicU64::new(first), Mutex::new(Total::default()));
    let (failed, is_over) = (Mutex::new(None), AtomicBool::new(false));
    let begin = Instant::now();
    let work = || -> io::Result<()> {
        let directory = scratch()?;
        while !is_over.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let is_enough = match until {
                Until::Seeds(seeds) => seed - first >= seeds,
                Until::Elapsed(time) => begin.elapsed() >= time,
            };
            if is_enough {
                return Ok(());
            }
            if let Ok(summary) = catch_unwind(|| run(seed, directory.path())) {
                locked(&total).add(summary);
            } else {
                locked(&failed).get_or_insert(seed);
                is_over.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ended = running.into_iter().map(|thread| thread.join().expect("panics are caught"));
        ended.collect::<io::Result<()>>()
    })?;
    let (failed, total) = (*locked(&failed), *locked(&total));
    Ok(failed.map_or(Ok(total), Err))
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
