//! Clients of other machines read and write blocks inside mutual TLS, byte for byte; who is not sure of
//! the other side says nothing to it; and a sidecar that goes away costs them misses.

use super::security::Authority;
use super::*;
use crate::fixture::content;
use refrain_client::remote::{Identity, Lookup, Registration, Transport};
use refrain_client::{Absence, ClientError, Prompt, Remote, RemoteConfig};
use std::error::Error;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::net::TcpStream;

/// As an [`Authority`] signs for a client.
fn identity(authority: &Authority, ca: &Path) -> Transport {
    let (certificate, key) = authority.sign("client");
    Transport::Tls(Identity { ca: ca.into(), certificate, key })
}

fn config(address: &str, transport: Transport) -> RemoteConfig {
    RemoteConfig { address: address.parse().unwrap(), transport, deadline: PATIENCE }
}

/// A node that serves others there, with certificates or not.
fn node(address: &str, authority: Option<&Authority>) -> (Node, TempDir) {
    let home = tempfile::tempdir().unwrap();
    let base = Setup { capacity: 256 * MIB, segment: 16 * MIB, ..Setup::default() };
    let setup = setup(&base, &secret(&home, "secret"), address, &[]);
    let setup = match authority {
        Some(authority) => authority.certify(&setup, address, &authority.ca),
        None => setup,
    };
    (Node::start(&setup), home)
}

async fn registered(remote: &Remote, shape: Shape) -> Registration {
    remote.register(shape.namespace("tenant"), 0, shape.block_bytes()).await.unwrap()
}

async fn lookup(registration: &Registration, ids: &[u64]) -> Lookup {
    registration.lookup(Prompt::Tokens(&content::tokens(ids))).await.unwrap()
}

/// Saves all of a prompt, while drives may be behind.
async fn write(registration: &Registration, ids: &[u64]) {
    let identities = content::identities(ids, 0);
    eventually("all of a prompt is written", PATIENCE, async || {
        let lookup = lookup(registration, ids).await;
        let (matched, layout) = (lookup.matched_blocks, lookup.layout());
        let fill = |block: u32, payload: &mut [u8]| {
            content::fill(identities[usize::try_from(block).unwrap()], layout, payload);
        };
        let left = lookup.prompt_blocks - matched;
        let saved = lookup.write(matched, left, fill, false).await.unwrap();
        assert!(lookup.release().await.unwrap());
        (matched + saved.saved == lookup.prompt_blocks).then_some(())
    })
    .await;
}

/// Reads blocks of a prompt and compares every byte; how many came.
async fn read(lookup: &Lookup, ids: &[u64], first: u32, blocks: u32) -> u32 {
    let layout = lookup.layout();
    let payload_bytes = usize::try_from(layout.payload_bytes).unwrap();
    let mut bytes = vec![0xee; payload_bytes * usize::try_from(blocks).unwrap()];
    let done = lookup.read(first, blocks, &mut bytes, None).await.unwrap();
    let identities = content::identities(ids, 0);
    let loaded = usize::try_from(done.loaded_blocks).unwrap();
    for (block, payload) in bytes.chunks(payload_bytes).take(loaded).enumerate() {
        for stripe in 0..layout.stripes.len() {
            let identity = identities[usize::try_from(first).unwrap() + block];
            let expected = content::stripe(identity, layout, stripe);
            assert!(payload[layout.range(stripe)] == expected, "block {block}, stripe {stripe}");
        }
    }
    done.loaded_blocks
}

/// An error and all that it comes from, in one line.
fn said(error: &ClientError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[tokio::test]
async fn a_client_of_another_machine_reads_what_it_wrote_and_what_workers_saved_there() {
    let authority = Authority::new();
    let address = address(20);
    let (node, _home) = node(&address, Some(&authority));
    let transport = identity(&authority, &authority.ca);
    let remote = Remote::connect(config(&address, transport)).await.unwrap();
    registered(&remote, SMALL).await;
    assert_eq!(node.stats().await.sessions, 0);
    for (seed, shape, blocks) in
        (80..).zip(SHAPES).zip([9, 6, 40]).map(|((seed, shape), blocks)| (seed, shape, blocks))
    {
        let registration = registered(&remote, shape).await;
        let (own, theirs) = (prompt(seed, blocks), prompt(seed + 100, blocks));
        let blocks = u32::try_from(blocks).unwrap();
        write(&registration, &own).await;
        // A worker beside the sidecar finds it, and what that saves is found from here.
        let worker = Worker::new(&node, shape).await;
        assert_eq!(worker.has_all(&own).await.loaded, blocks);
        worker.save(&theirs).await;
        for ids in [&own, &theirs] {
            let lookup = lookup(&registration, ids).await;
            assert_eq!((lookup.prompt_blocks, lookup.matched_blocks), (blocks, blocks));
            assert_eq!(read(&lookup, ids, 0, blocks).await, blocks);
            assert_eq!(read(&lookup, ids, 2, blocks - 3).await, blocks - 3);
            assert!(lookup.renew(Duration::from_secs(5)).await.unwrap());
            assert!(lookup.release().await.unwrap() && !lookup.release().await.unwrap());
        }
    }
    // What it does not give back is given back for it.
    drop(lookup(&registered(&remote, SMALL).await, &prompt(1, 3)).await);
    nothing_is_left(&node).await;
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_by_name() {
    let address = address(21);
    let (_node, _home) = node(&address, None);
    // An address of this machine takes no TLS.
    let remote = Remote::connect(config(&address, Transport::Loopback)).await.unwrap();
    let registration = registered(&remote, SMALL).await;
    let ids = prompt(84, 4);
    write(&registration, &ids).await;
    let lookup = lookup(&registration, &ids).await;
    let mut bytes = vec![0; 100];
    let small = lookup.read(0, 4, &mut bytes, None).await.unwrap_err();
    assert!(matches!(small, ClientError::Buffer { found: 100, .. }), "{small:?}");
    let beyond = lookup.read(2, 3, &mut bytes, None).await.unwrap_err();
    assert!(matches!(beyond, ClientError::BlocksOutOfRange { available: 4, .. }), "{beyond:?}");
    let none = lookup.read(4, 0, &mut [], None).await.unwrap();
    assert_eq!((none.loaded_blocks, none.reason), (0, MissReason::None));
    let other = remote.register(SMALL.namespace("tenant"), 0, 1).await.unwrap_err();
    assert_eq!((other.code(), other.retry()), ("invalid_argument", false), "{other:?}");
    assert!(lookup.release().await.unwrap());
    // A lease that is over is no place to read from.
    let payload = usize::try_from(lookup.layout().payload_bytes).unwrap();
    let over = lookup.read(0, 1, &mut vec![0; payload], None).await.unwrap();
    assert_eq!((over.loaded_blocks, over.reason), (0, MissReason::Lease));
}

#[tokio::test]
async fn plain_text_does_not_leave_this_machine_unless_that_is_allowed() {
    // An address for documents: nobody is there, and nobody is asked.
    let refused = Remote::connect(config("192.0.2.1:9470", Transport::Loopback)).await.unwrap_err();
    assert!(matches!(refused, ClientError::PlainText { .. }), "{refused:?}");
    assert!(refused.to_string().contains("192.0.2.1 is beyond this machine"), "{refused}");
    assert_eq!((refused.code(), refused.retry()), ("plain_text", false));
    let allowed = RemoteConfig {
        deadline: Duration::from_millis(200),
        ..config("192.0.2.1:9470", Transport::PlainText)
    };
    let absent = Remote::connect(allowed).await.unwrap_err();
    assert!(matches!(absent, ClientError::Absent { .. }) && absent.retry(), "{absent:?}");
}

#[tokio::test]
async fn who_is_not_of_the_same_authority_is_not_spoken_to() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let address = address(22);
    let (_node, _home) = node(&address, Some(&ours));
    // Of another authority than the one that is believed here.
    let refused = Remote::connect(config(&address, identity(&ours, &theirs.ca))).await.unwrap_err();
    assert!(said(&refused).contains("invalid peer certificate"), "{}", said(&refused));
    assert!(matches!(&refused, ClientError::Absent { source, .. }
        if matches!(**source, Absence::Tls { .. })));
    // Of another authority than the one that is believed there: it is told so by the first call.
    let connected = Remote::connect(config(&address, identity(&theirs, &ours.ca))).await;
    let refused = match connected {
        Ok(remote) => {
            remote.register(SMALL.namespace("tenant"), 0, SMALL.block_bytes()).await.err()
        }
        Err(refused) => Some(refused),
    };
    assert!(matches!(refused, Some(ClientError::Absent { .. })), "{refused:?}");
    // In plain text there is no answer either.
    let plain = Remote::connect(config(&address, Transport::Loopback)).await;
    let refused = match plain {
        Ok(remote) => {
            remote.register(SMALL.namespace("tenant"), 0, SMALL.block_bytes()).await.err()
        }
        Err(refused) => Some(refused),
    };
    assert!(matches!(refused, Some(ClientError::Absent { .. })), "{refused:?}");
    // Nor without a certificate at all.
    assert!(anonymous(&ours, &address).await.is_err());
}

/// What a client without a certificate is told.
async fn anonymous(authority: &Authority, address: &str) -> io::Result<()> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&authority.ca).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let host = ServerName::try_from(address.split(':').next().unwrap().to_owned()).unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let mut stream = connector.connect(host, TcpStream::connect(address).await?).await?;
    // HTTP/2 begins so, and its server answers.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    stream.read_exact(&mut [0; 9]).await.map(drop)
}

#[tokio::test]
async fn a_sidecar_that_goes_away_makes_misses_and_is_found_again() {
    let address = address(23);
    let (mut node, _home) = node(&address, None);
    let remote = Remote::connect(config(&address, Transport::Loopback)).await.unwrap();
    let registration = registered(&remote, SMALL).await;
    let ids = prompt(85, 4);
    write(&registration, &ids).await;
    let before = lookup(&registration, &ids).await;
    node.stop().await;
    let payload = usize::try_from(before.layout().payload_bytes).unwrap();
    let missed = before.read(0, 4, &mut vec![0; 4 * payload], None).await.unwrap();
    assert_eq!((missed.loaded_blocks, missed.reason), (0, MissReason::Unspecified));
    let saved = before.write(0, 4, |_, _| (), false).await.unwrap();
    assert_eq!(saved.saved, 0, "{saved:?}");
    assert!(!before.release().await.unwrap());
    node.start_again();
    let found = eventually("it is found again", PATIENCE, async || {
        match registration.lookup(Prompt::Tokens(&content::tokens(&ids))).await {
            Ok(lookup) => Some(lookup),
            Err(ClientError::Absent { .. }) => None,
            Err(other) => panic!("{other:?}"),
        }
    })
    .await;
    assert_eq!(read(&found, &ids, 0, found.matched_blocks).await, 4);
    assert!(found.release().await.unwrap());
}
