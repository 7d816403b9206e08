//! Blocks on their way to a peer, straight from the load arena.
//!
//! They are loaded as for a worker, under the lease that the peer was offered, and sent as they are
//! read and checked. What leaves by `sendfile` leaves the arena's own pages to the kernel: their frames
//! are held until the peer says that all of it has arrived.

use super::door::{Session, Sessions};
use super::stream::Stream;
use crate::load::{Ended, Load, LoadRefusal, Miss};
use crate::node::Node;
use refrain_proto::data::{ASK_BYTES, Ask, EndReason, HELLO_BYTES, Hello, Piece, VERSION, Welcome};
use refrain_proto::v1;
use refrain_store::arena::Region;
use refrain_store::geometry::HEADER_SIZE;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::sync::mpsc;
use tracing::debug;

/// For a hello, and for a peer to say that it has taken what it was sent.
const PATIENCE: Duration = Duration::from_secs(5);
/// A peer that takes nothing for so long after its own deadline has gone.
const GRACE: Duration = Duration::from_secs(1);
/// The longest that a transfer may take, whatever it was asked with.
const DEADLINE_MAX: Duration = Duration::from_mins(10);
/// Smaller pieces are gathered, up to so many bytes.
const GATHERED: usize = 64 << 10;
/// Bytes of one message over gRPC.
const CHUNK: usize = 1 << 20;

/// One data connection, from its hello to its end.
pub(super) async fn serve(sessions: Arc<Sessions>, mut stream: Stream) {
    let greeted = tokio::time::timeout(PATIENCE, greet(&sessions, &mut stream)).await;
    let Ok(Ok(Some(session))) = greeted else { return };
    let node = Arc::clone(&sessions.node);
    let mut outlet = Outlet { way: Way::Stream(stream), gathered: Vec::new() };
    tokio::select! {
        () = session.closed() => {}
        served = answer_all(&node, &mut outlet) => {
            if let Err(error) = served {
                debug!(%error, "data connection ended");
            }
        }
    }
}

async fn greet(sessions: &Sessions, stream: &mut Stream) -> io::Result<Option<Arc<Session>>> {
    let mut hello = [0; HELLO_BYTES];
    stream.read_exact(&mut hello).await?;
    let hello = Hello::decode(&hello).map_err(io::Error::other)?;
    let session = sessions.find(&hello.ticket);
    let welcome = match &session {
        _ if hello.version != VERSION => Welcome::Version,
        None => Welcome::Ticket,
        Some(_) => Welcome::Accepted,
    };
    stream.write_all(&welcome.encode()).await?;
    stream.flush().await?;
    Ok(session.filter(|_| welcome == Welcome::Accepted))
}

/// Until whoever asks has gone.
async fn answer_all(node: &Arc<Node>, outlet: &mut Outlet) -> io::Result<()> {
    loop {
        let mut ask = [0; ASK_BYTES];
        outlet.stream()?.read_exact(&mut ask).await?;
        let ask = Ask::decode(&ask).map_err(io::Error::other)?;
        let Ask::Blocks { lease, first, blocks, deadline_ms } = ask else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let (deadline, limit) = deadline(node, deadline_ms);
        let sent = send(node, outlet, (lease, first, blocks), deadline);
        let sent = tokio::time::timeout_at(limit.into(), sent).await??;
        let mut taken = [0; ASK_BYTES];
        let waiting = outlet.stream()?.read_exact(&mut taken);
        tokio::time::timeout(PATIENCE, waiting).await??;
        if Ask::decode(&taken) != Ok(Ask::Taken) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        drop(sent);
    }
}

/// The bytes of a data connection as messages.
pub(super) async fn send_messages(
    node: Arc<Node>,
    request: v1::FetchRequest,
    messages: mpsc::Sender<Result<v1::FetchChunk, tonic::Status>>,
) {
    let mut outlet = Outlet { way: Way::Messages(messages), gathered: Vec::new() };
    let (deadline, limit) = deadline(&node, request.deadline_ms);
    let blocks = (request.lease, request.first_block, request.blocks);
    let sent = send(&node, &mut outlet, blocks, deadline);
    // Whoever asked sees where it broke off.
    let _ = tokio::time::timeout_at(limit.into(), sent).await;
}

/// By when blocks must be loaded, and sent.
fn deadline(node: &Node, milliseconds: u32) -> (Instant, Instant) {
    let deadline = node.clock.now() + Duration::from_millis(milliseconds.into()).min(DEADLINE_MAX);
    (deadline, deadline + GRACE)
}

/// Sends blocks of a lease and how that ended. What is answered keeps the sent bytes as they are.
async fn send(
    node: &Arc<Node>,
    outlet: &mut Outlet,
    (lease, first, blocks): (u64, u32, u32),
    deadline: Instant,
) -> io::Result<Option<Arc<Load>>> {
    let load = match node.load(lease, first, blocks, deadline) {
        Ok(load) => load,
        Err(LoadRefusal::NoLease | LoadRefusal::OutOfRange { .. }) => {
            outlet.put(&Piece::End { loaded: 0, reason: EndReason::Lease }.encode()).await?;
            return outlet.flush().await.map(|()| None);
        }
    };
    let stored = load.layout.payload_length + HEADER_SIZE;
    let mut queued = Queued::new(node, stored * u64::from(blocks));
    let mut begun = vec![false; load.frames.len()];
    while let Some(arrived) = load.next().await {
        for ready in arrived {
            for block in ready.first_block..ready.first_block + ready.blocks {
                let record = load.frames[index(block)].region();
                if !std::mem::replace(&mut begun[index(block)], true) {
                    outlet.put(&Piece::Header { block }.encode()).await?;
                    outlet.put(record.slice(0, HEADER_SIZE).bytes()).await?;
                    queued.sent(HEADER_SIZE);
                }
                let range = load.layout.stripes[index(ready.stripe)];
                let piece = Piece::Stripe { block, stripe: ready.stripe, length: range.length };
                outlet.put(&piece.encode()).await?;
                outlet.region(&record.slice(HEADER_SIZE + range.offset, range.length)).await?;
                queued.sent(range.length);
            }
        }
    }
    let ended = load.ended();
    let Ended { loaded, reason, .. } = ended;
    node.metrics.sent_blocks.inc_by(loaded.into());
    outlet.put(&Piece::End { loaded, reason: reason_of(reason) }.encode()).await?;
    outlet.flush().await?;
    Ok(Some(load))
}

fn reason_of(miss: Option<Miss>) -> EndReason {
    match miss {
        None => EndReason::Complete,
        Some(Miss::Deadline) => EndReason::Deadline,
        Some(Miss::Damaged) => EndReason::Damaged,
        Some(Miss::NoMemory) => EndReason::NoMemory,
        Some(Miss::Drive | Miss::Peer) => EndReason::Drive,
    }
}

/// Bytes that a peer was promised, as others are told of them.
struct Queued<'n> {
    node: &'n Node,
    left: u64,
}

impl<'n> Queued<'n> {
    fn new(node: &'n Node, bytes: u64) -> Self {
        node.metrics.send_queue_bytes.inc_by(bytes);
        Self { node, left: bytes }
    }

    fn sent(&mut self, bytes: u64) {
        self.node.metrics.sent_bytes.inc_by(bytes);
        let counted = bytes.min(self.left);
        self.node.metrics.send_queue_bytes.dec_by(counted);
        self.left -= counted;
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.node.metrics.send_queue_bytes.dec_by(self.left);
    }
}

/// Where bytes leave.
struct Outlet {
    way: Way,
    /// Not sent yet.
    gathered: Vec<u8>,
}

enum Way {
    Stream(Stream),
    Messages(mpsc::Sender<Result<v1::FetchChunk, tonic::Status>>),
}

impl Outlet {
    fn stream(&mut self) -> io::Result<&mut Stream> {
        match &mut self.way {
            Way::Stream(stream) => Ok(stream),
            Way::Messages(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    async fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= GATHERED { self.send_gathered().await } else { Ok(()) }
    }

    /// Bytes of the arena, which must stay as they are until they have arrived.
    async fn region(&mut self, region: &Region) -> io::Result<()> {
        if region.bytes().len() < GATHERED / 2 {
            return self.put(region.bytes()).await;
        }
        self.send_gathered().await?;
        match &mut self.way {
            Way::Stream(Stream::Plain(stream)) => send_pages(stream, region).await,
            Way::Stream(Stream::Tls(stream)) => stream.write_all(region.bytes()).await,
            Way::Messages(messages) => send_chunks(messages, region.bytes()).await,
        }
    }

    async fn send_gathered(&mut self) -> io::Result<()> {
        let gathered = std::mem::take(&mut self.gathered);
        match &mut self.way {
            Way::Stream(stream) => stream.write_all(&gathered).await?,
            Way::Messages(messages) => send_chunks(messages, &gathered).await?,
        }
        // Its memory serves the next ones.
        self.gathered = gathered;
        self.gathered.clear();
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.send_gathered().await?;
        match &mut self.way {
            Way::Stream(stream) => stream.flush().await,
            Way::Messages(_) => Ok(()),
        }
    }
}

/// Has the kernel send the arena's own pages.
async fn send_pages(stream: &mut tokio::net::TcpStream, region: &Region) -> io::Result<()> {
    let mut at = region.offset();
    let end = at + region.length();
    while at < end {
        let left = usize::try_from(end - at).expect("memory is addressed");
        stream.writable().await?;
        let sent = stream.try_io(Interest::WRITABLE, || {
            let sent = rustix::fs::sendfile(&*stream, region.mapping().fd(), Some(&mut at), left);
            Ok(sent?)
        });
        match sent {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn send_chunks(
    messages: &mpsc::Sender<Result<v1::FetchChunk, tonic::Status>>,
    bytes: &[u8],
) -> io::Result<()> {
    for chunk in bytes.chunks(CHUNK) {
        let data = refrain_proto::Bytes::copy_from_slice(chunk);
        let sent = messages.send(Ok(v1::FetchChunk { data })).await;
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
    }
    Ok(())
}

fn index(number: u32) -> usize {
    usize::try_from(number).expect("32 bits fit")
}
