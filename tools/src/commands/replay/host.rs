//! The sidecars that a replay talks to: its own, one or a fleet of them, or one that runs anyway.

use super::Args;
use super::args::{How, Victim};
use super::report::Restarts;
use crate::cluster::{Cluster, ClusterError};
use crate::sidecar::{Sidecar, SidecarConfig, SidecarError};
use anyhow::{Context, Result};
use refrain_client::Address;
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use thiserror::Error;

/// How long servers of the directory that were killed, and a sidecar that is held, are away.
const AWAY: Duration = Duration::from_secs(5);
/// The node whose sidecar is disturbed, from 0.
const DISTURBED: usize = 0;

pub(super) enum Host {
    /// Its directory is removed after it where it is a temporary one.
    Own {
        sidecars: Vec<Sidecar>,
        directory: Option<Cluster>,
        /// Who comes back, and when.
        away: Option<(Instant, Away)>,
        _home: Option<TempDir>,
    },
    Other {
        address: Address,
    },
}

pub(super) enum Away {
    /// Of the directory.
    Servers(Vec<usize>),
    /// That of [`DISTURBED`].
    Sidecar,
}

/// Why the hosts do not go on.
#[derive(Debug, Error)]
pub(super) enum HostError {
    #[error(transparent)]
    Sidecar(#[from] SidecarError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

impl Host {
    pub(super) fn start(args: &Args) -> Result<Self> {
        if let Some(address) = &args.addr {
            return Ok(Self::Other { address: address.clone() });
        }
        let temporary = match args.dir {
            Some(_) => None,
            // A path without the directory that we are in: what a socket may have is short.
            None => Some(
                tempfile::Builder::new()
                    .prefix(".tmp-refrain-replay-")
                    .tempdir_in("")
                    .context("make a temporary directory here; --dir names another place")?,
            ),
        };
        let home = match (&args.dir, &temporary) {
            (Some(directory), _) => directory.as_path(),
            (None, Some(temporary)) => temporary.path(),
            (None, None) => Path::new("."),
        };
        if args.nodes == 1 {
            let sidecars = vec![Sidecar::start(config(args, home)?)?];
            return Ok(Self::Own { sidecars, directory: None, away: None, _home: temporary });
        }
        let servers = home.join("directory");
        std::fs::create_dir_all(&servers).with_context(|| format!("make {}", servers.display()))?;
        let cluster = Cluster::start(&servers, None)?;
        let secret = home.join("secret");
        write_secret(&secret).with_context(|| format!("write {}", secret.display()))?;
        let start = |node: u16| {
            let mut config = config(args, &home.join(format!("node-{node}")))?;
            config.flags.extend(["--secret-file".into(), secret.clone().into_os_string()]);
            config.flags.extend(fleet_flags(&cluster, node)?);
            anyhow::Ok(Sidecar::start(config)?)
        };
        let sidecars = (1..=args.nodes).map(start).collect::<Result<_>>()?;
        Ok(Self::Own { sidecars, directory: Some(cluster), away: None, _home: temporary })
    }

    /// Of every sidecar.
    pub(super) fn addresses(&self) -> Vec<&Address> {
        match self {
            Self::Own { sidecars, .. } => sidecars.iter().map(Sidecar::address).collect(),
            Self::Other { address } => vec![address],
        }
    }

    pub(super) fn is_own(&self) -> bool {
        matches!(self, Self::Own { .. })
    }

    /// Fails when one of our own has ended without being told to.
    pub(super) fn check(&mut self) -> Result<(), HostError> {
        if let Self::Own { sidecars, .. } = self {
            sidecars.iter_mut().try_for_each(Sidecar::check)?;
        }
        Ok(())
    }

    /// Brings back who was away, when it is time; whether it was.
    pub(super) fn tend(&mut self) -> Result<bool, HostError> {
        let Self::Own { sidecars, directory, away, .. } = self else { return Ok(false) };
        let Some((_, who)) = away.take_if(|(until, _)| Instant::now() >= *until) else {
            return Ok(false);
        };
        match (who, directory) {
            (Away::Sidecar, _) => sidecars[DISTURBED].signal(Signal::CONT)?,
            (Away::Servers(servers), Some(cluster)) => {
                servers.into_iter().try_for_each(|server| cluster.restart(server))?;
            }
            (Away::Servers(_), None) => {}
        }
        Ok(true)
    }

    /// The node that is held, from 0.
    pub(super) fn held(&self) -> Option<usize> {
        matches!(self, Self::Own { away: Some((_, Away::Sidecar)), .. }).then_some(DISTURBED)
    }

    /// Disturbs what is our own; how a sidecar came back, where one was started again.
    pub(super) fn disturb(&mut self, how: How) -> Result<Option<Restarts>, HostError> {
        let Self::Own { sidecars, directory, away, .. } = self else { return Ok(None) };
        let sidecar = &mut sidecars[DISTURBED];
        let gone = match (how, directory) {
            (How::Kill(Victim::Sidecar) | How::Restart, _) => {
                let killed = how != How::Restart;
                if killed { sidecar.kill() } else { sidecar.stop() }?;
                let start_time = sidecar.restart()?;
                return Ok(Some(Restarts { count: 1, killed, start_time }));
            }
            (How::Pause, _) => {
                sidecar.signal(Signal::STOP)?;
                Away::Sidecar
            }
            (How::Kill(victim), Some(cluster)) => Away::Servers(kill(cluster, victim)?),
            (How::Flush, Some(cluster)) => {
                let flush = |master| cluster.command(master, ["FLUSHALL", "ASYNC"]).map(drop);
                cluster.masters().into_iter().try_for_each(flush)?;
                return Ok(None);
            }
            // The flags refuse it.
            (How::Kill(_) | How::Flush, None) => return Ok(None),
        };
        *away = Some((Instant::now() + AWAY, gone));
        Ok(None)
    }

    /// Stops our own sidecars and removes their directory; `abandoned` waits for nothing.
    pub(super) fn end(mut self, abandoned: bool) -> Result<(), SidecarError> {
        match &mut self {
            Self::Own { sidecars, away, .. } if !abandoned => {
                // One that is held hears nothing else.
                if let Some((_, Away::Sidecar)) = away {
                    sidecars[DISTURBED].signal(Signal::CONT)?;
                }
                let mut running = sidecars.iter_mut().filter(|sidecar| sidecar.pid().is_some());
                running.try_for_each(Sidecar::stop)
            }
            // Dropping them kills them.
            Self::Own { .. } | Self::Other { .. } => Ok(()),
        }
    }
}

/// Kills servers of the directory; which.
fn kill(cluster: &mut Cluster, victim: Victim) -> Result<Vec<usize>, ClusterError> {
    let masters = cluster.masters();
    let is_replica = |server: &usize| !masters.contains(server);
    let servers: Vec<_> = match victim {
        Victim::Master => masters.iter().take(1).copied().collect(),
        Victim::Replica => (0..cluster.len()).filter(is_replica).take(1).collect(),
        Victim::Directory | Victim::Sidecar => (0..cluster.len()).collect(),
    };
    servers.iter().try_for_each(|server| cluster.kill(*server))?;
    Ok(servers)
}

/// A sidecar as it is alone.
fn config(args: &Args, directory: &Path) -> Result<SidecarConfig> {
    let capacity = args.capacity.context("--capacity says how much the sidecar may store")?;
    let mut config = SidecarConfig::new(directory, capacity)?;
    let flags = [
        ("--io-engine", &args.io_engine),
        ("--durability", &args.durability),
        ("--load-arena", &args.load_arena),
    ];
    for (flag, value) in flags {
        if let Some(value) = value {
            config.flags.extend([OsString::from(flag), value.into()]);
        }
    }
    Ok(config)
}

/// What makes it a node of the fleet.
fn fleet_flags(cluster: &Cluster, node: u16) -> Result<Vec<OsString>> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|at| at.local_addr());
    let port = port.context("find a free port")?.port();
    let mut flags: Vec<OsString> = Vec::new();
    for address in cluster.addresses() {
        flags.extend(["--directory".into(), address.into()]);
    }
    flags.extend(["--node".into(), node.to_string().into()]);
    let address = format!("127.0.0.1:{port}");
    flags.extend(["--advertise".into(), address.clone().into()]);
    flags.extend(["--listen-peers".into(), address.into()]);
    flags.extend(["--directory-user-file".into(), cluster.user_file().into()]);
    Ok(flags)
}

/// Nodes name equal prompts alike by one secret; that of a replay before this one stays.
fn write_secret(path: &Path) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let mut random = fastrand::Rng::new();
    file.write_all(&std::array::from_fn::<u8, 32, _>(|_| random.u8(..)))
}
