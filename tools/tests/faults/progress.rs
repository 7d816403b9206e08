//! Loops on several threads, of which none may stand still.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

/// Far above what a round takes on a busy machine.
const HANG: Duration = Duration::from_mins(2);

/// Told after each round.
pub(crate) type Rounds = Sender<()>;

/// Runs `work` on every core with a seed of its own; what each of them counted. A round that takes
/// too long is a hang, and ends all.
pub(crate) fn on_every_core<T: Send>(
    seed: u64,
    work: impl Fn(usize, usize, fastrand::Rng, Rounds) -> T + Sync,
) -> Vec<T> {
    let cores = thread::available_parallelism().map_or(1, usize::from).min(8);
    let mut random = fastrand::Rng::with_seed(seed);
    thread::scope(|scope| {
        let (rounds, heard) = channel();
        let mut threads = Vec::new();
        for core in 0..cores {
            let (random, rounds, work) = (random.fork(), rounds.clone(), &work);
            threads.push(scope.spawn(move || work(core, cores, random, rounds)));
        }
        drop(rounds);
        loop {
            match heard.recv_timeout(HANG) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    // A thread that hangs cannot be joined.
                    eprintln!("no round ended within {HANG:?}");
                    std::process::abort();
                }
            }
        }
        let join = |thread: thread::ScopedJoinHandle<'_, T>| match thread.join() {
            Ok(counted) => counted,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().map(join).collect()
    })
}
