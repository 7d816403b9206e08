//! Mutual TLS: whoever shows no certificate of the fleet's authority is not spoken to.

use crate::config::TlsFiles;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Why there is no TLS.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    #[error("read {} as PEM", path.display())]
    Read { path: PathBuf, source: pem::Error },
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
        let mut roots = RootCertStore::empty();
        for authority in certificates(ca)? {
            let refused = |source| TlsError::Authority { path: ca.clone(), source };
            roots.add(authority).map_err(refused)?;
        }
        let (roots, chain) = (Arc::new(roots), certificates(certificate)?);
        let private = PrivateKeyDer::from_pem_file(key)
            .map_err(|source| TlsError::Read { path: key.clone(), source })?;
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
