//! A client has a session with its sidecar whenever there is one.

use crate::address::Address;
use crate::call::Deadline;
use crate::connection::{Connection, MESSAGE_BYTES_MAX, lasting_channel};
use crate::error::{Absence, ClientError, Place};
use crate::keeper::{self, Link};
use crate::registration::Registration;
use refrain_proto::v1::{self, admin_client::AdminClient};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tonic::transport::Channel;

/// How a worker reaches its sidecar.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    pub address: Address,
    /// Memory that blocks to save are copied into; rounded up to whole pages, and resident from
    /// the first call on.
    pub session_arena_bytes: u64,
    /// Of every call, the wait for a session included.
    pub deadline: Duration,
}

/// A session with a sidecar for as long as there is one. It is opened, and opened again after it
/// was lost, in the background; calls made meanwhile fail at once.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: ClientConfig,
    link: watch::Receiver<Link>,
    /// Ends the pause before the next attempt.
    now: Arc<Notify>,
    admin: Channel,
}

impl Client {
    /// Begins to look for the sidecar, which may come later. Must be called inside of a runtime.
    pub fn new(config: ClientConfig) -> Self {
        let admin = lasting_channel(&config.address);
        let (sender, link) = watch::channel(Link::Opening);
        let now = Arc::new(Notify::new());
        tokio::spawn(keeper::keep(config.clone(), sender, Arc::clone(&now)));
        Self { shared: Arc::new(Shared { config, link, now, admin }) }
    }

    /// Opens a session; fails when there is no sidecar.
    pub async fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        let client = Self::new(config);
        client.reach().await?;
        Ok(client)
    }

    /// Asks whether the sidecar is there: fails when it is not, by the next attempt's outcome.
    pub async fn reach(&self) -> Result<(), ClientError> {
        let deadline = self.deadline();
        let mut link = self.shared.link.clone();
        if matches!(*link.borrow_and_update(), Link::Absent(_)) {
            self.shared.now.notify_one();
            // What has changed, if anything has by then, is looked at below.
            let _ = deadline.bound(link.changed()).await;
        }
        self.connection(deadline).await.map(drop)
    }

    /// Whether there is a session, as far as this side knows without asking.
    pub fn is_connected(&self) -> bool {
        matches!(&*self.shared.link.borrow(), Link::Open(connection) if !connection.is_lost())
    }

    /// Names what this worker caches, at once or as soon as the sidecar is there. `block_bytes` is
    /// what it takes a block of its shard for.
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

    /// What operators ask a node.
    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.shared.admin.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn deadline(&self) -> Deadline {
        Deadline::after(self.shared.config.deadline)
    }

    pub(crate) fn deadline_limit(&self) -> Duration {
        self.shared.config.deadline
    }

    /// The session there is. One that is being opened is waited for; after a failure, until there
    /// is one again, nothing is.
    pub(crate) async fn connection(
        &self,
        deadline: Deadline,
    ) -> Result<Arc<Connection>, ClientError> {
        let mut link = self.shared.link.clone();
        loop {
            match &*link.borrow_and_update() {
                Link::Open(connection) if !connection.is_lost() => {
                    return Ok(Arc::clone(connection));
                }
                Link::Absent(absence) => return Err(self.absent(Arc::clone(absence))),
                // Its keeper will see that it is lost.
                Link::Open(_) | Link::Opening => {}
            }
            if !matches!(deadline.bound(link.changed()).await, Some(Ok(()))) {
                return Err(self.absent(Arc::new(Absence::Late { limit: deadline.limit() })));
            }
        }
    }

    fn absent(&self, source: Arc<Absence>) -> ClientError {
        ClientError::Absent { place: Place::Here(self.shared.config.address.clone()), source }
    }
}
