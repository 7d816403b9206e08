//! A namespace whose epoch is raised has no blocks any more: at once, for good, and on no account
//! those of another. An epoch never falls.

use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{Node, Setup, refrain};
use crate::fixture::worker::Worker;
use refrain::hex::hex;
use refrain_client::v1;
use tonic::Code;

const SHAPE: Shape = Shape::new(4, 20_000);

/// A sidecar with the same prompt in two namespaces, and the digest of the second.
async fn two_tenants(ids: &[u64]) -> (Node, Worker, Worker, Vec<u8>) {
    let node = Node::start(&Setup::default());
    let kept = Worker::new(&node, SHAPE).await;
    kept.save(ids).await;
    let digest = node.blocks().await[0].namespace_digest.clone();
    let dropped = Worker::of_tenant(&node, SHAPE, "other tenant").await;
    dropped.save(ids).await;
    let of_other = |block: &v1::BlockInfo| block.namespace_digest != digest;
    let other = node.blocks().await.into_iter().find(of_other).unwrap().namespace_digest;
    (node, kept, dropped, other)
}

async fn set(node: &Node, digest: &[u8], epoch: u64) -> Result<(u64, u64), tonic::Status> {
    let request = v1::SetEpochRequest { namespace_digest: digest.to_vec(), epoch };
    let answer = node.admin().await.set_epoch(request).await?.into_inner();
    Ok((answer.epoch, answer.blocks))
}

#[tokio::test]
async fn blocks_of_an_earlier_epoch_are_misses_over_a_kill_without_a_catalogue() {
    let ids = prompt(1, 6);
    let (mut node, kept, dropped, digest) = two_tenants(&ids).await;
    assert_eq!(set(&node, &digest, 5).await.unwrap(), (5, 6));
    assert_eq!(dropped.matched(&ids).await, 0);
    kept.has_all(&ids).await;
    node.kill();
    std::fs::remove_dir_all(node.drive(0).join("catalog")).unwrap();
    node.start_again();
    assert_eq!(dropped.matched(&ids).await, 0);
    kept.has_all(&ids).await;
    // What is saved from now on counts, after a start too.
    dropped.save_durably(&ids).await;
    node.kill();
    node.start_again();
    dropped.has_all(&ids).await;
}

#[tokio::test]
async fn an_epoch_may_be_set_again_and_never_falls() {
    let ids = prompt(2, 3);
    let (node, _, dropped, digest) = two_tenants(&ids).await;
    assert_eq!(set(&node, &digest, 0).await.unwrap(), (0, 0));
    dropped.has_all(&ids).await;
    assert_eq!(set(&node, &digest, 2).await.unwrap(), (2, 3));
    dropped.save(&ids).await;
    assert_eq!(set(&node, &digest, 2).await.unwrap(), (2, 0));
    dropped.has_all(&ids).await;
    let lower = set(&node, &digest, 1).await.unwrap_err();
    assert_eq!(lower.code(), Code::InvalidArgument);
    assert!(lower.message().contains("is in epoch 2, which cannot become 1"), "{lower:?}");
    dropped.has_all(&ids).await;
    let short = set(&node, &digest[1..], 3).await.unwrap_err();
    assert_eq!(short.message(), "namespace_digest has 31 bytes, not 32");
}

#[tokio::test]
async fn an_epoch_set_before_its_namespace_is_first_used_counts() {
    let ids = prompt(3, 3);
    let (node, ..) = two_tenants(&ids).await;
    let unused = [7; 32];
    assert_eq!(set(&node, &unused, 4).await.unwrap(), (4, 0));
    assert_eq!(set(&node, &unused, 3).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_command_sets_an_epoch_and_a_list_shows_it() {
    let ids = prompt(4, 4);
    let (node, _, dropped, digest) = two_tenants(&ids).await;
    let (address, name) = (node.address().to_string(), hex(&digest));
    let set = refrain(["set-epoch", &name[..16], "3", "--json", "--addr", &address]);
    let expected = serde_json::json!({ "namespace": name, "epoch": 3, "blocks": 4 });
    assert_eq!((set.code, set.json()), (0, expected), "{set:?}");
    assert_eq!(dropped.matched(&ids).await, 0);
    let listed = refrain(["ls", "namespaces", "--json", "--addr", &address]);
    let row = |line: &str| -> serde_json::Value { serde_json::from_str(line).unwrap() };
    let rows: Vec<_> = listed.out.lines().map(row).collect();
    let found = rows.iter().find(|row| row["digest"] == name.as_str()).unwrap();
    assert_eq!((&found["epoch"], &found["blocks"]), (&3.into(), &0.into()), "{listed:?}");
    refrain(["set-epoch", &name, "1", "--addr", &address]).refused("which cannot become 1");
}
