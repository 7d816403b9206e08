//! A sidecar that answers what a test tells it to, and can die as a process does.

use refrain_gpu_transfer::arena::{Access, Mapping};
use refrain_proto::session::{self, Status as Answer, Welcome};
use refrain_proto::v1::{self, cache_server};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

pub(crate) const STRIPES: [(u64, u64); 2] = [(0, 4000), (4096, 5000)];
pub(crate) const PAYLOAD_BYTES: u64 = 4096 + 5000;
/// What a slot of the session arena takes.
pub(crate) const SLOT_BYTES: u64 = 3 * 4096;
const LOAD_ARENA_BYTES: u64 = 1 << 20;

/// What a client has made a fake do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Registered,
    LookedUp,
    Released {
        lease: u64,
    },
    CommitArrived,
    /// Blocks, and what each of their payloads was made of.
    Committed {
        blocks: Vec<(u32, Option<u8>)>,
    },
    Aborted,
    SessionEnded,
}

pub(crate) struct Fake {
    path: PathBuf,
    /// Where clients of other machines would come in.
    pub(crate) address: SocketAddr,
    /// `None` once dead.
    runtime: Option<tokio::runtime::Runtime>,
    pub(crate) seen: mpsc::UnboundedReceiver<Seen>,
    pub(crate) gates: Arc<Gates>,
}

/// Calls that wait until a test lets them go on, and what else it decides.
pub(crate) struct Gates {
    /// Whether sessions last, or end as soon as they are there.
    pub(crate) sessions: watch::Sender<bool>,
    pub(crate) lookups: watch::Sender<bool>,
    pub(crate) commits: watch::Sender<bool>,
    pub(crate) loads: watch::Sender<bool>,
    /// How many blocks commits save before they have no more space.
    pub(crate) space: AtomicU64,
    /// What a read answers.
    pub(crate) read: Mutex<Vec<v1::read_chunk::Chunk>>,
}

struct Cache {
    seen: mpsc::UnboundedSender<Seen>,
    gates: Arc<Gates>,
    load_arena: Arc<Mapping>,
    session_arena: Mutex<HashMap<Vec<u8>, Arc<Mapping>>>,
    next: AtomicU64,
}

impl Fake {
    pub(crate) fn start(path: &Path) -> Self {
        let (send, seen) = mpsc::unbounded_channel();
        let [sessions, lookups, commits, loads] = std::array::from_fn(|_| watch::Sender::new(true));
        let (space, read) = (AtomicU64::new(u64::MAX), Mutex::default());
        let gates = Arc::new(Gates { sessions, lookups, commits, loads, space, read });
        let cache = Arc::new(Cache {
            seen: send,
            gates: Arc::clone(&gates),
            load_arena: Mapping::create("load", LOAD_ARENA_BYTES).unwrap(),
            session_arena: Mutex::default(),
            next: AtomicU64::new(1),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
        let inside = runtime.enter();
        let grpc = UnixListener::bind(path).unwrap();
        let sessions = UnixListener::bind(session::socket_path(path)).unwrap();
        let remote = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        remote.set_nonblocking(true).unwrap();
        let remote = TcpListener::from_std(remote).unwrap();
        let address = remote.local_addr().unwrap();
        drop(inside);
        runtime.spawn(accept_sessions(sessions, Arc::clone(&cache)));
        let router = || {
            let service = cache_server::CacheServer::from_arc(Arc::clone(&cache));
            tonic::transport::Server::builder().add_service(service)
        };
        runtime.spawn(router().serve_with_incoming(UnixListenerStream::new(grpc)));
        runtime.spawn(router().serve_with_incoming(TcpListenerStream::new(remote)));
        Self { path: path.to_owned(), address, runtime: Some(runtime), seen, gates }
    }

    /// Dies as a process does: all of its sockets are closed when this returns.
    pub(crate) async fn kill(mut self) {
        let runtime = self.runtime.take().unwrap();
        let stop = move || runtime.shutdown_timeout(Duration::from_secs(10));
        tokio::task::spawn_blocking(stop).await.unwrap();
        std::fs::remove_file(session::socket_path(&self.path)).unwrap();
        std::fs::remove_file(&self.path).unwrap();
    }

    pub(crate) async fn expect(&mut self, expected: Seen) {
        let seen = tokio::time::timeout(Duration::from_secs(10), self.seen.recv()).await;
        assert_eq!(seen.expect("it happens in time"), Some(expected));
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept_sessions(listener: UnixListener, cache: Arc<Cache>) {
    loop {
        let stream = listener.accept().await.unwrap().0.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        let (hello, fd) = session::receive_hello(&stream).unwrap();
        let arena = Mapping::open(fd, hello.session_arena_bytes, Access::ReadOnly).unwrap();
        let number = cache.next.fetch_add(1, Ordering::Relaxed);
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_le_bytes());
        cache.session_arena.lock().unwrap().insert(id.to_vec(), arena);
        let welcome = Welcome {
            version: session::VERSION,
            status: Answer::Accepted,
            session: id,
            load_arena_bytes: LOAD_ARENA_BYTES,
        };
        let load_arena = cache.load_arena.share_read_only().unwrap();
        session::send_welcome(&stream, &welcome, Some(load_arena.as_fd())).unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut stream = UnixStream::from_std(stream).unwrap();
        let seen = cache.seen.clone();
        let lasts = *cache.gates.sessions.borrow();
        tokio::spawn(async move {
            if lasts {
                assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
            }
            drop(stream);
            let _ = seen.send(Seen::SessionEnded);
        });
    }
}

impl Cache {
    fn saw(&self, seen: Seen) {
        let _ = self.seen.send(seen);
    }

    /// The byte that all stripes of a payload are made of, if they are, and the padding of zeros.
    fn made_of(&self, placed: &v1::Placed) -> Option<u8> {
        let arenas = self.session_arena.lock().unwrap();
        let arena = arenas.values().next().unwrap();
        let region = arena.region(placed.payload_offset, placed.payload_bytes).unwrap();
        let byte = region.bytes()[0];
        let padded = region.bytes()[4000..4096].iter().all(|padding| *padding == 0);
        let whole = STRIPES
            .iter()
            .all(|&(at, length)| region.slice(at, length).bytes().iter().all(|b| *b == byte));
        (padded && whole).then_some(byte)
    }
}

async fn passed(gate: &watch::Sender<bool>) {
    gate.subscribe().wait_for(|open| *open).await.unwrap();
}

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answered<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl cache_server::Cache for Cache {
    type LoadStream = Events<v1::LoadEvent>;
    type ReadStream = Events<v1::ReadChunk>;

    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Answered<v1::RegisterResponse> {
        if request.get_ref().namespace.as_ref().is_none_or(|it| it.tenant.is_empty()) {
            return Err(Status::invalid_argument("namespace: tenant is missing"));
        }
        self.saw(Seen::Registered);
        Ok(Response::new(v1::RegisterResponse {
            registration: self.next.fetch_add(1, Ordering::Relaxed),
            stripes: STRIPES.map(|(offset, length)| v1::Stripe { offset, length }).to_vec(),
            layers_per_stripe: 1,
            payload_bytes: PAYLOAD_BYTES,
            namespace_digest: vec![0; 32],
        }))
    }

    async fn lookup(&self, request: Request<v1::LookupRequest>) -> Answered<v1::LookupResponse> {
        self.saw(Seen::LookedUp);
        passed(&self.gates.lookups).await;
        let Some(v1::lookup_request::Prompt::Tokens(tokens)) = request.into_inner().prompt else {
            return Err(Status::invalid_argument("prompt: no tokens"));
        };
        // Blocks of one token.
        let blocks = u32::try_from(tokens.len() / 4).unwrap();
        Ok(Response::new(v1::LookupResponse {
            lease: 77,
            prompt_blocks: blocks,
            matched_blocks: blocks / 2,
            tiers: Vec::new(),
            expected_load_us: 5,
            expected_peer_us: 0,
            lease_ms: 10_000,
        }))
    }

    async fn load(&self, request: Request<v1::LoadRequest>) -> Answered<Self::LoadStream> {
        use v1::load_event::{Done, Event, Placement, Ready};
        let blocks = request.get_ref().blocks;
        let payload_offsets: Vec<_> =
            (0..u64::from(blocks)).map(|block| (2 * block + 1) * SLOT_BYTES).collect();
        for (block, &offset) in (1..).zip(&payload_offsets) {
            self.load_arena.region(offset, PAYLOAD_BYTES).unwrap().fill_with(|b| b.fill(block));
        }
        let (send, events) = mpsc::channel(8);
        let gates = Arc::clone(&self.gates);
        tokio::spawn(async move {
            let ready = |stripe| Event::Ready(Ready { stripe, first_block: 0, blocks });
            let done = Event::Done(Done {
                loaded_blocks: blocks,
                reason: v1::MissReason::None.into(),
                host_blocks: blocks,
                ssd_blocks: 0,
                peer_blocks: 0,
            });
            let _ = send.send(Event::Placement(Placement { payload_offsets })).await;
            let _ = send.send(ready(0)).await;
            passed(&gates.loads).await;
            let _ = send.send(ready(1)).await;
            let _ = send.send(done).await;
        });
        let events = ReceiverStream::new(events);
        Ok(Response::new(Box::pin(events.map(|event| Ok(v1::LoadEvent { event: Some(event) })))))
    }

    async fn renew(&self, _: Request<v1::RenewRequest>) -> Answered<v1::RenewResponse> {
        Err(Status::not_found("lease"))
    }

    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Answered<v1::ReleaseResponse> {
        self.saw(Seen::Released { lease: request.get_ref().lease });
        Ok(Response::new(v1::ReleaseResponse { held: true }))
    }

    async fn reserve(&self, request: Request<v1::ReserveRequest>) -> Answered<v1::ReserveResponse> {
        let v1::ReserveRequest { first_block, blocks, .. } = request.into_inner();
        Ok(Response::new(v1::ReserveResponse {
            reservation: self.next.fetch_add(1, Ordering::Relaxed),
            blocks: (first_block..first_block + blocks).collect(),
            refusal: v1::Refusal::None.into(),
        }))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Answered<v1::CommitResponse> {
        let request = request.into_inner();
        self.saw(Seen::CommitArrived);
        passed(&self.gates.commits).await;
        let space = &self.gates.space;
        let take = |blocks: u64| Some(blocks - blocks.min(request.blocks.len() as u64));
        let before = space.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).unwrap();
        let saved = before.min(request.blocks.len() as u64);
        let blocks = request.blocks.iter().map(|it| (it.block, self.made_of(it))).collect();
        self.saw(Seen::Committed { blocks });
        let full = saved < request.blocks.len() as u64;
        Ok(Response::new(v1::CommitResponse {
            saved_blocks: u32::try_from(saved).unwrap(),
            refusal: if full { v1::Refusal::NoSpace } else { v1::Refusal::None }.into(),
            durable: request.durable,
        }))
    }

    async fn abort(&self, _: Request<v1::AbortRequest>) -> Answered<v1::AbortResponse> {
        self.saw(Seen::Aborted);
        Ok(Response::new(v1::AbortResponse {}))
    }

    async fn read(&self, _: Request<v1::ReadRequest>) -> Answered<Self::ReadStream> {
        let chunks = std::mem::take(&mut *self.gates.read.lock().unwrap()).into_iter();
        let chunks = chunks.map(|chunk| Ok(v1::ReadChunk { chunk: Some(chunk) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }

    async fn write(&self, _: Request<Streaming<v1::WriteChunk>>) -> Answered<v1::CommitResponse> {
        Err(Status::unimplemented("a test of this is made with a sidecar"))
    }
}
