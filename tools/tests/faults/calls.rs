//! Callers that send anything: messages that are cut, flipped, grown or out of order, to every
//! method; connections and sessions of noise; a worker that writes into what is being saved; one
//! that never lets go. The sidecar stays up, answers every call in time, and serves others as before.

use crate::fixture::content::{self, Shape, prompt};
use crate::fixture::node::{MIB, Node, Setup};
use crate::fixture::raw::Raw;
use crate::fixture::worker::Worker;
use crate::fixture::{PATIENCE, eventually};
use crate::mutate::mutate;
use bytes::{Buf, BufMut};
use prost::Message;
use refrain_client::v1;
use refrain_proto::session;
use refrain_store::arena::Mapping;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

const SHAPE: Shape = Shape::new(4, 40_000);
/// Every call is answered by then, or there is a hang.
const ANSWERED: Duration = Duration::from_secs(20);
/// Hostile calls between two looks whether others are served.
const BETWEEN: u64 = 250;

/// Messages as they are: bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; input.remaining()];
        input.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}

/// Names that may or may not stand for something.
#[derive(Debug, Default)]
struct Names {
    registrations: Vec<u64>,
    leases: Vec<u64>,
    reservations: Vec<u64>,
    session: Vec<u8>,
}

impl Names {
    fn any(names: &[u64], random: &mut fastrand::Rng) -> u64 {
        match random.choice(names) {
            Some(name) if random.u8(..8) > 0 => *name,
            _ => random.u64(..),
        }
    }

    /// A method, and a message that it could be sent.
    #[expect(clippy::too_many_lines, reason = "one arm a method")]
    fn call(&self, random: &mut fastrand::Rng) -> (&'static str, Vec<u8>) {
        let lease = Self::any(&self.leases, random);
        let reservation = Self::any(&self.reservations, random);
        let (first_block, blocks) = (random.u32(..8), random.u32(..8));
        let ids = prompt(random.u64(..20), random.u64(..8));
        match random.u8(..16) {
            0 => (
                "Cache/Register",
                v1::RegisterRequest {
                    namespace: Some(SHAPE.namespace("hostile")),
                    shard: 0,
                    session: self.session.clone(),
                    block_bytes: SHAPE.block_bytes(),
                }
                .encode_to_vec(),
            ),
            1 | 2 => (
                "Cache/Lookup",
                v1::LookupRequest {
                    registration: Self::any(&self.registrations, random),
                    prompt: Some(v1::lookup_request::Prompt::Tokens(
                        content::tokens(&ids)
                            .into_iter()
                            .flat_map(u32::to_le_bytes)
                            .collect::<Vec<_>>()
                            .into(),
                    )),
                    extra_keys: Vec::new(),
                    lease_ms: random.u32(..3000),
                }
                .encode_to_vec(),
            ),
            3 => (
                "Cache/Load",
                v1::LoadRequest { lease, first_block, blocks, deadline_ms: 50 }.encode_to_vec(),
            ),
            4 => (
                "Cache/Read",
                v1::ReadRequest { lease, first_block, blocks, deadline_ms: 50 }.encode_to_vec(),
            ),
            5 => (
                "Cache/Renew",
                v1::RenewRequest { lease, lease_ms: random.u32(..2000) }.encode_to_vec(),
            ),
            6 => (
                "Cache/Release",
                v1::ReleaseRequest { lease, load_us: random.u64(..) }.encode_to_vec(),
            ),
            7 | 8 => {
                ("Cache/Reserve", v1::ReserveRequest { lease, first_block, blocks }.encode_to_vec())
            }
            9 => {
                let placed = |block| v1::Placed {
                    block,
                    payload_offset: random.u64(..300) * 4096,
                    payload_bytes: SHAPE.block_bytes(),
                };
                let blocks = (first_block..first_block + blocks).map(placed).collect();
                (
                    "Cache/Commit",
                    v1::CommitRequest { reservation, blocks, durable: false }.encode_to_vec(),
                )
            }
            10 => ("Cache/Abort", v1::AbortRequest { reservation }.encode_to_vec()),
            11 => {
                let start = v1::write_chunk::Start { reservation, durable: false };
                let chunk = Some(v1::write_chunk::Chunk::Start(start));
                ("Cache/Write", v1::WriteChunk { chunk }.encode_to_vec())
            }
            12 => {
                ("Admin/List", v1::ListRequest { what: random.i32(..6), limit: 50 }.encode_to_vec())
            }
            13 => {
                let name = v1::SegmentName { drive: random.u32(..3), segment: random.u32(..20) };
                let subject = Some(v1::inspect_request::Subject::Segment(name));
                ("Admin/Inspect", v1::InspectRequest { subject, hash_digits: 0 }.encode_to_vec())
            }
            14 => (
                "Admin/Evict",
                v1::EvictRequest { sequence_hash: vec![7; 32], shard: 0 }.encode_to_vec(),
            ),
            _ => ("Events/Watch", v1::WatchRequest::default().encode_to_vec()),
        }
    }

    /// What an answer names is good for later calls.
    fn learn(&mut self, method: &str, answer: &[u8]) {
        match method {
            "Cache/Register" => {
                let name = v1::RegisterResponse::decode(answer).map(|answer| answer.registration);
                self.registrations.extend(name);
            }
            "Cache/Lookup" => {
                self.leases.extend(v1::LookupResponse::decode(answer).map(|answer| answer.lease));
            }
            "Cache/Reserve" => {
                let name = v1::ReserveResponse::decode(answer).map(|answer| answer.reservation);
                self.reservations.extend(name);
            }
            _ => {}
        }
        for names in [&mut self.leases, &mut self.reservations, &mut self.registrations] {
            if names.len() > 16 {
                names.remove(0);
            }
        }
    }
}

pub(crate) fn run(count: u64, seed: u64) -> String {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(calls(count, seed))
}

async fn calls(count: u64, seed: u64) -> String {
    let mut random = fastrand::Rng::with_seed(seed);
    let setup = Setup::default()
        .with("lease_max = \"2s\"")
        .with("lease_default = \"2s\"")
        .with("load_arena = \"32MiB\"");
    let node = Node::start(&setup);
    let honest = Worker::new(&node, SHAPE).await;
    let kept = prompt(1 << 40, 6);
    honest.save(&kept).await;
    let session = Raw::with_session(&node, MIB).await;
    let mut names =
        Names { session: session.session.as_ref().unwrap().id.to_vec(), ..Names::default() };
    let mut channel = connect(&node).await;
    let (mut answered, mut refused) = (0u64, 0u64);
    for call in 0..count {
        let (method, message) = names.call(&mut random);
        let mut messages = vec![message];
        if random.u8(..3) > 0 {
            mutate(&mut messages[0], &mut random, 70_000);
        }
        match random.u8(..20) {
            0 => messages.clear(),
            1 => messages.extend((0..random.usize(..3)).map(|_| names.call(&mut random).1)),
            2 => {
                let data = vec![7; random.usize(..400_000)].into();
                let chunk = Some(v1::write_chunk::Chunk::Data(data));
                messages.push(v1::WriteChunk { chunk }.encode_to_vec());
            }
            _ => {}
        }
        match send(&channel, method, messages).await {
            Ok(answers) => {
                answered += 1;
                for answer in &answers {
                    names.learn(method, answer);
                }
            }
            Err(_) => refused += 1,
        }
        if random.u8(..100) == 0 {
            channel = connect(&node).await;
        }
        if random.u8(..20) == 0 {
            noise(&node, &mut random);
        }
        if call % BETWEEN == BETWEEN - 1 {
            let loaded = honest.load(&kept).await;
            // Unless the hostile saves had it reclaimed.
            assert!(loaded.loaded == loaded.matched && loaded.held, "{loaded:?}");
            honest.save(&kept).await;
            honest.has_all(&kept).await;
        }
    }
    drop((session, honest, channel));
    node.nothing_is_held(PATIENCE).await;
    assert!(!node.said().contains("panicked"), "{}", node.said());
    format!(
        "{count} calls, {answered} answered and {refused} refused, none late; others served between"
    )
}

async fn connect(node: &Node) -> Channel {
    let endpoint = Endpoint::from_shared(format!("unix:{}", node.socket().display())).unwrap();
    endpoint.connect().await.unwrap()
}

/// The first few answers, or why there are none.
async fn send(
    channel: &Channel,
    method: &str,
    messages: Vec<Vec<u8>>,
) -> Result<Vec<Vec<u8>>, Status> {
    let call = async {
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = format!("/refrain.v1.{method}").parse().unwrap();
        let request = Request::new(tokio_stream::iter(messages));
        let mut answers = client.streaming(request, path, Plain).await?.into_inner();
        let mut first = Vec::new();
        // One that watches for events is answered when there are some: whoever has heard enough, or
        // nothing for a while, goes.
        while first.len() < 4 && method != "Events/Watch" {
            match answers.message().await? {
                Some(answer) => first.push(answer),
                None => break,
            }
        }
        Ok(first)
    };
    tokio::time::timeout(ANSWERED, call).await.unwrap_or_else(|_| panic!("{method} hangs"))
}

/// A connection of noise to one of the sockets.
fn noise(node: &Node, random: &mut fastrand::Rng) {
    let to_sessions = random.bool();
    let path = if to_sessions { session::socket_path(&node.socket()) } else { node.socket() };
    let mut stream = UnixStream::connect(path).unwrap();
    let mut bytes = vec![0; random.usize(..200)];
    random.fill(&mut bytes);
    if to_sessions && random.bool() {
        bytes.resize(64, 0);
        bytes[..8].copy_from_slice(b"REFRAINH");
        bytes[8..12].copy_from_slice(&u32::from(random.u8(..4) > 0).to_le_bytes());
        let size = [0, 4096, MIB, u64::MAX, random.u64(..)][random.usize(..5)];
        bytes[16..24].copy_from_slice(&size.to_le_bytes());
    } else if !to_sessions && random.bool() {
        bytes.splice(..0, *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    }
    let descriptors = descriptors(random);
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&borrowed));
    }
    // It may have been shut already.
    let _ =
        rustix::net::sendmsg(&stream, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL);
    if random.bool() {
        let _ = stream.write_all(&bytes);
    }
    // A silent one keeps its connection until the sidecar's patience ends; most go at once.
    if random.u8(..4) == 0 {
        let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
        let _ = stream.read(&mut [0; 64]);
    }
}

/// Up to three files, of which none need be a session arena.
fn descriptors(random: &mut fastrand::Rng) -> Vec<OwnedFd> {
    let one = |random: &mut fastrand::Rng| match random.u8(..4) {
        0 => Mapping::create("hostile", 4096).unwrap().share_read_only().unwrap(),
        1 => Mapping::create("hostile", MIB).unwrap().share().unwrap(),
        2 => rustix::fs::memfd_create("unsealed", rustix::fs::MemfdFlags::CLOEXEC).unwrap(),
        _ => std::fs::File::open("/dev/null").unwrap().into(),
    };
    (0..random.usize(..4)).map(|_| one(random)).collect()
}

/// A worker that goes on writing into its arena while that is saved. What is stored is what the
/// checksums were made of, or a miss: never another's bytes, and nobody else's trouble.
pub(crate) fn scribbled(count: u64, seed: u64) -> String {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let node = Node::start(&Setup::default());
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut whole, mut missed) = (0u64, 0u64);
        let honest = Worker::new(&node, SHAPE).await;
        let mut raw = Raw::with_session(&node, 4 * MIB).await;
        let registered = raw.registered(SHAPE).await;
        for round in 0..count {
            let ids = prompt(random.u64(..), 4);
            let lookup = raw.lookup(registered.registration, &ids, 0).await.unwrap();
            let reserved = raw.reserve(lookup.lease, 0, 4).await.unwrap();
            let arena = raw.session.as_ref().unwrap().arena.region(0, 4 * MIB).unwrap();
            let block = registered.payload_bytes.next_multiple_of(4096);
            let placed = |block_index: u32| v1::Placed {
                block: block_index,
                payload_offset: u64::from(block_index) * block,
                payload_bytes: registered.payload_bytes,
            };
            let stop = AtomicBool::new(false);
            let placed = reserved.blocks.iter().map(|index| placed(*index)).collect();
            let committed = std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut byte = 0u8;
                    while !stop.load(Ordering::Relaxed) {
                        byte ^= 0xff;
                        arena.fill_with(|bytes| bytes.fill(byte));
                    }
                });
                let committed = tokio::task::block_in_place(|| {
                    tokio::runtime::Handle::current()
                        .block_on(raw.commit(reserved.reservation, placed))
                });
                stop.store(true, Ordering::Relaxed);
                committed
            });
            committed.unwrap();
            raw.release(lookup.lease).await;
            let lookup = raw.lookup(registered.registration, &ids, 0).await.unwrap();
            let (bytes, done) = match lookup.matched_blocks {
                0 => (Vec::new(), v1::load_event::Done::default()),
                matched => raw.read(lookup.lease, matched).await.unwrap(),
            };
            assert!(bytes.iter().all(|byte| matches!(*byte, 0 | 0xff)), "another's bytes");
            assert!(
                done.loaded_blocks == 4
                    || done.reason() == v1::MissReason::Damaged
                    || lookup.matched_blocks < 4
            );
            whole += u64::from(done.loaded_blocks);
            missed += 4 - u64::from(done.loaded_blocks);
            raw.release(lookup.lease).await;
            let own = prompt(1_000_000 + round, 2);
            honest.save(&own).await;
            honest.has_all(&own).await;
        }
        format!(
            "{whole} blocks stored as one moment left them, {missed} misses; no other block touched"
        )
    })
}

/// A worker that looks everything up and lets nothing go: reclaim goes on when its leases' time is up.
pub(crate) fn held(count: u64, seed: u64) -> String {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let setup = Setup { capacity: 32 * MIB, segment: 2 * MIB, ..Setup::default() };
        let node = Node::start(&setup.with("lease_max = \"1s\"").with("lease_default = \"1s\""));
        let honest = Worker::new(&node, SHAPE).await;
        let mut hog = Raw::connect(&node).await;
        let request = v1::RegisterRequest {
            namespace: Some(SHAPE.namespace("tenant")),
            ..hog.registering(SHAPE)
        };
        let registration = hog.register(request).await.unwrap().registration;
        let mut random = fastrand::Rng::with_seed(seed);
        let mut saved = Vec::new();
        for _ in 0..count {
            let ids = prompt(random.u64(..), 4);
            honest.save(&ids).await;
            saved.push(ids);
            for ids in saved.iter().rev().take(60) {
                hog.lookup(registration, ids, 1000).await.unwrap();
            }
        }
        let drive = &node.stats().await.drives[0];
        let times = drive.written_bytes / (32 * MIB);
        eventually("its leases end", PATIENCE, async || {
            (node.stats().await.leases == 0).then_some(())
        })
        .await;
        format!("{count} saves, {times} times the capacity, beside a worker that held all it could")
    })
}
