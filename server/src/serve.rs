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
use crate::metrics_http::{Health as State, MetricsHttpError, MetricsServer};
use crate::node::{Node, NodeError};
use crate::peers::door::{Door, DoorError, Sessions};
use crate::peers::service::PeerService;
use crate::peers::tls::{Tls, TlsError};
use crate::peers::{DataThreads, Peers};
use crate::sockets::{SocketError, Sockets};
use refrain_proto::v1::admin_server::AdminServer;
use refrain_proto::v1::cache_server::CacheServer;
use refrain_proto::v1::events_server::EventsServer;
use refrain_proto::v1::peer_server::PeerServer;
use refrain_store::drive::Drive;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::net::UnixListener;
use tokio::sync::watch;
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
    #[error("set up TLS for peers")]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Door(#[from] DoorError),
    #[error("start the threads of peers")]
    Threads { source: io::Error },
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
    let listen = config.listen().ok_or(ConfigError::Invalid(Invalid::NoDrive))?;
    let (health, watched) = watch::channel(State::Starting);
    let (stop, stopped) = watch::channel(());
    let server = match config.metrics {
        Some(address) => Some(MetricsServer::bind(address).await?),
        None => None,
    };
    let tls = config.peers.tls_files().map(|files| Tls::read(&files)).transpose()?;
    let door = Door::bind(&config.peers).await?;
    let data =
        DataThreads::start(&config.peers).map_err(|source| ServeError::Threads { source })?;
    let metrics_address = server.as_ref().map(MetricsServer::address);
    let opening = config.clone();
    let node = tokio::task::spawn_blocking(move || Node::open(&opening)).await;
    let node = node.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    let http = server.map(|server| {
        let counted = Arc::clone(&node);
        let text = Arc::new(move || counted.metrics_text());
        tokio::spawn(server.run(text, watched, closed(stopped.clone())))
    });

    let Sockets { grpc, sessions, files: socket_files } =
        Sockets::bind(listen.path(), config.socket_mode)?;
    let directories = config.drives.iter().map(|drive| drive.path.as_path());
    let address_files = AddressFiles::write(directories, &listen)?;
    let runtime = |source| ServeError::Runtime { source };
    let grpc = UnixListener::from_std(grpc).map_err(runtime)?;
    let sessions = UnixListener::from_std(sessions).map_err(runtime)?;
    let mut tasks = node.spawn_tasks();
    tasks.spawn(crate::sessions::accept(Arc::clone(&node), sessions));

    let peers = data.handle().map(|data| Peers::start(&config.peers, &node, tls.as_ref(), data));
    let (drain, drained) = watch::channel(false);
    let (reporter, health_service) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let cache = CacheService { node: Arc::clone(&node), peers: peers.clone() };
    let admin = AdminService { node: Arc::clone(&node), peers, drain };
    let router = services(health_service.clone(), &cache, admin)?;
    let incoming = UnixListenerStream::new(grpc);
    let grpc = tokio::spawn(router.serve_with_incoming_shutdown(incoming, closed(stopped.clone())));
    let peers_address = door.as_ref().map(Door::address);
    let remote = door.zip(data.handle()).map(|(door, data)| {
        let (sessions, visitors) = door.open(&node, tls.as_ref(), (&mut tasks, data));
        let router = remote_services(health_service, &cache, sessions);
        let incoming = ReceiverStream::new(visitors);
        tokio::spawn(router.serve_with_incoming_shutdown(incoming, closed(stopped)))
    });

    health.send_replace(State::Serving);
    let restart = begun.elapsed();
    node.metrics().restart_seconds.set(restart.as_secs_f64());
    announce::serving(&config, &opened(&node), (metrics_address, peers_address), restart);
    tokio::select! {
        () = shutdown => {}
        () = asked(drained) => {}
    }

    health.send_replace(State::Draining);
    node.begin_drain();
    reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    info!(limit = ?config.drain, "draining");
    let finish = async {
        node.drained().await;
        // Nobody finds the sidecar from here on; calls under way finish.
        drop((address_files, socket_files, stop));
        let served = grpc.await;
        if let Some(remote) = remote {
            // However it ended for those of other machines.
            let _ = remote.await;
        }
        served
    };
    if let Ok(Ok(served)) = tokio::time::timeout(config.drain, finish).await {
        served.map_err(|source| ServeError::Grpc { source })?;
    } else {
        warn!(limit = ?config.drain, "calls were cut off");
    }
    tasks.shutdown().await;
    let stopping = Arc::clone(&node);
    let stopping = tokio::task::spawn_blocking(move || stopping.stop());
    // A drive that hangs is no reason to: what it had not synced was never promised.
    if tokio::time::timeout(config.drain, stopping).await.is_err() {
        warn!(limit = ?config.drain, "drives do not stop");
    }
    if let Some(http) = http {
        let _ = http.await;
    }
    info!("stopped");
    Ok(())
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
