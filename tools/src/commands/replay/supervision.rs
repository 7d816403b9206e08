//! Watches over a replay: adds up, records, shows progress, disturbs the hosts, notices their death.

use super::args::How;
use super::host::{Host, HostError, Step};
use super::outcome::Outcome;
use super::records::Records;
use super::report::{Frame, Report, Restarts, Totals};
use super::route::Route;
use super::{Event, Failed};
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long the death of our own sidecar may go unnoticed while no request is served.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

pub(super) struct Supervision<'a> {
    block_tokens: u64,
    begun: Instant,
    totals: Totals,
    restarts: Restarts,
    records: Records,
    route: &'a Route,
    progress: ProgressBar,
    stop: &'a watch::Sender<bool>,
    interrupted: bool,
    abandoned: bool,
    /// The first one.
    failed: Option<anyhow::Error>,
}

impl<'a> Supervision<'a> {
    pub(super) fn new(
        requests: u64,
        block_tokens: u64,
        begun: Instant,
        records: Records,
        route: &'a Route,
        stop: &'a watch::Sender<bool>,
    ) -> Self {
        // On standard error, and nowhere when that is no terminal.
        let progress = ProgressBar::new(requests);
        let style = "{bar:32} {human_pos} of {human_len} requests, {eta} left; {msg}";
        progress.set_style(ProgressStyle::with_template(style).expect("it names what there is"));
        Self {
            block_tokens,
            begun,
            totals: Totals::default(),
            restarts: Restarts::default(),
            records,
            route,
            progress,
            stop,
            interrupted: false,
            abandoned: false,
            failed: None,
        }
    }

    /// Returns when no worker has a request any more, or when it would be no use to wait for that.
    pub(super) fn run(
        &mut self,
        inbox: &Receiver<Event>,
        mut running: usize,
        host: &mut Host,
        how: Option<How>,
    ) {
        while running > 0 && !self.abandoned {
            if let Some(step) = host.tend().transpose() {
                self.stepped(step, host);
            }
            match inbox.recv_timeout(CHECK_INTERVAL) {
                Ok(Event::Served(outcome)) => self.served(&outcome),
                Ok(Event::Reached) => self.disturb(host, how),
                Ok(Event::Failed(failed)) => self.fail(failed.into()),
                Ok(Event::Finished) => running -= 1,
                Ok(Event::Interrupted) => self.interrupted = true,
                Ok(Event::Aborted) | Err(RecvTimeoutError::Disconnected) => self.abandoned = true,
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(error) = host.check() {
                        self.abandon(error);
                    }
                }
            }
        }
        self.progress.finish_and_clear();
    }

    pub(super) fn interrupted(&self) -> bool {
        self.interrupted
    }

    /// Whether requests may still be under way.
    pub(super) fn abandoned(&self) -> bool {
        self.abandoned
    }

    pub(super) fn restarts(&self) -> Restarts {
        self.restarts
    }

    /// The report, and why the replay ended early.
    pub(super) fn finish(mut self, frame: &Frame) -> (Report, Option<anyhow::Error>) {
        if let Err(error) = std::mem::take(&mut self.records).finish() {
            self.fail(error);
        }
        (self.totals.report(frame), self.failed)
    }

    fn served(&mut self, outcome: &Outcome) {
        self.totals.add(outcome);
        if let Err(error) = self.records.served(outcome) {
            self.fail(error);
        }
        self.progress.set_position(self.totals.requests());
        let percent = 100.0 * self.totals.token_hit_rate(self.block_tokens);
        self.progress.set_message(format!("hit rate {percent:.1} %"));
    }

    fn disturb(&mut self, host: &mut Host, how: Option<How>) {
        let Some(how) = how else { return };
        self.records.disturbed(how, self.begun.elapsed());
        let step = host.disturb(how);
        self.stepped(step, host);
    }

    fn stepped(&mut self, step: Result<Step, HostError>, host: &Host) {
        let Step { restarted, is_over } = match step {
            Ok(step) => step,
            Err(error) => return self.abandon(error),
        };
        if let Some(Restarts { count, killed, start_time }) = restarted {
            self.restarts.count += count;
            self.restarts.killed |= killed;
            self.restarts.start_time = self.restarts.start_time.max(start_time);
        }
        if is_over {
            self.records.restored(self.begun.elapsed());
        }
        self.route.leave_out(host.held());
    }

    /// Without a sidecar, nothing that is under way will end well.
    fn abandon(&mut self, error: HostError) {
        self.abandoned = true;
        self.fail(Failed::Host(error).into());
    }

    fn fail(&mut self, error: anyhow::Error) {
        self.stop.send_replace(true);
        self.failed.get_or_insert(error);
    }
}
