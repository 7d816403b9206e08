//! What a drive's thread does, round by round: the thread sleeps between two of them, a simulation
//! lets its own time pass.

use super::{
    Arc, Command, Counters, Device, Engine, Mutex, Receiver, SegmentStatus, TryRecvError, Waker,
    locked,
};
use crate::device::Completion;
use std::time::{Duration, Instant};

/// The engine of a running drive, and what its handles ask of it.
pub struct Worker {
    pub(super) engine: Engine,
    pub(super) commands: Receiver<Command>,
    pub(super) segments: Arc<Mutex<Vec<SegmentStatus>>>,
    pub(super) counters: Arc<Counters>,
    pub(super) begun: Instant,
    pub(super) stopping: bool,
}

/// What follows the first half of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// A wait for completions or for somebody's wake, for no longer than this.
    Wait(Option<Duration>),
    /// Everything was finished: the drive has stopped.
    Over,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("engine", &self.engine).finish_non_exhaustive()
    }
}

impl Worker {
    /// Rounds until the drive has stopped, or its ring is broken: replies are dropped then, which
    /// answers everybody.
    pub(super) fn run(mut self, device: &mut dyn Device, waker: &Waker) {
        let mut done = Vec::new();
        while let Round::Wait(timeout) = self.begin_round(device, waker, Instant::now) {
            if device.wait(timeout, &mut done).is_err() {
                return;
            }
            self.end_round(device, &mut done, Instant::now);
        }
    }

    /// Takes what was asked for and gives the device what the limits allow.
    pub fn begin_round(
        &mut self,
        device: &mut dyn Device,
        waker: &Waker,
        clock: impl Fn() -> Instant,
    ) -> Round {
        waker.lower();
        self.stopping |= self.take_commands(device, &clock);
        if self.stopping {
            self.engine.stop();
        }
        self.start_all(device, &clock);
        if self.engine.take_segments_changed() {
            *locked(&self.segments) = self.engine.segments();
        }
        if self.stopping && self.engine.is_idle() {
            return Round::Over;
        }
        let now = clock();
        Round::Wait(self.engine.deadline().map(|at| at.saturating_duration_since(now)))
    }

    /// Takes what has completed.
    pub fn end_round(
        &mut self,
        device: &mut dyn Device,
        done: &mut Vec<Completion>,
        clock: impl Fn() -> Instant,
    ) {
        let now = clock();
        for completion in done.drain(..) {
            self.engine.complete(completion, now);
        }
        if self.engine.has_arrived() {
            // The device works on the next reads while these are checked.
            self.start_all(device, &clock);
            device.flush();
            self.engine.check_arrived();
        }
    }

    /// Gives the device what the limits allow.
    fn start_all(&mut self, device: &mut dyn Device, clock: &impl Fn() -> Instant) {
        self.engine.advance(clock());
        while let Some((op, operation)) = self.engine.next_operation() {
            device.start(op, operation);
        }
        // Before the device is told to begin: one that hangs may not come back from that.
        self.tell_oldest();
    }

    fn tell_oldest(&self) {
        let since = |at: Instant| at.saturating_duration_since(self.begun).as_millis();
        let since = self.engine.oldest_operation().map(since);
        let told =
            since.map_or(0, |since| u64::try_from(since).unwrap_or(u64::MAX).saturating_add(1));
        self.counters.oldest_operation_ms.set(told);
    }

    /// Whether the drive should stop.
    fn take_commands(&mut self, device: &mut dyn Device, clock: &impl Fn() -> Instant) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Read(records)) => self.engine.read(records),
                Ok(Command::Append(append)) => self.engine.append(*append, clock()),
                Ok(Command::Release(segment)) => self.engine.release(segment),
                Ok(Command::Adopt(memory)) => device.adopt(&memory),
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return true,
                Err(TryRecvError::Empty) => return false,
            }
        }
    }
}
