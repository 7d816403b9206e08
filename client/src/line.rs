//! A gRPC connection to one sidecar process.

use crate::call::Failure;
use crate::error::{ClientError, Place};
use refrain_proto::v1::cache_client::CacheClient;
use std::fmt::Debug;
use tokio::runtime::Handle;
use tonic::transport::Channel;

/// It is never connected anew: a lease named to another process would mean other blocks there.
pub(crate) trait Line: Debug + Send + Sync + 'static {
    fn cache(&self) -> CacheClient<Channel>;

    /// Where work goes on that outlives a caller, who may be gone from any thread.
    fn runtime(&self) -> &Handle;

    fn place(&self) -> Place;

    /// No call should use this connection any more; those under way may finish.
    fn lose(&self);

    /// Draws the consequence of a failure: a lost connection is used no more.
    fn noted(&self, failure: Failure) -> Failure {
        match failure {
            Failure::Lost(_) => self.lose(),
            Failure::Late(_) | Failure::Unknown(_) | Failure::Refused(_) => {}
        }
        failure
    }

    fn error(&self, call: &'static str, failure: Failure) -> ClientError {
        ClientError::from_failure(call, self.place(), failure)
    }

    /// The same of a call about the session or a registration: a sidecar that does not know it has
    /// lost its memory of us, and only a new connection helps.
    fn session_error(&self, call: &'static str, failure: Failure) -> ClientError {
        let failure = match failure {
            Failure::Unknown(status) => Failure::Lost(status),
            Failure::Lost(_) | Failure::Late(_) | Failure::Refused(_) => failure,
        };
        self.error(call, self.noted(failure))
    }
}
