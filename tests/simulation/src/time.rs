//! Time that passes when nothing else can happen, and never by itself.

use refrain_server::clock::{Sleep, Time, Work};
use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// A clock that stands until it is set on. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct VirtualTime {
    start: Instant,
    state: Arc<Mutex<State>>,
}

struct State {
    now: Instant,
    timers: BTreeMap<(Instant, u64), Waker>,
    numbered: u64,
    /// To be done beside.
    works: VecDeque<Work>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("timers", &self.timers).finish_non_exhaustive()
    }
}

impl VirtualTime {
    /// Where it starts is of no account: only differences are looked at.
    pub fn start() -> Self {
        let start = Instant::now();
        let state =
            State { now: start, timers: BTreeMap::new(), numbered: 0, works: VecDeque::new() };
        Self { start, state: Arc::new(Mutex::new(state)) }
    }

    pub fn elapsed(&self) -> Duration {
        self.now() - self.start
    }

    pub fn next_timer(&self) -> Option<Instant> {
        self.state().timers.first_key_value().map(|((at, _), _)| *at)
    }

    pub fn has_work(&self) -> bool {
        !self.state().works.is_empty()
    }

    /// Does what is to be done beside, a part of it.
    pub fn work(&self) {
        let work = self.state().works.pop_front();
        if let Some(work) = work {
            work();
        }
    }

    /// Forgets what was to be done beside.
    pub fn clear(&self) {
        let works = std::mem::take(&mut self.state().works);
        drop(works);
    }

    /// Sets the clock on and wakes whoever waited for that.
    pub fn advance_to(&self, at: Instant) {
        let mut state = self.state();
        state.now = state.now.max(at);
        let now = state.now;
        let later = state.timers.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut state.timers, later);
        drop(state);
        due.into_values().for_each(Waker::wake);
    }

    pub fn sleep(&self, duration: Duration) -> Sleep {
        self.sleep_until(self.now() + duration)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Time for VirtualTime {
    fn now(&self) -> Instant {
        self.state().now
    }

    fn sleep_until(&self, at: Instant) -> Sleep {
        Box::pin(Timer { time: self.clone(), at, number: None })
    }

    fn aside(&self, work: Work) {
        self.state().works.push_back(work);
    }
}

struct Timer {
    time: VirtualTime,
    at: Instant,
    number: Option<u64>,
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let at = self.at;
        let mut state = self.time.state();
        if state.now >= at {
            return Poll::Ready(());
        }
        let number = self.number.unwrap_or(state.numbered + 1);
        state.numbered = state.numbered.max(number);
        state.timers.insert((at, number), context.waker().clone());
        drop(state);
        self.number = Some(number);
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.time.state().timers.remove(&(self.at, number));
        }
    }
}
