//! A prompt whose prefix another node has computed is served from that node, which the directory names.

use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{Node, Setup, refrain};
use crate::fixture::worker::Worker;
use crate::fixture::{PATIENCE, eventually};
use crate::rig::{Rig, WHOLE_AGAIN};
use std::net::TcpListener;
use std::path::Path;
use std::time::Instant;

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

/// Whether one node knows another as away.
fn is_away(node: &Node, other: u64) -> bool {
    let nodes = refrain(["nodes", "--json", "--addr", &node.address().to_string()]).json();
    let nodes = nodes["nodes"].as_array().unwrap();
    nodes.iter().any(|it| it["node"] == other && it["state"] == "away")
}

/// Prints after how long.
#[tokio::test]
async fn what_a_node_has_is_hit_again_soon_after_its_return_and_no_entry_is_written_for_that() {
    let rig = Rig::new();
    let mut secret = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::io::Write::write_all(&mut secret, &[7; 32]).unwrap();
    let (here, mut there) = (start(&rig, secret.path(), 1), start(&rig, secret.path(), 2));
    let near = Worker::new(&here, SHAPE).await;
    let far = Worker::new(&there, SHAPE).await;
    let prompts = [92, 93, 94].map(|seed| prompt(seed, 12));
    for ids in &prompts {
        far.save_durably(ids).await;
        eventually("the directory tells of it", PATIENCE, async || {
            (near.matched(ids).await == 12).then_some(())
        })
        .await;
    }
    drop(far);
    for (ids, end) in prompts.iter().zip(["drained", "killed", "killed, back at once"]) {
        if end == "drained" {
            let drained = refrain(["drain", "--addr", &there.address().to_string()]);
            assert_eq!(drained.code, 0, "{drained:?}");
            assert!(there.end().await.success());
        } else {
            there.kill();
        }
        eventually("it is a miss", PATIENCE, async || (near.matched(ids).await == 0).then_some(()))
            .await;
        if end != "killed, back at once" {
            eventually("it is away", WHOLE_AGAIN, async || is_away(&here, 2).then_some(())).await;
        }
        let written = rig.entry_writes();
        there.start_again();
        let back = Instant::now();
        eventually("it is found again", PATIENCE, async || {
            (near.matched(ids).await == 12).then_some(())
        })
        .await;
        assert_eq!(near.has_all(ids).await.from_peer, 12);
        println!("{end}: loaded from it {:?} after it served again", back.elapsed());
        assert_eq!(rig.entry_writes(), written, "{end}");
    }
}
