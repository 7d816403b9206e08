//! A sidecar from its start to its end.
//!
//! Order of the start: the metrics' port, the stores with their locks, the secret, the sockets, the
//! address files. So whatever is refused is refused before anybody can connect, and sockets and
//! files are made by the holder of the stores alone. The end goes the other way.

use crate::address_file::{AddressFileError, AddressFiles};
use crate::admin_service::AdminService;
use crate::announce::{self, Opened};
use crate::cache_service::CacheService;
use crate::config::{Config, ConfigError, Invalid};
use crate::events_service::EventsService;
use crate::fleet::FleetError;
use crate::metrics_http::{Health as State, MetricsHttpError, MetricsServer};
use crate::node::{Node, NodeError};
use crate::peers::door::Sessions;
use crate::peers::edge::{Admitted, Edge, EdgeError};
use crate::peers::service::PeerService;
use crate::sockets::{SocketError, Sockets};
use refrain_proto::v1::admin_server::AdminServer;
use refrain_proto::v1::cache_server::CacheServer;
use refrain_proto::v1::events_server::EventsServer;
use refrain_proto::v1::peer_server::PeerServer;
use refrain_store::drive::Drive;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic_health::pb::health_server::{Health, HealthServer};
use tracing::{info, warn};

/// A prompt of a million tokens is 4 MB; a reply about its blocks is less.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// What a caller may send before it hears from us: a prompt of a million tokens. HTTP/2's usual
/// 64 KiB make eight round trips of one of 131,072.
const STREAM_WINDOW: u32 = 4 << 20;

/// The most that comes in one piece.
const FRAME: u32 = 1 << 20;

/// Whether another machine is there still, an idle connection finds out so often.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Why a sidecar does not start, or ends before it is told to.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Metrics(#[from] MetricsHttpError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    AddressFile(#[from] AddressFileError),
    #[error(transparent)]
    Edge(#[from] EdgeError),
    #[error(transparent)]
    Fleet(#[from] FleetError),
    #[error("hand the sockets to the runtime")]
    Runtime { source: io::Error },
    #[error("build the reflection service")]
    Reflection { source: tonic_reflection::server::Error },
    #[error("serve gRPC")]
    Grpc { source: tonic::transport::Error },
}

/// Serves until `shutdown`, then drains for at most the config's time.
pub async fn serve(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
    let begun = Instant::now();
    config.validate()?;
    let (health, watched) = watch::channel(State::Starting);
    let (stop, stopped) = watch::channel(());
    let server = bind_metrics(&config).await?;
    let mut edge = Edge::open(&config).await?;
    let metrics_address = server.as_ref().map(MetricsServer::address);
    let mut shutdown = pin!(shutdown);
    let Some(node) = open(&config, shutdown.as_mut()).await? else {
        return Ok(());
    };
    let http = server.map(|server| {
        let counted = Arc::clone(&node);
        let text = Arc::new(move || counted.metrics_text());
        tokio::spawn(server.run(text, watched, closed(stopped.clone())))
    });

    let first = node.drives().next().map(Drive::path);
    let listen = config.listen_beside(first).ok_or(ConfigError::Invalid(Invalid::NoDrive))?;
    let Sockets { grpc, sessions, files: socket_files } =
        Sockets::bind(listen.path(), config.socket_mode)?;
    let address_files = Arc::new(AddressFiles::write(node.drives().map(Drive::path), &listen)?);
    let runtime = |source| ServeError::Runtime { source };
    let grpc = UnixListener::from_std(grpc).map_err(runtime)?;
    let sessions = UnixListener::from_std(sessions).map_err(runtime)?;
    let mut tasks = node.spawn_tasks(&address_files);
    tasks.spawn(crate::sessions::accept(Arc::clone(&node), sessions));
    node.join_fleet(&config, &mut tasks)?;

    let peers = edge.peers(&config, &node);
    let addresses = (metrics_address, edge.address());
    let (drain, drained) = watch::channel(false);
    let (reporter, health_service) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let cache = CacheService { node: Arc::clone(&node), peers: peers.clone() };
    let admin = AdminService { node: Arc::clone(&node), peers, drain };
    let admitted = edge.admit(&node, &mut tasks);
    let serving = Serving::start((health_service, cache, admin), grpc, admitted, &stopped)?;

    health.send_replace(State::Serving);
    let restart = begun.elapsed();
    node.metrics().restart_seconds.set(restart.as_secs_f64());
    announce::serving((&config, &listen), &opened(&node), addresses, restart);
    tokio::select! {
        () = shutdown => {}
        () = asked(drained) => {}
    }

    health.send_replace(State::Draining);
    node.begin_drain();
    node.drain_fleet().await;
    reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    info!(limit = ?config.drain, "draining");
    let finish = async {
        node.drained().await;
        // Nobody finds the sidecar from here on; calls under way finish. A drive that hangs may keep
        // its file.
        let _ = tokio::task::spawn_blocking(|| drop((address_files, socket_files))).await;
        drop(stop);
        serving.ended().await
    };
    if let Ok(served) = tokio::time::timeout(config.drain, finish).await {
        served?;
    } else {
        warn!(limit = ?config.drain, "calls were cut off");
    }
    node.leave_fleet().await;
    tasks.shutdown().await;
    stop_drives(node, config.drain).await;
    if let Some(http) = http {
        let _ = http.await;
    }
    info!("stopped");
    Ok(())
}

async fn bind_metrics(config: &Config) -> Result<Option<MetricsServer>, MetricsHttpError> {
    match config.metrics {
        Some(address) => MetricsServer::bind(address).await.map(Some),
        None => Ok(None),
    }
}

/// `None` where it was told to stop before it was up.
async fn open(
    config: &Config,
    shutdown: impl Future<Output = ()>,
) -> Result<Option<Arc<Node>>, NodeError> {
    let mut opening = pin!(Node::open(config));
    tokio::select! {
        node = &mut opening => return node.map(Some),
        () = shutdown => info!(limit = ?config.drain, "stopping before the start is over"),
    }
    // What is up is closed; a drive that hangs is no reason to wait.
    if let Ok(node) = tokio::time::timeout(config.drain, opening).await {
        stop_drives(node?, config.drain).await;
    } else {
        warn!(limit = ?config.drain, "the start does not end");
    }
    info!("stopped before it served");
    Ok(None)
}

async fn stop_drives(node: Arc<Node>, limit: Duration) {
    let stopping = tokio::task::spawn_blocking(move || node.stop());
    // One that hangs is no reason to wait: what it had not synced was never promised.
    if tokio::time::timeout(limit, stopping).await.is_err() {
        warn!(?limit, "drives do not stop");
    }
}

/// What answers calls, until it is told to stop.
struct Serving {
    local: JoinHandle<Result<(), tonic::transport::Error>>,
    /// For other machines.
    remote: Option<JoinHandle<Result<(), tonic::transport::Error>>>,
}

impl Serving {
    fn start<H: Health>(
        (health, cache, admin): (HealthServer<H>, CacheService, AdminService),
        grpc: UnixListener,
        admitted: Option<Admitted>,
        stopped: &watch::Receiver<()>,
    ) -> Result<Self, ServeError> {
        let router = services(health.clone(), &cache, admin)?;
        let (incoming, end) = (UnixListenerStream::new(grpc), closed(stopped.clone()));
        let local = tokio::spawn(router.serve_with_incoming_shutdown(incoming, end));
        let remote = admitted.map(|(sessions, visitors)| {
            let router = remote_services(health, &cache, sessions);
            let (incoming, end) = (ReceiverStream::new(visitors), closed(stopped.clone()));
            tokio::spawn(router.serve_with_incoming_shutdown(incoming, end))
        });
        Ok(Self { local, remote })
    }

    /// When all calls have ended.
    async fn ended(self) -> Result<(), ServeError> {
        let grpc = |source| ServeError::Grpc { source };
        if let Ok(served) = self.local.await {
            served.map_err(grpc)?;
        }
        match self.remote {
            Some(remote) => remote.await.map_or(Ok(()), |served| served.map_err(grpc)),
            None => Ok(()),
        }
    }
}

/// Everything that is served over gRPC on this node.
fn services<H: Health>(
    health: HealthServer<H>,
    cache: &CacheService,
    admin: AdminService,
) -> Result<Router, ServeError> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(refrain_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|source| ServeError::Reflection { source })?;
    let events = EventsServer::new(EventsService(Arc::clone(&admin.node)));
    let admin = AdminServer::new(admin)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let router = server()
        .add_service(health)
        .add_service(reflection)
        .add_service(cache_server(cache))
        .add_service(admin)
        .add_service(events);
    Ok(router)
}

/// What is served to other machines: blocks, and no operator's calls.
fn remote_services<H: Health>(
    health: HealthServer<H>,
    cache: &CacheService,
    sessions: Arc<Sessions>,
) -> Router {
    let peer = PeerServer::new(PeerService(sessions)).max_decoding_message_size(MESSAGE_BYTES_MAX);
    // What a connection was offered is given back when its machine has gone without a word.
    server()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(health)
        .add_service(cache_server(cache))
        .add_service(peer)
}

fn server() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(2 * STREAM_WINDOW)
        .max_frame_size(FRAME)
}

fn cache_server(cache: &CacheService) -> CacheServer<CacheService> {
    CacheServer::new(cache.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Ends when somebody asks for a drain over gRPC.
async fn asked(mut drained: watch::Receiver<bool>) {
    if drained.wait_for(|asked| *asked).await.is_err() {
        // Nobody is left who could ask.
        std::future::pending::<()>().await;
    }
}

/// Ends when the sender is dropped.
async fn closed(mut stopped: watch::Receiver<()>) {
    while stopped.changed().await.is_ok() {}
}

fn opened(node: &Node) -> Vec<Opened> {
    let opened = |drive: &Drive| {
        let stats = drive.stats();
        Opened {
            path: drive.path().into(),
            capacity_bytes: stats.capacity_bytes,
            segment_bytes: stats.segment_bytes,
            io_engine: stats.io_engine,
        }
    };
    node.drives().map(opened).collect()
}
