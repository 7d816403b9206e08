//! What a caller must know; all else is a miss, which is an answer.

use crate::address::Address;
use crate::call::Failure;
use crate::remote::{IdentityError, RemoteAddress};
use refrain_gpu_transfer::arena::ArenaError;
use refrain_gpu_transfer::copier::CopyError;
use refrain_gpu_transfer::layout::LayoutError;
use refrain_gpu_transfer::paged::BatchError;
use refrain_proto::session::HandshakeError;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tonic::{Code, Status};

/// Why a call has no answer.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Go on without the cache; a later call tries again by itself.
    #[error("no sidecar at {place}")]
    Absent { place: Place, source: Arc<Absence> },
    /// The sidecar is there and says no; its message names what it minds.
    #[error("sidecar refuses to {call}")]
    Refused { call: &'static str, source: Status },
    /// No block of this registration could ever be saved.
    #[error("block of {payload_bytes} bytes does not fit a session arena of {arena_bytes}")]
    ArenaTooSmall { payload_bytes: u64, arena_bytes: u64 },
    #[error("blocks {first}+{blocks} are not among {available}")]
    BlocksOutOfRange { first: u32, blocks: u32, available: u32 },
    /// The cache in memory is not what was registered, or has no such pages.
    #[error("describe a paged KV cache")]
    Cache { source: LayoutError },
    /// The GPU, or the thread that copies, is of no more use.
    #[error("copy between an arena and a paged KV cache")]
    Transfer { source: CopyError },
    /// A sidecar of another machine, and no way to be sure of it.
    #[error(
        "{address} is beyond this machine, and there is no TLS: name a CA, a certificate and a key, or allow plain text"
    )]
    PlainText { address: IpAddr },
    #[error("set up TLS")]
    Identity { source: Arc<IdentityError> },
    #[error("memory of {found} bytes for blocks of {expected}")]
    Buffer { found: u64, expected: u64 },
    /// Client and sidecar do not fit each other.
    #[error("sidecar answers {call} with {what}")]
    Answer { call: &'static str, what: &'static str },
}

/// Where a sidecar is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Here(Address),
    There(RemoteAddress),
}

/// Why there is nobody to ask.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Absence {
    #[error("connect to its socket")]
    Socket { source: io::Error },
    #[error("find it")]
    Resolve { source: io::Error },
    #[error("agree on TLS with it")]
    Tls { source: io::Error },
    #[error("open a session")]
    Handshake { source: HandshakeError },
    #[error("share memory with it")]
    Arena { source: ArenaError },
    #[error("open a gRPC connection")]
    Channel { source: tonic::transport::Error },
    #[error("connection lost")]
    Lost { source: Status },
    #[error("no answer within {limit:?}")]
    Late { limit: Duration },
}

impl ClientError {
    /// A name to branch on, which stays the same from version to version.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Absent { .. } => "absent",
            Self::Refused { source, .. } => code_name(source.code()),
            Self::ArenaTooSmall { .. } => "arena_too_small",
            Self::BlocksOutOfRange { .. } => "blocks_out_of_range",
            Self::Cache { .. } => "cache",
            Self::Transfer { .. } => "transfer",
            Self::PlainText { .. } => "plain_text",
            Self::Identity { .. } => "identity",
            Self::Buffer { .. } => "buffer",
            Self::Answer { .. } => "answer",
        }
    }

    /// Whether the same call may succeed later.
    pub fn retry(&self) -> bool {
        match self {
            Self::Absent { .. } => true,
            Self::Refused { source, .. } => {
                matches!(source.code(), Code::ResourceExhausted | Code::Unavailable)
            }
            Self::ArenaTooSmall { .. }
            | Self::BlocksOutOfRange { .. }
            | Self::Cache { .. }
            | Self::Transfer { .. }
            | Self::PlainText { .. }
            | Self::Identity { .. }
            | Self::Buffer { .. }
            | Self::Answer { .. } => false,
        }
    }

    pub(crate) fn from_batch(error: &BatchError) -> Self {
        match error {
            BatchError::Layout(source) => Self::Cache { source: *source },
            BatchError::Arena(_) | BatchError::ReadOnly | _ => {
                Self::Answer { call: "load", what: "places outside the arena" }
            }
        }
    }

    pub(crate) fn from_failure(call: &'static str, place: Place, failure: Failure) -> Self {
        let absent = |source| Self::Absent { place, source: Arc::new(source) };
        match failure {
            Failure::Lost(source) => absent(Absence::Lost { source }),
            Failure::Late(limit) => absent(Absence::Late { limit }),
            Failure::Unknown(source) | Failure::Refused(source) => Self::Refused { call, source },
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here(address) => address.fmt(out),
            Self::There(address) => address.fmt(out),
        }
    }
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}
