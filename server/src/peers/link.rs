//! The way to one peer: its connection, whether it is left alone, and how fast it was.

use super::receiving::Fetched;
use super::remote;
use super::service;
use super::stream::Stream;
use super::tls::Tls;
use crate::clock::Clock;
use crate::config::{PeerAddress, PeersConfig};
use crate::metrics::CounterBy;
use crate::said::said;
use hyper_util::rt::TokioIo;
use refrain_index::hash::{KEY_SCHEME, prove};
use refrain_proto::data::Ticket;
use refrain_proto::v1::cache_client::CacheClient;
use refrain_proto::v1::peer_client::PeerClient;
use refrain_proto::v1::{MeetRequest, MeetResponse};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::io::BufReader;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tonic::transport::{Channel, Endpoint};
use tracing::{info, warn};

/// For a connection, TLS and the first call.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// How long a peer that did not answer is left alone: one that is back at once, or was late for once,
/// costs hits for no longer. Twice as long each time that follows, up to [`PAUSE`].
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// How long a peer is left alone that answers, and does not do as it says.
const PAUSE: Duration = Duration::from_secs(3);
/// As above, where an operator must act before anything changes.
const LONG_PAUSE: Duration = Duration::from_secs(30);
/// Whether it still answers, a connection with calls under way finds out so often.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Data connections to one peer at once.
const CONNECTIONS: usize = 8;
/// What is expected of a link that nobody has measured: a tenth of a fast one.
const RATE_USUAL: f64 = 1e9;
/// How much of a new rate is taken over.
const RATE_STEP: f64 = 0.3;
/// A rate is forgotten: who is thought slow is not asked, and could never show otherwise.
const RATE_LIFE: Duration = Duration::from_mins(1);

/// Why a peer is left alone.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum LinkError {
    #[error("find {host}")]
    Resolve { host: String, source: io::Error },
    #[error(
        "{address} is beyond this machine, and there is no TLS: give peers.tls_ca, peers.tls_certificate and peers.tls_key, or say peers.plain_text = true"
    )]
    PlainText { address: IpAddr },
    #[error("connect")]
    Connect { source: io::Error },
    #[error("it does not answer in {CONNECT_LIMIT:?}")]
    Silent,
    #[error("speak gRPC")]
    Channel { source: tonic::transport::Error },
    #[error("call it: {}", status.message())]
    Call { status: tonic::Status },
    #[error("it speaks version {found} of the protocol, this sidecar {}", service::VERSION)]
    Version { found: u32 },
    #[error(
        "it has another secret: no block of one node is found by the other; give all nodes one secret_file"
    )]
    Secret,
    #[error("answers of no sense")]
    Answer,
    #[error("it answered too late")]
    Late,
    #[error("it stopped sending")]
    Stalled,
    #[error("it is draining")]
    Draining,
    #[error("receive from it")]
    Transfer { source: io::Error },
    #[error("it sent what it was not asked for: {what}")]
    Lie { what: String },
}

impl LinkError {
    /// For how long it is not asked again, at least.
    fn pause(&self) -> Duration {
        match self {
            Self::PlainText { .. } | Self::Version { .. } | Self::Secret => LONG_PAUSE,
            Self::Answer | Self::Stalled | Self::Lie { .. } => PAUSE,
            Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::Silent
            | Self::Channel { .. }
            | Self::Call { .. }
            | Self::Late
            | Self::Draining
            | Self::Transfer { .. } => PAUSE_MIN,
        }
    }
}

/// What all links of a node share.
#[derive(Debug)]
pub(crate) struct Common {
    pub(super) tls: Option<Tls>,
    pub(super) config: PeersConfig,
    pub(super) secret: [u8; 32],
    pub(super) clock: Clock,
    /// Where calls are made.
    pub(super) runtime: Handle,
    /// Where bytes arrive.
    pub(super) data: Handle,
    pub(super) fetches: CounterBy<Fetched>,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(super) address: PeerAddress,
    pub(super) common: Arc<Common>,
    standing: watch::Sender<Standing>,
    rest: Mutex<Rest>,
    rate: Mutex<Option<(f64, Instant)>>,
    pub(super) fetched_blocks: AtomicU64,
    pub(super) missed_blocks: AtomicU64,
    /// Whether it was said of what an operator should know.
    pub(super) said_epoch: AtomicBool,
    pub(super) said_messages: AtomicBool,
}

#[derive(Clone, Debug)]
enum Standing {
    Apart,
    Connecting,
    Up(Arc<Up>),
}

#[derive(Debug, Default)]
struct Rest {
    until: Option<Instant>,
    /// How long the last one was.
    pause: Duration,
    reason: String,
}

/// A connection, for as long as it lasts; no other is ever taken for it.
#[derive(Debug)]
pub(crate) struct Up {
    channel: Channel,
    pub(super) ticket: Ticket,
    pub(super) data_address: SocketAddr,
    /// Data connections that nobody uses now.
    pub(super) idle: Mutex<Vec<BufReader<Stream>>>,
    pub(super) permits: Semaphore,
}

/// How a peer stands, for reports.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) address: String,
    pub(crate) state: &'static str,
    pub(crate) reason: String,
    pub(crate) bytes_per_second: u64,
    pub(crate) fetched_blocks: u64,
    pub(crate) missed_blocks: u64,
}

impl Link {
    pub(super) fn new(address: PeerAddress, common: &Arc<Common>) -> Arc<Self> {
        Arc::new(Self {
            address,
            common: Arc::clone(common),
            standing: watch::Sender::new(Standing::Apart),
            rest: Mutex::default(),
            rate: Mutex::default(),
            fetched_blocks: AtomicU64::new(0),
            missed_blocks: AtomicU64::new(0),
            said_epoch: AtomicBool::new(false),
            said_messages: AtomicBool::new(false),
        })
    }

    /// Its connection, which is made if there is none; `None` where it is left alone.
    pub(super) async fn reach(self: &Arc<Self>) -> Option<Arc<Up>> {
        if self.is_resting() {
            return None;
        }
        let mut standing = self.standing.subscribe();
        self.connect_if_apart();
        let settled = standing.wait_for(|it| !matches!(it, Standing::Connecting)).await;
        match &*settled.ok()? {
            Standing::Up(up) => Some(Arc::clone(up)),
            Standing::Apart | Standing::Connecting => None,
        }
    }

    /// Begins to connect, whoever waits for it.
    pub(super) fn connect_if_apart(self: &Arc<Self>) {
        let begins = self.standing.send_if_modified(|standing| {
            let begins = matches!(standing, Standing::Apart);
            if begins {
                *standing = Standing::Connecting;
            }
            begins
        });
        if !begins {
            return;
        }
        let link = Arc::clone(self);
        self.common.runtime.spawn(async move {
            let connected = tokio::time::timeout(CONNECT_LIMIT, link.connect()).await;
            match connected.unwrap_or(Err(LinkError::Silent)) {
                Ok(up) => {
                    info!(peer = %link.address, "peer is up");
                    // Whoever found it slow to connect waits no longer.
                    link.resting().until = None;
                    link.standing.send_replace(Standing::Up(Arc::new(up)));
                }
                Err(error) => {
                    link.rest(&error);
                    link.standing.send_replace(Standing::Apart);
                }
            }
        });
    }

    async fn connect(&self) -> Result<Up, LinkError> {
        let resolve = |source| LinkError::Resolve { host: self.address.host().into(), source };
        let found = tokio::net::lookup_host(self.address.as_str()).await.map_err(resolve)?;
        let (address, stream) = self.open(found).await?;
        let channel = channel(stream).await.map_err(|source| LinkError::Channel { source })?;
        let mut nonce = [0; 32];
        fastrand::fill(&mut nonce);
        let met = PeerClient::new(channel.clone())
            .meet(MeetRequest { version: service::VERSION, nonce: nonce.to_vec() })
            .await
            .map_err(|status| LinkError::Call { status })?;
        let MeetResponse { version, key_scheme, proof, ticket, data_port } = met.into_inner();
        if (version, key_scheme) != (service::VERSION, KEY_SCHEME) {
            return Err(LinkError::Version { found: version });
        }
        if proof != prove(&self.common.secret, &nonce) {
            return Err(LinkError::Secret);
        }
        let port = u16::try_from(data_port).map_err(|_| LinkError::Answer)?;
        Ok(Up {
            channel,
            ticket: ticket.try_into().map_err(|_| LinkError::Answer)?,
            data_address: SocketAddr::new(address.ip(), port),
            idle: Mutex::default(),
            permits: Semaphore::new(CONNECTIONS),
        })
    }

    /// The first of its addresses that answers: a name may have one of IPv6, where the peer listens
    /// on IPv4 alone.
    async fn open(
        &self,
        addresses: impl Iterator<Item = SocketAddr>,
    ) -> Result<(SocketAddr, Stream), LinkError> {
        let Common { tls, config, .. } = &*self.common;
        let host = self.address.host();
        let source = io::ErrorKind::NotFound.into();
        let mut last = LinkError::Resolve { host: host.into(), source };
        for address in addresses {
            if !config.may_reach(address.ip()) {
                last = LinkError::PlainText { address: address.ip() };
                continue;
            }
            match Stream::connect(address, host, tls.as_ref()).await {
                Ok(stream) => return Ok((address, stream)),
                Err(source) => last = LinkError::Connect { source },
            }
        }
        Err(last)
    }

    /// Leaves it alone for a while.
    pub(super) fn rest(&self, why: &LinkError) {
        let now = self.common.clock.now();
        let mut rest = self.resting();
        let reason = said(why);
        let is_news = rest.reason != reason || !rest.goes_on(now);
        rest.begin(now, why.pause());
        let pause = rest.pause;
        rest.reason.clone_from(&reason);
        drop(rest);
        if is_news {
            warn!(peer = %self.address, reason, ?pause, "peer is left alone for a while");
        }
    }

    /// As `rest`, of one whose connection is of no more use.
    pub(super) fn lose(&self, up: &Arc<Up>, why: &LinkError) {
        self.rest(why);
        self.standing.send_if_modified(|standing| {
            let is_it = matches!(standing, Standing::Up(now) if Arc::ptr_eq(now, up));
            if is_it {
                *standing = Standing::Apart;
            }
            is_it
        });
    }

    pub(super) fn is_resting(&self) -> bool {
        self.resting().is_on(self.common.clock.now())
    }

    fn resting(&self) -> MutexGuard<'_, Rest> {
        // Nothing panics while holding it.
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until `bytes` have come, of a peer that needs `expected` to have them in its memory and has
    /// `queued` bytes to send before.
    pub(super) fn expected(&self, bytes: u64, queued: u64, expected: Duration) -> Duration {
        // What was measured is the rate of one connection.
        let of_all = |rate: f64| rate * float(remote::shares(bytes));
        let rate = self.rate().map_or(RATE_USUAL, of_all);
        let sending = float(bytes.saturating_add(queued)) / rate;
        expected.max(Duration::try_from_secs_f64(sending).unwrap_or(Duration::MAX))
    }

    /// Takes in that `bytes` came in `took`.
    pub(super) fn learn(&self, bytes: u64, took: Duration) {
        let found = float(bytes) / took.as_secs_f64().max(1e-6);
        let before = self.rate();
        let rate = before.map_or(found, |before| before + RATE_STEP * (found - before));
        let mut known = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some((rate, self.common.clock.now()));
    }

    /// Bytes a second over one connection, as measured lately.
    fn rate(&self) -> Option<f64> {
        let known = *self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new =
            |at: Instant| self.common.clock.now().saturating_duration_since(at) < RATE_LIFE;
        known.and_then(|(rate, at)| is_new(at).then_some(rate))
    }

    pub(super) fn report(&self) -> Report {
        let state = match &*self.standing.borrow() {
            _ if self.is_resting() => "resting",
            Standing::Up(_) => "up",
            Standing::Connecting => "connecting",
            Standing::Apart => "apart",
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is no more"
        )]
        let bytes_per_second = self.rate().unwrap_or(0.0) as u64;
        Report {
            address: self.address.to_string(),
            state,
            reason: self.resting().reason.clone(),
            bytes_per_second,
            fetched_blocks: self.fetched_blocks.load(Ordering::Relaxed),
            missed_blocks: self.missed_blocks.load(Ordering::Relaxed),
        }
    }
}

impl Rest {
    fn is_on(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Whether a failure now follows the one before it.
    fn goes_on(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until + PAUSE)
    }

    fn begin(&mut self, now: Instant, least: Duration) {
        let is_on = self.is_on(now);
        if is_on && least <= self.pause {
            // What several lookups find out together happened once.
            return;
        }
        self.pause = if self.goes_on(now) && !is_on {
            least.max((2 * self.pause).min(PAUSE))
        } else {
            least
        };
        self.until = Some(now + self.pause);
    }
}

impl Up {
    pub(super) fn peer(&self) -> PeerClient<Channel> {
        PeerClient::new(self.channel.clone())
    }

    pub(super) fn cache(&self) -> CacheClient<Channel> {
        CacheClient::new(self.channel.clone())
    }
}

/// A gRPC connection that, once lost, stays lost: what was offered over it has ended.
async fn channel(stream: Stream) -> Result<Channel, tonic::transport::Error> {
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().ok_or(io::ErrorKind::NotConnected);
        async { stream.map(TokioIo::new).map_err(io::Error::from) }
    });
    // The connector is connected; HTTP wants a name all the same.
    Endpoint::from_static("http://peer")
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .connect_with_connector(connector)
        .await
}

#[expect(clippy::cast_precision_loss, reason = "no more is known of it")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
pub(super) mod tests;
