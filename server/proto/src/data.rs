//! The data connection: KV of one sidecar on its way to another.
//!
//! It is a TCP connection beside the gRPC one that [`crate::v1::MeetResponse`] came over, to the port
//! that it names; inside TLS where that one is. All numbers are little-endian, unused bytes zero.
//!
//! 1. Whoever connects sends a [`Hello`] with the ticket, and gets a [`Welcome`].
//! 2. It sends an [`Ask`] for blocks of one lease.
//! 3. It gets pieces, each a [`Piece`] and the bytes that it announces. Of each block, the record's
//!    header of 4 KiB comes before its stripes. Stripes come in layer order over all blocks, as they
//!    are read and checked; padding between stripes does not travel. The last piece is
//!    [`Piece::End`].
//! 4. It says [`Ask::Taken`]: from then on the sender's memory may hold something else. Then 2.
//!
//! Nothing here is believed: whoever receives compares the header with the block that it asked for,
//! and each stripe with the checksum in that header. Where a message means nothing, the connection ends.

use thiserror::Error;

/// Raised when the messages change.
pub const VERSION: u32 = 1;

pub const HELLO_BYTES: usize = 32;
pub const WELCOME_BYTES: usize = 16;
pub const ASK_BYTES: usize = 32;
pub const PIECE_BYTES: usize = 24;
/// Bytes behind a [`Piece::Header`].
pub const HEADER_BYTES: u64 = 4096;

const HELLO_MAGIC: [u8; 8] = *b"REFRAIND";
const WELCOME_MAGIC: [u8; 8] = *b"REFRAINA";

/// What opens data connections of one gRPC connection.
pub type Ticket = [u8; 16];

/// Bytes that mean nothing.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataError {
    #[error("message starts with {found:?}: not a data connection of a sidecar")]
    Magic { found: [u8; 8] },
    #[error("message of the unknown kind {found}")]
    Kind { found: u32 },
    #[error("unused bytes of a message are not zero")]
    Unused,
    #[error("answer has the unknown status {found}")]
    Status { found: u32 },
    #[error("end of the unknown reason {found}")]
    Reason { found: u32 },
    #[error("piece of {found} bytes where {expected} are a header")]
    Header { found: u64, expected: u64 },
}

/// The first message of whoever connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// As sent: whoever receives it decides whether it is one that it speaks.
    pub version: u32,
    pub ticket: Ticket,
}

/// Whether there is a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Welcome {
    Accepted = 0,
    Version = 1,
    /// The gRPC connection that it belongs to has ended.
    Ticket = 2,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Blocks {
        lease: u64,
        /// Of the prompt.
        first: u32,
        blocks: u32,
        deadline_ms: u32,
    },
    /// All that was sent has arrived.
    Taken,
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The record's header of `block`, counted within what was asked for.
    Header { block: u32 },
    /// A stripe of `length` bytes.
    Stripe { block: u32, stripe: u32, length: u64 },
    /// Blocks from `loaded` on do not come, or not whole. No bytes follow.
    End { loaded: u32, reason: EndReason },
}

/// Why no more comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EndReason {
    Complete = 0,
    Deadline = 1,
    Damaged = 2,
    NoMemory = 3,
    Drive = 4,
    /// The lease has ended, or never had these blocks.
    Lease = 5,
}

impl Hello {
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..8].copy_from_slice(&HELLO_MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[16..].copy_from_slice(&self.ticket);
        bytes
    }

    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, DataError> {
        magic(bytes, HELLO_MAGIC)?;
        unused(&bytes[12..16])?;
        Ok(Self { version: u32_at(bytes, 8), ticket: array_at(bytes, 16) })
    }
}

impl Welcome {
    pub fn encode(self) -> [u8; WELCOME_BYTES] {
        let mut bytes = [0; WELCOME_BYTES];
        bytes[..8].copy_from_slice(&WELCOME_MAGIC);
        bytes[8..12].copy_from_slice(&(self as u32).to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; WELCOME_BYTES]) -> Result<Self, DataError> {
        magic(bytes, WELCOME_MAGIC)?;
        unused(&bytes[12..])?;
        let found = u32_at(bytes, 8);
        let all = [Self::Accepted, Self::Version, Self::Ticket];
        let status = all.into_iter().find(|status| *status as u32 == found);
        status.ok_or(DataError::Status { found })
    }
}

impl Ask {
    pub fn encode(&self) -> [u8; ASK_BYTES] {
        let mut bytes = [0; ASK_BYTES];
        match *self {
            Self::Blocks { lease, first, blocks, deadline_ms } => {
                bytes[0] = 1;
                bytes[4..8].copy_from_slice(&first.to_le_bytes());
                bytes[8..12].copy_from_slice(&blocks.to_le_bytes());
                bytes[12..16].copy_from_slice(&deadline_ms.to_le_bytes());
                bytes[16..24].copy_from_slice(&lease.to_le_bytes());
            }
            Self::Taken => bytes[0] = 2,
        }
        bytes
    }

    pub fn decode(bytes: &[u8; ASK_BYTES]) -> Result<Self, DataError> {
        match u32_at(bytes, 0) {
            1 => {
                unused(&bytes[24..])?;
                Ok(Self::Blocks {
                    lease: u64_at(bytes, 16),
                    first: u32_at(bytes, 4),
                    blocks: u32_at(bytes, 8),
                    deadline_ms: u32_at(bytes, 12),
                })
            }
            2 => unused(&bytes[4..]).map(|()| Self::Taken),
            found => Err(DataError::Kind { found }),
        }
    }
}

impl Piece {
    pub fn encode(&self) -> [u8; PIECE_BYTES] {
        let (kind, block, stripe, length) = match *self {
            Self::Header { block } => (1, block, 0, HEADER_BYTES),
            Self::Stripe { block, stripe, length } => (2, block, stripe, length),
            Self::End { loaded, reason } => (3, loaded, reason as u32, 0),
        };
        let mut bytes = [0; PIECE_BYTES];
        bytes[0] = kind;
        bytes[4..8].copy_from_slice(&block.to_le_bytes());
        bytes[8..12].copy_from_slice(&stripe.to_le_bytes());
        bytes[16..].copy_from_slice(&length.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; PIECE_BYTES]) -> Result<Self, DataError> {
        unused(&bytes[12..16])?;
        let (block, stripe, length) = (u32_at(bytes, 4), u32_at(bytes, 8), u64_at(bytes, 16));
        match u32_at(bytes, 0) {
            1 if length != HEADER_BYTES => {
                Err(DataError::Header { found: length, expected: HEADER_BYTES })
            }
            1 => unused(&bytes[8..12]).map(|()| Self::Header { block }),
            2 => Ok(Self::Stripe { block, stripe, length }),
            3 => {
                unused(&bytes[16..])?;
                EndReason::decode(stripe).map(|reason| Self::End { loaded: block, reason })
            }
            found => Err(DataError::Kind { found }),
        }
    }
}

impl EndReason {
    fn decode(found: u32) -> Result<Self, DataError> {
        use EndReason::{Complete, Damaged, Deadline, Drive, Lease, NoMemory};
        let all = [Complete, Deadline, Damaged, NoMemory, Drive, Lease];
        all.into_iter().find(|reason| *reason as u32 == found).ok_or(DataError::Reason { found })
    }
}

fn magic(bytes: &[u8], expected: [u8; 8]) -> Result<(), DataError> {
    let found = array_at(bytes, 0);
    if found == expected { Ok(()) } else { Err(DataError::Magic { found }) }
}

fn unused(bytes: &[u8]) -> Result<(), DataError> {
    if bytes.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(DataError::Unused) }
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests {
    //! Proves that what is taken is given back as it was, and that all other bytes are refused.

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_piece_that_is_taken_is_given_back(bytes: [u8; PIECE_BYTES], kind in 0..5_u8) {
            let mut bytes = bytes;
            bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
            bytes[12..16].fill(0);
            if let Ok(piece) = Piece::decode(&bytes) {
                prop_assert_eq!(piece.encode(), bytes);
            }
        }

        #[test]
        fn an_ask_that_is_taken_is_given_back(bytes: [u8; ASK_BYTES], kind in 0..4_u8) {
            let mut bytes = bytes;
            bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
            bytes[24..].fill(0);
            if let Ok(ask) = Ask::decode(&bytes) {
                prop_assert_eq!(ask.encode(), bytes);
            }
        }

        #[test]
        fn everything_sent_arrives(lease: u64, first: u32, blocks: u32, deadline_ms: u32) {
            let ask = Ask::Blocks { lease, first, blocks, deadline_ms };
            prop_assert_eq!(Ask::decode(&ask.encode()), Ok(ask));
            let piece = Piece::Stripe { block: first, stripe: blocks, length: lease };
            prop_assert_eq!(Piece::decode(&piece.encode()), Ok(piece));
            let hello = Hello { version: first, ticket: [7; 16] };
            prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
        }
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let ask = Ask::Taken.encode();
        for byte in 4..ASK_BYTES {
            let mut other = ask;
            other[byte] = 1;
            assert_eq!(Ask::decode(&other), Err(DataError::Unused), "byte {byte}");
        }
        let mut end = Piece::End { loaded: 3, reason: EndReason::Lease }.encode();
        assert!(Piece::decode(&end).is_ok());
        end[8] = 6;
        assert_eq!(Piece::decode(&end), Err(DataError::Reason { found: 6 }));
        let mut header = Piece::Header { block: 1 }.encode();
        header[16] = 1;
        let refused = DataError::Header { found: HEADER_BYTES + 1, expected: HEADER_BYTES };
        assert_eq!(Piece::decode(&header), Err(refused));
        let mut welcome = Welcome::Accepted.encode();
        welcome[8] = 3;
        assert_eq!(Welcome::decode(&welcome), Err(DataError::Status { found: 3 }));
        let mut hello = Hello { version: 1, ticket: [0; 16] }.encode();
        hello[0] = 0;
        assert!(matches!(Hello::decode(&hello), Err(DataError::Magic { .. })));
    }
}
