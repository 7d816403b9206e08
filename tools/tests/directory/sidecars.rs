//! Sidecars publish what they hold, are who they were after a restart, and serve on alone.

use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{Node, Setup, refrain};
use crate::fixture::worker::Worker;
use crate::fixture::{PATIENCE, eventually};
use crate::rig::Rig;
use serde_json::Value;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

const SHAPE: Shape = Shape::new(4, 31_000);

fn setup(servers: &[String], user_file: Option<&Path>, node: u16, secret: &str) -> Setup {
    let setup = Setup::default()
        .with(&format!("secret_file = \"{secret}\""))
        .with("[directory]")
        .with(&format!("servers = {servers:?}"))
        .with(&format!("node = {node}"))
        .with(&format!("address = \"127.0.0.1:{}\"", 9000 + node));
    match user_file {
        Some(file) => setup.with(&format!("user_file = \"{}\"", file.display())),
        None => setup,
    }
}

struct Fleet {
    rig: Rig,
    secret: tempfile::NamedTempFile,
}

impl Fleet {
    fn new() -> Self {
        let mut secret = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        std::io::Write::write_all(&mut secret, &[7; 32]).unwrap();
        Self { rig: Rig::new(), secret }
    }

    fn setup(&self, node: u16) -> Setup {
        let secret = self.secret.path().display().to_string();
        let user_file = self.rig.cluster.user_file();
        setup(&self.rig.cluster.addresses(), Some(&user_file), node, &secret)
    }

    fn node(&self, node: u16) -> Node {
        Node::start(&self.setup(node))
    }
}

fn ask(node: &Node, command: &str) -> Value {
    refrain([command, "--json", "--addr", &node.address().to_string()]).json()
}

fn ask_where(node: &Node, tokens: &Path) -> Value {
    let (address, tokens) = (node.address().to_string(), tokens.to_str().unwrap());
    refrain(["where", "--json", "--addr", &address, "--tokens", tokens]).json()
}

/// Which nodes hold how many blocks of a prompt, as one of them says.
fn places(node: &Node, tokens: &Path) -> Vec<(u64, u64)> {
    let found = ask_where(node, tokens);
    let number = |run: &Value, key: &str| run[key].as_u64().unwrap();
    let runs = found["runs"].as_array().unwrap().iter();
    let mut runs: Vec<_> = runs.map(|run| (number(run, "node"), number(run, "blocks"))).collect();
    runs.sort_unstable();
    runs
}

async fn finds(node: &Node, tokens: &Path, expected: &[(u64, u64)]) {
    eventually(&format!("{expected:?}"), PATIENCE, async || {
        (places(node, tokens) == expected).then_some(())
    })
    .await;
}

fn tokens_of(ids: &[u64]) -> tempfile::NamedTempFile {
    let tokens = crate::fixture::content::tokens(ids);
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(file.path(), format!("{tokens:?}")).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_are_found_over_restarts_and_not_after_they_lost_their_disk() {
    let fleet = Fleet::new();
    let (mut left, right) = (fleet.node(1), fleet.node(2));
    let ids = prompt(1, 12);
    let file = tokens_of(&ids);
    let worker = Worker::new(&left, SHAPE).await;
    let _asking = Worker::new(&right, SHAPE).await;
    // A group into which a block is saved meanwhile is announced once more, perhaps by the next life.
    eventually("all groups are announced", PATIENCE, async || {
        left.said().contains("announced blocks to the fleet groups=256").then_some(())
    })
    .await;
    worker.save_durably(&ids).await;
    finds(&right, file.path(), &[(1, 12)]).await;
    finds(&left, file.path(), &[(1, 12)]).await;
    let nodes = eventually("both are live", PATIENCE, async || {
        let nodes = ask(&right, "nodes");
        let listed = nodes["nodes"].as_array().unwrap();
        let are_live = listed.len() == 2 && listed.iter().all(|node| node["state"] == "live");
        are_live.then_some(nodes)
    })
    .await;
    let epoch = nodes["nodes"][0]["epoch"].as_u64().unwrap();

    drop(worker);
    left.stop().await;
    finds(&right, file.path(), &[]).await;
    let writes = fleet.rig.entry_writes();
    let begun = Instant::now();
    left.start_again();
    finds(&right, file.path(), &[(1, 12)]).await;
    assert!(begun.elapsed() < PATIENCE);
    assert_eq!(fleet.rig.entry_writes(), writes);

    left.stop().await;
    std::fs::remove_dir_all(left.drive(0)).unwrap();
    left.start_again();
    let raised = eventually("it joins", PATIENCE, async || {
        let stat = ask(&left, "stat");
        let directory = &stat["running"]["directory"];
        (directory["joined"] == true).then(|| directory["epoch"].as_u64().unwrap())
    })
    .await;
    assert_eq!(raised, epoch + 1);
    finds(&right, file.path(), &[]).await;
    Worker::new(&left, SHAPE).await.save_durably(&ids[..5]).await;
    finds(&right, file.path(), &[(1, 5)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_was_killed_is_who_it_was_and_what_is_evicted_is_taken_out() {
    let fleet = Fleet::new();
    let (mut left, right) = (fleet.node(1), fleet.node(2));
    let ids = prompt(1, 12);
    let file = tokens_of(&ids);
    let worker = Worker::new(&left, SHAPE).await;
    let _asking = Worker::new(&right, SHAPE).await;
    worker.save_durably(&ids).await;
    finds(&right, file.path(), &[(1, 12)]).await;
    left.kill();
    left.start_again();
    finds(&right, file.path(), &[(1, 12)]).await;
    let _worker = Worker::new(&left, SHAPE).await;

    let place = ask_where(&left, file.path());
    assert_eq!(place["runs"][0]["here"], true);
    let blocks = left.blocks().await;
    assert_eq!(blocks.len(), 12);
    // Of the last block, which nothing stands behind, and of the first, which all do.
    let evict = async |hash: Vec<u8>| {
        let request = refrain_client::v1::EvictRequest { sequence_hash: hash, shard: 0 };
        left.admin().await.evict(request).await.unwrap().into_inner().blocks
    };
    let mut gone = 0;
    for block in blocks {
        gone += evict(block.sequence_hash).await;
    }
    assert_eq!(gone, 12);
    finds(&right, file.path(), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_has_left_is_forgotten_on_demand_and_one_that_lives_is_not() {
    let fleet = Fleet::new();
    let (left, mut right) = (fleet.node(1), fleet.node(2));
    let address = left.address().to_string();
    let forget = |node| refrain(["nodes", "--forget", node, "--addr", &address]);
    let known = || -> Vec<_> {
        let nodes = ask(&left, "nodes")["nodes"].as_array().unwrap().clone();
        nodes.iter().map(|node| node["node"].as_u64().unwrap()).collect()
    };
    eventually("both are known", PATIENCE, async || (known() == [1, 2]).then_some(())).await;
    forget("2").refused("node 2 is in the fleet");
    forget("1").refused("node 1 is in the fleet");
    forget("3").refused("the fleet has no node 3");
    right.stop().await;
    assert_eq!(forget("2").code, 0);
    eventually("it is forgotten", PATIENCE, async || (known() == [1]).then_some(())).await;
    right.start_again();
    eventually("it is back", PATIENCE, async || (known() == [1, 2]).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_directory_a_sidecar_serves_its_own_disk_and_says_so() {
    // Bound, so that nobody else is there; and never accepting.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let servers = [nobody.local_addr().unwrap().to_string()];
    let secret = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(secret.path(), [7; 32]).unwrap();
    let secret = secret.path().display().to_string();
    let mut node = Node::start(&setup(&servers, None, 1, &secret));
    let worker = Worker::new(&node, SHAPE).await;
    let ids = prompt(1, 12);
    worker.save_durably(&ids).await;
    assert_eq!(worker.load(&ids).await.loaded, 12);
    let stat = ask(&node, "stat");
    assert_eq!(stat["running"]["directory"]["reached"], false);
    eventually("it says so", PATIENCE, async || {
        node.said().contains("the directory is not reached").then_some(())
    })
    .await;
    let begun = Instant::now();
    drop(worker);
    node.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(10), "it waits for nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_directory_in_its_config_a_node_is_in_no_fleet() {
    let node = Node::start(&Setup::default());
    assert_eq!(ask(&node, "stat")["running"]["directory"], Value::Null);
    let address = node.address().to_string();
    refrain(["nodes", "--addr", &address]).refused("in no fleet");
    assert!(!node.said().contains("refrain_index::directory"), "{}", node.said());
}
