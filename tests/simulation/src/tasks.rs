//! Futures on one thread, the next one to run drawn by lot.

use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};

/// A future, and what wakes it.
type Spawned = (Waker, Pin<Box<dyn Future<Output = ()>>>);

#[derive(Default)]
pub struct Tasks {
    all: BTreeMap<u64, Spawned>,
    ready: Arc<Ready>,
    spawned: u64,
}

#[derive(Debug, Default)]
struct Ready(Mutex<BTreeSet<u64>>);

impl Ready {
    fn set(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Awoken {
    task: u64,
    ready: Arc<Ready>,
}

impl Wake for Awoken {
    fn wake(self: Arc<Self>) {
        self.ready.set().insert(self.task);
    }
}

impl std::fmt::Debug for Tasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tasks").field("ready", &self.ready).finish_non_exhaustive()
    }
}

impl Tasks {
    pub fn spawn(&mut self, future: impl Future<Output = ()> + 'static) {
        self.spawned += 1;
        let awoken = Awoken { task: self.spawned, ready: Arc::clone(&self.ready) };
        self.all.insert(self.spawned, (Arc::new(awoken).into(), Box::pin(future)));
        self.ready.set().insert(self.spawned);
    }

    pub fn is_ready(&self) -> bool {
        !self.ready.set().is_empty()
    }

    /// Polls one of those that are ready, if any is.
    pub fn run_one(&mut self, random: &mut Rng) {
        let mut ready = self.ready.set();
        let Some(task) = random.choice(ready.iter().copied()) else { return };
        ready.remove(&task);
        drop(ready);
        // A task may be woken after its end.
        let Some((waker, future)) = self.all.get_mut(&task) else { return };
        let waker = waker.clone();
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            self.all.remove(&task);
        }
    }

    /// Ends all of them where they stand.
    pub fn clear(&mut self) {
        self.all.clear();
        self.ready.set().clear();
    }
}
