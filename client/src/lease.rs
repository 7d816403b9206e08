//! The blocks that a lookup found, held until they are given back.

use crate::call::{Deadline, Failure};
use crate::connection::Connection;
use crate::error::ClientError;
use crate::line::Line;
use refrain_proto::v1;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A lease, given back when nobody holds it any more.
#[derive(Debug)]
pub(crate) struct Lease<L: Line = Connection> {
    pub(crate) connection: Arc<L>,
    pub(crate) id: u64,
    /// Of calls under this lease.
    pub(crate) limit: Duration,
    /// What a load of all that matched took, in microseconds; 0 until there was one.
    pub(crate) load_us: AtomicU64,
    released: AtomicBool,
}

impl<L: Line> Lease<L> {
    fn new(connection: Arc<L>, id: u64, limit: Duration) -> Arc<Self> {
        let (load_us, released) = (AtomicU64::new(0), AtomicBool::new(false));
        Arc::new(Self { connection, id, limit, load_us, released })
    }

    /// Looks up, and holds what was found.
    pub(crate) async fn look_up(
        connection: Arc<L>,
        request: v1::LookupRequest,
        limit: Duration,
        deadline: Deadline,
    ) -> Result<(Arc<Self>, v1::LookupResponse), ClientError> {
        let user = Arc::clone(&connection);
        // A task of its own, because the answer is a lease: where nobody waits for it any more, it
        // is dropped there, and thereby released.
        let asking = connection.runtime().spawn(async move {
            let request = deadline.request(request);
            let answer = deadline.answer(user.cache().lookup(request)).await;
            let answer = answer.map_err(|failure| user.session_error("look up", failure))?;
            Ok((Self::new(user, answer.lease, limit), answer))
        });
        let stopped = |_| connection.error("look up", Failure::Late(limit));
        asking.await.unwrap_or_else(|error| Err(stopped(error)))
    }

    /// Prolongs it by `lease` from now; 0 takes the sidecar's default. `false`: it was over.
    pub(crate) async fn renew(&self, lease: Duration) -> Result<bool, ClientError> {
        let Self { connection, id, limit, .. } = self;
        let deadline = Deadline::after(*limit);
        let lease_ms = u32::try_from(lease.as_millis()).unwrap_or(u32::MAX);
        let request = deadline.request(v1::RenewRequest { lease: *id, lease_ms });
        let answer = deadline.answer(connection.cache().renew(request)).await;
        match answer.map_err(|failure| connection.noted(failure)) {
            Ok(answer) => Ok(answer.held),
            Err(Failure::Unknown(_) | Failure::Lost(_)) => Ok(false),
            Err(failure @ (Failure::Late(_) | Failure::Refused(_))) => {
                Err(connection.error("renew", failure))
            }
        }
    }

    /// Ends it. `true`: it held all the while; so it is once only.
    pub(crate) async fn release(self: &Arc<Self>) -> Result<bool, ClientError> {
        if self.released.swap(true, Ordering::Relaxed) {
            return Ok(false);
        }
        let lease = Arc::clone(self);
        // Whoever stops waiting has released it all the same.
        let releasing = self.connection.runtime().spawn(async move { lease.give_back().await });
        match releasing.await {
            Ok(Ok(held)) => Ok(held),
            Ok(Err(failure @ Failure::Refused(_))) => {
                Err(self.connection.error("release", failure))
            }
            Ok(Err(Failure::Lost(_) | Failure::Late(_) | Failure::Unknown(_))) | Err(_) => {
                Ok(false)
            }
        }
    }

    async fn give_back(&self) -> Result<bool, Failure> {
        let deadline = Deadline::after(self.limit);
        let request = deadline.request(v1::ReleaseRequest {
            lease: self.id,
            load_us: self.load_us.load(Ordering::Relaxed),
        });
        let answer = deadline.answer(self.connection.cache().release(request)).await;
        answer.map(|answer| answer.held).map_err(|failure| self.connection.noted(failure))
    }
}

impl<L: Line> Drop for Lease<L> {
    fn drop(&mut self) {
        if *self.released.get_mut() {
            return;
        }
        let connection = Arc::clone(&self.connection);
        let released = AtomicBool::new(true);
        let load_us = AtomicU64::new(*self.load_us.get_mut());
        let lease = Self { connection, id: self.id, limit: self.limit, load_us, released };
        self.connection.runtime().spawn(async move {
            // A lease that could not be given back runs out.
            let _ = lease.give_back().await;
        });
    }
}

/// Whether there are so many blocks.
pub(crate) fn check_range(first: u32, blocks: u32, available: u32) -> Result<(), ClientError> {
    match first.checked_add(blocks) {
        Some(end) if end <= available => Ok(()),
        _ => Err(ClientError::BlocksOutOfRange { first, blocks, available }),
    }
}
