//! The requests of a replay, handed out one after another, in the order of the trace, when due.

use super::Event;
use crate::trace::{Ideal, Request, TraceError, Unlimited};
use std::sync::mpsc::Sender;
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

/// A request and its number in the trace file, from 0.
#[derive(Clone, Debug)]
pub(super) struct Numbered {
    pub(super) index: u64,
    pub(super) request: Request,
    /// Blocks that a cache that forgets nothing would have.
    pub(super) ideal_hit: u64,
}

type Requests = Box<dyn Iterator<Item = Result<Request, TraceError>> + Send>;

/// When requests are due, and what happens on the way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Course {
    /// Number of the first request in its file.
    pub(super) first: u64,
    pub(super) block_tokens: u64,
    /// How many times faster than the trace; `None` waits for nothing.
    pub(super) speed: Option<f64>,
    /// The sidecar is disturbed when this request is taken, counted from the first one.
    pub(super) disturb_at: Option<u64>,
}

pub(super) struct Queue {
    course: Course,
    state: Mutex<State>,
    stop: watch::Receiver<bool>,
    events: Sender<Event>,
}

struct State {
    requests: Requests,
    taken: u64,
    /// When the first request was taken, and its time in the trace.
    begun: Option<(Instant, u64)>,
    late_max: Duration,
    unlimited: Unlimited,
}

impl Queue {
    /// Hands out `requests` until `stop` says so.
    pub(super) fn new(
        requests: Requests,
        course: Course,
        stop: watch::Receiver<bool>,
        events: Sender<Event>,
    ) -> Self {
        let unlimited = Unlimited::new(course.block_tokens);
        let (begun, late_max) = (None, Duration::ZERO);
        let state = Mutex::new(State { requests, taken: 0, begun, late_max, unlimited });
        Self { course, state, stop, events }
    }

    /// The next request, when it is due; those who ask are served in their order.
    pub(super) async fn next(&self) -> Option<Result<Numbered, TraceError>> {
        let mut state = self.state.lock().await;
        if *self.stop.borrow() {
            return None;
        }
        let request = match state.requests.next()? {
            Ok(request) => request,
            Err(error) => return Some(Err(error)),
        };
        if !self.due(&mut state, request.timestamp_ms).await {
            return None;
        }
        if self.course.disturb_at == Some(state.taken) {
            // Nobody listens any more after an end by force.
            let _ = self.events.send(Event::Reached);
        }
        let index = self.course.first + state.taken;
        state.taken += 1;
        let ideal_hit = state.unlimited.serve(&request);
        Some(Ok(Numbered { index, request, ideal_hit }))
    }

    /// What a cache that forgets nothing would have made of what was handed out.
    pub(super) async fn ideal(&self) -> Ideal {
        self.state.lock().await.unlimited.ideal()
    }

    /// How far the replay fell behind the trace's clock, at worst.
    pub(super) async fn late_max(&self) -> Duration {
        self.state.lock().await.late_max
    }

    /// Waits until a request of this time is due; `false` when the replay is stopped before.
    async fn due(&self, state: &mut State, timestamp_ms: u64) -> bool {
        let Some(speed) = self.course.speed else {
            return true;
        };
        let now = Instant::now();
        let (begun, first_ms) = *state.begun.get_or_insert((now, timestamp_ms));
        let after = Duration::from_millis(timestamp_ms.saturating_sub(first_ms)).div_f64(speed);
        let due = begun + after;
        state.late_max = state.late_max.max(now.saturating_duration_since(due));
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => false,
            () = tokio::time::sleep_until(due) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    //! Proves that requests come in order, when due, and no more of them after a stop.

    use super::*;
    use crate::trace::parse;
    use std::sync::mpsc;

    const BLOCK: u64 = 512;

    struct Rig {
        queue: Queue,
        stop: watch::Sender<bool>,
        events: mpsc::Receiver<Event>,
    }

    fn rig(speed: Option<f64>, disturb_at: Option<u64>) -> Rig {
        let line = |at| {
            format!(
                "{{\"timestamp\":{at},\"input_length\":600,\"output_length\":1,\"hash_ids\":[1]}}"
            )
        };
        let text = [5000, 6000, 9000].map(line).join("\n");
        let requests = Box::new(parse(std::io::Cursor::new(text), BLOCK));
        let (stop, stopped) = watch::channel(false);
        let (send, events) = mpsc::channel();
        let course = Course { first: 7, block_tokens: BLOCK, speed, disturb_at };
        Rig { queue: Queue::new(requests, course, stopped, send), stop, events }
    }

    async fn index(queue: &Queue) -> Option<u64> {
        queue.next().await.map(|next| next.unwrap().index)
    }

    #[tokio::test]
    async fn requests_are_numbered_as_in_their_file_and_counted_against_the_ideal() {
        let rig = rig(None, Some(1));
        assert_eq!(index(&rig.queue).await, Some(7));
        assert!(rig.events.try_recv().is_err());
        assert_eq!(index(&rig.queue).await, Some(8));
        assert!(matches!(rig.events.try_recv(), Ok(Event::Reached)));
        let ideal = rig.queue.ideal().await;
        assert_eq!((ideal.requests, ideal.input_tokens, ideal.hit_tokens), (2, 1200, 512));
        assert_eq!(index(&rig.queue).await, Some(9));
        assert_eq!(index(&rig.queue).await, None);
        assert!(rig.events.try_recv().is_err());
    }

    #[tokio::test]
    async fn requests_wait_for_their_time_in_the_trace() {
        let rig = rig(Some(100.0), None);
        let begun = Instant::now();
        for (expected, due_ms) in [(7, 0), (8, 10), (9, 40)] {
            assert_eq!(index(&rig.queue).await, Some(expected));
            assert!(begun.elapsed() >= Duration::from_millis(due_ms), "request {expected}");
        }
    }

    #[tokio::test]
    async fn stop_ends_the_wait_for_a_request_that_is_not_due() {
        let rig = rig(Some(0.001), None);
        assert_eq!(index(&rig.queue).await, Some(7));
        let stopping = async { rig.stop.send(true).unwrap() };
        let (next, ()) = tokio::join!(index(&rig.queue), stopping);
        assert_eq!(next, None);
        assert_eq!(index(&rig.queue).await, None);
        assert_eq!(rig.queue.ideal().await.requests, 1);
    }
}
