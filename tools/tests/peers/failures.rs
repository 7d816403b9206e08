//! A peer that dies, hangs or lies in the middle of a load costs misses, by the load's deadline, and
//! leaves nothing behind; it is left alone for some seconds, and asked again after that.

use super::hostile::{Liar, Meddler, Meddling};
use super::*;
use refrain_client::Lookup;
use refrain_client::v1::Refusal;
use refrain_proto::data::{EndReason, Piece};
use rustix::process::Signal;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is loaded while something goes wrong: in four stripes, and in many pieces.
const SHAPE: Shape = Shape::new(4, 300_000);
const BLOCKS: u32 = 24;

/// A node, a peer whose blocks it is to load, and somebody between them.
struct Scene {
    here: Node,
    there: Node,
    meddler: Meddler,
    ids: Vec<u64>,
    near: Worker,
    _home: TempDir,
}

impl Scene {
    async fn new(seed: u64) -> Self {
        let home = tempfile::tempdir().unwrap();
        let secret = secret(&home, "secret");
        let base = Setup { capacity: 128 * MIB, segment: 16 * MIB, ..Setup::default() };
        let (control, data) = (address(3), address(3));
        let there = setup(&base, &secret, &control, &[]);
        let there = Node::start(&there.with(&format!("peers.data_listen = \"{data}\"")));
        let ip = format!("127.0.1.{}", seed % 200 + 2);
        let (meddler, between) = Meddler::before(&ip, &control, &data).await;
        let here = Node::start(&setup(&base, &secret, &address(4), &[&between]));
        connected(&here).await;
        let ids = prompt(seed, BLOCKS.into());
        Worker::new(&there, SHAPE).await.save(&ids).await;
        let near = Worker::new(&here, SHAPE).await;
        Self { here, there, meddler, ids, near, _home: home }
    }

    fn meddle(&self, meddling: Meddling) {
        *self.meddler.meddling.lock().unwrap() = meddling;
    }

    async fn found(&self) -> Lookup {
        let lookup = self.near.lookup(&self.ids).await.unwrap();
        assert_eq!(lookup.matched_blocks, BLOCKS);
        lookup
    }

    /// Loads all of it; no more than `limit` passes.
    async fn load(&self, limit: Duration) -> Outcome {
        let lookup = self.found().await;
        let begun = Instant::now();
        let outcome = self.near.load_within(lookup, &self.ids, limit).await.unwrap();
        let slack = Duration::from_secs(5);
        assert!(begun.elapsed() < limit + slack, "{:?} for {limit:?}", begun.elapsed());
        outcome
    }

    /// Nothing is held for anybody, and all of it comes after some seconds.
    async fn recovers(&self) {
        self.meddle(Meddling::Nothing);
        nothing_is_left(&self.here).await;
        nothing_is_left(&self.there).await;
        // A load shares what another one is reading: what broke off may be read still, until it ends.
        eventually("all of it comes", PATIENCE, async || {
            (self.near.load(&self.ids).await.loaded == BLOCKS).then_some(())
        })
        .await;
        nothing_is_left(&self.here).await;
    }
}

/// Of what passes before the first stripe: the welcome, and a header with its announcement.
const FIRST_STRIPE: u64 = 16 + 24 + 4096 + 24;

#[tokio::test]
async fn a_flipped_bit_anywhere_makes_misses_and_no_wrong_byte() {
    // In an announcement, a header, a stripe, and the announcement of the next one.
    for (seed, place) in (20..).zip([16, 24, 500, FIRST_STRIPE + 5000, FIRST_STRIPE + 300_000 + 4])
    {
        let scene = Scene::new(seed).await;
        scene.meddle(Meddling::Flip(place));
        let loaded = scene.load(PATIENCE).await;
        assert!(loaded.loaded < BLOCKS && loaded.held, "byte {place}: {loaded:?}");
        assert_eq!(loaded.reason, MissReason::Peer, "byte {place}");
        scene.recovers().await;
    }
}

/// What came of a prefix is saved here, so that what is computed behind it can be.
#[tokio::test]
async fn what_is_computed_behind_a_load_that_broke_off_is_saved() {
    let scene = Scene::new(28).await;
    // From its memory the peer sends block after block, in each stripe.
    Worker::new(&scene.there, SHAPE).await.has_all(&scene.ids).await;
    // Each of four connections has six blocks: it ends within the last one's last stripe.
    let stripes = 6 * 4 * (24 + 300_000);
    scene.meddle(Meddling::Cut(16 + 6 * (24 + 4096) + stripes - 1000));
    let lookup = scene.found().await;
    let mut load = lookup.load(0, BLOCKS, Some(PATIENCE)).await.unwrap();
    while load.next().await.unwrap().is_some() {}
    let done = load.done().unwrap();
    assert_eq!((done.loaded_blocks, done.reason), (5, MissReason::Peer));
    let saved = scene.near.save_from(&lookup, &scene.ids, done.loaded_blocks).await.unwrap();
    assert_eq!((saved.saved, saved.refusal), (BLOCKS - 5, Refusal::None));
    assert!(lookup.release().await.unwrap());
    assert_eq!(tiers(&scene.near, &scene.ids).await[2], 0, "all of it is here");
}

#[tokio::test]
async fn a_connection_that_breaks_or_stalls_makes_misses_by_the_deadline() {
    let scene = Scene::new(30).await;
    scene.meddle(Meddling::Cut(FIRST_STRIPE + 1_000_000));
    let loaded = scene.load(PATIENCE).await;
    assert!(loaded.loaded < BLOCKS && loaded.reason == MissReason::Peer, "{loaded:?}");
    scene.recovers().await;

    let scene = Scene::new(31).await;
    scene.meddle(Meddling::Stall(FIRST_STRIPE + 1_000_000));
    let loaded = scene.load(Duration::from_secs(1)).await;
    assert!(loaded.loaded < BLOCKS && loaded.reason == MissReason::Deadline, "{loaded:?}");
    scene.recovers().await;
}

#[tokio::test]
async fn a_peer_that_is_killed_or_stopped_in_the_middle_makes_misses() {
    // Slow enough to be in the middle when it happens.
    let mut scene = Scene::new(32).await;
    scene.meddle(Meddling::Slow(4 * MIB));
    let load = scene.load(PATIENCE);
    let (loaded, ()) = tokio::join!(load, async {
        eventually("bytes are on their way", PATIENCE, async || {
            (scene.here.stats().await.leases > 0).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        scene.there.signal(Signal::KILL);
    });
    assert!(loaded.loaded < BLOCKS && loaded.reason == MissReason::Peer, "{loaded:?}");
    scene.there.end().await;
    nothing_is_left(&scene.here).await;
    scene.there.start_again();
    scene.recovers().await;

    let scene = Scene::new(33).await;
    let lookup = scene.found().await;
    scene.there.signal(Signal::STOP);
    let limit = Duration::from_secs(1);
    let loaded = scene.near.load_within(lookup, &scene.ids, limit).await.unwrap();
    assert!(loaded.loaded < BLOCKS && loaded.reason == MissReason::Deadline, "{loaded:?}");
    scene.there.signal(Signal::CONT);
    scene.recovers().await;
}

#[tokio::test]
async fn a_lookup_waits_for_a_stopped_peer_no_longer_than_its_deadline_and_then_not_at_all() {
    let mut fleet = Fleet::two();
    let mut setup = fleet.setups[0].clone();
    setup.config = setup.config.replace("lookup_deadline = \"10s\"", "lookup_deadline = \"300ms\"");
    fleet.nodes[0].stop().await;
    fleet.nodes[0].set_up(&setup);
    fleet.nodes[0].start_again();
    let [here, there] = &fleet.nodes[..] else { panic!("two nodes") };
    connected(here).await;
    let near = Worker::new(here, SMALL).await;
    there.signal(Signal::STOP);
    let mut took = Vec::new();
    for seed in 0..40 {
        let begun = Instant::now();
        assert_eq!(near.matched(&prompt(seed, 4)).await, 0);
        took.push(begun.elapsed());
    }
    there.signal(Signal::CONT);
    // The first waits; those behind it do not, until it is asked again, each time after twice as long: the
    // sixth time after three seconds.
    let waited = took.iter().filter(|took| **took >= Duration::from_millis(300)).count();
    assert!((1..=6).contains(&waited), "{took:?}");
}

#[tokio::test]
async fn a_peer_that_makes_all_of_it_up_makes_misses_only() {
    let home = tempfile::tempdir().unwrap();
    let secret = secret(&home, "secret");
    let complete = Piece::End { loaded: 4, reason: EndReason::Complete }.encode().to_vec();
    let lease = Piece::End { loaded: 0, reason: EndReason::Lease }.encode().to_vec();
    let headers = [&Piece::Header { block: 0 }.encode()[..], &[0; 4096]].concat();
    let beyond = Piece::Header { block: 9 }.encode().to_vec();
    let huge = Piece::Stripe { block: 0, stripe: 0, length: u64::MAX }.encode().to_vec();
    let answers =
        [Vec::new(), vec![0; 100], vec![0xff; 64], complete, lease, headers, beyond, huge];
    for answer in answers {
        let (liar, _tasks) = Liar::start("127.0.0.1", [6; 32], answer.clone()).await;
        let here = Node::start(&setup(&Setup::default(), &secret, &address(5), &[&liar]));
        connected(&here).await;
        let near = Worker::new(&here, SMALL).await;
        let lookup = near.lookup(&prompt(40, 4)).await.unwrap();
        assert_eq!(lookup.matched_blocks, 4, "no more than was asked for");
        let limit = Duration::from_secs(1);
        let loaded = near.load_within(lookup, &prompt(40, 4), limit).await.unwrap();
        assert_eq!((loaded.loaded, loaded.held), (0, true), "{answer:x?}: {loaded:?}");
        let reason = if answer.is_empty() { MissReason::Deadline } else { MissReason::Peer };
        assert!([reason, MissReason::Peer].contains(&loaded.reason), "{loaded:?}");
        nothing_is_left(&here).await;
    }
}

#[tokio::test]
async fn where_no_data_connection_can_be_made_blocks_come_as_messages() {
    let scene = Scene::new(41).await;
    scene.meddle(Meddling::Refuse);
    let loaded = scene.load(PATIENCE).await;
    assert_eq!((loaded.loaded, loaded.from_peer), (BLOCKS, BLOCKS), "{loaded:?}");
    assert!(scene.here.said().contains("bytes come over gRPC"), "{}", scene.here.said());
}

#[tokio::test]
async fn a_slow_peer_is_expected_to_be_slow() {
    let scene = Arc::new(Scene::new(42).await);
    let before = scene.found().await;
    let (fast, bytes) = (before.expected_peer, u64::from(BLOCKS) * SHAPE.block_bytes());
    assert!(before.expected_load >= fast && fast > Duration::ZERO);
    before.release().await.unwrap();
    let rate = 16 * MIB;
    scene.meddle(Meddling::Slow(rate));
    let loaded = scene.load(PATIENCE).await;
    assert_eq!(loaded.loaded, BLOCKS, "{loaded:?}");
    let other = prompt(43, BLOCKS.into());
    Worker::new(&scene.there, SHAPE).await.save(&other).await;
    let lookup = scene.near.lookup(&other).await.unwrap();
    let slow = lookup.expected_peer;
    lookup.release().await.unwrap();
    // Four connections share the load, each as slow as that.
    let least = Duration::from_micros(bytes * 1_000_000 / rate / 4 / 2);
    assert!(slow > least && slow > 2 * fast, "{slow:?}, before {fast:?}, at least {least:?}");
    assert!(slow < 8 * least, "{slow:?}: it is not as one connection alone would take");
}

#[tokio::test]
async fn a_peer_is_not_to_blame_for_a_load_that_waited_for_others() {
    let scene = Scene::new(44).await;
    // Small enough for memory to be there for all three, and still for four connections.
    let (other, small) = (prompt(45, 21), prompt(46, 1));
    let far = Worker::new(&scene.there, SHAPE).await;
    far.save(&other).await;
    far.save(&small).await;
    // Two loads of four connections each: those are all that there are.
    scene.meddle(Meddling::Slow(2 * MIB));
    let second = async {
        let lookup = scene.near.lookup(&other).await.unwrap();
        scene.near.load_within(lookup, &other, PATIENCE).await.unwrap()
    };
    let third = async {
        eventually("both are on their way", PATIENCE, async || {
            (scene.here.stats().await.leases == 2).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let lookup = scene.near.lookup(&small).await.unwrap();
        let waited = scene.near.load_within(lookup, &small, Duration::from_secs(1)).await.unwrap();
        (waited, scene.here.stats().await.peers[0].state.clone())
    };
    let (first, second, (third, state)) = tokio::join!(scene.load(PATIENCE), second, third);
    assert_eq!((first.loaded, second.loaded), (BLOCKS, 21), "{first:?} {second:?}");
    assert_eq!((third.loaded, third.reason), (0, MissReason::Deadline), "{third:?}");
    assert_eq!(state, "up");
}
