//! A sidecar of another machine. There is no shared memory: blocks come and go in messages, inside
//! mutual TLS, from and to memory of the caller.
//!
//! The way of a prompt is that of a [`crate::Client`]: [`Registration::lookup`], [`Lookup::read`],
//! [`Lookup::write`], [`Lookup::release`]. A sidecar that goes away makes misses, and the next call
//! looks for it again.

use crate::call::Deadline;
use crate::error::{Absence, ClientError, Place};
use refrain_proto::v1;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

mod address;
mod identity;
mod lookup;
mod registration;
mod wire;

pub use address::{RemoteAddress, RemoteAddressError};
pub use identity::{Identity, IdentityError};
pub use lookup::Lookup;
pub use registration::Registration;

use identity::Keys;
use wire::Wire;

/// After an attempt that failed, nobody makes another for so long: calls fail at once.
const PAUSE: Duration = Duration::from_millis(500);

/// How a client reaches a sidecar of another machine.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// What that sidecar's config calls `peers.listen`.
    pub address: RemoteAddress,
    pub transport: Transport,
    /// Of every call, connecting included.
    pub deadline: Duration,
}

/// How both sides are sure of each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Mutual TLS.
    Tls(Identity),
    /// In plain text, to addresses of this machine alone.
    Loopback,
    /// In plain text, wherever it goes: who is on the way reads and changes every tenant's KV.
    PlainText,
}

/// A sidecar of another machine; clones share one connection.
#[derive(Clone, Debug)]
pub struct Remote {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: RemoteConfig,
    keys: Option<Keys>,
    standing: Mutex<Standing>,
}

#[derive(Debug)]
enum Standing {
    Apart,
    Up(Arc<Wire>),
    Failed { error: ClientError, at: Instant },
}

impl Remote {
    /// Reads the files of TLS; connects when it is first used. They are read once.
    pub fn new(config: RemoteConfig) -> Result<Self, ClientError> {
        let keys = match &config.transport {
            Transport::Tls(identity) => Some(identity.read()?),
            Transport::Loopback | Transport::PlainText => None,
        };
        let standing = Mutex::new(Standing::Apart);
        Ok(Self { shared: Arc::new(Shared { config, keys, standing }) })
    }

    /// The same, and fails when there is no sidecar now.
    pub async fn connect(config: RemoteConfig) -> Result<Self, ClientError> {
        let remote = Self::new(config)?;
        remote.wire(remote.deadline()).await?;
        Ok(remote)
    }

    /// Names what this client caches, as [`crate::Client::registration`] does.
    pub fn registration(
        &self,
        namespace: v1::Namespace,
        shard: u32,
        block_bytes: u64,
    ) -> Registration {
        Registration::new(self.clone(), namespace, shard, block_bytes)
    }

    /// The same, refused now if it is refused, or if the sidecar is absent.
    pub async fn register(
        &self,
        namespace: v1::Namespace,
        shard: u32,
        block_bytes: u64,
    ) -> Result<Registration, ClientError> {
        let registration = self.registration(namespace, shard, block_bytes);
        registration.layout().await?;
        Ok(registration)
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.shared.config.deadline)
    }

    /// The connection there is, or a new one; who comes while it is made waits for it.
    async fn wire(&self, deadline: Deadline) -> Result<Arc<Wire>, ClientError> {
        let Shared { config, keys, standing } = &*self.shared;
        let late = || {
            let source = Arc::new(Absence::Late { limit: deadline.limit() });
            ClientError::Absent { place: Place::There(config.address.clone()), source }
        };
        let mut standing = deadline.bound(standing.lock()).await.ok_or_else(late)?;
        match &*standing {
            Standing::Up(wire) if !wire.is_lost() => return Ok(Arc::clone(wire)),
            Standing::Failed { error, at } if at.elapsed() < PAUSE => return Err(error.clone()),
            Standing::Up(_) | Standing::Failed { .. } | Standing::Apart => {}
        }
        let opened = deadline.bound(Wire::open(config, keys.as_ref())).await;
        match opened.unwrap_or_else(|| Err(late())) {
            Ok(wire) => {
                let wire = Arc::new(wire);
                *standing = Standing::Up(Arc::clone(&wire));
                Ok(wire)
            }
            Err(error) => {
                *standing = Standing::Failed { error: error.clone(), at: Instant::now() };
                Err(error)
            }
        }
    }
}
