//! The `Events` service: which blocks come and go, for routers.

use crate::events::{Change, Kind};
use crate::node::Node;
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

/// Ends when nobody listens, or the listener fell behind and must start over.
async fn watch(node: &Node, snapshot: bool, send: &mpsc::Sender<Result<v1::Change, Status>>) {
    // One lock over both: what is in the snapshot is in no later change.
    let (mut changes, sequence, epoch, blocks) = {
        let state = node.state();
        let (changes, sequence) = state.events.subscribe();
        let blocks = if snapshot {
            state.chain.iter().map(|(key, place, _)| (place.namespace, key)).collect()
        } else {
            Vec::new()
        };
        (changes, sequence, state.events.epoch, blocks)
    };
    let message = |sequence, change| Ok(v1::Change { epoch, sequence, change: Some(change) });
    if snapshot {
        let mut blocks: Vec<_> = blocks;
        blocks.sort_unstable_by_key(|(namespace, key)| (namespace.0, key.shard));
        for alike in blocks.chunk_by(|l, r| (l.0, l.1.shard) == (r.0, r.1.shard)) {
            for run in alike.chunks(SNAPSHOT_RUN) {
                let keys: Vec<_> = run.iter().map(|(_, key)| *key).collect();
                let stored = change::Change::Stored(names(node, run[0].0, &keys));
                if send.send(message(sequence, stored)).await.is_err() {
                    return;
                }
            }
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
                let names = names(node, namespace, &keys);
                let change = match kind {
                    Kind::Stored => change::Change::Stored(names),
                    Kind::Removed => change::Change::Removed(names),
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

fn names(node: &Node, namespace: crate::place::NamespaceId, keys: &[BlockKey]) -> v1::BlockNames {
    v1::BlockNames {
        namespace_digest: node.state().namespaces.get(namespace).digest.0.to_vec(),
        shard: keys.first().map_or(0, |key| key.shard),
        sequence_hashes: keys.iter().map(|key| key.sequence.0.to_vec()).collect(),
    }
}
