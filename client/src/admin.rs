//! What operators ask a sidecar. It needs no session.

use crate::address::Address;
use crate::connection;
use crate::error::{ClientError, Place};
use refrain_proto::v1::admin_client::AdminClient;
use std::sync::Arc;
use tonic::transport::Channel;

/// A connection to the sidecar at `address`, for its operator. Once lost, it stays lost.
pub async fn admin(address: &Address) -> Result<AdminClient<Channel>, ClientError> {
    let channel = connection::channel(address.path()).await.map_err(|absence| {
        ClientError::Absent { place: Place::Here(address.clone()), source: Arc::new(absence) }
    })?;
    Ok(AdminClient::new(channel).max_decoding_message_size(connection::MESSAGE_BYTES_MAX))
}
