//! A fleet's directory as child processes: a Redis or Valkey cluster on this machine, with the
//! configuration and the users of `deploy/directory`.
//!
//! It keeps nothing on disk but its logs and its own map, in directories of its own, and never
//! outlives this process.

use crate::process::Process;
use rustix::process::Signal;
use std::ffi::OsStr;
use std::fmt::Write;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use thiserror::Error;

/// What every server is configured with.
const CONFIG: &str = include_str!("../../deploy/directory/valkey.conf");
const TLS_CONFIG: &str = include_str!("../../deploy/directory/tls.conf");
const USERS: &str = include_str!("../../deploy/directory/users.acl");
/// Programs that are looked for, the first one before the second.
const SERVERS: [&str; 2] = ["valkey-server", "redis-server"];
const CLIENTS: [&str; 2] = ["valkey-cli", "redis-cli"];
const PATIENCE: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(20);
/// Of all users of such a cluster: it is reached from this machine alone, and lives for minutes.
const PASSWORD: &str = "loopback";

/// Files of mutual TLS that all servers use, and whoever asks them.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Why there is no cluster.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClusterError {
    #[error("no redis-server and no valkey-server on the PATH: apt-get install redis-server")]
    Missing,
    #[error("write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("find a free port")]
    Port { source: io::Error },
    #[error("run {program}")]
    Run { program: String, source: io::Error },
    #[error("server {server} of the directory does not accept; it said:\n{said}")]
    Ended { server: usize, said: String },
    #[error("servers of the directory are no cluster within {PATIENCE:?}: {said}")]
    Late { said: String },
    #[error("server refuses {command}: {said}")]
    Refused { command: String, said: String },
    #[error("server {server} does not run")]
    NotRunning { server: usize },
    #[error("signal a server, or wait for it")]
    Process(#[from] io::Error),
}

/// Servers that are one cluster, or one server by itself.
#[derive(Debug)]
pub struct Cluster {
    home: PathBuf,
    /// Where all of them listen.
    host: Ipv4Addr,
    tls: Option<TlsFiles>,
    servers: Vec<Server>,
}

#[derive(Debug)]
struct Server {
    port: u16,
    process: Option<Process>,
}

impl Cluster {
    /// Three masters with a replica each, in directories under `home`; returns when they serve.
    pub fn start(home: &Path, tls: Option<TlsFiles>) -> Result<Self, ClusterError> {
        Self::of(home, (Ipv4Addr::LOCALHOST, tls), 6, 1)
    }

    /// As `start`, at another address of this machine.
    pub fn start_at(home: &Path, host: Ipv4Addr) -> Result<Self, ClusterError> {
        Self::of(home, (host, None), 6, 1)
    }

    /// Three masters alone.
    pub fn start_masters(home: &Path) -> Result<Self, ClusterError> {
        Self::of(home, (Ipv4Addr::LOCALHOST, None), 3, 0)
    }

    /// One server that is no part of a cluster.
    pub fn start_alone(home: &Path) -> Result<Self, ClusterError> {
        Self::of(home, (Ipv4Addr::LOCALHOST, None), 1, 0)
    }

    fn of(
        home: &Path,
        (host, tls): (Ipv4Addr, Option<TlsFiles>),
        servers: usize,
        replicas: usize,
    ) -> Result<Self, ClusterError> {
        let home = std::path::absolute(home).unwrap_or_else(|_| home.into());
        let mut cluster = Self { home, host, tls, servers: Vec::new() };
        let user = cluster.user_file();
        write(&cluster.home.join("users.acl"), &users())?;
        write(&user, &format!("refrain:{PASSWORD}\n"))?;
        // All at once, so that no port is given twice.
        let ports = free_ports(host, 2 * servers)?;
        for (server, ports) in ports.chunks(2).enumerate() {
            let directory = cluster.directory(server);
            std::fs::create_dir_all(&directory)
                .map_err(|source| ClusterError::Write { path: directory.clone(), source })?;
            let config = cluster.config(&directory, (ports[0], ports[1]), servers > 1);
            write(&directory.join("valkey.conf"), &config)?;
            cluster.servers.push(Server { port: ports[0], process: None });
            cluster.launch(server)?;
        }
        (0..servers).try_for_each(|server| cluster.accepts(server))?;
        if servers > 1 {
            cluster.join(replicas)?;
        }
        Ok(cluster)
    }

    /// `HOST:PORT` of every server.
    pub fn addresses(&self) -> Vec<String> {
        self.servers.iter().map(|server| format!("{}:{}", self.host, server.port)).collect()
    }

    /// What a sidecar logs in with.
    pub fn user_file(&self) -> PathBuf {
        self.home.join("user")
    }

    pub fn password(&self) -> &str {
        PASSWORD
    }

    pub fn port(&self, server: usize) -> u16 {
        self.servers[server].port
    }

    pub fn len(&self) -> usize {
        self.servers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// SIGKILL; returns when it is gone.
    pub fn kill(&mut self, server: usize) -> Result<(), ClusterError> {
        let process = self.servers[server].process.take();
        Ok(process.ok_or(ClusterError::NotRunning { server })?.kill()?)
    }

    /// SIGSTOP, or SIGCONT.
    pub fn signal(&self, server: usize, signal: Signal) -> Result<(), ClusterError> {
        let process = self.servers[server].process.as_ref();
        Ok(process.ok_or(ClusterError::NotRunning { server })?.signal(signal)?)
    }

    /// Starts a server that was killed, empty; returns when it accepts.
    pub fn restart(&mut self, server: usize) -> Result<(), ClusterError> {
        self.launch(server)?;
        self.accepts(server)
    }

    /// Servers that run, and say that they are masters.
    pub fn masters(&self) -> Vec<usize> {
        let runs = |server: &usize| self.servers[*server].process.is_some();
        let is_master = |server: &usize| {
            self.command(*server, ["ROLE"]).is_ok_and(|role| role.starts_with("master"))
        };
        (0..self.servers.len()).filter(runs).filter(is_master).collect()
    }

    /// What a server answers to its operator.
    pub fn command<'a>(
        &self,
        server: usize,
        words: impl IntoIterator<Item = &'a str>,
    ) -> Result<String, ClusterError> {
        let words: Vec<_> = words.into_iter().collect();
        let (host, port) = (self.host.to_string(), self.servers[server].port.to_string());
        let mut command = self.client(&["-h", &host, "-p", &port])?;
        let output = command.args(&words).output();
        let run = |source| ClusterError::Run { program: words.join(" "), source };
        let output = output.map_err(run)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        if output.status.success() {
            return Ok(text(&output.stdout));
        }
        let said = text(&output.stdout) + &text(&output.stderr);
        Err(ClusterError::Refused { command: words.join(" "), said })
    }

    fn directory(&self, server: usize) -> PathBuf {
        self.home.join(format!("server-{server}"))
    }

    /// As it is handed out, but for where its server is.
    fn config(&self, directory: &Path, (port, bus): (u16, u16), is_cluster: bool) -> String {
        let users = self.home.join("users.acl").display().to_string();
        let cluster = if is_cluster { "yes" } else { "no" };
        let (port, bus, place) =
            (port.to_string(), bus.to_string(), directory.display().to_string());
        let mut own = vec![
            ("bind", self.host.to_string()),
            ("dir", place),
            ("aclfile", users),
            ("masterauth", PASSWORD.into()),
            ("logfile", "log".into()),
            ("maxmemory", "0".into()),
            ("cluster-enabled", cluster.into()),
            ("cluster-port", bus),
        ];
        let mut text = CONFIG.to_owned();
        if let Some(TlsFiles { ca, certificate, key }) = &self.tls {
            text.push_str(TLS_CONFIG);
            own.push(("tls-port", port));
            own.push(("tls-ca-cert-file", ca.display().to_string()));
            own.push(("tls-cert-file", certificate.display().to_string()));
            own.push(("tls-key-file", key.display().to_string()));
        } else {
            own.push(("port", port));
        }
        let is_own = |line: &&str| own.iter().any(|(key, _)| line.split(' ').next() == Some(key));
        let mut config: String =
            text.lines().filter(|line| !is_own(line)).flat_map(|line| [line, "\n"]).collect();
        for (key, value) in own {
            writeln!(config, "{key} {value}").expect("text takes any line");
        }
        config
    }

    fn launch(&mut self, server: usize) -> Result<(), ClusterError> {
        // It ends with whoever started it, by the kernel's hand.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", program(SERVERS)?]);
        command.arg(self.directory(server).join("valkey.conf"));
        let run = |source| ClusterError::Run { program: "setpriv".into(), source };
        self.servers[server].process = Some(Process::spawn(command).map_err(run)?);
        Ok(())
    }

    fn accepts(&mut self, server: usize) -> Result<(), ClusterError> {
        let end = Instant::now() + PATIENCE;
        let address = (self.host, self.servers[server].port);
        while TcpStream::connect(address).is_err() {
            let log = self.directory(server).join("log");
            let process = self.servers[server].process.as_mut();
            let process = process.ok_or(ClusterError::NotRunning { server })?;
            if process.ended()?.is_some() || Instant::now() > end {
                process.kill()?;
                let log = std::fs::read_to_string(log).unwrap_or_default();
                let said = process.last_words() + "\n" + &log;
                return Err(ClusterError::Ended { server, said });
            }
            thread::sleep(INTERVAL);
        }
        Ok(())
    }

    /// Makes the servers one cluster.
    fn join(&self, replicas: usize) -> Result<(), ClusterError> {
        let mut command = self.client(&["--cluster", "create"])?;
        command.args(self.addresses()).arg("--cluster-replicas").arg(replicas.to_string());
        let run = |source| ClusterError::Run { program: "--cluster create".into(), source };
        let output = command.arg("--cluster-yes").output().map_err(run)?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            return Err(ClusterError::Refused { command: "--cluster create".into(), said });
        }
        self.settled()
    }

    /// Returns when every server knows of every other whether it is a master or a replica, and each
    /// replica follows its master.
    pub fn settled(&self) -> Result<(), ClusterError> {
        let end = Instant::now() + PATIENCE;
        for server in 0..self.servers.len() {
            loop {
                let asked = ["INFO", "NODES"].map(|what| self.command(server, ["CLUSTER", what]));
                let [info, nodes] = asked.map(Result::unwrap_or_default);
                let role = self.command(server, ["ROLE"]).unwrap_or_default();
                let is_whole = ["cluster_state:ok", "cluster_slots_ok:16384"]
                    .iter()
                    .all(|line| info.contains(line));
                let knows = nodes.lines().count() == self.servers.len()
                    && nodes.lines().all(is_in_its_place);
                let follows = role.starts_with("master") || role.contains("connected");
                if is_whole && knows && follows {
                    break;
                }
                if Instant::now() > end {
                    return Err(ClusterError::Late { said: [info, nodes, role].join("\n") });
                }
                thread::sleep(INTERVAL);
            }
        }
        Ok(())
    }

    /// It ends after a while, also where the server hangs.
    fn client(&self, arguments: &[&str]) -> Result<Command, ClusterError> {
        let mut command = Command::new("timeout");
        command.arg(PATIENCE.as_secs().to_string()).arg(program(CLIENTS)?);
        command.args(["--user", "admin", "--no-auth-warning"]).env("REDISCLI_AUTH", PASSWORD);
        if let Some(TlsFiles { ca, certificate, key }) = &self.tls {
            let files: [&OsStr; 6] = [
                "--cacert".as_ref(),
                ca.as_ref(),
                "--cert".as_ref(),
                certificate.as_ref(),
                "--key".as_ref(),
                key.as_ref(),
            ];
            command.arg("--tls").args(files);
        }
        command.args(arguments);
        Ok(command)
    }
}

/// Of a line of `CLUSTER NODES`: a master with slots, or a replica. Roles spread by gossip, later than
/// names: until then a replica is taken for a master that has nothing, and is not asked for reads.
fn is_in_its_place(line: &str) -> bool {
    let words: Vec<_> = line.split(' ').collect();
    let flags = words.get(2).copied().unwrap_or_default();
    let is_away = ["fail", "handshake", "noaddr"].iter().any(|flag| flags.contains(flag));
    !is_away && (flags.contains("slave") || words.len() > 8)
}

fn users() -> String {
    let users = ["refrain", "replica", "admin"];
    users
        .iter()
        .fold(USERS.to_owned(), |text, user| text.replace(&format!("CHANGE-{user}"), PASSWORD))
}

/// For its owner alone, as whoever reads a password demands.
fn write(path: &Path, text: &str) -> Result<(), ClusterError> {
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        io::Write::write_all(&mut options.open(path)?, text.as_bytes())
    };
    write().map_err(|source| ClusterError::Write { path: path.into(), source })
}

fn free_ports(host: Ipv4Addr, count: usize) -> Result<Vec<u16>, ClusterError> {
    let listen = |_| TcpListener::bind((host, 0));
    let listeners: io::Result<Vec<_>> = (0..count).map(listen).collect();
    let ports = listeners.and_then(|listeners| {
        listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
    });
    ports.map_err(|source| ClusterError::Port { source })
}

/// The first of these that is on the PATH.
fn program(names: [&'static str; 2]) -> Result<&'static str, ClusterError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there =
        |name: &&str| std::env::split_paths(&path).any(|place| place.join(name).is_file());
    names.into_iter().find(is_there).ok_or(ClusterError::Missing)
}
