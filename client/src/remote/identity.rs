//! Who a client is to sidecars of other machines, and which of them it believes.

use crate::error::ClientError;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;
use tokio_rustls::TlsConnector;

/// The three files of mutual TLS, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Authority whose certificates are believed.
    pub ca: PathBuf,
    /// This client's certificate, with those between it and an authority that sidecars believe.
    pub certificate: PathBuf,
    /// The key of that certificate, which its owner alone may read.
    pub key: PathBuf,
}

/// Why there is no TLS.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IdentityError {
    #[error("read {} as PEM", path.display())]
    Pem { path: PathBuf, source: pem::Error },
    #[error("read key {}", path.display())]
    Key { path: PathBuf, source: io::Error },
    #[error("key {} may be used by others (mode {mode:04o}): chmod 600 it", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{} holds no certificate", path.display())]
    NoCertificate { path: PathBuf },
    #[error("take {} as an authority", path.display())]
    Authority { path: PathBuf, source: rustls::Error },
    #[error("use certificate {} with key {}", certificate.display(), key.display())]
    Pair { certificate: PathBuf, key: PathBuf, source: rustls::Error },
}

/// What the files hold.
pub(super) struct Keys(pub(super) TlsConnector);

impl fmt::Debug for Keys {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Keys").finish_non_exhaustive()
    }
}

impl Identity {
    pub(super) fn read(&self) -> Result<Keys, ClientError> {
        let keys = self.connector().map(Keys);
        keys.map_err(|source| ClientError::Identity { source: Arc::new(source) })
    }

    fn connector(&self) -> Result<TlsConnector, IdentityError> {
        let Self { ca, certificate, key } = self;
        let private = PrivateKeyDer::from_pem_slice(&read_private(key)?)
            .map_err(|source| IdentityError::Pem { path: key.clone(), source })?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(ca)? {
            let refused = |source| IdentityError::Authority { path: ca.clone(), source };
            roots.add(authority).map_err(refused)?;
        }
        let chain = certificates(certificate)?;
        let pair = |source| {
            let (certificate, key) = (certificate.clone(), key.clone());
            IdentityError::Pair { certificate, key, source }
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(pair)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, private)
            .map_err(pair)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// What a key's file holds, unless others may use it too.
fn read_private(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let error = |source| IdentityError::Key { path: path.into(), source };
    let mut file = std::fs::File::open(path).map_err(error)?;
    let mode = file.metadata().map_err(error)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed { path: path.into(), mode });
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(error)?;
    Ok(bytes)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let read = |source| IdentityError::Pem { path: path.into(), source };
    let found = CertificateDer::pem_file_iter(path).map_err(read)?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(read)?;
    if found.is_empty() {
        return Err(IdentityError::NoCertificate { path: path.into() });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    //! Proves that what cannot be used is refused by the name of its file, a key that others may read
    //! first of all.

    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let home = tempfile::tempdir().unwrap();
        let file = |name: &str| home.path().join(name);
        let identity =
            Identity { ca: file("ca.pem"), certificate: file("me.pem"), key: file("me.key") };
        let refused = || identity.connector().err().unwrap();
        assert!(matches!(refused(), IdentityError::Key { path, .. } if path == identity.key));
        std::fs::write(&identity.key, "no key").unwrap();
        let permissions = std::fs::Permissions::from_mode(0o640);
        std::fs::set_permissions(&identity.key, permissions).unwrap();
        assert!(matches!(refused(), IdentityError::Exposed { mode: 0o640, .. }));
        let permissions = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&identity.key, permissions).unwrap();
        assert!(matches!(refused(), IdentityError::Pem { path, .. } if path == identity.key));
    }
}
