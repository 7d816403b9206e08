//! Where the directory is, and how to be let in.

use super::DirectoryError;
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, TlsCertificates,
};
use std::fmt;

/// How to reach the directory's servers.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// `HOST:PORT` of some servers; the others are learned from them.
    pub seeds: Vec<String>,
    pub user: Option<User>,
    /// Plain text without.
    pub tls: Option<Tls>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub password: String,
}

/// PEM texts.
#[derive(Clone, PartialEq, Eq)]
pub struct Tls {
    /// Whom to believe.
    pub authority: Vec<u8>,
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

impl fmt::Debug for User {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("User").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(|user| &user.name);
        let Self { seeds, tls, .. } = self;
        let mut shown = out.debug_struct("Settings");
        shown.field("seeds", seeds).field("user", &user).field("tls", &tls.is_some());
        shown.finish()
    }
}

impl Settings {
    /// Plain text, without a password: a directory on this machine.
    pub fn open(seeds: Vec<String>) -> Self {
        Self { seeds, user: None, tls: None }
    }

    pub(super) fn client(&self, address: &str) -> Result<Client, DirectoryError> {
        let refused = |source| DirectoryError::Settings { address: address.into(), source };
        let unparsed = || DirectoryError::Address { address: address.into() };
        let (host, port) = address.rsplit_once(':').ok_or_else(unparsed)?;
        let port: u16 = port.parse().map_err(|_| unparsed())?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() || port == 0 {
            return Err(unparsed());
        }
        let info = match self.tls {
            None => ConnectionAddr::Tcp(host, port),
            Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        };
        let mut info: ConnectionInfo = info.into_connection_info().map_err(refused)?;
        // Servers before 7.2 do not know it, and no rule need allow it.
        let mut login = info.redis_settings().clone().set_skip_set_lib_name();
        if let Some(User { name, password }) = &self.user {
            login = login.set_username(name).set_password(password);
        }
        info = info.set_redis_settings(login);
        match &self.tls {
            None => Client::open(info).map_err(refused),
            Some(Tls { authority, certificate, key }) => {
                let own =
                    ClientTlsConfig { client_cert: certificate.clone(), client_key: key.clone() };
                let root_cert = Some(authority.clone());
                let certificates = TlsCertificates { client_tls: Some(own), root_cert };
                Client::build_with_tls(info, certificates).map_err(refused)
            }
        }
    }
}
