//! Proves what a client does when its sidecar or its own caller goes away, against a sidecar that
//! waits and dies when told to: nothing hangs, no lease and no slot is lost, and the next call
//! finds whoever serves then.

use crate::keeper::PAUSE_MIN;
use crate::v1::{MissReason, Namespace, Refusal};
use crate::{
    Absence, Client, ClientConfig, ClientError, KvCache, LayeredLoad, Load, Lookup, Prompt, Ready,
    Registration, Saved,
};
use fake::{Fake, PAYLOAD_BYTES, SLOT_BYTES, STRIPES, Seen};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tempfile::TempDir;

mod fake;
mod remote;

const LONG: Duration = Duration::from_secs(10);
/// Waited out where nothing comes; still enough for all that does.
const BRIEF: Duration = Duration::from_secs(1);

/// A client of a fake, and the fake.
struct Pair {
    directory: TempDir,
    fake: Fake,
    client: Client,
    registration: Registration,
}

impl Pair {
    async fn start(slots: u64, deadline: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut fake = Fake::start(&directory.path().join("s"));
        let client = Client::connect(config(&directory, slots, deadline)).await.unwrap();
        let registration = client.register(namespace(), 0, 9000).await.unwrap();
        fake.expect(Seen::Registered).await;
        Self { directory, fake, client, registration }
    }

    async fn lookup(&mut self, tokens: &[u32]) -> Lookup {
        let lookup = self.registration.lookup(Prompt::Tokens(tokens)).await.unwrap();
        self.fake.expect(Seen::LookedUp).await;
        lookup
    }
}

fn config(directory: &TempDir, slots: u64, deadline: Duration) -> ClientConfig {
    let address = format!("unix:{}", directory.path().join("s").display());
    let session_arena_bytes = slots * SLOT_BYTES;
    ClientConfig { address: address.parse().unwrap(), session_arena_bytes, deadline }
}

fn namespace() -> Namespace {
    Namespace { tenant: "one".into(), ..Namespace::default() }
}

/// A payload that shows which block it is of.
fn fill(block: u32, payload: &mut [u8]) {
    for (offset, length) in STRIPES {
        let (offset, length) = (usize::try_from(offset).unwrap(), usize::try_from(length).unwrap());
        payload[offset..][..length].fill(u8::try_from(block).unwrap() + 100);
    }
}

fn committed(blocks: impl IntoIterator<Item = u32>) -> Seen {
    let filled = |block| (block, Some(u8::try_from(block).unwrap() + 100));
    Seen::Committed { blocks: blocks.into_iter().map(filled).collect() }
}

#[test]
fn all_of_a_client_may_be_shared_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<Client>();
    check::<Registration>();
    check::<Lookup>();
    check::<Load>();
    check::<KvCache>();
    check::<LayeredLoad>();
}

#[tokio::test]
async fn sidecar_that_was_never_there_is_absent_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let absent = Client::connect(config(&directory, 1, LONG)).await.unwrap_err();
    assert!(absent.to_string().starts_with("no sidecar at unix:"), "{absent}");
    assert_eq!((absent.code(), absent.retry()), ("absent", true));
    assert!(matches!(absent, ClientError::Absent { source, .. }
        if matches!(*source, Absence::Socket { .. })));
}

#[tokio::test]
async fn restarted_sidecar_is_found_and_told_again_what_is_cached() {
    let mut pair = Pair::start(1, LONG).await;
    let stale = pair.lookup(&[1, 2]).await;
    pair.fake.kill().await;
    let absent = pair.registration.lookup(Prompt::Tokens(&[1, 2])).await.unwrap_err();
    assert!(matches!(absent, ClientError::Absent { .. }), "{absent:?}");

    let mut fake = Fake::start(&pair.directory.path().join("s"));
    let found = async {
        loop {
            match pair.registration.lookup(Prompt::Tokens(&[1, 2])).await {
                Ok(lookup) => return lookup,
                Err(ClientError::Absent { .. }) => tokio::task::yield_now().await,
                Err(other) => panic!("{other:?}"),
            }
        }
    };
    let fresh = tokio::time::timeout(LONG, found).await.unwrap();
    fake.expect(Seen::Registered).await;
    fake.expect(Seen::LookedUp).await;
    // The old lease is void, and is never named to the new sidecar: the first release that this
    // one sees is that of its own.
    assert!(!stale.release().await.unwrap());
    assert!(fresh.release().await.unwrap());
    fake.expect(Seen::Released { lease: 77 }).await;
    assert!(fake.seen.try_recv().is_err());
}

#[tokio::test]
async fn sidecar_that_drops_its_sessions_is_tried_with_pauses() {
    let directory = tempfile::tempdir().unwrap();
    let mut fake = Fake::start(&directory.path().join("s"));
    fake.gates.sessions.send_replace(false);
    let begun = tokio::time::Instant::now();
    let _client = Client::new(config(&directory, 1, LONG));
    for _ in 0..5 {
        fake.expect(Seen::SessionEnded).await;
    }
    assert!(begun.elapsed() >= 4 * PAUSE_MIN, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn refused_registration_names_the_field() {
    let pair = Pair::start(1, LONG).await;
    let refused = pair.client.register(Namespace::default(), 0, 9000).await.unwrap_err();
    assert_eq!((refused.code(), refused.retry()), ("invalid_argument", false));
    assert!(matches!(refused, ClientError::Refused { source, .. }
        if source.message().contains("tenant")));
}

#[tokio::test]
async fn arena_without_room_for_a_block_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let _fake = Fake::start(&directory.path().join("s"));
    let mut config = config(&directory, 1, LONG);
    config.session_arena_bytes = 8192;
    let client = Client::connect(config).await.unwrap();
    let refused = client.register(namespace(), 0, 9000).await.unwrap_err();
    assert!(matches!(
        refused,
        ClientError::ArenaTooSmall { payload_bytes: PAYLOAD_BYTES, arena_bytes: 8192 }
    ));
}

#[tokio::test]
async fn silent_sidecar_is_given_up_at_the_deadline() {
    let pair = Pair::start(1, BRIEF).await;
    pair.fake.gates.lookups.send_replace(false);
    let late = pair.registration.lookup(Prompt::Tokens(&[1])).await.unwrap_err();
    assert!(matches!(late, ClientError::Absent { source, .. }
        if matches!(*source, Absence::Late { .. })));
}

#[tokio::test]
async fn lookup_that_nobody_waits_for_is_released() {
    let mut pair = Pair::start(1, LONG).await;
    pair.fake.gates.lookups.send_replace(false);
    let registration = pair.registration.clone();
    let asking = tokio::spawn(async move { registration.lookup(Prompt::Tokens(&[1])).await });
    pair.fake.expect(Seen::LookedUp).await;
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    pair.fake.gates.lookups.send_replace(true);
    pair.fake.expect(Seen::Released { lease: 77 }).await;
}

#[tokio::test]
async fn session_ends_with_its_last_user() {
    let mut pair = Pair::start(1, LONG).await;
    let lookup = pair.lookup(&[1, 2]).await;
    drop((pair.client, pair.registration));
    assert!(pair.fake.seen.try_recv().is_err());
    drop(lookup);
    pair.fake.expect(Seen::Released { lease: 77 }).await;
    pair.fake.expect(Seen::SessionEnded).await;
}

#[tokio::test]
async fn lease_is_released_once_however_often_it_is_asked_for() {
    let mut pair = Pair::start(1, LONG).await;
    let lookup = pair.lookup(&[1, 2]).await;
    assert!(lookup.release().await.unwrap());
    assert!(!lookup.release().await.unwrap());
    drop((lookup, pair.client, pair.registration));
    pair.fake.expect(Seen::Released { lease: 77 }).await;
    pair.fake.expect(Seen::SessionEnded).await;
}

#[tokio::test]
async fn lease_that_is_over_is_not_renewed() {
    let mut pair = Pair::start(1, LONG).await;
    let lookup = pair.lookup(&[1]).await;
    assert!(!lookup.renew(LONG).await.unwrap());
}

#[tokio::test]
async fn load_shows_each_stripe_where_the_sidecar_put_it() {
    let mut pair = Pair::start(1, LONG).await;
    let lookup = pair.lookup(&[1, 2, 3, 4]).await;
    assert_eq!((lookup.prompt_blocks, lookup.matched_blocks), (4, 2));
    let mut load = lookup.load(0, 2, None).await.unwrap();
    let ready = |stripe| Some(Ready { stripe, first_block: 0, blocks: 2 });
    for stripe in 0..2 {
        assert_eq!(load.next().await.unwrap(), ready(stripe));
        assert!(load.stripe(0, stripe).iter().all(|byte| *byte == 1));
        assert!(load.stripe(1, stripe).iter().all(|byte| *byte == 2));
        assert_eq!(load.stripe(1, stripe).len(), [4000, 5000][stripe]);
    }
    assert_eq!(load.done(), None);
    assert_eq!(load.next().await.unwrap(), None);
    let done = load.done().unwrap();
    assert_eq!((done.loaded_blocks, done.reason), (2, MissReason::None));
    assert!(lookup.release().await.unwrap());

    let lookup = pair.registration.lookup(Prompt::Tokens(&[1])).await.unwrap();
    let nothing = lookup.load(0, 0, None).await.unwrap().done().unwrap();
    assert_eq!((nothing.loaded_blocks, nothing.reason), (0, MissReason::None));
    let outside = lookup.load(0, 1, None).await.unwrap_err();
    assert!(matches!(outside, ClientError::BlocksOutOfRange { available: 0, .. }));
}

#[tokio::test]
async fn load_from_a_sidecar_that_dies_is_a_miss() {
    let mut pair = Pair::start(1, LONG).await;
    pair.fake.gates.loads.send_replace(false);
    let lookup = pair.lookup(&[1, 2, 3, 4]).await;
    let mut load = lookup.load(0, 2, None).await.unwrap();
    assert!(load.next().await.unwrap().is_some());
    pair.fake.kill().await;
    assert_eq!(load.next().await.unwrap(), None);
    let done = load.done().unwrap();
    assert_eq!((done.loaded_blocks, done.reason), (0, MissReason::Unspecified));
    // What had arrived is still mapped, and does not count.
    assert!(load.stripe(0, 0).iter().all(|byte| *byte == 1));
    assert!(!lookup.release().await.unwrap());
}

#[tokio::test]
async fn save_larger_than_the_arena_goes_in_batches() {
    let mut pair = Pair::start(2, LONG).await;
    let lookup = pair.lookup(&[0; 5]).await;
    let saved = lookup.save(0, 5, fill, true).await.unwrap();
    assert_eq!(saved, Saved { offered: 5, saved: 5, refusal: Refusal::None, durable: true });
    for blocks in [0..2, 2..4, 4..5] {
        pair.fake.expect(Seen::CommitArrived).await;
        pair.fake.expect(committed(blocks)).await;
    }
}

#[tokio::test]
async fn refused_rest_of_a_save_is_called_off() {
    let mut pair = Pair::start(2, LONG).await;
    let lookup = pair.lookup(&[0; 6]).await;
    pair.fake.gates.space.store(3, Ordering::Relaxed);
    let saved = lookup.save(0, 6, fill, false).await.unwrap();
    assert_eq!(saved, Saved { offered: 6, saved: 3, refusal: Refusal::NoSpace, durable: false });
    for blocks in [0..2, 2..4] {
        pair.fake.expect(Seen::CommitArrived).await;
        pair.fake.expect(committed(blocks)).await;
    }
    pair.fake.expect(Seen::Aborted).await;
}

#[tokio::test]
async fn slot_of_a_save_that_nobody_waits_for_is_free_only_after_the_answer() {
    let mut pair = Pair::start(1, BRIEF).await;
    pair.fake.gates.commits.send_replace(false);
    let lookup = pair.lookup(&[0; 5]).await;
    tokio::select! {
        biased;
        saved = lookup.save(0, 2, fill, false) => panic!("{saved:?}"),
        () = pair.fake.expect(Seen::CommitArrived) => {}
    }
    // The only slot is still the sidecar's to read.
    let busy = lookup.save(2, 1, fill, false).await.unwrap();
    assert_eq!((busy.offered, busy.saved, busy.refusal), (1, 0, Refusal::Busy));
    pair.fake.expect(Seen::Aborted).await;
    pair.fake.gates.commits.send_replace(true);
    // It reads what was put there for it, and what never came is called off only then.
    pair.fake.expect(committed([0])).await;
    pair.fake.expect(Seen::Aborted).await;
    let saved = lookup.save(3, 1, fill, false).await.unwrap();
    assert_eq!((saved.saved, saved.refusal), (1, Refusal::None));
    pair.fake.expect(Seen::CommitArrived).await;
    pair.fake.expect(committed([3])).await;
}

#[tokio::test]
async fn save_to_a_sidecar_that_dies_ends_without_an_error() {
    let mut pair = Pair::start(1, LONG).await;
    pair.fake.gates.commits.send_replace(false);
    let lookup = pair.lookup(&[0; 2]).await;
    let saving = async { lookup.save(0, 1, fill, false).await.unwrap() };
    let dying = async {
        pair.fake.expect(Seen::CommitArrived).await;
        pair.fake.kill().await;
    };
    let (saved, ()) = tokio::join!(saving, dying);
    assert_eq!((saved.offered, saved.saved, saved.refusal), (1, 0, Refusal::Unspecified));
}
