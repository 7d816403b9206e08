//! `/metrics` and `/healthz` over HTTP, for whoever watches a fleet.
//!
//! The port is taken before anything is served, so that one that is in use is an error of the
//! start. Connections are few, and none lasts: a scraper that hangs costs one of them for a while.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::debug;

const CONNECTIONS_MAX: usize = 32;
const CONNECTION_TIME: Duration = Duration::from_mins(1);
/// After accepting went wrong, as it does without file descriptors: not a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const METRICS_TYPE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
const TEXT_TYPE: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// What `/healthz` answers: 200 while it serves, 503 before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Starting,
    Serving,
    Draining,
}

/// Why metrics are not served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MetricsHttpError {
    #[error("listen on {address} for metrics: free it, or give another address")]
    Bind { address: SocketAddr, source: io::Error },
}

/// The port, taken.
#[derive(Debug)]
pub(crate) struct MetricsServer {
    listener: TcpListener,
    address: SocketAddr,
}

/// Says all that is counted, as of now.
pub(crate) type Text = Arc<dyn Fn() -> String + Send + Sync>;

/// What a request is answered from.
#[derive(Clone)]
struct Answers {
    text: Text,
    health: watch::Receiver<Health>,
}

impl MetricsServer {
    pub(crate) async fn bind(address: SocketAddr) -> Result<Self, MetricsHttpError> {
        let error = |source| MetricsHttpError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(error)?;
        let address = listener.local_addr().map_err(error)?;
        Ok(Self { listener, address })
    }

    /// With the port that the kernel chose, where 0 was asked for.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown`; connections end with it.
    pub(crate) async fn run(
        self,
        text: Text,
        health: watch::Receiver<Health>,
        shutdown: impl Future<Output = ()>,
    ) {
        let answers = Answers { text, health };
        let mut shutdown = pin!(shutdown);
        let mut connections = JoinSet::new();
        loop {
            let room = connections.len() < CONNECTIONS_MAX;
            tokio::select! {
                () = &mut shutdown => return,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if room => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve(stream, answers.clone()));
                    }
                    Err(error) => {
                        debug!(%error, "accept a connection for metrics");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }
}

async fn serve(stream: TcpStream, answers: Answers) {
    let service = service_fn(move |request| {
        let response = answers.answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(CONNECTION_TIME / 2);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    // What a scraper does wrong is between it and its connection.
    let _ = tokio::time::timeout(CONNECTION_TIME, connection).await;
}

impl Answers {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut refusal =
                plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered\n");
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        match request.uri().path() {
            "/metrics" => {
                let mut response = plain(StatusCode::OK, (self.text)());
                response.headers_mut().insert(CONTENT_TYPE, METRICS_TYPE);
                response
            }
            "/healthz" => match *self.health.borrow() {
                Health::Starting => plain(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
                Health::Serving => plain(StatusCode::OK, "serving\n"),
                Health::Draining => plain(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
            },
            _ => plain(StatusCode::NOT_FOUND, "try /metrics or /healthz\n"),
        }
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, TEXT_TYPE);
    response
}

#[cfg(test)]
mod tests {
    //! Proves what a scraper and a health check are told, over a real connection.

    use super::*;
    use crate::metrics::Metrics;
    use std::io::{Read, Write};
    use tokio::sync::oneshot;

    struct Running {
        metrics: Arc<Metrics>,
        health: watch::Sender<Health>,
        address: SocketAddr,
        stop: oneshot::Sender<()>,
        task: tokio::task::JoinHandle<()>,
    }

    async fn start() -> Running {
        let server = MetricsServer::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let metrics = Arc::new(Metrics::new());
        let (health, watched) = watch::channel(Health::Starting);
        let (stop, stopped) = oneshot::channel::<()>();
        let address = server.address();
        let shutdown = async move { drop(stopped.await) };
        let counted = Arc::clone(&metrics);
        let text: Text = Arc::new(move || counted.text());
        let task = tokio::spawn(server.run(text, watched, shutdown));
        Running { metrics, health, address, stop, task }
    }

    async fn ask(address: SocketAddr, request: &'static str) -> String {
        let ask = move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            write!(stream, "{request} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
                .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        tokio::task::spawn_blocking(ask).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn scrape_brings_what_was_counted() {
        let running = start().await;
        running.metrics.matched_blocks.inc_by(7);
        let answer = ask(running.address, "GET /metrics").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0"));
        assert!(answer.contains("\nrefrain_matched_blocks_total 7\n"), "{answer}");
        assert!(answer.ends_with("# EOF\n"), "{answer}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn health_is_good_only_while_it_serves() {
        let running = start().await;
        let states = [
            (Health::Starting, "HTTP/1.1 503 ", "starting\n"),
            (Health::Serving, "HTTP/1.1 200 ", "serving\n"),
            (Health::Draining, "HTTP/1.1 503 ", "draining\n"),
        ];
        for (state, status, word) in states {
            running.health.send_replace(state);
            let answer = ask(running.address, "GET /healthz").await;
            assert!(answer.starts_with(status) && answer.ends_with(word), "{answer}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn anything_else_is_refused_with_what_is_there() {
        let running = start().await;
        let answer = ask(running.address, "GET /").await;
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("/metrics"), "{answer}");
        let answer = ask(running.address, "POST /metrics").await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn port_in_use_is_named_and_free_again_after_the_stop() {
        let running = start().await;
        let error = MetricsServer::bind(running.address).await.unwrap_err();
        let expected =
            format!("listen on {} for metrics: free it, or give another address", running.address);
        assert_eq!(error.to_string(), expected);
        running.stop.send(()).unwrap();
        running.task.await.unwrap();
        MetricsServer::bind(running.address).await.unwrap();
    }
}
