//! The node's clock. Where its time comes from is passed in, and who does its work beside: a
//! simulation lets both pass as it likes.

use std::fmt::Debug;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::oneshot;

/// Ends when its time has come.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What takes a core's time, and answers nobody by itself.
pub type Work = Box<dyn FnOnce() + Send>;

/// Where the time comes from.
pub trait Time: Debug + Send + Sync {
    fn now(&self) -> Instant;

    /// Ends at `at`, or at once where that has passed.
    fn sleep_until(&self, at: Instant) -> Sleep;

    /// Does `work` where nobody waits for the thread. Dropped undone where no more is done.
    fn aside(&self, work: Work);
}

/// The system's, with the runtime's timers.
#[derive(Debug)]
struct MachineTime;

impl Time for MachineTime {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep_until(&self, at: Instant) -> Sleep {
        Box::pin(tokio::time::sleep_until(at.into()))
    }

    fn aside(&self, work: Work) {
        // Whoever waits for its end has a channel to it.
        drop(tokio::task::spawn_blocking(work));
    }
}

#[derive(Clone, Debug)]
pub struct Clock {
    time: Arc<dyn Time>,
    start: Instant,
}

/// The unit of what is older than what.
const TICK: Duration = Duration::from_millis(100);

impl Clock {
    pub fn system() -> Self {
        Self::of(Arc::new(MachineTime))
    }

    /// A clock that starts now.
    pub fn of(time: Arc<dyn Time>) -> Self {
        let start = time.now();
        Self { time, start }
    }

    pub(crate) fn now(&self) -> Instant {
        self.time.now()
    }

    /// Ticks since the start, from 1 on; 32 bits last for 13 years.
    pub(crate) fn tick(&self) -> u32 {
        let ticks = self.uptime().as_millis() / TICK.as_millis();
        u32::try_from(ticks).unwrap_or(u32::MAX - 1) + 1
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.now().saturating_duration_since(self.start)
    }

    /// Time since a tick.
    pub(crate) fn since(&self, tick: u32) -> Duration {
        TICK * self.tick().saturating_sub(tick)
    }

    pub(crate) async fn sleep(&self, time: Duration) {
        self.time.sleep_until(self.now() + time).await;
    }

    /// What comes of `work`, done beside; `None` where no more is done.
    pub(crate) async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (done, outcome) = oneshot::channel();
        self.time.aside(Box::new(move || {
            // Whoever asked may have gone.
            let _ = done.send(work());
        }));
        outcome.await.ok()
    }

    /// What comes of `future`, unless `at` comes first.
    pub(crate) async fn until<T>(&self, at: Instant, future: impl Future<Output = T>) -> Option<T> {
        let mut sleep = self.time.sleep_until(at);
        let mut future = pin!(future);
        std::future::poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending => sleep.as_mut().poll(context).map(|()| None),
        })
        .await
    }
}

/// What outlives a start is timed by the machine's clock: milliseconds of the Unix epoch.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
