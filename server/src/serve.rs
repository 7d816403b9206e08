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
use crate::metrics_http::{Health, MetricsHttpError, MetricsServer};
use crate::node::{Node, NodeError};
use crate::sockets::{SocketError, Sockets};
use refrain_proto::v1::admin_server::AdminServer;
use refrain_proto::v1::cache_server::CacheServer;
use refrain_proto::v1::events_server::EventsServer;
use refrain_store::drive::Drive;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Instant;
use thiserror::Error;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic_health::server::HealthReporter;
use tracing::{info, warn};

/// A prompt of a million tokens is 4 MB; a reply about its blocks is less.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// What a caller may send before it hears from us: a prompt of a million tokens. HTTP/2's usual
/// 64 KiB make eight round trips of one of 131,072.
const STREAM_WINDOW: u32 = 4 << 20;

/// The most that comes in one piece.
const FRAME: u32 = 1 << 20;

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
    let (health, watched) = watch::channel(Health::Starting);
    let (stop, stopped) = watch::channel(());
    let server = match config.metrics {
        Some(address) => Some(MetricsServer::bind(address).await?),
        None => None,
    };
    let metrics_address = server.as_ref().map(MetricsServer::address);
    let opening = config.clone();
    let node = tokio::task::spawn_blocking(move || Node::open(&opening)).await;
    let node = node.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
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

    let (drain, drained) = watch::channel(false);
    let (reporter, router) = services(&node, drain).await?;
    let incoming = UnixListenerStream::new(grpc);
    let grpc = tokio::spawn(router.serve_with_incoming_shutdown(incoming, closed(stopped)));

    health.send_replace(Health::Serving);
    let restart = begun.elapsed();
    node.metrics().restart_seconds.set(restart.as_secs_f64());
    announce::serving((&config, &listen), &opened(&node), metrics_address, restart);
    tokio::select! {
        () = shutdown => {}
        () = asked(drained) => {}
    }

    health.send_replace(Health::Draining);
    node.begin_drain();
    node.drain_fleet().await;
    reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    info!(limit = ?config.drain, "draining");
    let finish = async {
        node.drained().await;
        // Nobody finds the sidecar from here on; calls under way finish.
        drop((address_files, socket_files, stop));
        grpc.await
    };
    if let Ok(Ok(served)) = tokio::time::timeout(config.drain, finish).await {
        served.map_err(|source| ServeError::Grpc { source })?;
    } else {
        warn!(limit = ?config.drain, "calls were cut off");
    }
    node.leave_fleet().await;
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

/// Everything that is served over gRPC; health says so from the start.
async fn services(
    node: &Arc<Node>,
    drain: watch::Sender<bool>,
) -> Result<(HealthReporter, Router), ServeError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(refrain_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|source| ServeError::Reflection { source })?;
    let cache = CacheServer::new(CacheService(Arc::clone(node)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let admin = AdminServer::new(AdminService { node: Arc::clone(node), drain })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let events = EventsServer::new(EventsService(Arc::clone(node)));
    let router = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(2 * STREAM_WINDOW)
        .max_frame_size(FRAME)
        .add_service(health)
        .add_service(reflection)
        .add_service(cache)
        .add_service(admin)
        .add_service(events);
    Ok((reporter, router))
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
