//! Sessions: a worker's connection, whose end is the worker's death.
//!
//! The handshake happens on a blocking thread, with a timeout that a silent peer cannot stretch.
//! After it nothing is ever received; the kernel closes the socket with its process, and all that
//! the worker held is given back.

use crate::namespaces::SessionId;
use crate::node::Node;
use crate::state::State;
use refrain_proto::session::{self, HandshakeError, Hello, Status, Welcome};
use refrain_store::arena::{Access, Mapping};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tracing::{debug, info, warn};

/// For each of the two messages of a handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// After accepting went wrong, as it does without file descriptors: not a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Takes workers in until the listener is dropped with this future.
pub(crate) async fn accept(node: Arc<Node>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(run(Arc::clone(&node), stream));
            }
            Err(error) => {
                warn!(%error, "accept a session");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One session from its handshake to its end.
async fn run(node: Arc<Node>, stream: tokio::net::UnixStream) {
    let Ok(stream) = stream.into_std() else { return };
    let host = Arc::clone(&node);
    let shaken = tokio::task::spawn_blocking(move || host.shake_hands(stream)).await;
    let (stream, id) = match shaken {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => {
            debug!(error = &error as &dyn std::error::Error, "no session");
            return;
        }
        Err(_) => return,
    };
    let ended = async {
        stream.set_nonblocking(true)?;
        // Nothing comes; what comes all the same is thrown away.
        let mut stream = tokio::net::UnixStream::from_std(stream)?;
        let mut byte = [0; 64];
        while stream.read(&mut byte).await? > 0 {}
        std::io::Result::Ok(())
    };
    // However the connection ended, it has.
    let _ = ended.await;
    node.end_session(id);
}

impl Node {
    fn shake_hands(&self, stream: UnixStream) -> Result<(UnixStream, SessionId), HandshakeError> {
        let io = |source| HandshakeError::Io { source };
        stream.set_nonblocking(false).map_err(io)?;
        stream.set_read_timeout(Some(HANDSHAKE_LIMIT)).map_err(io)?;
        stream.set_write_timeout(Some(HANDSHAKE_LIMIT)).map_err(io)?;
        let (hello, arena) = session::receive_hello(&stream)?;
        let id = match self.begin_session(&hello, arena) {
            Ok(id) => id,
            Err(status) => {
                session::send_welcome(&stream, &Welcome::refusal(status), None)?;
                return Err(HandshakeError::Refused { status });
            }
        };
        let welcome = Welcome {
            version: session::VERSION,
            status: Status::Accepted,
            session: id,
            load_arena_bytes: self.arena.mapping().bytes_len(),
        };
        let share = self.arena.mapping().share_read_only();
        let sent = share
            .map_err(|error| io(std::io::Error::other(error)))
            .and_then(|arena| session::send_welcome(&stream, &welcome, Some(arena.as_fd())));
        match sent {
            Ok(()) => Ok((stream, id)),
            Err(error) => {
                self.end_session(id);
                Err(error)
            }
        }
    }

    fn begin_session(&self, hello: &Hello, arena: OwnedFd) -> Result<SessionId, Status> {
        if hello.version != session::VERSION {
            return Err(Status::Version);
        }
        let bytes = hello.session_arena_bytes;
        if bytes > self.config.session_arena_max {
            warn!(bytes, limit = self.config.session_arena_max, "session arena refused");
            return Err(Status::BadArena);
        }
        let arena = Mapping::open(arena, bytes, Access::ReadOnly).map_err(|error| {
            warn!(error = &error as &dyn std::error::Error, "session arena refused");
            Status::BadArena
        })?;
        self.add_session(arena)
    }

    /// Takes a worker in, who sends its saves in `arena`.
    pub fn add_session(&self, arena: Arc<Mapping>) -> Result<SessionId, Status> {
        let bytes = arena.bytes_len();
        let mut state = self.state();
        if state.draining {
            return Err(Status::Draining);
        }
        if state.sessions.len() >= usize::try_from(self.config.sessions_max).unwrap_or(usize::MAX) {
            return Err(Status::TooManySessions);
        }
        let mut id = SessionId::default();
        fastrand::fill(&mut id);
        state.sessions.insert(id, arena);
        let sessions = state.sessions.len();
        drop(state);
        info!(sessions, arena_bytes = bytes, "session begun");
        Ok(id)
    }

    /// A worker has gone: nothing is kept for it.
    pub fn end_session(&self, id: SessionId) {
        let mut state = self.state();
        // What is being written from it keeps it mapped until it is written.
        state.sessions.remove(&id);
        let sessions = state.sessions.len();
        let leases = self.end_leases_of(id, state);
        info!(sessions, leases, "session ended");
    }

    /// Takes a peer in, whose connection is called `id`.
    pub(crate) fn begin_link(&self, id: SessionId) {
        self.state().links.insert(id);
    }

    /// A peer's connection has ended: nothing is kept for it.
    pub(crate) fn end_link(&self, id: SessionId) {
        let mut state = self.state();
        if state.links.remove(&id) {
            let leases = self.end_leases_of(id, state);
            debug!(leases, "peer has left");
        }
    }

    /// Ends all that was registered with `id`; how many leases that were.
    fn end_leases_of(&self, id: SessionId, mut state: MutexGuard<'_, State>) -> usize {
        let leases = state.leases.end_session(id);
        let mut freed = false;
        for lease in &leases {
            freed |= state.let_go(lease);
        }
        state.registrations.end_session(id);
        drop(state);
        self.leases_ended(freed);
        leases.len()
    }
}
