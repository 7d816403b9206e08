//! The users that are handed out may do what they must, and nothing else.

use crate::fixture::node::home;
use crate::rig::{Node, Rig, chain};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use refrain::cluster::TlsFiles;
use refrain_index::directory::{Directory, Life, NodeId, Settings, Tls, User};
use std::process::Command;
use std::time::Duration;

fn as_user(rig: &Rig, user: &[&str], words: &[&str]) -> String {
    let port = rig.cluster.port(rig.cluster.masters()[0]).to_string();
    let mut command = Command::new("redis-cli");
    command.args(["-h", "127.0.0.1", "-p", &port, "--no-auth-warning"]).args(user).args(words);
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecars_user_reads_and_writes_entries_and_nobody_else_does_anything() {
    let rig = Rig::new();
    let (node, reader) = (Node::new(&rig, 1).await, Node::new(&rig, 2).await);
    let chain = chain(1, 30);
    node.add(&chain);
    reader.finds(&chain, &[(1, 0, 30)]).await;

    let refrain = ["--user", "refrain", "--pass", rig.cluster.password()];
    for words in [
        &["FLUSHALL"][..],
        &["CONFIG", "GET", "*"],
        &["KEYS", "*"],
        &["EVAL", "return 1", "0"],
        &["FUNCTION", "DELETE", "refrain1"],
        &["ACL", "LIST"],
        &["CLUSTER", "RESET"],
        &["SHUTDOWN"],
        &["GET", "foreign"],
    ] {
        let said = as_user(&rig, &refrain, words);
        assert!(said.contains("NOPERM"), "{words:?}: {said}");
    }
    for words in [&["GET", "{nodes}:layout"][..], &["PING"]] {
        for user in [&[][..], &["--user", "refrain", "--pass", "wrong"]] {
            let said = as_user(&rig, user, words);
            assert!(said.contains("NOAUTH") || said.contains("NOPERM"), "{user:?}: {said}");
        }
    }

    // A client that is not let in knows nothing, and says so.
    let user = Some(User { name: "refrain".into(), password: "wrong".into() });
    let outside = Directory::connect(Settings { user, ..rig.settings() }).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!outside.is_known() && !outside.counts().is_reached());
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_a_client_without_a_certificate_of_the_fleets_authority_is_refused() {
    let home = home();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // What it signs has another name, or would be taken to have signed itself.
    params.distinguished_name.push(DnType::CommonName, "authority");
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let file = |name: &str, text: &str| {
        let path = home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let sign = || {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    let (certificate, key) = sign();
    let rig = Rig::with_tls(TlsFiles {
        ca: file("ca.pem", &authority),
        certificate: file("server.pem", &certificate),
        key: file("server.key", &key),
    });

    let with = |certificate: &str, key: &str| {
        let authority = authority.clone().into_bytes();
        let tls = Tls { authority, certificate: certificate.into(), key: key.into() };
        rig.with(tls)
    };
    let (certificate, key) = sign();
    let join = |node| Node::join(with(&certificate, &key), Life::begin(NodeId(node)));
    let (node, reader) = (join(1), join(2));
    node.joined().await;
    reader.joined().await;
    let chain = chain(1, 300);
    node.add(&chain);
    reader.finds(&chain, &[(1, 0, 300)]).await;

    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let own = with(&params.self_signed(&key).unwrap().pem(), &key.serialize_pem());
    for settings in [own, rig.settings()] {
        let outside = Directory::connect(settings).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!outside.is_known() && !outside.counts().is_reached());
    }
}
