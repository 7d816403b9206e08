//! The `Peer` service: what this node tells others that ask it.

use super::door::{Session, Sessions};
use super::sending;
use crate::lookup::RegisterError;
use crate::names::Names;
use crate::namespaces::Registration;
use crate::{status, wire};
use refrain_index::hash::{KEY_SCHEME, SequenceHash, prove};
use refrain_proto::v1::{self, OfferRefusal, peer_server};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

type Answered<T> = Result<Response<T>, Status>;

/// Raised when a peer of before would misunderstand.
pub(super) const VERSION: u32 = 1;

#[derive(Debug)]
pub(crate) struct PeerService(pub(crate) Arc<Sessions>);

impl PeerService {
    /// What a peer asks about, as its own registration.
    fn registration(
        &self,
        session: &Session,
        namespace: Option<v1::Namespace>,
        shard: u32,
    ) -> Result<Result<Arc<Registration>, OfferRefusal>, Status> {
        let namespace = wire::namespace(namespace).map_err(status::of_wire)?;
        let block_bytes = u64::from(namespace.layers).saturating_mul(namespace.layer_bytes);
        let node = &self.0.node;
        match node.register(&namespace, shard, block_bytes, Some(session.id)) {
            Ok(registered) => {
                node.registration(registered.id).map(Ok).ok_or_else(status::no_registration)
            }
            Err(RegisterError::Segment { .. } | RegisterError::Frame { .. }) => {
                Ok(Err(OfferRefusal::Size))
            }
            Err(error) => Err(status::of_register(&error)),
        }
    }
}

#[tonic::async_trait]
impl peer_server::Peer for PeerService {
    type FetchStream = Pin<Box<dyn Stream<Item = Result<v1::FetchChunk, Status>> + Send>>;

    async fn meet(&self, request: Request<v1::MeetRequest>) -> Answered<v1::MeetResponse> {
        let session = session(&request)?;
        let nonce = wire::array("nonce", &request.get_ref().nonce).map_err(status::of_wire)?;
        self.0.meet(&session);
        Ok(Response::new(v1::MeetResponse {
            version: VERSION,
            key_scheme: KEY_SCHEME,
            proof: prove(&self.0.node.secret, &nonce).to_vec(),
            ticket: session.ticket.to_vec(),
            data_port: self.0.data_port.into(),
        }))
    }

    async fn offer(&self, request: Request<v1::OfferRequest>) -> Answered<v1::OfferResponse> {
        let session = session(&request)?;
        let request = request.into_inner();
        let node = &self.0.node;
        if node.is_draining() {
            return Ok(Response::new(refused(OfferRefusal::Draining)));
        }
        let registration = self.registration(&session, request.namespace, request.shard)?;
        let registration = match registration {
            Ok(registration) => registration,
            Err(refusal) => return Ok(Response::new(refused(refusal))),
        };
        if node.state().epoch(registration.namespace) != request.epoch {
            return Ok(Response::new(refused(OfferRefusal::Epoch)));
        }
        let (hashes, rest) = request.sequence_hashes.as_chunks::<32>();
        if !rest.is_empty() {
            let (field, found) = ("sequence_hashes", request.sequence_hashes.len());
            let expected = 32 * hashes.len();
            return Err(status::of_wire(wire::WireError::Length { field, found, expected }));
        }
        let hashes = hashes.iter().map(|hash| SequenceHash(*hash)).collect();
        let lease = (request.lease_ms > 0).then(|| Duration::from_millis(request.lease_ms.into()));
        let found = node.lookup_names(&registration, Names::chained(hashes), lease);
        let matched = u32::try_from(found.tiers.len()).unwrap_or(u32::MAX);
        let blocks = matched.saturating_sub(request.first_block);
        if blocks == 0 {
            node.release(found.lease, None);
            return Ok(Response::new(refused(OfferRefusal::None)));
        }
        Ok(Response::new(v1::OfferResponse {
            lease: found.lease,
            blocks,
            lease_ms: u32::try_from(found.lease_time.as_millis()).unwrap_or(u32::MAX),
            expected_us: u64::try_from(found.expected_load.as_micros()).unwrap_or(u64::MAX),
            queued_bytes: node.metrics.send_queue_bytes.get(),
            refusal: OfferRefusal::None.into(),
        }))
    }

    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Answered<Self::FetchStream> {
        let node = Arc::clone(&self.0.node);
        let (send, chunks) = mpsc::channel(2);
        tokio::spawn(sending::send_messages(node, request.into_inner(), send));
        Ok(Response::new(Box::pin(ReceiverStream::new(chunks))))
    }
}

fn refused(refusal: OfferRefusal) -> v1::OfferResponse {
    v1::OfferResponse { refusal: refusal.into(), ..v1::OfferResponse::default() }
}

/// The connection that a call came over.
fn session<T>(request: &Request<T>) -> Result<Arc<Session>, Status> {
    let session = request.extensions().get::<Arc<Session>>().cloned();
    session.ok_or_else(|| Status::failed_precondition("peers are served over TCP alone"))
}
