//! Proves over a socket pair that both sides read what the other one wrote, descriptor included,
//! and that nothing else passes for a message.

use super::*;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

const HELLO: Hello = Hello { version: VERSION, session_arena_bytes: 1 << 26 };
const WELCOME: Welcome = Welcome {
    version: VERSION,
    status: Status::Accepted,
    session: *b"sixteen bytes of",
    load_arena_bytes: 3 << 30,
};

fn pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    (ours, theirs)
}

/// The peer of a new pair: that the other end arrives shows as its bytes.
fn descriptor() -> (UnixStream, OwnedFd) {
    let (peer, sent) = pair();
    (peer, sent.into())
}

fn assert_same_file(mut peer: UnixStream, arrived: OwnedFd) {
    UnixStream::from(arrived).write_all(b"here").unwrap();
    let mut bytes = [0; 4];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"here");
}

#[test]
fn hello_and_welcome_arrive_with_their_descriptors() {
    let (worker, sidecar) = pair();
    let (session_peer, session_arena) = descriptor();
    send_hello(&worker, &HELLO, session_arena.as_fd()).unwrap();
    let (hello, arrived) = receive_hello(&sidecar).unwrap();
    assert_eq!(hello, HELLO);
    assert_same_file(session_peer, arrived);

    let (load_peer, load_arena) = descriptor();
    send_welcome(&sidecar, &WELCOME, Some(load_arena.as_fd())).unwrap();
    let (welcome, arrived) = receive_welcome(&worker).unwrap();
    assert_eq!(welcome, WELCOME);
    assert_same_file(load_peer, arrived);
}

#[test]
fn refusal_comes_without_a_descriptor_and_says_why() {
    for status in [Status::Version, Status::Draining, Status::BadArena, Status::TooManySessions] {
        let (worker, sidecar) = pair();
        send_welcome(&sidecar, &Welcome::refusal(status), None).unwrap();
        let answer = receive_welcome(&worker);
        assert!(
            matches!(answer, Err(HandshakeError::Refused { status: found }) if found == status),
            "{answer:?}"
        );
    }
}

#[test]
fn hello_of_another_version_is_left_to_the_sidecar_to_answer() {
    let (worker, sidecar) = pair();
    let (_peer, arena) = descriptor();
    send_hello(&worker, &Hello { version: 7, ..HELLO }, arena.as_fd()).unwrap();
    assert_eq!(receive_hello(&sidecar).unwrap().0.version, 7);
}

#[test]
fn message_cut_short_is_refused() {
    let (mut worker, sidecar) = pair();
    worker.write_all(&HELLO_MAGIC).unwrap();
    drop(worker);
    assert!(matches!(receive_hello(&sidecar), Err(HandshakeError::Short { received: 8 })));
    assert!(matches!(receive_hello(&sidecar), Err(HandshakeError::Closed)));
}

#[test]
fn silent_peer_is_given_up_at_the_timeout() {
    let (mut worker, sidecar) = pair();
    sidecar.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    assert!(matches!(
        receive_hello(&sidecar),
        Err(HandshakeError::Io { source }) if source.kind() == io::ErrorKind::WouldBlock
    ));
    worker.write_all(b"R").unwrap();
    assert!(matches!(receive_hello(&sidecar), Err(HandshakeError::Short { received: 1 })));
}

#[test]
fn other_magic_is_refused() {
    let (worker, sidecar) = pair();
    let (_peer, arena) = descriptor();
    send_welcome(&worker, &WELCOME, Some(arena.as_fd())).unwrap();
    assert!(matches!(receive_hello(&sidecar), Err(HandshakeError::Magic { found: WELCOME_MAGIC })));
}

#[test]
fn status_that_nobody_knows_is_no_session() {
    let (worker, mut sidecar) = pair();
    let mut message = [0; MESSAGE_SIZE];
    message[..8].copy_from_slice(&WELCOME_MAGIC);
    message[12] = 99;
    sidecar.write_all(&message).unwrap();
    assert!(matches!(receive_welcome(&worker), Err(HandshakeError::UnknownStatus { found: 99 })));
}

#[test]
fn message_brings_one_descriptor_exactly() {
    for count in [0, 2, 3, 9] {
        let (worker, sidecar) = pair();
        let (mut peer, arena) = descriptor();
        let mut message = [0; MESSAGE_SIZE];
        message[..8].copy_from_slice(&HELLO_MAGIC);
        let descriptors = vec![arena.as_fd(); count];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(9))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let parts = [IoSlice::new(&message)];
        rustix::net::sendmsg(&worker, &parts, &mut ancillary, SendFlags::NOSIGNAL).unwrap();

        let answer = receive_hello(&sidecar);
        assert!(matches!(answer, Err(HandshakeError::Descriptors { .. })), "{count}: {answer:?}");
        drop(arena);
        // Those that came are closed: the peer of the last one sees its end.
        assert_eq!(peer.read(&mut [0]).unwrap(), 0, "a descriptor of {count} leaked");
    }
}
