//! Where peers, and clients of other machines, come in: one listener for gRPC, one for bytes.
//!
//! A connection of gRPC is a session, as a worker's is: all that was offered over it ends with it. Its
//! ticket opens data connections, which end with it too.

use super::sending;
use super::stream::Stream;
use super::tls::Tls;
use crate::config::PeersConfig;
use crate::namespaces::SessionId;
use crate::node::Node;
use refrain_proto::data::Ticket;
use rustix::rand::{GetRandomFlags, getrandom};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

/// For TLS to agree.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// After accepting went wrong, as it does without file descriptors: not a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that have come in and are not served yet.
const BACKLOG: usize = 64;

/// Why nobody else can come in.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DoorError {
    #[error("listen for peers at {address}")]
    Bind { address: SocketAddr, source: io::Error },
}

/// Both listeners.
#[derive(Debug)]
pub(crate) struct Door {
    control: TcpListener,
    data: TcpListener,
    address: SocketAddr,
    data_port: u16,
}

/// Connections of peers, by what opens data connections of theirs.
#[derive(Debug)]
pub(crate) struct Sessions {
    pub(super) node: Arc<Node>,
    pub(super) data_port: u16,
    by_ticket: Mutex<HashMap<Ticket, Arc<Session>>>,
}

/// A peer's connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(super) id: SessionId,
    pub(super) ticket: Ticket,
    closed: watch::Sender<bool>,
}

impl Door {
    /// Listens where the config says; `None` where it says nothing.
    pub(crate) async fn bind(config: &PeersConfig) -> Result<Option<Self>, DoorError> {
        let Some(address) = config.listen else { return Ok(None) };
        let bind = async |address| {
            let bound = TcpListener::bind(address).await;
            let bound = bound.and_then(|listener| Ok((listener.local_addr()?, listener)));
            bound.map_err(|source| DoorError::Bind { address, source })
        };
        let (address, control) = bind(address).await?;
        let data = config.data_listen.unwrap_or_else(|| SocketAddr::new(address.ip(), 0));
        let (data_address, data) = bind(data).await?;
        Ok(Some(Self { control, data, address, data_port: data_address.port() }))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets peers in from now on, in `tasks`: gRPC comes to whoever has the answer, bytes leave on the
    /// runtime `data`.
    pub(crate) fn open(
        self,
        node: &Arc<Node>,
        tls: Option<&Tls>,
        (tasks, data): (&mut JoinSet<()>, &Handle),
    ) -> (Arc<Sessions>, mpsc::Receiver<io::Result<Visitor>>) {
        let Self { control, data: bytes, data_port, .. } = self;
        let by_ticket = Mutex::default();
        let sessions = Arc::new(Sessions { node: Arc::clone(node), data_port, by_ticket });
        let (admit, admitted) = mpsc::channel(BACKLOG);
        let begun = Arc::clone(&sessions);
        tasks.spawn(accept(control, tls.cloned(), move |stream| {
            let (admit, visitor) = (admit.clone(), Visitor::new(stream, &begun));
            async move {
                // A server that ends takes nobody in.
                let _ = admit.send(Ok(visitor)).await;
            }
        }));
        let known = Arc::clone(&sessions);
        let serve = move |stream| sending::serve(Arc::clone(&known), stream);
        tasks.spawn_on(accept(bytes, tls.cloned(), serve), data);
        (sessions, admitted)
    }
}

/// Takes connections in until it is dropped.
async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    tls: Option<Tls>,
    serve: impl Fn(Stream) -> F + Clone + Send + 'static,
) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let (tls, serve) = (tls.clone(), serve.clone());
                tokio::spawn(async move {
                    let shaken = Stream::accept(stream, tls.as_ref());
                    match tokio::time::timeout(HANDSHAKE_LIMIT, shaken).await {
                        Ok(Ok(stream)) => serve(stream).await,
                        Ok(Err(error)) => warn!(%from, %error, "connection refused"),
                        Err(_) => debug!(%from, "connection says nothing"),
                    }
                });
            }
            Err(error) => {
                warn!(%error, "accept a connection of a peer");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Sessions {
    /// Takes a peer in: from now on it may be offered blocks.
    pub(super) fn meet(&self, session: &Arc<Session>) {
        let mut by_ticket = self.by_ticket();
        // It may have gone before it was taken in.
        if *session.closed.borrow() {
            return;
        }
        if by_ticket.insert(session.ticket, Arc::clone(session)).is_none() {
            self.node.begin_link(session.id);
        }
    }

    pub(super) fn find(&self, ticket: &Ticket) -> Option<Arc<Session>> {
        self.by_ticket().get(ticket).cloned()
    }

    fn end(&self, session: &Session) {
        let mut by_ticket = self.by_ticket();
        session.closed.send_replace(true);
        if by_ticket.remove(&session.ticket).is_some() {
            self.node.end_link(session.id);
        }
    }

    fn by_ticket(&self) -> MutexGuard<'_, HashMap<Ticket, Arc<Session>>> {
        // Nothing panics while holding it.
        self.by_ticket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    fn new() -> Self {
        Self { id: random(), ticket: random(), closed: watch::Sender::new(false) }
    }

    /// Ends with the connection.
    pub(super) async fn closed(&self) {
        // The sender is `self`.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }
}

fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    let filled = getrandom(&mut bytes, GetRandomFlags::empty());
    assert_eq!(filled, Ok(bytes.len()), "up to 256 bytes come whole, once the kernel is seeded");
    bytes
}

/// A connection of gRPC that has come in. Dropped, all that was offered over it ends.
#[derive(Debug)]
pub(crate) struct Visitor {
    stream: Stream,
    session: Arc<Session>,
    sessions: Arc<Sessions>,
}

impl Visitor {
    fn new(stream: Stream, sessions: &Arc<Sessions>) -> Self {
        Self { stream, session: Arc::new(Session::new()), sessions: Arc::clone(sessions) }
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.sessions.end(&self.session);
    }
}

impl Connected for Visitor {
    type ConnectInfo = Arc<Session>;

    fn connect_info(&self) -> Arc<Session> {
        Arc::clone(&self.session)
    }
}

impl AsyncRead for Visitor {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, into)
    }
}

impl AsyncWrite for Visitor {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }
}
