//! Peers that do what no sidecar would: one that stands between two sidecars and meddles with what
//! passes, and one that makes all of it up.

use refrain_client::v1::peer_server::{Peer, PeerServer};
use refrain_client::v1::{self, OfferRefusal};
use refrain_index::hash::{KEY_SCHEME, prove};
use refrain_proto::data::{ASK_BYTES, Ask, HELLO_BYTES, Hello, Welcome};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// What happens to the bytes of a data connection on their way to whoever asked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meddling {
    Nothing,
    /// A bit of the byte at this place is another.
    Flip(u64),
    /// From there on they stay away, and the connection stays open.
    Stall(u64),
    /// The connection ends there.
    Cut(u64),
    /// No more than so many bytes pass in a second.
    Slow(u64),
    /// No data connection is let through.
    Refuse,
}

/// Stands before a sidecar, at the same ports of an address of its own.
pub(super) struct Meddler {
    pub(super) meddling: Arc<Mutex<Meddling>>,
    _tasks: JoinSet<()>,
}

impl Meddler {
    /// In front of a sidecar whose control and data are served at these addresses.
    pub(super) async fn before(ip: &str, control: &str, data: &str) -> (Self, String) {
        let meddling = Arc::new(Mutex::new(Meddling::Nothing));
        let mut tasks = JoinSet::new();
        let port = |address: &str| address.rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
        for (to, is_data) in [(control, false), (data, true)] {
            let listener = TcpListener::bind((ip, port(to))).await.unwrap();
            let (to, meddling) = (to.to_owned(), Arc::clone(&meddling));
            tasks.spawn(async move {
                let mut passing = JoinSet::new();
                loop {
                    let (from, _) = listener.accept().await.unwrap();
                    let now = *meddling.lock().unwrap();
                    let now = if is_data { now } else { Meddling::Nothing };
                    if matches!(now, Meddling::Refuse) {
                        continue;
                    }
                    let Ok(to) = TcpStream::connect(&to).await else { continue };
                    passing.spawn(pass(from, to, now));
                }
            });
        }
        (Self { meddling, _tasks: tasks }, format!("{ip}:{}", port(control)))
    }
}

async fn pass(near: TcpStream, far: TcpStream, meddling: Meddling) {
    let ((mut near_in, mut near_out), (mut far_in, mut far_out)) =
        (near.into_split(), far.into_split());
    let there = tokio::io::copy(&mut near_in, &mut far_out);
    let back = async {
        let (mut at, mut bytes) = (0, vec![0; 64 << 10]);
        loop {
            let read = far_in.read(&mut bytes).await?;
            let mut bytes = &mut bytes[..read];
            let end = at + u64::try_from(read).unwrap();
            let within = |place: u64| usize::try_from(place.saturating_sub(at)).unwrap();
            match meddling {
                Meddling::Flip(place) if (at..end).contains(&place) => bytes[within(place)] ^= 4,
                Meddling::Stall(place) | Meddling::Cut(place) if end > place => {
                    bytes = &mut bytes[..within(place)];
                }
                Meddling::Slow(rate) => {
                    let micros = u64::try_from(read).unwrap() * 1_000_000 / rate;
                    tokio::time::sleep(Duration::from_micros(micros)).await;
                }
                Meddling::Nothing
                | Meddling::Flip(_)
                | Meddling::Stall(_)
                | Meddling::Cut(_)
                | Meddling::Refuse => {}
            }
            near_out.write_all(bytes).await?;
            let is_cut = matches!(meddling, Meddling::Cut(place) if end > place);
            if matches!(meddling, Meddling::Stall(place) if end > place) {
                std::future::pending::<()>().await;
            }
            if is_cut || read == 0 {
                return Ok(());
            }
            at = end;
        }
    };
    let _: (_, std::io::Result<()>) = tokio::select! {
        ended = there => (Some(ended.is_ok()), Ok(())),
        ended = back => (None, ended),
    };
}

/// Claims to have every block that it is asked for.
#[derive(Clone)]
pub(super) struct Liar {
    secret: [u8; 32],
    data_port: u16,
    /// Offers more blocks than it was asked for.
    pub(super) more: u32,
}

impl Liar {
    /// Serves lies at an address of `ip`; whoever asks for bytes gets `bytes` for an answer.
    pub(super) async fn start(ip: &str, secret: [u8; 32], bytes: Vec<u8>) -> (String, JoinSet<()>) {
        let (data, control) = (TcpListener::bind((ip, 0)).await, TcpListener::bind((ip, 0)).await);
        let (data, control) = (data.unwrap(), control.unwrap());
        let address = control.local_addr().unwrap().to_string();
        let liar = Self { secret, data_port: data.local_addr().unwrap().port(), more: 3 };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let incoming = TcpListenerStream::new(control);
            let server = tonic::transport::Server::builder().add_service(PeerServer::new(liar));
            server.serve_with_incoming(incoming).await.unwrap();
        });
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = data.accept().await.unwrap();
                let bytes = bytes.clone();
                tokio::spawn(async move {
                    let mut hello = [0; HELLO_BYTES];
                    stream.read_exact(&mut hello).await.unwrap();
                    Hello::decode(&hello).unwrap();
                    stream.write_all(&Welcome::Accepted.encode()).await.unwrap();
                    let mut ask = [0; ASK_BYTES];
                    while stream.read_exact(&mut ask).await.is_ok() {
                        Ask::decode(&ask).unwrap();
                        if stream.write_all(&bytes).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        (address, tasks)
    }
}

#[tonic::async_trait]
impl Peer for Liar {
    type FetchStream = Pin<Box<dyn Stream<Item = Result<v1::FetchChunk, Status>> + Send>>;

    async fn meet(
        &self,
        request: Request<v1::MeetRequest>,
    ) -> Result<Response<v1::MeetResponse>, Status> {
        let nonce = request.into_inner().nonce.try_into().unwrap();
        Ok(Response::new(v1::MeetResponse {
            version: 1,
            key_scheme: KEY_SCHEME,
            proof: prove(&self.secret, &nonce).to_vec(),
            ticket: vec![7; 16],
            data_port: self.data_port.into(),
        }))
    }

    async fn offer(
        &self,
        request: Request<v1::OfferRequest>,
    ) -> Result<Response<v1::OfferResponse>, Status> {
        let request = request.into_inner();
        let blocks = u32::try_from(request.sequence_hashes.len() / 32).unwrap();
        Ok(Response::new(v1::OfferResponse {
            lease: 1,
            blocks: blocks - request.first_block + self.more,
            lease_ms: request.lease_ms,
            expected_us: 1,
            queued_bytes: 0,
            refusal: OfferRefusal::None.into(),
        }))
    }

    async fn fetch(
        &self,
        _: Request<v1::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        Err(Status::unimplemented("no"))
    }
}
