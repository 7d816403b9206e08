//! Where a sidecar of another machine is.

use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// `HOST:PORT`, the host a name or an address; its certificate must be for that host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RemoteAddress {
    text: String,
    /// The text up to here is the host.
    host_bytes: usize,
}

/// Why a text is none.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{text:?} is no address of a sidecar of another machine: write HOST:PORT, as in 10.0.0.7:9470 or [fd00::7]:9470"
)]
pub struct RemoteAddressError {
    text: String,
}

impl RemoteAddress {
    pub fn host(&self) -> &str {
        self.text[..self.host_bytes].trim_start_matches('[').trim_end_matches(']')
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for RemoteAddress {
    type Err = RemoteAddressError;

    fn from_str(text: &str) -> Result<Self, RemoteAddressError> {
        let wrong = || RemoteAddressError { text: text.into() };
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        // Of an address of IPv6 nobody else could tell where it ends.
        let bracketed = host.starts_with('[') && host.ends_with(']');
        let is_host = !host.is_empty() && (bracketed || !host.contains(':'));
        if !is_port || !is_host || text.contains(|c: char| c.is_whitespace() || c == '/') {
            return Err(wrong());
        }
        Ok(Self { text: text.into(), host_bytes: host.len() })
    }
}

impl fmt::Display for RemoteAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    //! Proves which texts are addresses, and whom they name.

    use super::*;

    #[test]
    fn a_host_and_a_port_are_an_address() {
        for (text, host) in
            [("kv7:9470", "kv7"), ("10.0.0.7:9470", "10.0.0.7"), ("[fd00::7]:1", "fd00::7")]
        {
            let address: RemoteAddress = text.parse().unwrap();
            assert_eq!((address.host(), address.to_string().as_str()), (host, text));
        }
        for text in
            ["", "kv7", ":9470", "kv7:0", "kv7:70000", "fd00::7:1", "https://kv7:1", "a b:1"]
        {
            let error = text.parse::<RemoteAddress>().unwrap_err();
            assert!(error.to_string().contains("write HOST:PORT"), "{text}: {error}");
        }
    }
}
