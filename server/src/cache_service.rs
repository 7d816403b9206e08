//! The `Cache` service: prefixes in, their KV back.

use crate::load::{Ended, Load, Miss};
use crate::lookup::{Match, Prompt};
use crate::metrics::Source;
use crate::namespaces::SessionId;
use crate::node::Node;
use crate::peers::Peers;
use crate::save::{Committed, Placed, SaveError};
use crate::{status, wire};
use refrain_proto::v1::{self, cache_server, load_event, lookup_request, read_chunk, write_chunk};
use refrain_store::arena::Frame;
use refrain_store::geometry::HEADER_SIZE;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

type Answered<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Bytes of one chunk of a read or write.
const CHUNK: usize = 1 << 20;
/// Messages that wait for a slow reader.
const BACKLOG: usize = 16;

#[derive(Clone, Debug)]
pub(crate) struct CacheService {
    pub(crate) node: Arc<Node>,
    /// Whom lookups ask for what is not here.
    pub(crate) peers: Option<Arc<Peers>>,
}

impl CacheService {
    fn deadline(&self, milliseconds: u32) -> Instant {
        let time = match milliseconds {
            0 => self.node.config.load_deadline,
            given => Duration::from_millis(given.into()),
        };
        self.node.clock.now() + time
    }
}

#[tonic::async_trait]
impl cache_server::Cache for CacheService {
    type LoadStream = Answers<v1::LoadEvent>;
    type ReadStream = Answers<v1::ReadChunk>;

    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Answered<v1::RegisterResponse> {
        let request = request.into_inner();
        if self.node.is_draining() {
            return Err(status::draining());
        }
        let namespace = wire::namespace(request.namespace).map_err(status::of_wire)?;
        let session: Option<SessionId> = match request.session.as_slice() {
            [] => None,
            id => Some(wire::array("session", id).map_err(status::of_wire)?),
        };
        let registered =
            self.node.register(&namespace, request.shard, request.block_bytes, session);
        let registered = registered.map_err(|error| status::of_register(&error))?;
        let stripes = registered.layout.stripes.iter();
        let stripes = stripes.map(|s| v1::Stripe { offset: s.offset, length: s.length });
        Ok(Response::new(v1::RegisterResponse {
            registration: registered.id,
            stripes: stripes.collect(),
            layers_per_stripe: registered.layout.layers_per_stripe,
            payload_bytes: registered.layout.payload_length,
            namespace_digest: registered.digest.0.to_vec(),
        }))
    }

    async fn lookup(&self, request: Request<v1::LookupRequest>) -> Answered<v1::LookupResponse> {
        let request = request.into_inner();
        if self.node.is_draining() {
            return Err(status::draining());
        }
        let registration =
            self.node.registration(request.registration).ok_or_else(status::no_registration)?;
        let lease = lease_time(request.lease_ms);
        let mut found = match request.prompt {
            Some(lookup_request::Prompt::Tokens(bytes)) => {
                let tokens = wire::tokens(&bytes).map_err(status::of_wire)?;
                let prompt = Prompt::Tokens { tokens: &tokens, extra_keys: &request.extra_keys };
                self.node.lookup(&registration, prompt, lease)
            }
            Some(lookup_request::Prompt::Engine(engine)) => {
                let hashes = &engine.hashes;
                let prompt =
                    if engine.separate { Prompt::Separate(hashes) } else { Prompt::Engine(hashes) };
                self.node.lookup(&registration, prompt, lease)
            }
            None => return Err(status::of_wire(wire::WireError::Missing { field: "prompt" })),
        };
        if let Some(peers) = &self.peers {
            peers.extend(&self.node, &registration, &mut found).await;
        }
        Ok(Response::new(v1::LookupResponse {
            lease: found.lease,
            prompt_blocks: found.prompt_blocks,
            matched_blocks: count(found.tiers.len()),
            tiers: tiers(&found),
            expected_load_us: micros(found.expected_load),
            lease_ms: millis(found.lease_time),
            expected_peer_us: micros(found.expected_peer),
        }))
    }

    async fn load(&self, request: Request<v1::LoadRequest>) -> Answered<Self::LoadStream> {
        let v1::LoadRequest { lease, first_block, blocks, deadline_ms } = request.into_inner();
        let deadline = self.deadline(deadline_ms);
        let load = self.node.load(lease, first_block, blocks, deadline).map_err(status::of_load)?;
        let (send, events) = mpsc::channel(BACKLOG);
        let node = Arc::clone(&self.node);
        // Ends by the deadline, or as soon as nobody listens.
        tokio::spawn(async move { announce(&node, (lease, first_block), &load, &send).await });
        let events = ReceiverStream::new(events);
        Ok(Response::new(Box::pin(events.map(|event| Ok(v1::LoadEvent { event: Some(event) })))))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Answered<v1::RenewResponse> {
        let v1::RenewRequest { lease, lease_ms } = request.into_inner();
        let time = self.node.renew(lease, lease_time(lease_ms));
        Ok(Response::new(v1::RenewResponse {
            held: time.is_some(),
            lease_ms: millis(time.unwrap_or_default()),
        }))
    }

    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Answered<v1::ReleaseResponse> {
        let v1::ReleaseRequest { lease, load_us } = request.into_inner();
        let load_time = (load_us > 0).then(|| Duration::from_micros(load_us));
        let held = self.node.release(lease, load_time);
        Ok(Response::new(v1::ReleaseResponse { held }))
    }

    async fn reserve(&self, request: Request<v1::ReserveRequest>) -> Answered<v1::ReserveResponse> {
        let v1::ReserveRequest { lease, first_block, blocks } = request.into_inner();
        self.node.guests_kept(lease).await;
        let reserved = self.node.reserve(lease, first_block, blocks).map_err(status::of_save)?;
        Ok(Response::new(v1::ReserveResponse {
            reservation: reserved.reservation,
            blocks: reserved.blocks,
            refusal: wire::refusal(reserved.refusal).into(),
        }))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Answered<v1::CommitResponse> {
        let v1::CommitRequest { reservation, blocks, durable } = request.into_inner();
        let placed = blocks.iter().map(|placed| Placed {
            block: placed.block,
            offset: placed.payload_offset,
            length: placed.payload_bytes,
        });
        let placed: Vec<_> = placed.collect();
        let batch = self.node.batch(reservation, &placed).map_err(status::of_save)?;
        let node = Arc::clone(&self.node);
        // A task of its own: what is being written enters the index even if nobody waits for it.
        let committing = tokio::spawn(async move { node.commit(batch, durable).await });
        committed(committing.await)
    }

    async fn abort(&self, request: Request<v1::AbortRequest>) -> Answered<v1::AbortResponse> {
        self.node.abort(request.into_inner().reservation).map_err(status::of_save)?;
        Ok(Response::new(v1::AbortResponse {}))
    }

    async fn read(&self, request: Request<v1::ReadRequest>) -> Answered<Self::ReadStream> {
        let v1::ReadRequest { lease, first_block, blocks, deadline_ms } = request.into_inner();
        let deadline = self.deadline(deadline_ms);
        let load = self.node.load(lease, first_block, blocks, deadline).map_err(status::of_load)?;
        let (send, chunks) = mpsc::channel(2);
        let node = Arc::clone(&self.node);
        tokio::spawn(async move { send_chunks(&node, (lease, first_block), &load, &send).await });
        let chunks = ReceiverStream::new(chunks);
        Ok(Response::new(Box::pin(chunks.map(|chunk| Ok(v1::ReadChunk { chunk: Some(chunk) })))))
    }

    async fn write(
        &self,
        request: Request<Streaming<v1::WriteChunk>>,
    ) -> Answered<v1::CommitResponse> {
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.and_then(|message| message.chunk);
        let Some(write_chunk::Chunk::Start(start)) = first else {
            return Err(status::of_wire(wire::WireError::Missing { field: "start" }));
        };
        let frames = receive_frames(&self.node, start.reservation, &mut chunks).await?;
        let batch =
            self.node.batch_of_frames(start.reservation, frames).map_err(status::of_save)?;
        let node = Arc::clone(&self.node);
        let committing = tokio::spawn(async move { node.commit(batch, start.durable).await });
        committed(committing.await)
    }
}

/// Sends what arrives until nothing more will, or nobody listens.
async fn announce(
    node: &Arc<Node>,
    (lease, first): (u64, u32),
    load: &Load,
    send: &mpsc::Sender<load_event::Event>,
) {
    let begin = node.clock.now();
    let payload_offsets = load.payload_offsets();
    if !payload_offsets.is_empty() {
        let placement = load_event::Placement { payload_offsets };
        if send.send(load_event::Event::Placement(placement)).await.is_err() {
            return;
        }
    }
    while let Some(arrived) = load.next().await {
        for ready in arrived {
            let ready = load_event::Ready {
                stripe: ready.stripe,
                first_block: ready.first_block,
                blocks: ready.blocks,
            };
            if send.send(load_event::Event::Ready(ready)).await.is_err() {
                return;
            }
        }
    }
    let ended = load.ended();
    node.count_load(load, ended, node.clock.now() - begin);
    node.settle_load(lease, first, load, ended);
    node.keep_guests(lease, ended);
    // Nobody is left to be told otherwise.
    let _ = send.send(load_event::Event::Done(done(ended))).await;
}

/// Sends the payloads of what could be loaded, whole blocks only, then how it ended.
async fn send_chunks(
    node: &Arc<Node>,
    (lease, first): (u64, u32),
    load: &Load,
    send: &mpsc::Sender<read_chunk::Chunk>,
) {
    let begin = node.clock.now();
    while load.next().await.is_some() {}
    let ended = load.ended();
    node.count_load(load, ended, node.clock.now() - begin);
    node.settle_load(lease, first, load, ended);
    node.keep_guests(lease, ended);
    let loaded = usize::try_from(ended.loaded).expect("32 bits fit");
    for frame in &load.frames[..loaded] {
        let payload = frame.region().slice(HEADER_SIZE, load.layout.payload_length);
        for chunk in payload.bytes().chunks(CHUNK) {
            let data = refrain_proto::Bytes::copy_from_slice(chunk);
            if send.send(read_chunk::Chunk::Data(data)).await.is_err() {
                return;
            }
        }
    }
    let _ = send.send(read_chunk::Chunk::Done(done(ended))).await;
}

/// Puts what a client sends into frames, block after block.
async fn receive_frames(
    node: &Node,
    reservation: u64,
    chunks: &mut Streaming<v1::WriteChunk>,
) -> Result<Vec<Frame>, Status> {
    let mut frames: Vec<Frame> = Vec::new();
    let (mut payload, mut filled) = (0, 0);
    let mut received = 0;
    while let Some(message) = chunks.message().await? {
        let Some(write_chunk::Chunk::Data(data)) = message.chunk else {
            return Err(status::of_wire(wire::WireError::Missing { field: "data" }));
        };
        received += count64(data.len());
        let mut left = &data[..];
        while !left.is_empty() {
            if filled == payload {
                let awaited = node.reserved_blocks(reservation).map_err(status::of_save)?;
                if frames.len() >= awaited {
                    let expected = count64(awaited) * payload;
                    let too_long = SaveError::Written { found: received, expected };
                    return Err(status::of_save(too_long));
                }
                let (frame, length) = node.write_frame(reservation).map_err(status::of_save)?;
                let frame = frame.ok_or_else(|| {
                    Status::resource_exhausted("no memory for a block now: try again later")
                })?;
                frame.region().fill_with(|bytes| bytes.fill(0));
                frames.push(frame);
                (payload, filled) = (length, 0);
            }
            let room = usize::try_from(payload - filled).expect("frames are addressed");
            let (now, rest) = left.split_at(room.min(left.len()));
            let frame = frames.last().expect("pushed above");
            frame.region().copy_from(HEADER_SIZE + filled, now);
            filled += count64(now.len());
            left = rest;
        }
    }
    if filled != payload {
        // Half a block is none: it is dropped here, and never written.
        let expected = count64(frames.len()) * payload;
        return Err(status::of_save(SaveError::Written { found: received, expected }));
    }
    Ok(frames)
}

fn committed(outcome: Result<Committed, tokio::task::JoinError>) -> Answered<v1::CommitResponse> {
    let Committed { saved, refusal: why, durable } =
        outcome.map_err(|_| Status::internal("commit broken off"))?;
    let refusal = wire::refusal(why).into();
    Ok(Response::new(v1::CommitResponse { saved_blocks: saved, refusal, durable }))
}

fn done(ended: Ended) -> load_event::Done {
    let reason = match ended.reason {
        None => v1::MissReason::None,
        Some(Miss::Deadline) => v1::MissReason::Deadline,
        Some(Miss::Damaged) => v1::MissReason::Damaged,
        Some(Miss::NoMemory) => v1::MissReason::NoMemory,
        Some(Miss::Drive) => v1::MissReason::Drive,
        Some(Miss::Peer) => v1::MissReason::Peer,
    };
    load_event::Done {
        loaded_blocks: ended.loaded,
        reason: reason.into(),
        host_blocks: ended.host,
        ssd_blocks: ended.ssd,
        peer_blocks: ended.peer,
    }
}

fn tiers(found: &Match) -> Vec<v1::TierRun> {
    let matched = found.tiers.iter().copied().map(Some);
    let all: Vec<_> = matched.chain(found.beyond.iter().copied()).collect();
    let run = |run: &[Option<Source>]| {
        let tier = match run[0] {
            Some(Source::Host) => v1::Tier::Host,
            Some(Source::Ssd) => v1::Tier::Ssd,
            Some(Source::Peer) => v1::Tier::Peer,
            None => v1::Tier::Unspecified,
        };
        v1::TierRun { tier: tier.into(), blocks: count(run.len()) }
    };
    all.chunk_by(|left, right| left == right).map(run).collect()
}

fn lease_time(milliseconds: u32) -> Option<Duration> {
    (milliseconds > 0).then(|| Duration::from_millis(milliseconds.into()))
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn count(blocks: usize) -> u32 {
    u32::try_from(blocks).expect("a prompt has fewer than 2^32 blocks")
}

fn count64(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("usize fits")
}
