//! `refrain serve`: a sidecar in the foreground, from flags, a file, or both.

use anyhow::{Context, Result, bail};
use clap::{Args as ClapArgs, ValueEnum};
use refrain_server::config::{
    Config, DirectoryConfig, DriveEntry, Listen, parse_durability, parse_io_engine, parse_size,
};
use refrain_store::drive::IoEngine;
use refrain_store::engine::Durability;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// What a shell reports of a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

const EXAMPLES: &str = "\
Examples:
  A sidecar on one drive, everything else by default; its address is written to DIR/address:
    refrain serve --dir /mnt/nvme0/refrain --capacity 800GiB
  Two drives, metrics for Prometheus, logs for a collector:
    refrain serve --dir /mnt/nvme0/refrain --dir /mnt/nvme1/refrain --capacity 800GiB \\
        --metrics 127.0.0.1:9464 --log-format json
  From a file (docs/refrain.toml shows every key), with another engine than it says:
    refrain serve --config refrain.toml --io-engine blocking

Ctrl-C or SIGTERM finishes what runs and stops; a second Ctrl-C stops at once. A sidecar that is
killed loses nothing but what was being saved: the next start finds its blocks.";

/// Flags of `refrain serve`; each goes before what the file says.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Config file, TOML
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Store directory; repeat it for every drive. It is made where it is missing
    #[arg(long = "dir", value_name = "DIR")]
    directories: Vec<PathBuf>,
    /// Bytes that a drive may hold, as in 800GiB: one for all drives, or one each in their order
    #[arg(long = "capacity", value_name = "SIZE", value_parser = parse_size)]
    capacities: Vec<u64>,
    /// Where to serve [default: unix:DIR/refrain.sock of the first drive]
    #[arg(long, value_name = "unix:PATH")]
    listen: Option<Listen>,
    /// Where to serve /metrics and /healthz over HTTP [default: nowhere]
    #[arg(long, value_name = "IP:PORT")]
    metrics: Option<SocketAddr>,
    /// `auto`, `uring` or `blocking`; all but `auto` fail where they cannot be had [default: auto]
    #[arg(long, value_name = "ENGINE", value_parser = parse_io_engine)]
    io_engine: Option<IoEngine>,
    /// What a save waits for: `none`, `group` or `sync` [default: group]
    #[arg(long, value_name = "WHEN", value_parser = parse_durability)]
    durability: Option<Durability>,
    /// Memory for loads and the host tier [default: 1GiB, at most a quarter of the machine's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    load_arena: Option<u64>,
    /// Secret that hashes are keyed with [default: DIR/secret of the first drive, made if missing]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// A server of the fleet's directory; repeat it for others. With --node and --advertise, or a
    /// file that says them [default: this node is in no fleet]
    #[arg(long = "directory", value_name = "HOST:PORT")]
    directory: Vec<String>,
    /// This node's number in its fleet, which no other node has
    #[arg(long, value_name = "N")]
    node: Option<u16>,
    /// Where other nodes of the fleet reach this one
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Where to serve other sidecars and clients of other machines [default: nowhere]
    #[arg(long, value_name = "IP:PORT")]
    listen_peers: Option<SocketAddr>,
    /// File with NAME:PASSWORD for the directory, which its owner alone may read
    #[arg(long, value_name = "FILE")]
    directory_user_file: Option<PathBuf>,
    /// How to write logs, to standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// What to log: error, warn, info, debug or trace, or by module as in refrain=debug
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Serves until a signal.
pub fn run(args: Args) -> Result<()> {
    start_logs(args.log_format, &args.log_level)?;
    let config = args.into_config()?;
    raise_limits();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("refrain-serve")
        .build()
        .context("start the runtime")?;
    let served = runtime.block_on(async {
        let shutdown = stop_signal().context("listen to signals")?;
        Ok(refrain_server::serve(config, shutdown).await?)
    });
    // Whatever still blocks, a drive that hangs say, ends with the process.
    runtime.shutdown_background();
    served
}

impl Args {
    fn into_config(self) -> Result<Config> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        override_drives(&mut config, self.directories, &self.capacities)?;
        let user_file = self.directory_user_file;
        override_fleet(&mut config, self.directory, self.node, (self.advertise, user_file))?;
        config.listen = self.listen.or(config.listen);
        config.metrics = self.metrics.or(config.metrics);
        config.peers.listen = self.listen_peers.or(config.peers.listen);
        config.secret_file = self.secret_file.or(config.secret_file);
        config.io_engine = self.io_engine.unwrap_or(config.io_engine);
        config.durability = self.durability.unwrap_or(config.durability);
        config.load_arena = self.load_arena.unwrap_or(config.load_arena);
        if config.drives.is_empty() {
            bail!("no drive: give --dir and --capacity, or a --config with [[drives]]");
        }
        config.validate()?;
        Ok(config)
    }
}

/// Directories replace all drives of the file; capacities alone change those of the file.
fn override_drives(
    config: &mut Config,
    directories: Vec<PathBuf>,
    capacities: &[u64],
) -> Result<()> {
    let named = !directories.is_empty();
    let drives = if named { directories.len() } else { config.drives.len() };
    let capacity = |index: usize| match capacities {
        [one] => Some(*one),
        each => each.get(index).copied(),
    };
    if !(capacities.len() <= 1 || capacities.len() == drives) {
        bail!("{} capacities for {drives} drives: give one for all, or one each", capacities.len());
    }
    if named {
        if capacities.is_empty() {
            bail!("--dir without --capacity: say how many bytes the store may take, as in 100GiB");
        }
        let entry = |(index, path)| {
            let capacity = capacity(index).expect("one for all, or one each");
            DriveEntry { path, capacity, segment: None }
        };
        config.drives = directories.into_iter().enumerate().map(entry).collect();
    } else {
        for (index, drive) in config.drives.iter_mut().enumerate() {
            drive.capacity = capacity(index).unwrap_or(drive.capacity);
        }
    }
    Ok(())
}

/// A fleet is named whole, by a file, by flags, or by both together.
fn override_fleet(
    config: &mut Config,
    servers: Vec<String>,
    node: Option<u16>,
    (address, user_file): (Option<String>, Option<PathBuf>),
) -> Result<()> {
    if config.directory.is_none() {
        if servers.is_empty() && node.is_none() && address.is_none() && user_file.is_none() {
            return Ok(());
        }
        let (Some(node), Some(address), false) = (node, address.clone(), servers.is_empty()) else {
            bail!("a node of a fleet takes --directory, --node and --advertise, all three");
        };
        config.directory = Some(DirectoryConfig::of(servers.clone(), node, address));
    }
    if let Some(directory) = &mut config.directory {
        if !servers.is_empty() {
            directory.servers = servers;
        }
        directory.node = node.unwrap_or(directory.node);
        directory.address = address.unwrap_or_else(|| directory.address.clone());
        directory.user_file = user_file.or_else(|| directory.user_file.take());
    }
    Ok(())
}

fn start_logs(format: LogFormat, level: &str) -> Result<()> {
    // A word alone that is no level would name a module, and silence all others.
    let is_known = |part: &str| part.contains('=') || part.parse::<LevelFilter>().is_ok();
    let filter = level.parse::<EnvFilter>().ok().filter(|_| level.split(',').all(is_known));
    let Some(filter) = filter else {
        bail!("--log-level {level:?}: write a level as in debug, or module=level");
    };
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => logs.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    Ok(())
}

/// A file a segment and a socket a call need many descriptors; a ring counts its memory as locked.
fn raise_limits() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    for resource in [Resource::Nofile, Resource::Memlock] {
        let limit = getrlimit(resource);
        // Where it cannot be raised, whatever meets it says so.
        let _ = setrlimit(resource, Rlimit { current: limit.maximum, ..limit });
    }
}

/// Ends at the first SIGTERM or Ctrl-C; the second Ctrl-C ends the process.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let (interrupt, terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(watch_signals(interrupt, terminate, stop));
    // A watcher that is gone means a runtime that is going.
    Ok(async move { drop(stopped.await) })
}

async fn watch_signals(mut interrupt: Signal, mut terminate: Signal, stop: oneshot::Sender<()>) {
    tokio::select! {
        _ = interrupt.recv() => info!("Ctrl-C: finishing what runs; once more stops at once"),
        _ = terminate.recv() => info!("SIGTERM: finishing what runs"),
    }
    let _ = stop.send(());
    interrupt.recv().await;
    warn!("Ctrl-C: stopping at once");
    std::process::exit(INTERRUPTED);
}
