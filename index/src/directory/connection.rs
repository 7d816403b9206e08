//! One server of the cluster: a connection that is made when it is wanted, and again when it broke.
//!
//! A server that did not answer is not asked again for a moment, so that what it has a replica for
//! goes there at once.

use super::DirectoryError;
use super::settings::Settings;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, Pipeline, RedisError, Value, cmd};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::debug;

/// A connection is made in this time, or not.
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);
/// How long a server is left alone that refused, or did not answer.
const REST: Duration = Duration::from_millis(500);
/// A server that has not answered for this long is taken for hanging, whatever the caller's deadline.
const ANSWER_PATIENCE: Duration = Duration::from_millis(400);
/// Requests that wait for the socket; more wait for room.
const BACKLOG: usize = 1024;

/// `HOST:PORT`.
pub(super) type Address = String;

pub(super) struct Server {
    pub(super) address: Address,
    client: Client,
    link: watch::Sender<Link>,
}

#[derive(Clone)]
enum Link {
    Idle,
    Connecting,
    Up(MultiplexedConnection),
    /// Not before then.
    Down(Instant),
}

impl fmt::Debug for Server {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

/// No answer came: what was asked may or may not have been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreachable;

impl Server {
    pub(super) fn new(address: Address, settings: &Settings) -> Result<Self, DirectoryError> {
        let client = settings.client(&address)?;
        Ok(Self { address, client, link: watch::Sender::new(Link::Idle) })
    }

    /// Whether it is worth asking.
    pub(super) fn is_up(&self) -> bool {
        match *self.link.borrow() {
            Link::Idle | Link::Connecting | Link::Up(_) => true,
            Link::Down(until) => Instant::now() >= until,
        }
    }

    /// The answers to a pipeline's commands, in their order; errors of single commands are answers.
    pub(super) async fn ask(
        self: &Arc<Self>,
        pipeline: &Pipeline,
        deadline: Instant,
    ) -> Result<Vec<Value>, Unreachable> {
        let mut connection = self.connection(deadline).await?;
        let count = pipeline.len();
        let begun = Instant::now();
        let end = deadline.min(begun + ANSWER_PATIENCE.max(answer_time(count)));
        let asking = connection.req_packed_commands(pipeline, 0, count);
        match tokio::time::timeout_at(end.into(), asking).await {
            Ok(Ok(answers)) if answers.len() == count => Ok(answers),
            Ok(Ok(_)) => Err(self.lost("answers are missing")),
            Ok(Err(error)) => Err(self.lost(&error)),
            // Its time was up before anybody could say that the server hangs.
            Err(_) if end == deadline && begun.elapsed() < ANSWER_PATIENCE => Err(Unreachable),
            Err(_) => Err(self.lost("no answer in time")),
        }
    }

    fn lost(&self, why: impl fmt::Display) -> Unreachable {
        debug!(address = self.address, %why, "directory server lost");
        self.link.send_replace(Link::Down(Instant::now() + REST));
        Unreachable
    }

    async fn connection(
        self: &Arc<Self>,
        deadline: Instant,
    ) -> Result<MultiplexedConnection, Unreachable> {
        let mut changes = self.link.subscribe();
        loop {
            // By itself, so that it is not borrowed while it is changed.
            let link = changes.borrow_and_update().clone();
            match link {
                Link::Up(connection) => return Ok(connection),
                Link::Down(until) if Instant::now() < until => return Err(Unreachable),
                Link::Down(_) | Link::Idle => self.connect(),
                Link::Connecting => {}
            }
            // The sender is ours: it lives.
            let changed = tokio::time::timeout_at(deadline.into(), changes.changed());
            changed.await.map_err(|_| Unreachable)?.map_err(|_| Unreachable)?;
        }
    }

    /// Beside whoever asked first: the next one needs it too.
    fn connect(self: &Arc<Self>) {
        let mine = self.link.send_if_modified(|link| {
            let may = match link {
                Link::Idle => true,
                Link::Down(until) => Instant::now() >= *until,
                Link::Connecting | Link::Up(_) => false,
            };
            if may {
                *link = Link::Connecting;
            }
            may
        });
        if !mine {
            return;
        }
        let server = Arc::clone(self);
        tokio::spawn(async move {
            let opened = tokio::time::timeout(CONNECT_PATIENCE, server.open()).await;
            let link = match opened {
                Ok(Ok(connection)) => Link::Up(connection),
                Ok(Err(error)) => {
                    debug!(address = server.address, %error, "directory server refuses");
                    Link::Down(Instant::now() + REST)
                }
                Err(_) => Link::Down(Instant::now() + REST),
            };
            server.link.send_replace(link);
        });
    }

    async fn open(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_PATIENCE))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(BACKLOG);
        let opening = self.client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = opening.await?;
        // A replica may answer reads; a server that is no part of a cluster knows no such thing.
        let _ = connection.req_packed_command(&cmd("READONLY")).await?;
        Ok(connection)
    }
}

/// Large batches take their time: 10 us a command are several times what it needs.
fn answer_time(commands: usize) -> Duration {
    Duration::from_micros(10) * u32::try_from(commands).unwrap_or(u32::MAX)
}
