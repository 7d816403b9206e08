//! `refrain replay`: drives a real sidecar with the requests of a trace, as inference workers would.
//!
//! Order: the trace is read through once, so that a damaged line is found before anything runs; the
//! sidecar is started, or met; workers connect and share one queue of requests; this thread
//! meanwhile adds up what they report, and disturbs the sidecars or their directory where it is
//! asked to. The end goes the other way, and is the same after Ctrl-C and after a failure: sessions
//! are closed, the sidecar is stopped, the report is printed, a temporary directory is removed.

use crate::network;
use crate::trace::{self, TraceError};
use anyhow::{Context, Result, bail, ensure};
use host::{Host, HostError};
use outcome::Outcome;
use prompt::Shape;
pub(crate) use prompt::tokens;
use queue::{Course, Queue};
use records::Records;
use refrain_client::{Client, ClientConfig, ClientError};
use report::{Frame, Report};
use route::Route;
use std::io::Write;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use supervision::Supervision;
use table::Table;
use thiserror::Error;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use worker::{Options, Worker};

mod args;
mod check;
mod content;
mod hit_log;
mod host;
mod outcome;
mod plot;
mod prompt;
mod queue;
mod records;
mod report;
mod route;
mod supervision;
mod table;
mod worker;

pub use args::Args;

/// A replay plays one rank of one that share nothing.
const SHARD: u32 = 0;
const SESSION_ARENA_MIN: u64 = 64 << 20;
const CONNECT_PAUSE: Duration = Duration::from_millis(20);
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// What the thread that watches over a replay is told.
#[derive(Debug)]
enum Event {
    Served(Box<Outcome>),
    /// The request was taken at which something is to be disturbed.
    Reached,
    Failed(Failed),
    /// One worker has no more requests.
    Finished,
    /// Ctrl-C: what runs is finished.
    Interrupted,
    /// Ctrl-C again: it is not.
    Aborted,
}

/// Why a replay ends before its trace does.
#[derive(Debug, Error)]
enum Failed {
    #[error("read the trace")]
    Trace(#[source] TraceError),
    #[error("request {index} found no sidecar for {wait:?}")]
    Gone { index: u64, wait: Duration, source: Option<ClientError> },
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Replays, prints the report, and fails when a byte was wrong or a request failed.
pub fn run(args: &Args) -> Result<()> {
    let shape = Shape::new(args.block_bytes, args.layers)?;
    let requests = survey(args)?;
    let disturbance = args.disturbance(requests)?;
    if args.part_at.is_some() && !args.apart {
        // Before there is any thread, which would stay behind.
        return Err(network::apart(std::env::args_os().skip(1).chain(["--apart".into()])).into());
    }
    let records = Records::create(args)?;
    let runtime = Runtime::new().context("start the runtime")?;
    let (events, inbox) = mpsc::channel();
    let (stop, stopped) = watch::channel(false);
    let stop = Arc::new(stop);
    // From here on Ctrl-C is heard: what is started below is always put away again.
    listen_to_signals(&runtime, &stop, &events)?;
    let mut host = Host::start(args)?;
    let route = Arc::new(Route::new(usize::from(args.nodes), args.route, args.seed));
    let workers = runtime.block_on(connect(args, &host, &route, shape))?;

    let course = Course {
        first: args.skip,
        block_tokens: args.block_tokens,
        speed: args.speed(),
        disturb_at: disturbance.map(|disturbance| disturbance.at),
    };
    let queue = Arc::new(Queue::new(slice(args)?, course, stopped, events.clone()));
    let begun = Instant::now();
    let running = workers.len();
    for worker in workers {
        runtime.spawn(worker.run(begun, Arc::clone(&queue), events.clone()));
    }
    let mut supervision =
        Supervision::new(requests, args.block_tokens, begun, records, &route, &stop);
    let how = disturbance.map(|disturbance| disturbance.how);
    supervision.run(&inbox, running, &mut host, how);
    let elapsed = begun.elapsed();
    let (ideal, late_max) =
        runtime.block_on(async { (queue.ideal().await, queue.late_max().await) });
    // Sessions end before the sidecar does: it has nothing to wait for.
    runtime.shutdown_timeout(SHUTDOWN_LIMIT);
    let spoiled = host.spoiled();
    let stopped = host.end(supervision.abandoned());

    let frame = Frame {
        block_bytes: shape.block_bytes,
        block_tokens: args.block_tokens,
        workers: args.workers,
        concurrency: args.concurrency,
        nodes: args.nodes,
        capacity_bytes: args.capacity,
        elapsed,
        late_max,
        ideal,
        interrupted: supervision.interrupted(),
        restarts: supervision.restarts(),
        spoiled,
    };
    let (report, failed) = supervision.finish(&frame);
    print(&report, args.json)?;
    conclude(&report, failed, requests)?;
    Ok(stopped?)
}

/// Reads the whole slice once; how many requests it has.
fn survey(args: &Args) -> Result<u64> {
    let mut requests = 0;
    for request in slice(args)? {
        request.with_context(|| args.trace.display().to_string())?;
        requests += 1;
    }
    ensure!(requests > 0, "{} has no request to replay", args.trace.display());
    Ok(requests)
}

/// The requests to replay. A damaged line before them counts as one of those that are skipped.
fn slice(
    args: &Args,
) -> Result<Box<dyn Iterator<Item = Result<trace::Request, TraceError>> + Send>> {
    let named = || args.trace.display().to_string();
    let all = trace::read(&args.trace, args.block_tokens).with_context(named)?;
    let skip = usize::try_from(args.skip)?;
    let limit = args.limit.map_or(Ok(usize::MAX), usize::try_from)?;
    Ok(Box::new(all.skip(skip).take(limit)))
}

fn listen_to_signals(
    runtime: &Runtime,
    stop: &Arc<watch::Sender<bool>>,
    events: &mpsc::Sender<Event>,
) -> Result<()> {
    let _inside = runtime.enter();
    let interrupt = signal(SignalKind::interrupt()).context("listen to Ctrl-C")?;
    let terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
    runtime.spawn(hear(interrupt, terminate, Arc::clone(stop), events.clone()));
    Ok(())
}

async fn hear(
    mut interrupt: Signal,
    mut terminate: Signal,
    stop: Arc<watch::Sender<bool>>,
    events: mpsc::Sender<Event>,
) {
    for event in [Event::Interrupted, Event::Aborted] {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.send_replace(true);
        let _ = events.send(event);
    }
}

/// All workers, each as often as it has requests in flight.
async fn connect(
    args: &Args,
    host: &Host,
    route: &Arc<Route>,
    shape: Shape,
) -> Result<Vec<Worker>> {
    let options = Options {
        wait: args.wait,
        save_patience: args.save_patience,
        deadline: args.deadline,
        durable: args.durable,
    };
    let layer_bytes = usize::try_from(shape.layer_bytes)?;
    let contents = content::Contents::new(args.seed, SHARD, layer_bytes);
    let namespace = shape.namespace(&args.tenant, args.seed);
    // Room for a few blocks of each request in flight, with padding between their stripes.
    let in_flight = u64::from(args.concurrency) * 4 * (shape.block_bytes + (1 << 20));
    let addresses = host.addresses();
    let mut workers = Vec::new();
    for _ in 0..args.workers {
        let mut registrations = Vec::with_capacity(addresses.len());
        for address in &addresses {
            let config = ClientConfig {
                address: (*address).clone(),
                session_arena_bytes: in_flight.max(SESSION_ARENA_MIN),
                deadline: args.deadline,
            };
            let client = meet(&config, host.is_own().then_some(args.wait)).await?;
            let registering = client.register(namespace.clone(), SHARD, shape.block_bytes);
            registrations.push(registering.await.context("register the replay's namespace")?);
        }
        for _ in 0..args.concurrency {
            let (registrations, route) = (registrations.clone(), Arc::clone(route));
            workers.push(Worker { registrations, route, contents, options });
        }
    }
    Ok(workers)
}

/// Our own sidecar opens its two sockets one after the other; anybody else's is there or is not.
async fn meet(config: &ClientConfig, patience: Option<Duration>) -> Result<Client> {
    let begun = Instant::now();
    loop {
        match Client::connect(config.clone()).await {
            Ok(client) => return Ok(client),
            Err(ClientError::Absent { .. })
                if patience.is_some_and(|wait| begun.elapsed() < wait) =>
            {
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
            Err(error) if patience.is_none() => {
                return Err(error).context("start one with `refrain serve`, or leave --addr out");
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn print(report: &Report, json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, report)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", Table(report))?;
    }
    Ok(())
}

/// The first thing that is wrong with a replay is its exit status.
fn conclude(report: &Report, failed: Option<anyhow::Error>, requests: u64) -> Result<()> {
    match (report.verdict(), failed) {
        (Some(verdict), _) => bail!(verdict),
        (None, Some(failed)) => Err(failed),
        (None, None) if report.interrupted => {
            bail!("interrupted after {} of {requests} requests", report.requests)
        }
        (None, None) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
