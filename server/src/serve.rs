//! A sidecar from its start to its end.
//!
//! Order of the start: the stores with their locks, the secret, the metrics' port, the sockets, the
//! address files. So whatever is refused is refused before anybody can connect, and sockets and
//! files are made by the holder of the stores alone. The end goes the other way.

use crate::address_file::{AddressFileError, AddressFiles};
use crate::announce::{self, Opened};
use crate::config::{Config, ConfigError, Invalid};
use crate::metrics::Metrics;
use crate::metrics_http::{Health, MetricsHttpError, MetricsServer};
use crate::secret::SecretError;
use crate::sockets::{SocketError, Sockets};
use refrain_store::drive::{IoEngine, OpenError, Opening};
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Instant;
use thiserror::Error;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tracing::{info, warn};

/// Why a sidecar does not start, or ends before it is told to.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Metrics(#[from] MetricsHttpError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    AddressFile(#[from] AddressFileError),
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
    let stores: Vec<_> =
        config.drive_configs().iter().map(Opening::open).collect::<Result<_, _>>()?;
    let _secret = config.secret()?;
    let metrics = Arc::new(Metrics::new());
    let (health, watched) = watch::channel(Health::Starting);
    let (stop, stopped) = watch::channel(());
    let (stop_http, http_stopped) = watch::channel(());
    let server = match config.metrics {
        Some(address) => Some(MetricsServer::bind(address).await?),
        None => None,
    };
    let metrics_address = server.as_ref().map(MetricsServer::address);
    let http = server.map(|server| {
        tokio::spawn(server.run(Arc::clone(&metrics), watched, closed(http_stopped)))
    });

    let Sockets { grpc, sessions: _sessions, files: socket_files } =
        Sockets::bind(listen.path(), config.socket_mode)?;
    let directories = config.drives.iter().map(|drive| drive.path.as_path());
    let address_files = AddressFiles::write(directories, &listen)?;
    let grpc = tokio::net::UnixListener::from_std(grpc)
        .map_err(|source| ServeError::Runtime { source })?;

    let (reporter, health_service) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(refrain_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|source| ServeError::Reflection { source })?;
    let router = Server::builder().add_service(health_service).add_service(reflection);
    let incoming = UnixListenerStream::new(grpc);
    let grpc = tokio::spawn(router.serve_with_incoming_shutdown(incoming, closed(stopped)));
    let overall = tonic_health::ServingStatus::Serving;
    reporter.set_service_status("", overall).await;

    health.send_replace(Health::Serving);
    let restart = begun.elapsed();
    metrics.restart_seconds.set(restart.as_secs_f64());
    announce::serving(&config, &opened(&stores, config.io_engine), metrics_address, restart);
    shutdown.await;

    health.send_replace(Health::Draining);
    reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    // Nobody finds the sidecar from here on; those that are connected finish.
    drop((address_files, socket_files));
    info!(limit = ?config.drain, "draining");
    drop(stop);
    if let Ok(Ok(served)) = tokio::time::timeout(config.drain, grpc).await {
        served.map_err(|source| ServeError::Grpc { source })?;
    } else {
        warn!(limit = ?config.drain, "calls were cut off");
    }
    drop(stop_http);
    if let Some(http) = http {
        // A panic of it has been reported by itself.
        let _ = http.await;
    }
    info!("stopped");
    Ok(())
}

/// Ends when the sender is dropped.
async fn closed(mut stopped: watch::Receiver<()>) {
    while stopped.changed().await.is_ok() {}
}

fn opened(stores: &[Opening], asked: IoEngine) -> Vec<Opened> {
    let io_engine = match asked {
        IoEngine::Auto => "auto",
        IoEngine::Uring => "uring",
        IoEngine::Blocking => "blocking",
    };
    let opened = |store: &Opening| Opened {
        path: store.path().into(),
        capacity_bytes: store.capacity_bytes(),
        segment_bytes: store.segment_bytes(),
        io_engine,
    };
    stores.iter().map(opened).collect()
}
