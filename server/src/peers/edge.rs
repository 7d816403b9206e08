//! What a node takes at its start to have peers: certificates, listeners, threads.

use super::Peers;
use super::door::{Door, DoorError, Sessions, Visitor};
use super::tls::{Tls, TlsError};
use crate::config::Config;
use crate::node::Node;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use thiserror::Error;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// They fill any link that a node has.
const DATA_THREADS_MAX: usize = 4;

/// Why a node has no peers.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EdgeError {
    #[error("set up TLS for peers")]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Door(#[from] DoorError),
    #[error("start the threads of peers")]
    Threads { source: io::Error },
}

/// All of it, where the config names any of it.
#[derive(Debug)]
pub(crate) struct Edge {
    tls: Option<Tls>,
    door: Option<Door>,
    threads: Option<DataThreads>,
}

/// Peers that have come in, and the connections that they came over.
pub(crate) type Admitted = (Arc<Sessions>, mpsc::Receiver<io::Result<Visitor>>);

/// Threads for the bytes of peers alone: those that answer lookups never wait for them.
#[derive(Debug)]
struct DataThreads(Option<Runtime>);

impl Edge {
    pub(crate) async fn open(config: &Config) -> Result<Self, EdgeError> {
        let peers = &config.peers;
        let tls = peers.tls_files().map(|files| Tls::read(&files)).transpose()?;
        let door = Door::bind(peers).await?;
        let has_peers = door.is_some() || !peers.ask.is_empty() || config.directory.is_some();
        let threads = if has_peers { Some(DataThreads::start()?) } else { None };
        Ok(Self { tls, door, threads })
    }

    /// Where peers come in.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.door.as_ref().map(Door::address)
    }

    /// The peers that this node asks.
    pub(crate) fn peers(&self, config: &Config, node: &Node) -> Option<Arc<Peers>> {
        let data = self.threads.as_ref()?.handle();
        Some(Peers::start(&config.peers, node, self.tls.as_ref(), data))
    }

    /// Lets peers in, for as long as `tasks` run.
    pub(crate) fn admit(&mut self, node: &Arc<Node>, tasks: &mut JoinSet<()>) -> Option<Admitted> {
        let data = self.threads.as_ref()?.handle();
        Some(self.door.take()?.open(node, self.tls.as_ref(), (tasks, data)))
    }
}

impl DataThreads {
    fn start() -> Result<Self, EdgeError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores.min(DATA_THREADS_MAX))
            .thread_name("refrain-peers")
            .enable_all()
            .build();
        runtime.map(|runtime| Self(Some(runtime))).map_err(|source| EdgeError::Threads { source })
    }

    fn handle(&self) -> &tokio::runtime::Handle {
        self.0.as_ref().expect("taken when it is dropped").handle()
    }
}

impl Drop for DataThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // What is under way is nobody's by then.
            runtime.shutdown_background();
        }
    }
}
