//! Proves what a client of another machine makes of answers that do not add up, and that what it was given
//! and nobody waits for any more is given back.

use super::fake::{Fake, PAYLOAD_BYTES, Seen};
use super::{LONG, namespace};
use crate::remote::{Registration, Transport};
use crate::v1::{MissReason, load_event::Done, read_chunk::Chunk};
use crate::{ClientError, Prompt, Remote, RemoteConfig};
use tempfile::TempDir;

async fn start() -> (TempDir, Fake, Registration) {
    let directory = tempfile::tempdir().unwrap();
    let mut fake = Fake::start(&directory.path().join("s"));
    let address = fake.address.to_string().parse().unwrap();
    let config = RemoteConfig { address, transport: Transport::Loopback, deadline: LONG };
    let remote = Remote::connect(config).await.unwrap();
    let registration = remote.register(namespace(), 0, 9000).await.unwrap();
    fake.expect(Seen::Registered).await;
    (directory, fake, registration)
}

/// As many whole payloads, and some bytes.
fn data(payloads: u64, more: u64) -> Chunk {
    Chunk::Data(vec![7; usize::try_from(payloads * PAYLOAD_BYTES + more).unwrap()].into())
}

fn done(loaded_blocks: u32, reason: MissReason) -> Chunk {
    let (host_blocks, ssd_blocks, peer_blocks) = (loaded_blocks, 0, 0);
    Chunk::Done(Done { loaded_blocks, reason: reason.into(), host_blocks, ssd_blocks, peer_blocks })
}

#[tokio::test]
async fn a_read_counts_where_its_bytes_are_those_that_it_says_and_else_costs_the_connection() {
    use MissReason::{Deadline, None as Whole, Unspecified};
    let cases = [
        (vec![data(1, 5), data(0, PAYLOAD_BYTES - 5), done(2, Whole)], Ok((2, Whole))),
        (vec![data(1, 0), done(1, Deadline)], Ok((1, Deadline))),
        (vec![data(2, 0)], Ok((0, Unspecified))),
        (vec![data(1, 0), done(2, Whole)], Err("other bytes than it counts")),
        (vec![data(1, 1), done(1, Deadline)], Err("other bytes than it counts")),
        (vec![data(2, 0), done(3, Whole)], Err("other bytes than it counts")),
        (vec![data(2, 0), data(0, 1), done(2, Whole)], Err("more bytes than were asked for")),
    ];
    for (chunks, expected) in cases {
        let (_directory, mut fake, registration) = start().await;
        let said = format!("{expected:?}");
        *fake.gates.read.lock().unwrap() = chunks;
        let lookup = registration.lookup(Prompt::Tokens(&[1, 2, 3, 4])).await.unwrap();
        fake.expect(Seen::LookedUp).await;
        let mut bytes = vec![0; usize::try_from(2 * PAYLOAD_BYTES).unwrap()];
        let is_used_on = expected.is_ok_and(|(_, reason)| reason != Unspecified);
        match (lookup.read(0, 2, &mut bytes, None).await, expected) {
            (Ok(found), Ok(expected)) => assert_eq!((found.loaded_blocks, found.reason), expected),
            (Err(ClientError::Answer { what, .. }), Err(expected)) => assert_eq!(what, expected),
            (found, _) => panic!("{found:?}, not {said}"),
        }
        assert!(lookup.release().await.unwrap(), "{said}");
        fake.expect(Seen::Released { lease: 77 }).await;
        // Another connection takes another registration.
        registration.layout().await.unwrap();
        if !is_used_on {
            fake.expect(Seen::Registered).await;
        }
        assert!(fake.seen.try_recv().is_err(), "{said}");
    }
}

#[tokio::test]
async fn a_lease_that_nobody_waits_for_any_more_is_given_back() {
    let (_directory, mut fake, registration) = start().await;
    fake.gates.lookups.send_replace(false);
    let prompt = [1, 2];
    let asking = registration.lookup(Prompt::Tokens(&prompt));
    tokio::select! {
        answer = asking => panic!("{answer:?}"),
        () = fake.expect(Seen::LookedUp) => {}
    }
    fake.gates.lookups.send_replace(true);
    fake.expect(Seen::Released { lease: 77 }).await;
}

#[test]
fn all_of_a_remote_client_may_be_shared_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<Remote>();
    check::<Registration>();
    check::<crate::remote::Lookup>();
}
