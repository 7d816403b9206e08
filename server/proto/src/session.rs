//! The handshake that makes a connection a session.
//!
//! The worker connects to the socket beside the gRPC one, sends a [`Hello`] with its session
//! arena's descriptor, and gets a [`Welcome`] with one of the load arena. Nothing else is ever
//! sent: the connection stays open for as long as the session lasts, and its end is the worker's
//! death (or the sidecar's).
//!
//! Both messages are 64 bytes, little-endian, unused bytes zero. All functions block, for no longer
//! than the timeouts that the caller has set on the stream.

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Raised when the messages change.
pub const VERSION: u32 = 1;

const MESSAGE_SIZE: usize = 64;
const HELLO_MAGIC: [u8; 8] = *b"REFRAINH";
const WELCOME_MAGIC: [u8; 8] = *b"REFRAINW";

/// Where sessions are opened, beside the socket of the gRPC server.
pub fn socket_path(grpc: &Path) -> PathBuf {
    let mut path = grpc.as_os_str().to_owned();
    path.push(".session");
    path.into()
}

/// What a worker opens its session with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// As sent: whoever receives it decides whether it is one that it speaks.
    pub version: u32,
    pub session_arena_bytes: u64,
}

/// What the sidecar answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    pub version: u32,
    pub status: Status,
    pub session: [u8; 16],
    pub load_arena_bytes: u64,
}

impl Welcome {
    /// An answer that opens no session.
    pub fn refusal(status: Status) -> Self {
        Self { version: VERSION, status, session: [0; 16], load_arena_bytes: 0 }
    }
}

/// Whether there is a session, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    Accepted = 0,
    /// The hello has a version that the sidecar does not speak.
    Version = 1,
    /// The sidecar is about to stop.
    Draining = 2,
    /// The session arena could not be mapped, or not be trusted to stay.
    BadArena = 3,
    TooManySessions = 4,
}

impl Status {
    fn decode(found: u32) -> Result<Self, HandshakeError> {
        [Self::Accepted, Self::Version, Self::Draining, Self::BadArena, Self::TooManySessions]
            .into_iter()
            .find(|status| *status as u32 == found)
            .ok_or(HandshakeError::UnknownStatus { found })
    }
}

/// Why there is no session.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HandshakeError {
    #[error("exchange the messages of a session")]
    Io { source: io::Error },
    #[error("the other side closed the connection before its message")]
    Closed,
    #[error("message has {received} bytes of {MESSAGE_SIZE}")]
    Short { received: usize },
    #[error("message starts with {found:?}: not the session socket of a sidecar")]
    Magic { found: [u8; 8] },
    #[error("message brings {found} descriptors, not 1")]
    Descriptors { found: usize },
    #[error("sidecar answers with the unknown status {found}")]
    UnknownStatus { found: u32 },
    #[error("sidecar opens no session: {status:?}")]
    Refused { status: Status },
}

/// Opens a session with the memory that saves will be read from.
pub fn send_hello(
    stream: &UnixStream,
    hello: &Hello,
    session_arena: BorrowedFd<'_>,
) -> Result<(), HandshakeError> {
    let mut message = [0; MESSAGE_SIZE];
    message[..8].copy_from_slice(&HELLO_MAGIC);
    message[8..12].copy_from_slice(&hello.version.to_le_bytes());
    message[16..24].copy_from_slice(&hello.session_arena_bytes.to_le_bytes());
    send(stream, &message, Some(session_arena))
}

/// A worker's hello and its session arena.
pub fn receive_hello(stream: &UnixStream) -> Result<(Hello, OwnedFd), HandshakeError> {
    let (message, descriptors) = receive(stream, HELLO_MAGIC)?;
    let hello = Hello { version: u32_at(&message, 8), session_arena_bytes: u64_at(&message, 16) };
    Ok((hello, descriptors.only()?))
}

/// Answers a hello; the descriptor is the load arena's, and goes with [`Status::Accepted`] alone.
pub fn send_welcome(
    stream: &UnixStream,
    welcome: &Welcome,
    load_arena: Option<BorrowedFd<'_>>,
) -> Result<(), HandshakeError> {
    let mut message = [0; MESSAGE_SIZE];
    message[..8].copy_from_slice(&WELCOME_MAGIC);
    message[8..12].copy_from_slice(&welcome.version.to_le_bytes());
    message[12..16].copy_from_slice(&(welcome.status as u32).to_le_bytes());
    message[16..32].copy_from_slice(&welcome.session);
    message[32..40].copy_from_slice(&welcome.load_arena_bytes.to_le_bytes());
    send(stream, &message, load_arena)
}

/// The sidecar's answer and its load arena; a refusal is an error.
pub fn receive_welcome(stream: &UnixStream) -> Result<(Welcome, OwnedFd), HandshakeError> {
    let (message, descriptors) = receive(stream, WELCOME_MAGIC)?;
    let status = Status::decode(u32_at(&message, 12))?;
    if status != Status::Accepted {
        return Err(HandshakeError::Refused { status });
    }
    let mut session = [0; 16];
    session.copy_from_slice(&message[16..32]);
    let version = u32_at(&message, 8);
    let welcome = Welcome { version, status, session, load_arena_bytes: u64_at(&message, 32) };
    Ok((welcome, descriptors.only()?))
}

fn send(
    stream: &UnixStream,
    message: &[u8; MESSAGE_SIZE],
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(), HandshakeError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() {
        let fits = ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        assert!(fits, "the space is for one descriptor");
    }
    let sent = retry(|| {
        rustix::net::sendmsg(stream, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)
    })?;
    // A message this small goes into an empty socket whole or not at all.
    if sent == MESSAGE_SIZE { Ok(()) } else { Err(HandshakeError::Short { received: sent }) }
}

/// Descriptors that came with a message; those not taken are closed.
struct Descriptors {
    received: Vec<OwnedFd>,
    /// There were more than we had room for; the kernel has closed them.
    truncated: bool,
}

impl Descriptors {
    fn only(mut self) -> Result<OwnedFd, HandshakeError> {
        let found = self.received.len() + usize::from(self.truncated);
        match self.received.pop() {
            Some(descriptor) if found == 1 => Ok(descriptor),
            _ => Err(HandshakeError::Descriptors { found }),
        }
    }
}

/// Takes a whole message in one call, so that the stream's timeout bounds all of the wait: a peer
/// that trickles bytes gains no time.
fn receive(
    stream: &UnixStream,
    magic: [u8; 8],
) -> Result<([u8; MESSAGE_SIZE], Descriptors), HandshakeError> {
    let mut message = [0; MESSAGE_SIZE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::WAITALL | RecvFlags::CMSG_CLOEXEC;
    let answer = retry(|| {
        rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut message)], &mut ancillary, flags)
    })?;
    let mut received = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            received.extend(descriptors);
        }
    }
    let truncated = answer.flags.contains(ReturnFlags::CTRUNC);
    match answer.bytes {
        0 => return Err(HandshakeError::Closed),
        MESSAGE_SIZE => {}
        received => return Err(HandshakeError::Short { received }),
    }
    match message.first_chunk() {
        Some(found) if *found == magic => Ok((message, Descriptors { received, truncated })),
        Some(found) => Err(HandshakeError::Magic { found: *found }),
        None => Err(HandshakeError::Short { received: MESSAGE_SIZE }),
    }
}

fn retry<T>(call: impl FnMut() -> rustix::io::Result<T>) -> Result<T, HandshakeError> {
    rustix::io::retry_on_intr(call)
        .map_err(|errno: Errno| HandshakeError::Io { source: errno.into() })
}

fn u32_at(message: &[u8; MESSAGE_SIZE], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&message[at..at + 4]);
    u32::from_le_bytes(bytes)
}

fn u64_at(message: &[u8; MESSAGE_SIZE], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&message[at..at + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests;
