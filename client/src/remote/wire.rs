//! One connection to a sidecar of another machine, in TLS or not.

use super::identity::Keys;
use super::{RemoteAddress, RemoteConfig, Transport};
use crate::connection::MESSAGE_BYTES_MAX;
use crate::error::{Absence, ClientError, Place};
use crate::line::Line;
use hyper_util::rt::TokioIo;
use refrain_proto::v1::cache_client::CacheClient;
use rustls::pki_types::ServerName;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tonic::transport::{Channel, Endpoint};

/// Whether the machine is there still, a connection finds out so often: calls end before they would.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// What may be on its way to here: HTTP/2's usual 64 KiB are a round trip each.
const WINDOW: u32 = 8 << 20;

/// Once lost, it stays lost.
#[derive(Debug)]
pub(super) struct Wire {
    address: RemoteAddress,
    cache: CacheClient<Channel>,
    lost: AtomicBool,
    runtime: Handle,
}

trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

impl Wire {
    pub(super) async fn open(
        config: &RemoteConfig,
        keys: Option<&Keys>,
    ) -> Result<Self, ClientError> {
        let address = &config.address;
        let absent = |source| ClientError::Absent {
            place: Place::There(address.clone()),
            source: Arc::new(source),
        };
        let stream = connect(config).await?.map_err(absent)?;
        let stream: Box<dyn Bytes> = match keys {
            Some(Keys(connector)) => {
                let host = ServerName::try_from(address.host().to_owned());
                let host = host.map_err(|_| io::ErrorKind::InvalidInput.into());
                let tls = |source| absent(Absence::Tls { source });
                Box::new(connector.connect(host.map_err(tls)?, stream).await.map_err(tls)?)
            }
            None => Box::new(stream),
        };
        let channel = channel(stream).await;
        let cache =
            CacheClient::new(channel.map_err(|source| absent(Absence::Channel { source }))?)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (lost, runtime) = (AtomicBool::new(false), Handle::current());
        Ok(Self { address: address.clone(), cache, lost, runtime })
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Line for Wire {
    fn cache(&self) -> CacheClient<Channel> {
        self.cache.clone()
    }

    fn runtime(&self) -> &Handle {
        &self.runtime
    }

    fn place(&self) -> Place {
        Place::There(self.address.clone())
    }

    fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }
}

/// The first of its addresses that answers. Refuses to say anything in plain text beyond this machine
/// that may not be said there.
async fn connect(config: &RemoteConfig) -> Result<Result<TcpStream, Absence>, ClientError> {
    let found = match tokio::net::lookup_host(config.address.as_str()).await {
        Ok(found) => found,
        Err(source) => return Ok(Err(Absence::Resolve { source })),
    };
    let mut last = Absence::Resolve { source: io::ErrorKind::NotFound.into() };
    let mut refused = None;
    for address in found {
        if !config.transport.may_reach(address.ip()) {
            refused = Some(ClientError::PlainText { address: address.ip() });
            continue;
        }
        match TcpStream::connect(address).await {
            // It waits for nothing more to send with a small message.
            Ok(stream) => match stream.set_nodelay(true) {
                Ok(()) => return Ok(Ok(stream)),
                Err(source) => last = Absence::Socket { source },
            },
            Err(source) => last = Absence::Socket { source },
        }
    }
    refused.map_or(Ok(Err(last)), Err)
}

impl Transport {
    fn may_reach(&self, address: IpAddr) -> bool {
        match self {
            Self::Tls(_) | Self::PlainText => true,
            Self::Loopback => address.is_loopback(),
        }
    }
}

/// A gRPC connection over this stream alone.
async fn channel(stream: Box<dyn Bytes>) -> Result<Channel, tonic::transport::Error> {
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().ok_or(io::ErrorKind::NotConnected);
        async { stream.map(TokioIo::new).map_err(io::Error::from) }
    });
    // The connector is connected; HTTP wants a name all the same.
    Endpoint::from_static("http://sidecar")
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
}

#[cfg(test)]
mod tests {
    //! Proves what may be said in plain text, and where.

    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn plain_text_goes_beyond_this_machine_only_where_that_is_said() {
        let beyond = IpAddr::from([192, 0, 2, 1]);
        for here in [IpAddr::from(Ipv4Addr::new(127, 0, 0, 9)), Ipv6Addr::LOCALHOST.into()] {
            assert!(Transport::Loopback.may_reach(here) && Transport::PlainText.may_reach(here));
        }
        assert!(!Transport::Loopback.may_reach(beyond) && Transport::PlainText.may_reach(beyond));
    }
}
