//! The `Admin` service: what operators ask a node.

use crate::clock::unix_ms;
use crate::disks::Disk;
use crate::fates::Eviction;
use crate::inspect::BlockView;
use crate::lookup::Prompt;
use crate::metrics::Source;
use crate::namespaces::Registration;
use crate::node::Node;
use crate::peers::{Peers, Report};
use crate::pins::{Pinned, Until};
use crate::place::{DriveId, Group};
use crate::removal::Invalidated;
use crate::state::State;
use crate::{status, wire};
use refrain_index::chain::BlockKey;
use refrain_index::hash::SequenceHash;
use refrain_index::namespace::{Namespace, NamespaceDigest};
use refrain_proto::v1::{
    self, admin_server, explain_request, inspect_request, list_entry, list_request::What,
    pin_request, prompt_name, unpin_request, where_request,
};
use refrain_store::drive::{DriveStats, Withdrawn};
use refrain_store::engine::SegmentState;
use refrain_store::geometry::SegmentId;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

mod explained;
mod fleet;

type Answered<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Blocks described under one lock.
const LISTED_AT_ONCE: usize = 1024;
/// Blocks of a prefix that fits more than one.
const AMBIGUOUS_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct AdminService {
    pub(crate) node: Arc<Node>,
    pub(crate) peers: Option<Arc<Peers>>,
    /// Told to stop the process.
    pub(crate) drain: watch::Sender<bool>,
}

#[tonic::async_trait]
impl admin_server::Admin for AdminService {
    type ListStream = Answers<v1::ListEntry>;
    type VerifyStream = Answers<v1::VerifyProgress>;

    async fn stats(&self, _: Request<v1::StatsRequest>) -> Answered<v1::StatsResponse> {
        let peers = self.peers.as_ref().map_or_else(Vec::new, |peers| peers.report());
        Ok(Response::new(stats(&self.node, peers)))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Answered<Self::ListStream> {
        let request = request.into_inner();
        let what = What::try_from(request.what).unwrap_or(What::Unspecified);
        let limit = match request.limit {
            0 => usize::MAX,
            limit => usize::try_from(limit).unwrap_or(usize::MAX),
        };
        let (send, entries) = mpsc::channel(64);
        let node = Arc::clone(&self.node);
        match what {
            What::Blocks => {
                drop(tokio::spawn(async move { list_blocks(&node, limit, &send).await }));
            }
            What::Namespaces => {
                let state = node.state();
                let known = state.namespaces.all().iter().take(limit);
                let all = known.map(|known| info(known, state.epochs.get(known.digest))).collect();
                drop(state);
                tokio::spawn(send_all(send, all, list_entry::Entry::Namespace));
            }
            What::Segments => {
                let all = segments(&node).into_iter().take(limit).collect();
                tokio::spawn(send_all(send, all, list_entry::Entry::Segment));
            }
            What::Pins => {
                let all = pins(&node).into_iter().take(limit).collect();
                tokio::spawn(send_all(send, all, list_entry::Entry::Pin));
            }
            What::Unspecified => {
                return Err(Status::invalid_argument("field `what` is missing"));
            }
        }
        let entries = ReceiverStream::new(entries);
        Ok(Response::new(Box::pin(entries.map(|entry| Ok(v1::ListEntry { entry: Some(entry) })))))
    }

    async fn inspect(&self, request: Request<v1::InspectRequest>) -> Answered<v1::InspectResponse> {
        let v1::InspectRequest { subject, hash_digits } = request.into_inner();
        match subject {
            Some(inspect_request::Subject::HashPrefix(prefix)) => {
                let digits = match hash_digits {
                    0 => 2 * prefix.len(),
                    digits => usize::try_from(digits).expect("32 bits fit"),
                };
                let found = self.node.blocks_named(&prefix, digits, AMBIGUOUS_MAX);
                if found.is_empty() {
                    return Err(Status::not_found("no resident block has a hash that begins so"));
                }
                let mut answer = v1::InspectResponse::default();
                // Shards of a block share its hash: more than one is no mistake.
                for view in found {
                    answer.records.push(self.node.inspect_record(view).await);
                }
                Ok(Response::new(answer))
            }
            Some(inspect_request::Subject::Segment(name)) => self.inspect_segment(name),
            None => Err(Status::invalid_argument("field `subject` is missing")),
        }
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Answered<v1::ExplainResponse> {
        let subject = request.into_inner().subject;
        let explaining = self.blocking(move |node| match subject {
            Some(explain_request::Subject::Prompt(name)) => {
                prompt(node, &name, |asked, prompt| node.explain(asked, prompt))
                    .map(|explained| explained::answer(node, explained))
            }
            Some(explain_request::Subject::Blocks(names)) => {
                let hashes = explained::hashes(&names)?;
                Ok(explained::answer(node, node.explain_blocks(names.shard, &hashes)))
            }
            None => Err(Status::invalid_argument("field `subject` is missing")),
        });
        Ok(Response::new(explaining.await?))
    }

    async fn verify(&self, request: Request<v1::VerifyRequest>) -> Answered<Self::VerifyStream> {
        let rate = request.into_inner().bytes_per_second;
        let (send, progress) = mpsc::channel(16);
        let node = Arc::clone(&self.node);
        tokio::spawn(async move { node.verify(rate, &send).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(progress).map(Ok))))
    }

    async fn pin(&self, request: Request<v1::PinRequest>) -> Answered<v1::PinResponse> {
        let v1::PinRequest { prefix, ttl_ms } = request.into_inner();
        let time = (ttl_ms > 0).then(|| Duration::from_millis(ttl_ms));
        let pinning = self.blocking(move |node| {
            let top = match prefix {
                Some(pin_request::Prefix::Block(name)) => key(&name)?,
                Some(pin_request::Prefix::Prompt(name)) => {
                    let end = prompt(node, &name, |asked, prompt| node.resident_end(asked, prompt));
                    end?.map_err(|error| status::of_pin(&error.into()))?
                }
                None => return Err(Status::invalid_argument("field `prefix` is missing")),
            };
            let pinned = node.pin(top, time).map_err(|error| status::of_pin(&error))?;
            Ok((top, pinned))
        });
        let (top, Pinned { blocks, bytes }) = pinning.await?;
        Ok(Response::new(v1::PinResponse { block: Some(name(top)), blocks, bytes }))
    }

    async fn unpin(&self, request: Request<v1::UnpinRequest>) -> Answered<v1::UnpinResponse> {
        let prefix = request.into_inner().prefix;
        let unpinning = self.blocking(move |node| {
            let tops = match prefix {
                Some(unpin_request::Prefix::Block(name)) => vec![key(&name)?],
                Some(unpin_request::Prefix::Prompt(name)) => {
                    prompt(node, &name, |asked, prompt| {
                        let key = |&sequence| BlockKey { sequence, shard: asked.shard };
                        asked.names(prompt).iter().map(key).collect()
                    })?
                }
                None => return Err(Status::invalid_argument("field `prefix` is missing")),
            };
            node.unpin(&tops).map_err(|error| status::of_pin(&error))
        });
        Ok(Response::new(v1::UnpinResponse { pins: unpinning.await? }))
    }

    async fn evict(&self, request: Request<v1::EvictRequest>) -> Answered<v1::EvictResponse> {
        let v1::EvictRequest { sequence_hash, shard } = request.into_inner();
        let key = key(&v1::BlockName { sequence_hash, shard })?;
        let blocks = self.node.evict(&[key], Eviction::Evict);
        self.node.removed_for_good().await;
        Ok(Response::new(v1::EvictResponse { blocks }))
    }

    async fn drop_namespace(
        &self,
        request: Request<v1::DropNamespaceRequest>,
    ) -> Answered<v1::EvictResponse> {
        let digest = digest(&request.into_inner().namespace_digest)?;
        let dropping = self.blocking(move |node| {
            node.drop_namespace(digest).map_err(|error| status::of_invalidate(&error))
        });
        Ok(Response::new(v1::EvictResponse { blocks: dropping.await?.blocks }))
    }

    async fn set_epoch(
        &self,
        request: Request<v1::SetEpochRequest>,
    ) -> Answered<v1::SetEpochResponse> {
        let v1::SetEpochRequest { namespace_digest, epoch } = request.into_inner();
        let digest = digest(&namespace_digest)?;
        let setting = self.blocking(move |node| {
            node.set_epoch(digest, epoch).map_err(|error| status::of_invalidate(&error))
        });
        let Invalidated { epoch, blocks } = setting.await?;
        Ok(Response::new(v1::SetEpochResponse { epoch, blocks }))
    }

    async fn nodes(&self, _: Request<v1::NodesRequest>) -> Answered<v1::NodesResponse> {
        fleet::nodes(&self.node).map(Response::new)
    }

    async fn forget_node(
        &self,
        request: Request<v1::ForgetNodeRequest>,
    ) -> Answered<v1::ForgetNodeResponse> {
        fleet::forget(&self.node, request.into_inner().node).await?;
        Ok(Response::new(v1::ForgetNodeResponse {}))
    }

    async fn r#where(&self, request: Request<v1::WhereRequest>) -> Answered<v1::WhereResponse> {
        let subject = request.into_inner().subject;
        let naming = self.blocking(move |node| match subject {
            Some(where_request::Subject::Prompt(name)) => {
                prompt(node, &name, |asked, prompt| (asked.shard, asked.names(prompt).to_vec()))
            }
            Some(where_request::Subject::Blocks(names)) => {
                Ok((names.shard, explained::hashes(&names)?))
            }
            None => Err(Status::invalid_argument("field `subject` is missing")),
        });
        let (shard, hashes) = naming.await?;
        fleet::locate(&self.node, shard, &hashes).await.map(Response::new)
    }

    async fn drain(&self, _: Request<v1::DrainRequest>) -> Answered<v1::DrainResponse> {
        self.node.begin_drain();
        self.drain.send_replace(true);
        Ok(Response::new(v1::DrainResponse {}))
    }
}

impl AdminService {
    /// Does what takes a while, or syncs, on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Node) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let node = Arc::clone(&self.node);
        let working = tokio::task::spawn_blocking(move || work(&node)).await;
        working.map_err(|_| Status::internal("call broken off"))?
    }

    fn inspect_segment(&self, name: v1::SegmentName) -> Answered<v1::InspectResponse> {
        let of = |info: &v1::SegmentInfo| (info.drive, info.segment) == (name.drive, name.segment);
        let segment = segments(&self.node).into_iter().find(of);
        let segment = segment.ok_or_else(|| Status::not_found("no such segment"))?;
        let drive = DriveId(u8::try_from(name.drive).expect("it was found"));
        let group = Group::new(drive, SegmentId(name.segment)).expect("it was found");
        let blocks = self.node.blocks_of(group).into_iter().map(BlockView::info).collect();
        let answer = v1::InspectResponse { records: Vec::new(), segment: Some(segment), blocks };
        Ok(Response::new(answer))
    }
}

/// Does `work` with a prompt as it is named over the wire.
fn prompt<T>(
    node: &Node,
    name: &v1::PromptName,
    work: impl FnOnce(&Registration, Prompt<'_>) -> T,
) -> Result<T, Status> {
    let registration = node.asking_as(digest(&name.namespace_digest)?, name.shard);
    let registration = registration.map_err(status::of_name)?;
    match &name.prompt {
        Some(prompt_name::Prompt::Tokens(bytes)) => {
            let tokens = wire::tokens(bytes).map_err(status::of_wire)?;
            let extra_keys = &name.extra_keys;
            Ok(work(&registration, Prompt::Tokens { tokens: &tokens, extra_keys }))
        }
        Some(prompt_name::Prompt::Engine(engine)) => {
            Ok(work(&registration, Prompt::Engine(&engine.hashes)))
        }
        None => Err(status::of_wire(wire::WireError::Missing { field: "prompt" })),
    }
}

fn key(name: &v1::BlockName) -> Result<BlockKey, Status> {
    let hash = wire::array("sequence_hash", &name.sequence_hash).map_err(status::of_wire)?;
    Ok(BlockKey { sequence: SequenceHash(hash), shard: name.shard })
}

fn name(key: BlockKey) -> v1::BlockName {
    v1::BlockName { sequence_hash: key.sequence.0.to_vec(), shard: key.shard }
}

fn digest(bytes: &[u8]) -> Result<NamespaceDigest, Status> {
    wire::array("namespace_digest", bytes).map(NamespaceDigest).map_err(status::of_wire)
}

async fn list_blocks(node: &Node, limit: usize, send: &mpsc::Sender<list_entry::Entry>) {
    let keys = node.keys(limit);
    for some in keys.chunks(LISTED_AT_ONCE) {
        for view in node.views(some) {
            if send.send(list_entry::Entry::Block(view.info())).await.is_err() {
                return;
            }
        }
    }
}

async fn send_all<T>(
    send: mpsc::Sender<list_entry::Entry>,
    all: Vec<T>,
    entry: fn(T) -> list_entry::Entry,
) {
    for one in all {
        if send.send(entry(one)).await.is_err() {
            return;
        }
    }
}

fn info(known: &crate::namespaces::Known, epoch: u64) -> v1::NamespaceInfo {
    let described = known.described.as_ref();
    let text = |of: fn(&Namespace) -> &String| described.map(|d| of(d).clone()).unwrap_or_default();
    v1::NamespaceInfo {
        digest: known.digest.0.to_vec(),
        blocks: known.blocks,
        bytes: known.bytes,
        tenant: text(|described| &described.tenant),
        model: text(|described| &described.model),
        epoch,
    }
}

fn pins(node: &Node) -> Vec<v1::PinInfo> {
    let now = unix_ms();
    let mut state = node.state();
    state.expire_pins(now);
    let info = |(top, until): (BlockKey, Until)| {
        let Pinned { blocks, bytes } = state.pinned_by(top);
        let namespace = state.chain.get(top).map(|place| state.namespaces.get(place.namespace));
        v1::PinInfo {
            block: Some(name(top)),
            namespace_digest: namespace.map(|known| known.digest.0.to_vec()).unwrap_or_default(),
            blocks,
            bytes,
            left_ms: until.map_or(0, |until| until.saturating_sub(now)),
        }
    };
    state.pins.all().map(info).collect()
}

fn segments(node: &Node) -> Vec<v1::SegmentInfo> {
    let mut all = Vec::new();
    for (drive, disk) in node.numbered_disks() {
        let statuses = disk.drive.segments();
        let state = node.state();
        for status in statuses {
            let Some(group) = Group::new(drive, status.id) else { continue };
            let used = state.segments.get(group);
            all.push(v1::SegmentInfo {
                drive: drive.0.into(),
                segment: status.id.0,
                generation: status.generation.0,
                state: match status.state {
                    SegmentState::Free => "free",
                    SegmentState::Open => "open",
                    SegmentState::Sealed => "sealed",
                    SegmentState::Lost => "lost",
                }
                .into(),
                live_blocks: used.live_blocks,
                live_bytes: used.live_bytes,
                end: status.end,
            });
        }
    }
    all
}

fn stats(node: &Node, peers: Vec<Report>) -> v1::StatsResponse {
    let count = |size: usize| u64::try_from(size).expect("usize fits");
    let mut state = node.state();
    state.expire_pins(unix_ms());
    let drives = node.disks.all().map(|(id, disk)| match disk {
        Ok(disk) => drive_stats(&state, id, disk),
        Err(missing) => v1::DriveStats {
            path: missing.path.display().to_string(),
            io_engine: DriveStats::missing(0).io_engine.into(),
            capacity_bytes: missing.capacity_bytes,
            withdrawn: format!("{}: {}", Withdrawn::Missing, missing.why()),
            ..v1::DriveStats::default()
        },
    });
    let metrics = &node.metrics;
    v1::StatsResponse {
        version: env!("CARGO_PKG_VERSION").into(),
        uptime_ms: u64::try_from(node.clock.uptime().as_millis()).unwrap_or(u64::MAX),
        blocks: count(state.chain.len()),
        index_bytes: state.chain.bytes(),
        host_frames: count(state.host.len()),
        host_bytes: state.host.bytes(),
        arena_bytes: node.arena.mapping().bytes_len(),
        sessions: count(state.sessions.len()),
        leases: count(state.leases.len()),
        reservations: count(state.leases.reservations()),
        lookups: metrics.lookups.get(),
        lookup_blocks: metrics.lookup_blocks.get(),
        matched_blocks: metrics.matched_blocks.get(),
        loaded_blocks_host: metrics.loaded_blocks.of(Source::Host).get(),
        loaded_blocks_ssd: metrics.loaded_blocks.of(Source::Ssd).get(),
        missed_blocks: metrics.missed_blocks.total(),
        saved_blocks: metrics.saved_blocks.get(),
        refused_blocks: metrics.refused_blocks.total(),
        evicted_blocks: metrics.evicted_blocks.total(),
        damaged_blocks: metrics.damaged_blocks.get(),
        restart_us: u64::try_from(node.restart.elapsed.as_micros()).unwrap_or(u64::MAX),
        restart_source: if node.restart.from_catalog { "catalog" } else { "disk" }.into(),
        drives: drives.collect(),
        pins: count(state.pins.len()),
        loaded_blocks_peer: metrics.loaded_blocks.of(Source::Peer).get(),
        sent_blocks: metrics.sent_blocks.get(),
        links: count(state.links.len()),
        peers: peers.into_iter().map(peer).collect(),
        directory: fleet::stats(node),
    }
}

fn peer(report: Report) -> v1::PeerStats {
    let Report { address, state, reason, bytes_per_second, fetched_blocks, missed_blocks } = report;
    let state = state.into();
    v1::PeerStats { address, state, reason, bytes_per_second, fetched_blocks, missed_blocks }
}

fn drive_stats(state: &State, id: DriveId, disk: &Disk) -> v1::DriveStats {
    let stats = disk.drive.stats();
    v1::DriveStats {
        path: disk.drive.path().display().to_string(),
        io_engine: stats.io_engine.into(),
        writable: stats.writable,
        capacity_bytes: stats.capacity_bytes,
        segment_bytes: stats.segment_bytes,
        segments: stats.segments,
        segments_free: u32::try_from(stats.segments_free).unwrap_or(u32::MAX),
        live_bytes: state.segments.live_bytes(id),
        pinned_bytes: state.segments.pinned_bytes(id),
        read_bytes: stats.read_bytes,
        written_bytes: stats.written_bytes,
        moved_bytes: disk.moved_bytes.load(Ordering::Relaxed),
        queued_read_bytes: stats.queued_read_bytes,
        queued_write_bytes: stats.queued_write_bytes,
        checksum_failures: stats.checksum_failures,
        read_errors: stats.read_errors,
        write_errors: stats.write_errors,
        withdrawn: stats.withdrawn.map(|why| why.to_string()).unwrap_or_default(),
    }
}
