//! The sidecars that a replay talks to: its own, one or a fleet of them, or one that runs anyway.

use super::Args;
use super::args::{How, Victim};
use super::report::Restarts;
use crate::cluster::{Cluster, ClusterError};
use crate::network::{HUB, Network, NetworkError};
use crate::sidecar::{Sidecar, SidecarConfig, SidecarError};
use crate::spoiler::Spoiler;
use anyhow::{Context, Result};
use refrain_client::Address;
use rustix::process::Signal;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use thiserror::Error;

/// How long servers of the directory that were killed, and a sidecar that is held, are away; and the time
/// between two sidecars that are restarted in turn.
const AWAY: Duration = Duration::from_secs(5);
/// Nodes are apart for so long that connections between them are given up.
const APART: Duration = Duration::from_secs(10);
/// Longer than who sends wrong bytes is left alone: it is found out again.
const SPOILED: Duration = Duration::from_secs(10);
/// The node whose sidecar is disturbed, from 0.
const DISTURBED: usize = 0;
/// The nodes that are parted.
const PARTED: [usize; 2] = [0, 1];
/// Where each node of a network of its own is reached.
const PEERS_PORT: u16 = 9470;

pub(super) enum Host {
    Own(Box<Own>),
    Other(Address),
}

/// Its directory is removed after it where it is a temporary one.
pub(super) struct Own {
    sidecars: Vec<Sidecar>,
    directory: Option<Cluster>,
    /// Where nodes can be parted.
    network: Option<Network>,
    /// Where what [`DISTURBED`] sends can be changed.
    spoiler: Option<Spoiler>,
    /// Who comes back, and when.
    away: Option<(Instant, Away)>,
    _home: Option<TempDir>,
}

enum Away {
    /// Of the directory.
    Servers(Vec<usize>),
    /// That of [`DISTURBED`].
    Sidecar,
    /// What is between [`PARTED`].
    Link,
    /// What [`DISTURBED`] sends, as it is.
    Bytes,
    /// The next sidecar to be restarted.
    Next(usize),
}

/// How far a disturbance has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Step {
    pub(super) restarted: Option<Restarts>,
    /// All is there again.
    pub(super) is_over: bool,
}

/// Why the hosts do not go on.
#[derive(Debug, Error)]
pub(super) enum HostError {
    #[error(transparent)]
    Sidecar(#[from] SidecarError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Network(#[from] NetworkError),
}

impl Host {
    pub(super) fn start(args: &Args) -> Result<Self> {
        match &args.addr {
            Some(address) => Ok(Self::Other(address.clone())),
            None => Ok(Self::Own(Box::new(Own::start(args)?))),
        }
    }

    /// Of every sidecar.
    pub(super) fn addresses(&self) -> Vec<&Address> {
        match self {
            Self::Own(own) => own.sidecars.iter().map(Sidecar::address).collect(),
            Self::Other(address) => vec![address],
        }
    }

    pub(super) fn is_own(&self) -> bool {
        matches!(self, Self::Own(_))
    }

    /// Fails when one of our own has ended without being told to.
    pub(super) fn check(&mut self) -> Result<(), HostError> {
        if let Self::Own(own) = self {
            own.sidecars.iter_mut().try_for_each(Sidecar::check)?;
        }
        Ok(())
    }

    /// Brings back who was away, when it is time.
    pub(super) fn tend(&mut self) -> Result<Option<Step>, HostError> {
        match self {
            Self::Own(own) => own.tend(),
            Self::Other(_) => Ok(None),
        }
    }

    /// Disturbs what is our own.
    pub(super) fn disturb(&mut self, how: How) -> Result<Step, HostError> {
        match self {
            Self::Own(own) => own.disturb(how),
            Self::Other(_) => Ok(Step::default()),
        }
    }

    /// The node that is held, from 0.
    pub(super) fn held(&self) -> Option<usize> {
        let Self::Own(own) = self else { return None };
        matches!(own.away, Some((_, Away::Sidecar))).then_some(DISTURBED)
    }

    /// How many pieces of what a node sent were changed, where that was to be.
    pub(super) fn spoiled(&self) -> Option<u64> {
        let Self::Own(own) = self else { return None };
        own.spoiler.as_ref().map(Spoiler::changed)
    }

    /// Stops our own sidecars and removes their directory; `abandoned` waits for nothing.
    pub(super) fn end(self, abandoned: bool) -> Result<(), SidecarError> {
        match self {
            Self::Own(own) if !abandoned => own.end(),
            // Dropping them kills them.
            Self::Own(_) | Self::Other(_) => Ok(()),
        }
    }
}

impl Own {
    fn start(args: &Args) -> Result<Self> {
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
            (Some(directory), _) => directory.clone(),
            (None, Some(temporary)) => temporary.path().into(),
            (None, None) => PathBuf::from("."),
        };
        if args.nodes > 1 {
            return Self::start_fleet(args, &home, temporary);
        }
        let sidecars = vec![Sidecar::start(config(args, &home)?)?];
        let (directory, network, spoiler, away) = (None, None, None, None);
        Ok(Self { sidecars, directory, network, spoiler, away, _home: temporary })
    }

    fn start_fleet(args: &Args, home: &Path, temporary: Option<TempDir>) -> Result<Self> {
        let network = if args.apart { Some(Network::start(args.nodes)?) } else { None };
        let servers = home.join("directory");
        std::fs::create_dir_all(&servers).with_context(|| format!("make {}", servers.display()))?;
        let cluster = match network {
            Some(_) => Cluster::start_at(&servers, HUB)?,
            None => Cluster::start(&servers, None)?,
        };
        let secret = home.join("secret");
        write_secret(&secret).with_context(|| format!("write {}", secret.display()))?;
        let spoiler = match args.spoil_at {
            Some(_) => Some(Spoiler::start(args.seed).context("stand before a node")?),
            None => None,
        };
        let start = |node: u16| {
            let mut config = config(args, &home.join(format!("node-{node}")))?;
            let place = usize::from(node - 1);
            config.within = network.as_ref().map_or_else(Vec::new, |it| it.within(place));
            let spoiled = spoiler.as_ref().filter(|_| place == DISTURBED);
            let reached = Reached::of(place, network.as_ref(), spoiled)?;
            let peers = home.join(format!("node-{node}.toml"));
            write_peers(&peers, args, &reached)
                .with_context(|| format!("write {}", peers.display()))?;
            config.flags.extend(["--config".into(), peers.into_os_string()]);
            config.flags.extend(["--secret-file".into(), secret.clone().into_os_string()]);
            config.flags.extend(fleet_flags(&cluster, node, &reached));
            anyhow::Ok(Sidecar::start(config)?)
        };
        let sidecars = (1..=args.nodes).map(start).collect::<Result<_>>()?;
        let directory = Some(cluster);
        Ok(Self { sidecars, directory, network, spoiler, away: None, _home: temporary })
    }

    fn tend(&mut self) -> Result<Option<Step>, HostError> {
        let Some((_, who)) = self.away.take_if(|(until, _)| Instant::now() >= *until) else {
            return Ok(None);
        };
        match (who, &mut self.directory, &self.network) {
            (Away::Sidecar, ..) => self.sidecars[DISTURBED].signal(Signal::CONT)?,
            (Away::Servers(servers), Some(cluster), _) => {
                servers.into_iter().try_for_each(|server| cluster.restart(server))?;
            }
            (Away::Link, _, Some(network)) => network.mend(PARTED)?,
            (Away::Bytes, ..) => self.spoil(false),
            (Away::Next(node), ..) => return self.restart_in_turn(node).map(Some),
            // Who was never there is not away.
            (Away::Servers(_), None, _) | (Away::Link, _, None) => {}
        }
        Ok(Some(Step { is_over: true, ..Step::default() }))
    }

    fn disturb(&mut self, how: How) -> Result<Step, HostError> {
        let sidecar = &mut self.sidecars[DISTURBED];
        let (gone, time) = match (how, &mut self.directory, &self.network) {
            (How::Kill(Victim::Sidecar) | How::Restart, ..) => {
                let killed = how != How::Restart;
                if killed { sidecar.kill() } else { sidecar.stop() }?;
                let start_time = sidecar.restart()?;
                let restarted = Some(Restarts { count: 1, killed, start_time });
                return Ok(Step { restarted, is_over: true });
            }
            (How::Roll, ..) => return self.restart_in_turn(0),
            (How::Pause, ..) => {
                sidecar.signal(Signal::STOP)?;
                (Away::Sidecar, AWAY)
            }
            (How::Kill(victim), Some(cluster), _) => (Away::Servers(kill(cluster, victim)?), AWAY),
            (How::Flush, Some(cluster), _) => {
                let flush = |master| cluster.command(master, ["FLUSHALL", "ASYNC"]).map(drop);
                cluster.masters().into_iter().try_for_each(flush)?;
                return Ok(Step::default());
            }
            (How::Part, _, Some(network)) => {
                network.part(PARTED)?;
                (Away::Link, APART)
            }
            (How::Spoil, ..) => {
                self.spoil(true);
                (Away::Bytes, SPOILED)
            }
            // The flags refuse it.
            (How::Kill(_) | How::Flush, None, _) | (How::Part, _, None) => {
                return Ok(Step::default());
            }
        };
        self.away = Some((Instant::now() + time, gone));
        Ok(Step::default())
    }

    fn spoil(&self, spoils: bool) {
        if let Some(spoiler) = &self.spoiler {
            spoiler.spoil(spoils);
        }
    }

    /// Restarts a sidecar; the one behind it is the next.
    fn restart_in_turn(&mut self, node: usize) -> Result<Step, HostError> {
        let start_time = self.sidecars[node].restart()?;
        let is_over = node + 1 == self.sidecars.len();
        self.away = (!is_over).then(|| (Instant::now() + AWAY, Away::Next(node + 1)));
        let restarted = Some(Restarts { count: 1, killed: false, start_time });
        Ok(Step { restarted, is_over })
    }

    fn end(mut self: Box<Self>) -> Result<(), SidecarError> {
        // One that is held hears nothing else.
        if let Some((_, Away::Sidecar)) = self.away {
            self.sidecars[DISTURBED].signal(Signal::CONT)?;
        }
        let mut running = self.sidecars.iter_mut().filter(|sidecar| sidecar.pid().is_some());
        running.try_for_each(Sidecar::stop)
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
fn fleet_flags(cluster: &Cluster, node: u16, reached: &Reached) -> Vec<OsString> {
    let mut flags: Vec<OsString> = Vec::new();
    for address in cluster.addresses() {
        flags.extend(["--directory".into(), address.into()]);
    }
    flags.extend(["--node".into(), node.to_string().into()]);
    flags.extend(["--advertise".into(), reached.advertised.to_string().into()]);
    flags.extend(["--directory-user-file".into(), cluster.user_file().into()]);
    flags
}

/// Where a node's peers find it.
struct Reached {
    advertised: SocketAddrV4,
    listen: SocketAddrV4,
    /// Where bytes leave, unless that is its own choice.
    data_listen: Option<SocketAddrV4>,
}

impl Reached {
    /// In its place among the nodes, from 0.
    fn of(place: usize, network: Option<&Network>, spoiler: Option<&Spoiler>) -> Result<Self> {
        if let Some(spoiler) = spoiler {
            let (listen, data) = spoiler.behind();
            return Ok(Self { advertised: spoiler.before(), listen, data_listen: Some(data) });
        }
        let listen = match network {
            Some(network) => SocketAddrV4::new(network.address(place), PEERS_PORT),
            None => free_address()?,
        };
        Ok(Self { advertised: listen, listen, data_listen: None })
    }
}

fn free_address() -> Result<SocketAddrV4> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, listener.local_addr()?.port()))
}

/// What no flag says of a node's peers.
fn write_peers(path: &Path, args: &Args, reached: &Reached) -> std::io::Result<()> {
    let mut text = format!("[peers]\nlisten = \"{}\"\n", reached.listen);
    if args.apart {
        // They are beyond loopback, and yet on this machine.
        text.push_str("plain_text = true\n");
    }
    if let Some(deadline) = &args.lookup_deadline {
        writeln!(text, "lookup_deadline = {deadline:?}").expect("text takes any line");
    }
    if let Some(data) = reached.data_listen {
        writeln!(text, "data_listen = \"{data}\"").expect("text takes any line");
    }
    std::fs::write(path, text)
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
