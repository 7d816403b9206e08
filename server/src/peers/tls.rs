//! Mutual TLS: whoever shows no certificate of the fleet's authority is not spoken to.

use crate::config::TlsFiles;
use crate::private_file::{self, PrivateFileError};
use rustix::fs::OFlags;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// More than any key takes.
const KEY_BYTES_MAX: u64 = 1 << 20;

/// Why there is no TLS.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    #[error("read {} as PEM", path.display())]
    Read { path: PathBuf, source: pem::Error },
    #[error(transparent)]
    Key(#[from] PrivateFileError),
    #[error("{} holds no certificate", path.display())]
    NoCertificate { path: PathBuf },
    #[error("take {} as an authority", path.display())]
    Authority { path: PathBuf, source: rustls::Error },
    #[error("believe the authority in {}", path.display())]
    Verifier { path: PathBuf, source: VerifierBuilderError },
    #[error("use certificate {} with key {}", certificate.display(), key.display())]
    Pair { certificate: PathBuf, key: PathBuf, source: rustls::Error },
}

/// Both ends of TLS.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(super) connector: TlsConnector,
    pub(super) acceptor: TlsAcceptor,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    pub(crate) fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let TlsFiles { ca, certificate, key } = files;
        let private = private_file::read(key, OFlags::empty(), KEY_BYTES_MAX)?;
        let private = PrivateKeyDer::from_pem_slice(&private)
            .map_err(|source| TlsError::Read { path: key.clone(), source })?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(ca)? {
            let refused = |source| TlsError::Authority { path: ca.clone(), source };
            roots.add(authority).map_err(refused)?;
        }
        let (roots, chain) = (Arc::new(roots), certificates(certificate)?);
        let pair = |source| {
            let (certificate, key) = (certificate.clone(), key.clone());
            TlsError::Pair { certificate, key, source }
        };
        let provider = Arc::new(ring::default_provider());
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(pair)?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), private.clone_key())
            .map_err(pair)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|source| TlsError::Verifier { path: ca.clone(), source })?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(pair)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, private)
            .map_err(pair)?;
        // Clients of gRPC insist on it; a data connection names no protocol.
        server.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(client));
        Ok(Self { connector, acceptor: TlsAcceptor::from(Arc::new(server)) })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = |source| TlsError::Read { path: path.into(), source };
    let found = CertificateDer::pem_file_iter(path).map_err(read)?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(read)?;
    if found.is_empty() { Err(TlsError::NoCertificate { path: path.into() }) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    //! Proves that a key which others may read is not used.

    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn key_that_others_may_read_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let key = home.path().join("key.pem");
        std::fs::write(&key, "no key").unwrap();
        let refused = |mode: u32| {
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
            let (ca, certificate) = (home.path().join("ca.pem"), home.path().join("node.pem"));
            Tls::read(&TlsFiles { ca, certificate, key: key.clone() }).unwrap_err()
        };
        let exposed = refused(0o640);
        assert!(matches!(exposed, TlsError::Key(PrivateFileError::Exposed { mode: 0o640, .. })));
        let read = refused(0o600);
        assert!(matches!(&read, TlsError::Read { path, .. } if *path == key), "{read}");
    }
}
