//! What a client names blocks in, at a sidecar of another machine.

use super::{Lookup, Remote, wire::Wire};
use crate::call::Deadline;
use crate::error::ClientError;
use crate::layout::Layout;
use crate::lease::Lease;
use crate::registration::{Prompt, encode, register};
use refrain_proto::v1;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A namespace and shard that lookups are made in; registered anew with each sidecar process that is
/// found.
#[derive(Clone, Debug)]
pub struct Registration {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    remote: Remote,
    namespace: v1::Namespace,
    shard: u32,
    block_bytes: u64,
    registered: Mutex<Option<Registered>>,
}

/// What the sidecar at the end of a connection answered.
#[derive(Clone, Debug)]
struct Registered {
    wire: Arc<Wire>,
    registration: u64,
    layout: Arc<Layout>,
}

impl Registration {
    pub(super) fn new(
        remote: Remote,
        namespace: v1::Namespace,
        shard: u32,
        block_bytes: u64,
    ) -> Self {
        let registered = Mutex::new(None);
        Self { shared: Arc::new(Shared { remote, namespace, shard, block_bytes, registered }) }
    }

    /// How blocks lie in memory that they are read into: while a lookup is held, its own layout counts.
    pub async fn layout(&self) -> Result<Arc<Layout>, ClientError> {
        Ok(self.registered(self.shared.remote.deadline()).await?.layout)
    }

    /// The longest resident prefix of a prompt, leased. No match is an answer with no blocks.
    pub async fn lookup(&self, prompt: Prompt<'_>) -> Result<Lookup, ClientError> {
        self.lookup_within(prompt, None).await
    }

    /// The same, with a deadline of its own (the client's if there is none).
    pub async fn lookup_within(
        &self,
        prompt: Prompt<'_>,
        deadline: Option<Duration>,
    ) -> Result<Lookup, ClientError> {
        let (prompt, extra_keys) = encode(prompt);
        let deadline = deadline.map_or_else(|| self.shared.remote.deadline(), Deadline::after);
        let Registered { wire, registration, layout } = self.registered(deadline).await?;
        let limit = self.shared.remote.shared.config.deadline;
        let request =
            v1::LookupRequest { registration, prompt: Some(prompt), extra_keys, lease_ms: 0 };
        let (lease, answer) = Lease::look_up(wire, request, limit, deadline).await?;
        Ok(Lookup::new(lease, layout, answer))
    }

    /// Whom calls go to, and what it calls this registration.
    async fn registered(&self, deadline: Deadline) -> Result<Registered, ClientError> {
        let Shared { remote, namespace, shard, block_bytes, registered } = &*self.shared;
        let wire = remote.wire(deadline).await?;
        let lock = || registered.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().clone().filter(|known| Arc::ptr_eq(&known.wire, &wire));
        if let Some(known) = known {
            return Ok(known);
        }
        let request = v1::RegisterRequest {
            namespace: Some(namespace.clone()),
            shard: *shard,
            session: Vec::new(),
            block_bytes: *block_bytes,
        };
        let (registration, layout) = register(&*wire, request, deadline).await?;
        let fresh = Registered { wire, registration, layout };
        *lock() = Some(fresh.clone());
        Ok(fresh)
    }
}
