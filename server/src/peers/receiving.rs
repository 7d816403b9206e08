//! Blocks on their way from a peer, straight into the frames that loads wait for.

use super::arrival::{Arrivals, Lie, Next};
use super::link::{LinkError, Up};
use super::remote::Remote;
use super::stream::Stream;
use crate::load::{BlockRead, Miss};
use crate::said::said;
use refrain_proto::data::{
    Ask, DataError, Hello, PIECE_BYTES, Piece, VERSION, WELCOME_BYTES, Welcome,
};
use refrain_proto::v1;
use refrain_store::arena::Region;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::task::ready;
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, ReadBuf};
use tokio_stream::StreamExt;
use tokio_util::io::StreamReader;
use tracing::warn;

/// For a data connection to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A header and what announces the next piece; larger pieces pass it by.
const BUFFER: usize = 8 << 10;
/// A peer that sent nothing for so long when a deadline passed is left alone.
const STALL: Duration = Duration::from_millis(500);
/// Of less, the time says little about the rate.
const MEASURED_MIN: u64 = 1 << 20;

/// How a transfer from a peer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// As the peer said it would.
    Over,
    /// The connection did, or the call.
    Broken,
    /// With what it was not asked for.
    Lie,
    /// Not by the load's deadline.
    Late,
}

/// Why not all of it came.
#[derive(Debug, Error)]
enum Broken {
    #[error("receive from a peer")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Lie(#[from] Lie),
    #[error("call a peer")]
    Call(#[from] tonic::Status),
}

impl Broken {
    /// What it counts as, and what the peer is left alone for.
    fn end(self) -> (Fetched, Option<LinkError>) {
        let lie = |what| (Fetched::Lie, Some(LinkError::Lie { what }));
        match self {
            Self::Io(source) => (Fetched::Broken, Some(LinkError::Transfer { source })),
            Self::Call(status) => (Fetched::Broken, Some(LinkError::Call { status })),
            Self::Data(error) => lie(error.to_string()),
            Self::Lie(error) => lie(said(&error)),
        }
    }
}

/// Brings blocks `first` and those behind it; each read hears how it ended.
pub(super) async fn receive(
    remote: Arc<Remote>,
    first: u32,
    reads: Vec<Arc<BlockRead>>,
    deadline: Instant,
) {
    let mut share = Share {
        arrivals: Arrivals::new(Arc::clone(&remote.asked), first, reads),
        received: 0,
        last: None,
        begun: None,
        remote: Arc::clone(&remote),
        deadline,
    };
    let outcome = tokio::time::timeout_at(deadline.into(), share.receive()).await;
    let link = &remote.link;
    let now = link.common.clock.now();
    let (end, why) = match outcome {
        Ok(Ok(())) => (Fetched::Over, None),
        Ok(Err(broken)) => broken.end(),
        Err(_) => {
            share.arrivals.miss = Miss::Deadline;
            // One that was not asked yet, as other loads have all connections, is not to blame.
            let silent = share.last.map(|last| now.saturating_duration_since(last));
            let is_stalled = silent.is_some_and(|silent| silent >= STALL);
            (Fetched::Late, is_stalled.then_some(LinkError::Stalled))
        }
    };
    link.common.fetches.of(end).inc();
    if let Some(why) = why {
        link.rest(&why);
    }
    if let Some(begun) = share.begun.filter(|_| share.received >= MEASURED_MIN) {
        link.learn(share.received, now.saturating_duration_since(begun));
    }
    let whole = count(share.arrivals.whole());
    link.fetched_blocks.fetch_add(whole, Ordering::Relaxed);
    link.missed_blocks.fetch_add(count(share.arrivals.len()) - whole, Ordering::Relaxed);
}

/// What comes over one connection.
struct Share {
    remote: Arc<Remote>,
    arrivals: Arrivals,
    deadline: Instant,
    /// Bytes, since when, and when the last ones, or the turn to ask for them.
    received: u64,
    begun: Option<Instant>,
    last: Option<Instant>,
}

impl Share {
    async fn receive(&mut self) -> Result<(), Broken> {
        let up = Arc::clone(&self.remote.up);
        // They are never closed.
        let _permit = up.permits.acquire().await;
        self.last = Some(self.remote.link.common.clock.now());
        match connection(&self.remote, &up).await {
            Ok(mut stream) => {
                stream.write_all(&self.ask().encode()).await?;
                stream.flush().await?;
                self.pieces(&mut stream).await?;
                stream.write_all(&Ask::Taken.encode()).await?;
                stream.flush().await?;
                up.idle.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
                Ok(())
            }
            Err(error) => {
                if !self.remote.link.said_messages.swap(true, Ordering::Relaxed) {
                    let (peer, address) = (&self.remote.link.address, up.data_address);
                    warn!(%peer, %address, %error, "no data connection: bytes come over gRPC, slower");
                }
                self.messages(&up).await
            }
        }
    }

    fn milliseconds(&self) -> u32 {
        let left = self.deadline.saturating_duration_since(self.remote.link.common.clock.now());
        u32::try_from(left.as_millis()).unwrap_or(u32::MAX)
    }

    fn ask(&self) -> Ask {
        Ask::Blocks {
            lease: self.remote.lease,
            first: self.arrivals.first(),
            blocks: u32::try_from(self.arrivals.len()).unwrap_or(u32::MAX),
            deadline_ms: self.milliseconds(),
        }
    }

    async fn messages(&mut self, up: &Up) -> Result<(), Broken> {
        let request = v1::FetchRequest {
            lease: self.remote.lease,
            first_block: self.arrivals.first(),
            blocks: u32::try_from(self.arrivals.len()).unwrap_or(u32::MAX),
            deadline_ms: self.milliseconds(),
        };
        let chunks = up.peer().max_decoding_message_size(8 << 20).fetch(request).await?;
        let chunks = chunks
            .into_inner()
            .map(|chunk| chunk.map(|chunk| chunk.data).map_err(io::Error::other));
        self.pieces(&mut StreamReader::new(chunks)).await
    }

    async fn pieces(&mut self, from: &mut (impl AsyncRead + Unpin)) -> Result<(), Broken> {
        loop {
            let mut piece = [0; PIECE_BYTES];
            from.read_exact(&mut piece).await?;
            let piece = Piece::decode(&piece)?;
            let now = self.remote.link.common.clock.now();
            self.last = Some(now);
            self.begun.get_or_insert(now);
            match self.arrivals.next(piece)? {
                Next::Fill(region) => {
                    self.fill(from, &region).await?;
                    self.arrivals.filled(piece)?;
                }
                Next::Over => return Ok(()),
            }
        }
    }

    /// Reads bytes to where they belong.
    async fn fill(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        region: &Region,
    ) -> io::Result<()> {
        let mut at = 0;
        while count(at) < region.length() {
            let read = std::future::poll_fn(|context| {
                region.fill_with(|bytes| {
                    let mut into = ReadBuf::new(&mut bytes[at..]);
                    ready!(Pin::new(&mut *from).poll_read(context, &mut into))?;
                    std::task::Poll::Ready(io::Result::Ok(into.filled().len()))
                })
            });
            let read = read.await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            at += read;
            self.received += count(read);
            self.last = Some(self.remote.link.common.clock.now());
        }
        Ok(())
    }
}

/// A data connection that nobody else uses.
async fn connection(remote: &Remote, up: &Up) -> io::Result<BufReader<Stream>> {
    let idle = up.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
    if let Some(idle) = idle {
        return Ok(idle);
    }
    let opened = tokio::time::timeout(CONNECT_LIMIT, async {
        let (host, tls) = (remote.link.address.host(), remote.link.common.tls.as_ref());
        let mut stream = Stream::connect(up.data_address, host, tls).await?;
        stream.write_all(&Hello { version: VERSION, ticket: up.ticket }.encode()).await?;
        stream.flush().await?;
        let mut welcome = [0; WELCOME_BYTES];
        stream.read_exact(&mut welcome).await?;
        match Welcome::decode(&welcome).map_err(io::Error::other)? {
            Welcome::Accepted => Ok(BufReader::with_capacity(BUFFER, stream)),
            Welcome::Version | Welcome::Ticket => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    });
    opened.await?
}

fn count(size: usize) -> u64 {
    u64::try_from(size).expect("usize fits")
}
