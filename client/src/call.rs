//! One call, bounded in time, and what its failure means.

use std::error::Error;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status, TimeoutExpired};

/// A clock can count this far.
const LIMIT_MAX: Duration = Duration::from_hours(24);

/// The end of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    limit: Duration,
    end: Instant,
}

impl Deadline {
    pub(crate) fn after(limit: Duration) -> Self {
        let limit = limit.min(LIMIT_MAX);
        Self { limit, end: Instant::now() + limit }
    }

    pub(crate) fn limit(self) -> Duration {
        self.limit
    }

    /// `None` when time is up before the future is done.
    pub(crate) async fn bound<F: Future>(self, future: F) -> Option<F::Output> {
        tokio::time::timeout_at(self.end, future).await.ok()
    }

    /// A message that tells the sidecar how long anyone will wait for its answer.
    pub(crate) fn request<T>(self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.end.saturating_duration_since(Instant::now()));
        request
    }

    /// Waits for an answer until time is up, whether or not the transport keeps time itself.
    pub(crate) async fn answer<T>(
        self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match self.bound(call).await {
            Some(Ok(response)) => Ok(response.into_inner()),
            Some(Err(status)) => Err(Failure::from_status(status, self.limit)),
            None => Err(Failure::Late(self.limit)),
        }
    }
}

/// Why a call was not answered.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The connection is of no more use.
    Lost(Status),
    Late(Duration),
    /// The sidecar does not know what the call is about: it expired, or was another sidecar's.
    Unknown(Status),
    Refused(Status),
}

impl Failure {
    pub(crate) fn from_status(status: Status, limit: Duration) -> Self {
        match status.code() {
            // So says the transport's own timer, and a connection that died with the call in it.
            Code::Cancelled if status.source().is_none_or(is_timer) => Self::Late(limit),
            Code::Unavailable | Code::Unauthenticated | Code::Cancelled => Self::Lost(status),
            Code::DeadlineExceeded => Self::Late(limit),
            Code::NotFound => Self::Unknown(status),
            // Only what went wrong on this side of the wire has a source.
            Code::Ok
            | Code::Unknown
            | Code::InvalidArgument
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss => {
                if status.source().is_some() {
                    Self::Lost(status)
                } else {
                    Self::Refused(status)
                }
            }
        }
    }
}

fn is_timer(error: &(dyn Error + 'static)) -> bool {
    error.is::<TimeoutExpired>() || error.source().is_some_and(is_timer)
}

#[cfg(test)]
mod tests {
    //! Proves which failures cost the connection.

    use super::*;

    #[test]
    fn call_that_the_transport_timed_out_is_late_and_costs_no_connection() {
        let status = Status::from_error(Box::new(TimeoutExpired(())));
        let failure = Failure::from_status(status, Duration::ZERO);
        assert!(matches!(failure, Failure::Late(_)), "{failure:?}");
    }
}
