//! What comes and goes at a sidecar, as routers are told. It needs no session.

use crate::address::Address;
use crate::call::{Deadline, Failure};
use crate::connection::{self, MESSAGE_BYTES_MAX};
use crate::error::{Absence, ClientError, Place};
use refrain_proto::v1::{self, events_client::EventsClient};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Status, Streaming};

/// Every change at one sidecar, from a snapshot on. Once lost, it stays lost: another watch says
/// what is resident then.
#[derive(Debug)]
pub struct Watch {
    place: Place,
    changes: Streaming<v1::Change>,
}

impl Watch {
    /// Begins with all that is resident, then a `snapshot_end`. What comes or goes meanwhile is told of
    /// behind that, whether or not it is among these.
    pub async fn open(address: Address, limit: Duration) -> Result<Self, ClientError> {
        let (deadline, place) = (Deadline::after(limit), Place::Here(address.clone()));
        let opening = deadline.bound(async {
            let absent =
                |source| ClientError::Absent { place: place.clone(), source: Arc::new(source) };
            let channel = connection::channel(address.path()).await.map_err(absent)?;
            let mut events =
                EventsClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
            // Without a deadline of its own: it goes on for as long as both sides live.
            let changes = events.watch(v1::WatchRequest { snapshot: true }).await;
            changes.map(tonic::Response::into_inner).map_err(|status| {
                ClientError::from_failure(
                    "watch",
                    place.clone(),
                    Failure::from_status(status, limit),
                )
            })
        });
        let changes = opening.await.unwrap_or_else(|| {
            let source = Arc::new(Absence::Late { limit });
            Err(ClientError::Absent { place: place.clone(), source })
        })?;
        Ok(Self { place, changes })
    }

    /// The next change, whenever it comes. An error is the end: changes were missed, or the sidecar
    /// has gone.
    pub async fn next(&mut self) -> Result<v1::Change, ClientError> {
        let status = match self.changes.message().await {
            Ok(Some(change)) => return Ok(change),
            Ok(None) => Status::unavailable("the sidecar ended the watch"),
            Err(status) => status,
        };
        let failure = Failure::from_status(status, Duration::ZERO);
        Err(ClientError::from_failure("watch", self.place.clone(), failure))
    }
}
