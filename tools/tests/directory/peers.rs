//! A prompt whose prefix another node has computed is served from that node, which the directory names.

use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{Node, Setup};
use crate::fixture::worker::Worker;
use crate::fixture::{PATIENCE, eventually};
use crate::rig::Rig;
use std::net::TcpListener;
use std::path::Path;

const SHAPE: Shape = Shape::new(4, 31_000);

/// Node `number`, which knows of no other but by the directory.
fn start(rig: &Rig, secret: &Path, number: u16) -> Node {
    let ip = format!("127.0.2.{number}");
    let port = TcpListener::bind((ip.as_str(), 0)).unwrap().local_addr().unwrap().port();
    let servers = rig.cluster.addresses();
    let setup = Setup::default()
        .with(&format!("secret_file = \"{}\"", secret.display()))
        .with(&format!("peers.listen = \"{ip}:{port}\""))
        .with("peers.lookup_deadline = \"10s\"")
        .with("[directory]")
        .with(&format!("servers = {servers:?}"))
        .with(&format!("node = {number}"))
        .with(&format!("address = \"{ip}:{port}\""))
        .with(&format!("user_file = \"{}\"", rig.cluster.user_file().display()));
    Node::start(&setup)
}

#[tokio::test]
async fn a_prefix_that_another_node_has_is_found_through_the_directory_and_comes_from_there() {
    let rig = Rig::new();
    let mut secret = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::io::Write::write_all(&mut secret, &[7; 32]).unwrap();
    let mut nodes = [1, 2, 3].map(|number| start(&rig, secret.path(), number));
    let ids = prompt(90, 24);
    let (mut near, mut far) = (Vec::new(), Vec::new());
    for (nodes, workers) in [(&nodes[..1], &mut near), (&nodes[1..], &mut far)] {
        for node in nodes {
            workers.push(Worker::new(node, SHAPE).await);
        }
    }
    far[0].save(&ids[..12]).await;
    eventually("the directory tells of it", PATIENCE, async || {
        (near[0].matched(&ids).await == 12).then_some(())
    })
    .await;
    let loaded = near[0].has_all(&ids[..12]).await;
    assert_eq!(loaded.from_peer, 12, "{loaded:?}");
    // Its owner has gone: others are asked, and nobody waits for it.
    let other = prompt(91, 8);
    far[0].save(&other).await;
    eventually("the directory tells of it", PATIENCE, async || {
        (near[0].matched(&other).await == 8).then_some(())
    })
    .await;
    nodes[1].kill();
    eventually("it is a miss", PATIENCE, async || {
        (near[0].matched(&other).await == 0).then_some(())
    })
    .await;
    far[1].save(&other).await;
    eventually("another node has it", PATIENCE, async || {
        (near[0].matched(&other).await == 8).then_some(())
    })
    .await;
    assert_eq!(near[0].has_all(&other).await.from_peer, 8);
}
