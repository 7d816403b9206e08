//! A network of this machine's own: a namespace for each node, and between them a hub that forwards, or
//! drops, what they send each other.
//!
//! The hub is the namespace that this process is in, which [`apart`] has made for it. All of it is held
//! by processes alone, and is gone when they are. It takes root or user namespaces, and the programs
//! `unshare`, `nsenter` and `setpriv` of util-linux and `ip` of iproute2.

use crate::process::Process;
use std::ffi::OsString;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Where nodes reach whoever is in the hub.
pub const HUB: Ipv4Addr = Ipv4Addr::new(10, 73, 0, 1);
/// For a process to be in its own namespace.
const PATIENCE: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_millis(2);

/// Why there is no such network.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NetworkError {
    #[error(
        "run {program}: networks of one's own take unshare, nsenter and setpriv (util-linux) and ip (iproute2)"
    )]
    Run { program: String, source: io::Error },
    #[error("find this program, to run it in a network of its own")]
    Executable { source: io::Error },
    #[error("networks of one's own take root, or user namespaces, which are refused here: {said}")]
    Refused { said: String },
    #[error("{command}: {said}")]
    Command { command: String, said: String },
    #[error("forward between nodes")]
    Forward { source: io::Error },
    #[error("start a process that holds a network")]
    Holder { source: io::Error },
    #[error("a process that holds a network has none of its own within {PATIENCE:?}")]
    Late,
}

/// Nodes that reach the hub and, over it, each other.
#[derive(Debug)]
pub struct Network {
    /// Each has the namespace of one node.
    holders: Vec<Process>,
}

/// Becomes this program with `arguments`, in a network namespace of its own: the hub. Returns only when
/// that cannot be.
pub fn apart(arguments: impl IntoIterator<Item = OsString>) -> NetworkError {
    let mut namespaces = vec!["--net"];
    if !rustix::process::geteuid().is_root() {
        namespaces.extend(["--user", "--map-root-user"]);
    }
    // Whether it is possible is found out by another process: this one is about to be gone.
    let probe: Vec<_> =
        namespaces.iter().copied().chain(["--", "ip", "link", "set", "lo", "up"]).collect();
    match run("unshare", &probe) {
        Ok(()) => {}
        Err(NetworkError::Command { said, .. }) => return NetworkError::Refused { said },
        Err(error) => return error,
    }
    let mut command = Command::new("unshare");
    match std::env::current_exe() {
        Ok(this) => command.args(namespaces).arg("--").arg(this).args(arguments),
        Err(source) => return NetworkError::Executable { source },
    };
    NetworkError::Run { program: "unshare".into(), source: command.exec() }
}

impl Network {
    /// Joins networks of as many nodes to this process's own.
    pub fn start(nodes: u16) -> Result<Self, NetworkError> {
        ip("link set lo up")?;
        ip(&format!("address add {HUB}/32 dev lo"))?;
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
            .map_err(|source| NetworkError::Forward { source })?;
        let holders = (0..nodes).map(|_| hold()).collect::<Result<_, _>>()?;
        let network = Self { holders };
        (0..usize::from(nodes)).try_for_each(|node| network.join(node))?;
        Ok(network)
    }

    /// Where others reach a node, from 0.
    pub fn address(&self, node: usize) -> Ipv4Addr {
        of_node(node, 2)
    }

    /// Words before a command that have it run at a node.
    pub fn within(&self, node: usize) -> Vec<OsString> {
        let place = namespace(self.holders[node].pid());
        let net = format!("--net={}", place.display());
        vec!["nsenter".into(), net.into(), "--".into()]
    }

    /// From now on the hub drops what these nodes send each other, without a word to either.
    pub fn part(&self, nodes: [usize; 2]) -> Result<(), NetworkError> {
        self.rules("add", nodes)
    }

    /// They reach each other again.
    pub fn mend(&self, nodes: [usize; 2]) -> Result<(), NetworkError> {
        self.rules("delete", nodes)
    }

    fn rules(&self, change: &str, [one, other]: [usize; 2]) -> Result<(), NetworkError> {
        for (from, to) in [(one, other), (other, one)] {
            let (from, to) = (self.address(from), self.address(to));
            ip(&format!("rule {change} from {from} to {to} blackhole"))?;
        }
        Ok(())
    }

    /// Gives a node its end of a wire to the hub.
    fn join(&self, node: usize) -> Result<(), NetworkError> {
        let (hub, own, pid) = (of_node(node, 1), self.address(node), self.holders[node].pid());
        ip(&format!("link add node{node} type veth peer name eth0 netns {pid}"))?;
        ip(&format!("address add {hub}/24 dev node{node}"))?;
        ip(&format!("link set node{node} up"))?;
        let within = self.within(node);
        let at_node = |command: &str| {
            let words = within[1..].iter().filter_map(|word| word.to_str());
            let words: Vec<_> = words.chain(["ip"]).chain(command.split(' ')).collect();
            run("nsenter", &words)
        };
        at_node("link set lo up")?;
        at_node(&format!("address add {own}/24 dev eth0"))?;
        at_node("link set eth0 up")?;
        at_node(&format!("route add default via {hub}"))
    }
}

/// A node's network has 256 addresses.
fn of_node(node: usize, host: u8) -> Ipv4Addr {
    let node = u8::try_from(node + 1).expect("a machine has fewer than 255 nodes");
    Ipv4Addr::new(10, 73, node, host)
}

fn namespace(pid: u32) -> PathBuf {
    format!("/proc/{pid}/ns/net").into()
}

/// A process with a network namespace of its own, which does nothing.
fn hold() -> Result<Process, NetworkError> {
    let holder = |source| NetworkError::Holder { source };
    // It ends with whoever started it, by the kernel's hand.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "unshare", "--net", "--", "sleep", "infinity"]);
    let process = Process::spawn(command).map_err(holder)?;
    let own = std::fs::read_link("/proc/self/ns/net").map_err(holder)?;
    let end = Instant::now() + PATIENCE;
    while std::fs::read_link(namespace(process.pid())).map_err(holder)? == own {
        if Instant::now() > end {
            return Err(NetworkError::Late);
        }
        thread::sleep(INTERVAL);
    }
    Ok(process)
}

fn ip(command: &str) -> Result<(), NetworkError> {
    run("ip", &command.split(' ').collect::<Vec<_>>())
}

fn run(program: &str, words: &[&str]) -> Result<(), NetworkError> {
    let output = Command::new(program).args(words).output();
    let output = output.map_err(|source| NetworkError::Run { program: program.into(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    Err(NetworkError::Command { command: format!("{program} {}", words.join(" ")), said })
}
