//! Other sidecars: where they reach this one, whom it asks, and how both are sure of each other.

use super::units;
use serde::Deserialize;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use thiserror::Error;

/// What a sidecar is to other sidecars; by default none knows of any other.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct PeersConfig {
    /// Where peers, and clients of other machines, reach this sidecar, as `IP:PORT`. Default: nowhere.
    pub listen: Option<SocketAddr>,
    /// Where the bytes for peers leave, as `IP:PORT`. Default: the address of `listen`, with a port
    /// that the system chooses; peers are told which.
    pub data_listen: Option<SocketAddr>,
    /// Peers to ask for blocks that are not here, each as `HOST:PORT`. Default: none.
    pub ask: Vec<PeerAddress>,
    /// How long a lookup waits for the answers of peers; 1 ms to 10 s, default 20 ms.
    #[serde(deserialize_with = "units::duration")]
    pub lookup_deadline: Duration,
    /// Which blocks of peers are saved on this node's own drives. Default `second`.
    pub keep: Keep,
    /// Authority whose certificates are believed, PEM. With the next two: all three, or none.
    pub tls_ca: Option<PathBuf>,
    /// This node's certificate, with those between it and the authority, PEM.
    pub tls_certificate: Option<PathBuf>,
    /// The key of that certificate, PEM.
    pub tls_key: Option<PathBuf>,
    /// Whether to talk without TLS beyond this machine. Default `false`.
    pub plain_text: bool,
}

/// Which blocks of peers are saved on this node's own drives.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// They leave with the memory that they were loaded into.
    Never,
    /// Those that a second load wants while they are in memory.
    Second,
    Always,
}

/// Where a peer is reached: `HOST:PORT`, the host a name or an address.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(try_from = "String")]
pub struct PeerAddress {
    text: String,
    /// The text up to here is the host.
    host_bytes: usize,
}

/// Why a text is no address of a peer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{text:?} is no address of a peer: write HOST:PORT, as in 10.0.0.7:9470 or [fd00::7]:9470")]
pub struct PeerAddressError {
    text: String,
}

/// The three files of mutual TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Default for PeersConfig {
    fn default() -> Self {
        Self {
            listen: None,
            data_listen: None,
            ask: Vec::new(),
            lookup_deadline: Duration::from_millis(20),
            keep: Keep::Second,
            tls_ca: None,
            tls_certificate: None,
            tls_key: None,
            plain_text: false,
        }
    }
}

impl PeersConfig {
    /// The files of TLS, where all are given.
    pub(crate) fn tls_files(&self) -> Option<TlsFiles> {
        let (ca, certificate) = (self.tls_ca.clone()?, self.tls_certificate.clone()?);
        Some(TlsFiles { ca, certificate, key: self.tls_key.clone()? })
    }

    /// The name of a key of TLS that is missing beside others.
    pub(super) fn tls_missing(&self) -> Option<&'static str> {
        let all = [
            ("peers.tls_ca", &self.tls_ca),
            ("peers.tls_certificate", &self.tls_certificate),
            ("peers.tls_key", &self.tls_key),
        ];
        let given = all.iter().filter(|(_, path)| path.is_some()).count();
        let missing = all.iter().find(|(_, path)| path.is_none()).map(|(key, _)| *key);
        missing.filter(|_| given > 0)
    }

    /// Whether it may talk to this address as it is set up.
    pub(crate) fn may_reach(&self, address: IpAddr) -> bool {
        self.tls_ca.is_some() || self.plain_text || address.is_loopback()
    }

    /// The first key whose address may not be talked to without TLS. Names are resolved later, and
    /// held to the same then.
    pub(super) fn exposed(&self) -> Option<(&'static str, IpAddr)> {
        let listen = self.listen.map(|at| ("peers.listen", at.ip()));
        let data = self.data_listen.map(|at| ("peers.data_listen", at.ip()));
        let ask = self.ask.iter().filter_map(|peer| peer.host().parse().ok());
        let all = listen.into_iter().chain(data).chain(ask.map(|ip| ("peers.ask", ip)));
        all.into_iter().find(|(_, address)| !self.may_reach(*address))
    }
}

impl PeerAddress {
    pub(crate) fn host(&self) -> &str {
        self.text[..self.host_bytes].trim_start_matches('[').trim_end_matches(']')
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for PeerAddress {
    type Err = PeerAddressError;

    fn from_str(text: &str) -> Result<Self, PeerAddressError> {
        let wrong = || PeerAddressError { text: text.into() };
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        // Of an address of IPv6 nobody else could tell where it ends.
        let bracketed = host.starts_with('[') && host.ends_with(']');
        let is_host = !host.is_empty() && (bracketed || !host.contains(':'));
        if !is_port || !is_host || text.contains(char::is_whitespace) {
            return Err(wrong());
        }
        Ok(Self { text: text.into(), host_bytes: host.len() })
    }
}

impl TryFrom<String> for PeerAddress {
    type Error = PeerAddressError;

    fn try_from(text: String) -> Result<Self, PeerAddressError> {
        text.parse()
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}
