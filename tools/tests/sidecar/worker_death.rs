//! A worker that dies half-way leaves nothing behind: within a second its leases and reservations
//! are free, and nothing of a half-made save is ever found. Workers are sessions whose socket is
//! dropped, as the kernel does at a death, and a real process that is stopped half-way and killed.

use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{Node, Setup, refrain};
use crate::fixture::raw::Raw;
use crate::fixture::worker::Worker;
use crate::fixture::{PATIENCE, eventually};
use refrain_client::v1;
use rustix::process::{Pid, Signal, kill_process};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SHAPE: Shape = Shape::new(8, 131_072);
const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_death_half_way_through_a_load_ends_its_lease() {
    let node = Node::start(&Setup::default());
    let ids = prompt(1, 16);
    let worker = Worker::new(&node, SHAPE).await;
    worker.save(&ids).await;
    drop(worker);
    node.nothing_is_held(SECOND).await;

    let mut raw = Raw::with_session(&node, 1 << 20).await;
    let registered = raw.registered(SHAPE).await;
    let lookup = raw.lookup(registered.registration, &ids, 60_000).await.unwrap();
    assert_eq!(lookup.matched_blocks, 16);
    let request =
        v1::LoadRequest { lease: lookup.lease, first_block: 0, blocks: 16, deadline_ms: 0 };
    let mut load = raw.cache.load(request).await.unwrap().into_inner();
    assert!(load.message().await.unwrap().is_some());
    assert_eq!(node.stats().await.leases, 1);
    // The socket alone, as if the rest of the connection hung.
    drop(raw.session.take());
    node.nothing_is_held(SECOND).await;
    assert!(!raw.release(lookup.lease).await);
    Worker::new(&node, SHAPE).await.has_all(&ids).await;
}

#[tokio::test]
async fn a_death_between_reserve_and_commit_leaves_nothing_to_be_found() {
    let node = Node::start(&Setup::default());
    let ids = prompt(2, 8);
    let mut raw = Raw::with_session(&node, 16 << 20).await;
    let registered = raw.registered(SHAPE).await;
    let lookup = raw.lookup(registered.registration, &ids, 60_000).await.unwrap();
    let reserved = raw.reserve(lookup.lease, 0, 8).await.unwrap();
    assert_eq!(reserved.blocks.len(), 8);
    // Some of the blocks lie in the arena already.
    let arena = &raw.session.as_ref().unwrap().arena;
    arena.region(0, 4 << 20).unwrap().fill_with(|bytes| bytes.fill(7));
    let stats = node.stats().await;
    assert_eq!((stats.leases, stats.reservations, stats.sessions), (1, 1, 1));

    drop(raw.session.take());
    node.nothing_is_held(SECOND).await;
    let placed =
        v1::Placed { block: 0, payload_offset: 0, payload_bytes: registered.payload_bytes };
    let late = raw.commit(reserved.reservation, vec![placed]).await.unwrap_err();
    assert_eq!(late.code(), tonic::Code::NotFound, "{late}");
    assert_eq!(Worker::new(&node, SHAPE).await.matched(&ids).await, 0);
    assert_eq!(node.stats().await.blocks, 0);
}

#[tokio::test]
async fn a_write_that_breaks_off_leaves_nothing_to_be_found() {
    let node = Node::start(&Setup::default());
    let ids = prompt(3, 2);
    let mut raw = Raw::connect(&node).await;
    let registered = raw.registered(SHAPE).await;
    let lookup = raw.lookup(registered.registration, &ids, 0).await.unwrap();
    let reserved = raw.reserve(lookup.lease, 0, 2).await.unwrap();
    let (send, chunks) = tokio::sync::mpsc::channel(4);
    let start = v1::write_chunk::Start { reservation: reserved.reservation, durable: false };
    let data = v1::write_chunk::Chunk::Data(vec![7; 1 << 20].into());
    let mut cache = raw.cache.clone();
    let chunks = tokio_stream::wrappers::ReceiverStream::new(chunks);
    let writing = tokio::spawn(async move { cache.write(chunks).await });
    for chunk in [v1::write_chunk::Chunk::Start(start), data.clone(), data] {
        send.send(v1::WriteChunk { chunk: Some(chunk) }).await.unwrap();
    }
    writing.abort();
    assert!(writing.await.unwrap_err().is_cancelled());
    assert!(raw.release(lookup.lease).await);
    node.nothing_is_held(SECOND).await;
    assert_eq!(Worker::new(&node, SHAPE).await.matched(&ids).await, 0);
    assert_eq!(node.stats().await.blocks, 0);
}

/// `refrain replay` as a worker of its own process.
struct Process(Child);

impl Process {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Returns once it does nothing any more.
    fn freeze(&self) {
        self.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.0.id());
        while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Kills a worker as soon as it is caught holding `what`, which is then gone within a second.
async fn check_kill(node: &Node, trace: &str, what: fn(&v1::StatsResponse) -> bool) {
    let address = node.address().to_string();
    let replaying = ["replay", trace, "--block-bytes", "1MiB", "--concurrency", "2", "--json"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_refrain"));
    command.args(replaying).args(["--addr", &address]).stdout(Stdio::null());
    let mut worker = Process(command.stderr(Stdio::null()).spawn().unwrap());
    eventually("the worker is caught half-way", PATIENCE, async || {
        let ended = worker.0.try_wait().unwrap();
        assert!(ended.is_none(), "it ended before it was caught: {ended:?}");
        worker.freeze();
        if what(&node.stats().await) {
            return Some(());
        }
        worker.signal(Signal::CONT);
        None
    })
    .await;
    worker.signal(Signal::KILL);
    node.nothing_is_held(SECOND).await;
}

#[tokio::test]
async fn a_killed_process_frees_what_it_held_and_spoils_nothing() {
    let setup = Setup { capacity: 256 << 20, segment: 16 << 20, ..Setup::default() };
    let node = Node::start(&setup);
    let trace = node.config().with_file_name("trace.jsonl");
    let trace = trace.to_str().unwrap();
    assert_eq!(refrain(["workload", "--requests", "300", "--out", trace]).code, 0);
    check_kill(&node, trace, |stats| stats.reservations > 0).await;
    check_kill(&node, trace, |stats| stats.leases > 0 && stats.reservations == 0).await;

    let address = node.address().to_string();
    let replaying = ["replay", trace, "--block-bytes", "1MiB", "--limit", "20", "--json"];
    let [replay, trace, b, size, l, n, json] = replaying;
    let whole = refrain([replay, trace, b, size, l, n, json, "--addr", &address]);
    assert_eq!((whole.code, &whole.json()["wrong_bytes"]), (0, &0.into()), "{whole:?}");
}
