//! The `Events` service: which blocks come and go, for routers.

use crate::events::{Change, Kind};
use crate::node::Node;
use crate::place::NamespaceId;
use refrain_index::chain::BlockKey;
use refrain_proto::v1::{self, change, events_server};
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

type Changes = Pin<Box<dyn Stream<Item = Result<v1::Change, Status>> + Send>>;

/// Blocks in one message of a snapshot.
const SNAPSHOT_RUN: usize = 1024;

#[derive(Debug)]
pub(crate) struct EventsService(pub(crate) Arc<Node>);

#[tonic::async_trait]
impl events_server::Events for EventsService {
    type WatchStream = Changes;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let snapshot = request.into_inner().snapshot;
        let (send, changes) = mpsc::channel(16);
        let node = Arc::clone(&self.0);
        tokio::spawn(async move { watch(&node, snapshot, &send).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(changes))))
    }
}

type Sender = mpsc::Sender<Result<v1::Change, Status>>;

/// Ends when nobody listens, or the listener fell behind and must start over.
async fn watch(node: &Node, snapshot: bool, send: &Sender) {
    let (mut changes, sequence, epoch) = {
        let state = node.state();
        let (changes, sequence) = state.events.subscribe();
        (changes, sequence, state.events.epoch)
    };
    let message = |sequence, change| Ok(v1::Change { epoch, sequence, change: Some(change) });
    if snapshot {
        let stored = |stored| message(sequence, stored);
        if send_resident(node, send, |_| true, stored).await.is_none() {
            return;
        }
        let end = change::Change::SnapshotEnd(true);
        if send.send(message(sequence, end)).await.is_err() {
            return;
        }
    }
    loop {
        let next = tokio::select! {
            next = changes.recv() => next,
            () = send.closed() => return,
        };
        let sent = match next {
            Ok(Change { sequence, namespace, kind, keys }) => {
                let change = match kind {
                    Kind::Stored => change::Change::Stored(names(node, namespace, &keys)),
                    Kind::Removed => change::Change::Removed(names(node, namespace, &keys)),
                    Kind::Named => {
                        let stored = |stored| message(sequence, stored);
                        match send_resident(node, send, |of| of == namespace, stored).await {
                            None => return,
                            // It stands there by itself.
                            Some(0) => change::Change::Stored(names(node, namespace, &[])),
                            Some(_) => continue,
                        }
                    }
                };
                message(sequence, change)
            }
            Err(RecvError::Lagged(missed)) => {
                let behind = Status::data_loss(format!("{missed} changes were missed: start over"));
                // The stream ends with this, whether or not it arrives.
                let _ = send.send(Err(behind)).await;
                return;
            }
            Err(RecvError::Closed) => return,
        };
        if send.send(sent).await.is_err() {
            return;
        }
    }
}

/// Sends all blocks of some namespaces as stored, those of one namespace and shard together, and says
/// how many; `None`: nobody listens. Page by page, as lookups wait for the index meanwhile: what comes
/// or goes while this runs is told of behind it, whether or not it is among these.
async fn send_resident(
    node: &Node,
    send: &Sender,
    is_told: impl Fn(NamespaceId) -> bool,
    message: impl Fn(change::Change) -> Result<v1::Change, Status>,
) -> Option<usize> {
    let pages = node.state().chain.pages();
    let mut told = 0;
    for page in 0..pages {
        let mut blocks: Vec<_> = {
            let state = node.state();
            let blocks = state.chain.page(page).map(|(key, place)| (place.namespace, key));
            blocks.filter(|(namespace, _)| is_told(*namespace)).collect()
        };
        let alike = |(namespace, key): &(NamespaceId, BlockKey)| (namespace.0, key.shard);
        blocks.sort_unstable_by_key(alike);
        for run in blocks.chunk_by(|left, right| alike(left) == alike(right)) {
            for run in run.chunks(SNAPSHOT_RUN) {
                let keys: Vec<_> = run.iter().map(|(_, key)| *key).collect();
                let stored = change::Change::Stored(names(node, run[0].0, &keys));
                send.send(message(stored)).await.ok()?;
            }
        }
        told += blocks.len();
    }
    Some(told)
}

fn names(node: &Node, namespace: NamespaceId, keys: &[BlockKey]) -> v1::BlockNames {
    let known = node.state().namespaces.get(namespace).clone();
    let told = known
        .engine_names
        .as_ref()
        .map(|names| keys.iter().map(|key| names.unwrap(key.sequence).to_vec()).collect());
    let of = known.described.as_deref();
    v1::BlockNames {
        namespace_digest: known.digest.0.to_vec(),
        shard: keys.first().map_or(0, |key| key.shard),
        sequence_hashes: keys.iter().map(|key| key.sequence.0.to_vec()).collect(),
        engine_hashes: told.unwrap_or_default(),
        model: of.map_or_else(String::new, |of| of.model.clone()),
        block_tokens: of.map_or(0, |of| of.block_tokens),
        shards: of.map_or(0, |of| u32::try_from(of.parallel.shards()).unwrap_or(u32::MAX)),
    }
}
