//! A client finds its sidecar, and finds it again.

use crate::address::Address;
use crate::call::Deadline;
use crate::connection::{Connection, MESSAGE_BYTES_MAX, lasting_channel};
use crate::error::{Absence, ClientError};
use crate::registration::Registration;
use refrain_proto::v1::{self, admin_client::AdminClient};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::transport::Channel;

/// Least time between two attempts to connect: in between, calls fail without one.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(100);

/// How a worker reaches its sidecar.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    pub address: Address,
    /// Memory that blocks to save are copied into; rounded up to whole pages, and resident from
    /// the first call on.
    pub session_arena_bytes: u64,
    /// Of every call, connecting included.
    pub deadline: Duration,
}

/// A session with a sidecar, opened again by the next call after it was lost.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: ClientConfig,
    state: Mutex<State>,
    admin: Channel,
}

#[derive(Debug)]
struct State {
    connection: Option<Arc<Connection>>,
    failed: Option<(Instant, Arc<Absence>)>,
    generation: u64,
}

impl Client {
    /// Opens a session; fails when there is no sidecar.
    pub async fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        let admin = lasting_channel(&config.address);
        let state = Mutex::new(State { connection: None, failed: None, generation: 0 });
        let client = Self { shared: Arc::new(Shared { config, state, admin }) };
        client.connection(client.deadline()).await?;
        Ok(client)
    }

    /// Names what this worker caches. `block_bytes` is what it takes a block of its shard for.
    pub async fn register(
        &self,
        namespace: v1::Namespace,
        shard: u32,
        block_bytes: u64,
    ) -> Result<Registration, ClientError> {
        Registration::new(self.clone(), namespace, shard, block_bytes).await
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

    /// The session, opened anew if it was lost.
    pub(crate) async fn connection(
        &self,
        deadline: Deadline,
    ) -> Result<Arc<Connection>, ClientError> {
        let late = || self.absent(Arc::new(Absence::Late { limit: deadline.limit() }));
        let opened = deadline.bound(self.connection_at_last(deadline)).await;
        opened.unwrap_or_else(|| Err(late()))
    }

    async fn connection_at_last(&self, deadline: Deadline) -> Result<Arc<Connection>, ClientError> {
        let mut state = self.shared.state.lock().await;
        if let Some(connection) = &state.connection
            && !connection.is_lost()
        {
            return Ok(Arc::clone(connection));
        }
        state.connection = None;
        if let Some((at, absence)) = &state.failed
            && at.elapsed() < ATTEMPT_INTERVAL
        {
            return Err(self.absent(Arc::clone(absence)));
        }
        // Noted before the attempt, which ends here without a word when its caller gives up.
        let limit = deadline.limit();
        state.failed = Some((Instant::now(), Arc::new(Absence::Late { limit })));
        state.generation += 1;
        match Connection::open(&self.shared.config, state.generation).await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                state.failed = None;
                state.connection = Some(Arc::clone(&connection));
                Ok(connection)
            }
            Err(absence) => {
                let absence = Arc::new(absence);
                state.failed = Some((Instant::now(), Arc::clone(&absence)));
                Err(self.absent(absence))
            }
        }
    }

    fn absent(&self, source: Arc<Absence>) -> ClientError {
        ClientError::Absent { address: self.shared.config.address.clone(), source }
    }
}
