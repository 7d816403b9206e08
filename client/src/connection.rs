//! One session with one sidecar, for as long as that sidecar lives.

use crate::address::Address;
use crate::client::ClientConfig;
use crate::error::{Absence, Place};
use crate::layout::PAGE_SIZE;
use crate::line::Line;
use crate::slots::Slots;
use hyper_util::rt::TokioIo;
use refrain_gpu_transfer::arena::{Access, Mapping};
use refrain_proto::session::{self, Hello, Welcome};
use refrain_proto::v1::cache_client::CacheClient;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tonic::transport::{Channel, Endpoint};

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// A prompt of a million tokens is 4 MB; a reply about its blocks is less.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A session: its gRPC connection, its two arenas, and the socket whose end is its end.
///
/// All of them are of one sidecar process. None is ever connected anew: a place in an arena named to
/// another process would mean other bytes there, as a lease would.
#[derive(Debug)]
pub(crate) struct Connection {
    generation: u64,
    address: Address,
    cache: CacheClient<Channel>,
    /// Nothing more is sent over it.
    session: tokio::net::UnixStream,
    session_id: [u8; 16],
    load_arena: Arc<Mapping>,
    slots: Arc<Slots>,
    lost: AtomicBool,
    lost_now: Notify,
    runtime: Handle,
}

impl Connection {
    pub(crate) async fn open(config: &ClientConfig, generation: u64) -> Result<Self, Absence> {
        let path = config.address.path();
        let bytes = config.session_arena_bytes.next_multiple_of(PAGE_SIZE);
        let stream = connect(&session::socket_path(path)).await?;
        let shaking = tokio::task::spawn_blocking(move || shake_hands(stream, bytes));
        let hands = match shaking.await {
            Ok(outcome) => outcome?,
            Err(stopped) => return Err(Absence::Socket { source: io::Error::other(stopped) }),
        };
        let socket = |source| Absence::Socket { source };
        hands.session.set_nonblocking(true).map_err(socket)?;
        let session = tokio::net::UnixStream::from_std(hands.session).map_err(socket)?;
        let channel = channel(path).await?;
        let cache = CacheClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self {
            generation,
            address: config.address.clone(),
            cache,
            session,
            session_id: hands.session_id,
            load_arena: hands.load_arena,
            slots: Slots::new(hands.session_arena),
            lost: AtomicBool::new(false),
            lost_now: Notify::new(),
            runtime: Handle::current(),
        })
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn session_id(&self) -> [u8; 16] {
        self.session_id
    }

    pub(crate) fn load_arena(&self) -> &Arc<Mapping> {
        &self.load_arena
    }

    pub(crate) fn slots(&self) -> &Arc<Slots> {
        &self.slots
    }

    /// Returns when the session has ended, or was given up by a call.
    pub(crate) async fn lost(&self) {
        while !self.is_lost() {
            tokio::select! {
                () = self.lost_now.notified() => {}
                _ = self.session.readable() => {
                    // Nothing is ever sent over it: what is readable has ended, or only seemed so.
                    let read = self.session.try_read(&mut [0_u8; 1]);
                    if !read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                        self.lose();
                    }
                }
            }
        }
    }

    /// Whether the sidecar has gone, as far as this side can know without asking.
    pub(crate) fn is_lost(&self) -> bool {
        if self.lost.load(Ordering::Relaxed) {
            return true;
        }
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let lost = match rustix::net::recv(&self.session, &mut [0_u8; 1], flags) {
            Ok((_, bytes)) => bytes == 0,
            Err(errno) => errno != Errno::AGAIN && errno != Errno::INTR,
        };
        if lost {
            self.lose();
        }
        lost
    }
}

impl Line for Connection {
    fn cache(&self) -> CacheClient<Channel> {
        self.cache.clone()
    }

    fn runtime(&self) -> &Handle {
        &self.runtime
    }

    fn place(&self) -> Place {
        Place::Here(self.address.clone())
    }

    fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
        // Kept for whoever waits next; there is one at most.
        self.lost_now.notify_one();
    }
}

/// What both sides know after the handshake.
struct Hands {
    session: UnixStream,
    session_id: [u8; 16],
    session_arena: Arc<Mapping>,
    load_arena: Arc<Mapping>,
}

fn shake_hands(session: UnixStream, session_arena_bytes: u64) -> Result<Hands, Absence> {
    let socket = |source| Absence::Socket { source };
    let arena = |source| Absence::Arena { source };
    let handshake = |source| Absence::Handshake { source };
    session.set_nonblocking(false).map_err(socket)?;
    session.set_read_timeout(Some(HANDSHAKE_LIMIT)).map_err(socket)?;
    session.set_write_timeout(Some(HANDSHAKE_LIMIT)).map_err(socket)?;

    let session_arena = Mapping::create("refrain-session", session_arena_bytes).map_err(arena)?;
    let whole = session_arena.region(0, session_arena_bytes).map_err(arena)?;
    // Before the sidecar and a GPU pin it, after which no huge pages can be made of it. Memory that
    // is not to be had now may be when it is written.
    let _ = whole.populate();
    let shared = session_arena.share_read_only().map_err(arena)?;
    let hello = Hello { version: session::VERSION, session_arena_bytes };
    session::send_hello(&session, &hello, shared.as_fd()).map_err(handshake)?;
    let (welcome, load_arena) = session::receive_welcome(&session).map_err(handshake)?;
    let Welcome { session: session_id, load_arena_bytes, .. } = welcome;
    let load_arena =
        Mapping::open(load_arena, load_arena_bytes, Access::ReadOnly).map_err(arena)?;
    Ok(Hands { session, session_id, session_arena, load_arena })
}

/// Connects without blocking: a full backlog is an error at once.
async fn connect(path: &Path) -> Result<UnixStream, Absence> {
    let socket = |source| Absence::Socket { source };
    tokio::net::UnixStream::connect(path)
        .await
        .and_then(tokio::net::UnixStream::into_std)
        .map_err(socket)
}

/// A gRPC connection that, once lost, stays lost.
pub(crate) async fn channel(path: &Path) -> Result<Channel, Absence> {
    let stream = tokio::net::UnixStream::connect(path).await;
    let mut stream = Some(stream.map_err(|source| Absence::Socket { source })?);
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().ok_or(io::ErrorKind::NotConnected);
        async { stream.map(TokioIo::new).map_err(io::Error::from) }
    });
    endpoint().connect_with_connector(connector).await.map_err(|source| Absence::Channel { source })
}

/// A gRPC connection that is made when it is used, and again after it was lost.
pub(crate) fn lasting_channel(address: &Address) -> Channel {
    let path = address.path().to_owned();
    endpoint().connect_with_connector_lazy(tower::service_fn(move |_| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    }))
}

fn endpoint() -> Endpoint {
    // The connector knows where to connect; HTTP wants a name all the same.
    Endpoint::from_static("http://localhost")
}
