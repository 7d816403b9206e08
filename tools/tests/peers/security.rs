//! Who has no certificate of the fleet's authority is not spoken to, nodes with other secrets find
//! that out, and nothing goes beyond the machine in plain text by accident.

use super::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use refrain_client::v1::cache_client::CacheClient;
use refrain_client::v1::{LookupRequest, RegisterRequest};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

/// An authority, and what it signs.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) ca: PathBuf,
    home: TempDir,
}

impl Authority {
    pub(super) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = home.path().join("ca.pem");
        std::fs::write(&ca, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), ca, home }
    }

    /// A certificate for a host, and its key.
    pub(super) fn sign(&self, host: &str) -> (PathBuf, PathBuf) {
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let file = |name: &str| self.home.path().join(format!("{host}.{name}"));
        std::fs::write(file("pem"), params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(file("key"), key.serialize_pem()).unwrap();
        chmod(&file("key"), 0o600);
        (file("pem"), file("key"))
    }

    /// The same node with certificates; `ca` is whom it believes.
    pub(super) fn certify(&self, setup: &Setup, address: &str, ca: &Path) -> Setup {
        let (pem, key) = self.sign(address.split(':').next().unwrap());
        setup
            .clone()
            .with(&format!("peers.tls_ca = \"{}\"", ca.display()))
            .with(&format!("peers.tls_certificate = \"{}\"", pem.display()))
            .with(&format!("peers.tls_key = \"{}\"", key.display()))
    }
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Two nodes whose setups are changed before they start.
fn two(change: impl Fn(usize, &Setup, &str) -> Setup) -> (Vec<Node>, Vec<String>, TempDir) {
    let home = tempfile::tempdir().unwrap();
    let secret = secret(&home, "secret");
    let addresses = [address(0), address(1)];
    let own = |number: usize| {
        let setup =
            setup(&Setup::default(), &secret, &addresses[number], &[&addresses[1 - number]]);
        change(number, &setup, &addresses[number])
    };
    let nodes = [own(0), own(1)].iter().map(Node::start).collect();
    (nodes, addresses.into(), home)
}

/// Until a node says why it leaves its peer alone.
async fn left_alone(node: &Node, why: &str) {
    let worker = Worker::new(node, SMALL).await;
    eventually("it says why", PATIENCE, async || {
        assert_eq!(worker.matched(&prompt(9999, 1)).await, 0);
        node.stats().await.peers.iter().any(|peer| peer.reason.contains(why)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn blocks_come_inside_mutual_tls() {
    let authority = Authority::new();
    let (nodes, addresses, _home) =
        two(|_, setup, address| authority.certify(setup, address, &authority.ca));
    for node in &nodes {
        connected(node).await;
    }
    for (seed, shape) in (60..).zip([SMALL, Shape::new(4, 300_000)]) {
        let ids = prompt(seed, 16);
        Worker::new(&nodes[1], shape).await.save(&ids).await;
        let near = Worker::new(&nodes[0], shape).await;
        assert_eq!(near.has_all(&ids).await.from_peer, 16);
    }
    // Plain text is not answered.
    let plain = Endpoint::from_shared(format!("http://{}", addresses[1])).unwrap();
    let called = match plain.connect().await {
        Ok(channel) => CacheClient::new(channel).lookup(LookupRequest::default()).await.is_ok(),
        Err(_) => false,
    };
    assert!(!called);
}

#[tokio::test]
async fn a_node_of_another_authority_is_not_spoken_to() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (nodes, _, _home) = two(|number, setup, address| {
        let authority = if number == 0 { &ours } else { &theirs };
        authority.certify(setup, address, &authority.ca)
    });
    left_alone(&nodes[0], "invalid peer certificate").await;
    // It believes us, and we do not believe it.
    let (nodes, _, _home) = two(|number, setup, address| {
        let authority = if number == 0 { &ours } else { &theirs };
        authority.certify(setup, address, &theirs.ca)
    });
    left_alone(&nodes[0], "call it").await;
    eventually("it is refused there", PATIENCE, async || {
        let said = nodes[1].said();
        let mut refusals = said.lines().filter(|line| line.contains("connection refused from"));
        refusals.any(|line| line.contains("invalid peer certificate")).then_some(())
    })
    .await;
    let ids = prompt(63, 4);
    Worker::new(&nodes[1], SMALL).await.save(&ids).await;
    assert_eq!(Worker::new(&nodes[0], SMALL).await.matched(&ids).await, 0);
}

#[tokio::test]
async fn a_certificate_of_another_host_is_not_believed() {
    let authority = Authority::new();
    let (nodes, _, _home) =
        two(|_, setup, _| authority.certify(setup, "10.9.8.7:1", &authority.ca));
    left_alone(&nodes[0], "certificate").await;
}

#[tokio::test]
async fn clients_of_other_machines_use_the_cache_inside_tls() {
    let authority = Authority::new();
    let (nodes, addresses, _home) =
        two(|_, setup, address| authority.certify(setup, address, &authority.ca));
    let channel = secure_channel(&authority, &addresses[0]).await;
    let mut cache = CacheClient::new(channel);
    let registered = cache
        .register(RegisterRequest {
            namespace: Some(SMALL.namespace("tenant")),
            shard: 0,
            session: Vec::new(),
            block_bytes: SMALL.block_bytes(),
        })
        .await
        .unwrap()
        .into_inner();
    assert!(registered.registration != 0 && nodes[0].stats().await.sessions == 0);
}

/// As a client of another machine would connect: with a certificate of the authority.
async fn secure_channel(authority: &Authority, address: &str) -> Channel {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    let (pem, key) = authority.sign("client");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&authority.ca).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_file(pem).unwrap()],
            PrivateKeyDer::from_pem_file(key).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let host = address.split(':').next().unwrap().to_owned();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let stream = TcpStream::connect(address).await.unwrap();
    let stream = connector.connect(ServerName::try_from(host).unwrap(), stream).await.unwrap();
    let mut stream = Some(hyper_util::rt::TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = stream.take();
        async { stream.ok_or(std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    });
    Endpoint::from_static("http://peer").connect_with_connector(connector).await.unwrap()
}

#[tokio::test]
async fn nodes_with_other_secrets_say_so() {
    let home = tempfile::tempdir().unwrap();
    let other = secret(&home, "another secret");
    let (nodes, _, _home) = two(|number, setup, _| match number {
        0 => setup.clone(),
        _ => Setup {
            config: setup
                .config
                .lines()
                .filter(|line| !line.starts_with("secret_file"))
                .fold(String::new(), |text, line| text + line + "\n"),
            ..setup.clone()
        }
        .with(&format!("secret_file = \"{}\"", other.display())),
    });
    left_alone(&nodes[0], "another secret").await;
    assert!(nodes[0].said().contains("another secret"), "{}", nodes[0].said());
    let ids = prompt(61, 4);
    Worker::new(&nodes[1], SMALL).await.save(&ids).await;
    assert_eq!(Worker::new(&nodes[0], SMALL).await.matched(&ids).await, 0);
}
