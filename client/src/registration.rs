//! What a worker caches, known to whichever sidecar serves it.

use crate::call::Deadline;
use crate::client::Client;
use crate::connection::Connection;
use crate::error::ClientError;
use crate::layout::Layout;
use crate::lease::Lease;
use crate::line::Line;
use crate::lookup::Lookup;
use refrain_proto::v1::{self, lookup_request};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A prompt, as far as it fills blocks.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Prompt<'a> {
    Tokens(&'a [u32]),
    /// Tokens, and digests that make equal ones unequal, of images say.
    Keyed {
        tokens: &'a [u32],
        extra_keys: &'a [Vec<u8>],
    },
    /// Names that the engine has for its blocks, each naming the whole prefix.
    Engine(&'a [Vec<u8>]),
    /// Such names of blocks that are looked up, loaded and saved each by itself: none is behind
    /// another. What matches is still the run from the first one on.
    Separate(&'a [Vec<u8>]),
}

/// A namespace and shard that lookups are made in; registered with each sidecar by the first call
/// that finds it.
#[derive(Clone, Debug)]
pub struct Registration {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    namespace: v1::Namespace,
    shard: u32,
    block_bytes: u64,
    registered: Mutex<Option<Registered>>,
}

/// What one sidecar answered.
#[derive(Clone, Debug)]
struct Registered {
    /// Of the connection that this is known on.
    generation: u64,
    registration: u64,
    layout: Arc<Layout>,
}

impl Registration {
    pub(crate) fn new(
        client: Client,
        namespace: v1::Namespace,
        shard: u32,
        block_bytes: u64,
    ) -> Self {
        let registered = Mutex::new(None);
        Self { shared: Arc::new(Shared { client, namespace, shard, block_bytes, registered }) }
    }

    /// How blocks lie in memory, as the sidecar that was there last says, or the one that is there
    /// now. Another version may lay them out otherwise: while a lookup is held, its own layout
    /// counts.
    pub async fn layout(&self) -> Result<Arc<Layout>, ClientError> {
        if let Some(registered) = self.registered() {
            return Ok(registered.layout);
        }
        let deadline = self.shared.client.deadline();
        let connection = self.shared.client.connection(deadline).await?;
        Ok(self.registered_on(&connection, deadline).await?.layout)
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
        let deadline = deadline.map_or_else(|| self.shared.client.deadline(), Deadline::after);
        let connection = self.shared.client.connection(deadline).await?;
        let Registered { registration, layout, .. } =
            self.registered_on(&connection, deadline).await?;
        let request =
            v1::LookupRequest { registration, prompt: Some(prompt), extra_keys, lease_ms: 0 };
        let limit = self.shared.client.deadline_limit();
        let (lease, answer) = Lease::look_up(connection, request, limit, deadline).await?;
        Ok(Lookup::new(lease, layout, answer))
    }

    async fn registered_on(
        &self,
        connection: &Connection,
        deadline: Deadline,
    ) -> Result<Registered, ClientError> {
        if let Some(known) = self.registered()
            && known.generation == connection.generation()
        {
            return Ok(known);
        }
        let Shared { namespace, shard, block_bytes, registered, .. } = &*self.shared;
        let request = v1::RegisterRequest {
            namespace: Some(namespace.clone()),
            shard: *shard,
            session: connection.session_id().to_vec(),
            block_bytes: *block_bytes,
        };
        let (registration, layout) = register(connection, request, deadline).await?;
        let (payload_bytes, arena_bytes) = (layout.payload_bytes, connection.slots().bytes());
        if payload_bytes > arena_bytes {
            return Err(ClientError::ArenaTooSmall { payload_bytes, arena_bytes });
        }
        let generation = connection.generation();
        let fresh = Registered { generation, registration, layout };
        let mut registered = registered.lock().unwrap_or_else(PoisonError::into_inner);
        // Two callers may have come here at once; both answers hold, the newest is kept.
        if registered.as_ref().is_none_or(|known| known.generation < fresh.generation) {
            *registered = Some(fresh.clone());
        }
        Ok(fresh)
    }

    fn registered(&self) -> Option<Registered> {
        self.shared.registered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a sidecar calls the registration, and how it lays blocks out.
pub(crate) async fn register(
    connection: &impl Line,
    request: v1::RegisterRequest,
    deadline: Deadline,
) -> Result<(u64, Arc<Layout>), ClientError> {
    let answer = deadline.answer(connection.cache().register(deadline.request(request))).await;
    let answer = answer.map_err(|failure| connection.session_error("register", failure))?;
    let layout = Layout::from_answer(&answer)
        .ok_or(ClientError::Answer { call: "register", what: "stripes outside the payload" })?;
    Ok((answer.registration, Arc::new(layout)))
}

/// A prompt and the extra keys of its first block, as messages have them.
pub(crate) fn encode(prompt: Prompt<'_>) -> (lookup_request::Prompt, Vec<Vec<u8>>) {
    match prompt {
        Prompt::Tokens(tokens) => (encode_tokens(tokens), Vec::new()),
        Prompt::Keyed { tokens, extra_keys } => (encode_tokens(tokens), extra_keys.to_vec()),
        Prompt::Engine(hashes) => (encode_names(hashes, false), Vec::new()),
        Prompt::Separate(hashes) => (encode_names(hashes, true), Vec::new()),
    }
}

fn encode_names(hashes: &[Vec<u8>], separate: bool) -> lookup_request::Prompt {
    lookup_request::Prompt::Engine(v1::EngineHashes { hashes: hashes.to_vec(), separate })
}

fn encode_tokens(tokens: &[u32]) -> lookup_request::Prompt {
    let mut bytes = vec![0; size_of_val(tokens)];
    let (pieces, _) = bytes.as_chunks_mut();
    for (piece, token) in pieces.iter_mut().zip(tokens) {
        *piece = token.to_le_bytes();
    }
    lookup_request::Prompt::Tokens(bytes.into())
}
