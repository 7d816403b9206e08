//! What is published is found, what is taken out is not, and no entry outlives its node's epoch.

use crate::fixture::{PATIENCE, eventually};
use crate::rig::{Node, Rig, chain, runs};
use refrain_index::chain::BlockKey;
use refrain_index::directory::{ForgetError, Life, NodeId, NodeState};
use std::sync::atomic::Ordering;
use std::time::Instant;

#[tokio::test(flavor = "multi_thread")]
async fn what_nodes_hold_is_found_and_what_they_lost_is_not() {
    let rig = Rig::new();
    let (left, right, reader) =
        (Node::new(&rig, 1).await, Node::new(&rig, 2).await, Node::new(&rig, 3).await);
    let chain = chain(1, 2000);
    left.add(&chain[..700]);
    right.add(&chain[..1500]);
    reader.finds(&chain, &[(2, 0, 1500), (1, 0, 700)]).await;
    // Galloping or not, from wherever on.
    reader.finds(&chain[600..800], &[(2, 0, 200), (1, 0, 100)]).await;
    let owner = &reader.locate(&chain).await.runs[0].owner;
    assert_eq!((owner.address.as_str(), owner.epoch), ("127.0.0.1:9002", right.membership.epoch()));
    // Nobody is told of itself.
    left.finds(&chain, &[(2, 0, 1500)]).await;
    right.remove(&chain[100..1500]);
    reader.finds(&chain, &[(1, 0, 700), (2, 0, 100)]).await;
    // Ranks of one block are blocks of their own.
    let other: Vec<_> = chain[..5].iter().map(|key| BlockKey { shard: 1, ..*key }).collect();
    reader.finds(&other, &[]).await;
    left.add(&other);
    reader.finds(&other, &[(1, 0, 5)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_and_comes_back_is_found_again_without_one_write() {
    let rig = Rig::new();
    let (node, reader) = (Node::new(&rig, 1).await, Node::new(&rig, 2).await);
    let chain = chain(1, 300);
    node.add(&chain);
    reader.finds(&chain, &[(1, 0, 300)]).await;
    // All groups are announced, so that nothing is written any more.
    let announced = &node.directory().counts().announced_groups;
    eventually("all groups are announced", PATIENCE, async || {
        (announced.load(Ordering::Relaxed) >= 256).then_some(())
    })
    .await;
    let epoch = node.membership.epoch();
    let shelf = node.leave().await;
    reader.finds(&chain, &[]).await;
    let state = |node: u16| {
        let members = reader.directory().members();
        members.iter().find(|member| member.node == NodeId(node)).unwrap().state
    };
    assert_eq!((state(1), state(2)), (NodeState::Away, NodeState::Live));
    let writes = rig.entry_writes();
    let back = Node::with(rig.settings(), shelf);
    reader.finds(&chain, &[(1, 0, 300)]).await;
    assert_eq!(rig.entry_writes(), writes);
    assert_eq!(back.membership.epoch(), epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_is_used_again_has_nothing_of_before() {
    let rig = Rig::new();
    let (node, reader) = (Node::new(&rig, 1).await, Node::new(&rig, 2).await);
    let chain = chain(1, 50);
    node.add(&chain);
    reader.finds(&chain, &[(1, 0, 50)]).await;
    let epoch = node.membership.epoch();

    // While it lives, nobody else has its number.
    let thief = Node::join(rig.settings(), Life::begin(NodeId(1)));
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert!(!thief.membership.is_joined());
    assert!(node.membership.is_joined());
    drop(thief);

    node.leave().await;
    let next = Node::new(&rig, 1).await;
    assert_eq!(next.membership.epoch(), epoch + 1);
    reader.finds(&chain, &[]).await;
    next.add(&chain[..10]);
    reader.finds(&chain, &[(1, 0, 10)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_forgotten_is_as_if_it_had_never_been_but_for_its_epoch() {
    let rig = Rig::new();
    let (node, reader) = (Node::new(&rig, 1).await, Node::new(&rig, 2).await);
    let chain = chain(1, 50);
    node.add(&chain);
    reader.finds(&chain, &[(1, 0, 50)]).await;
    let epoch = node.membership.epoch();
    let forget = async |node: u16| {
        reader.directory().forget_node(NodeId(node), Instant::now() + PATIENCE).await
    };
    assert_eq!(forget(1).await, Err(ForgetError::Alive { node: 1 }));
    assert_eq!(forget(7).await, Err(ForgetError::Unknown { node: 7 }));
    let shelf = node.leave().await;
    assert_eq!(forget(1).await, Ok(()));
    assert_eq!(forget(1).await, Err(ForgetError::Unknown { node: 1 }));
    eventually("nobody tells of it", PATIENCE, async || {
        let members = reader.directory().members();
        (members.iter().map(|member| member.node).collect::<Vec<_>>() == [NodeId(2)]).then_some(())
    })
    .await;
    // Whoever meets its entries takes them out.
    let forgotten = &reader.directory().counts().forgotten;
    eventually("its entries are gone", PATIENCE, async || {
        reader.finds(&chain, &[]).await;
        (forgotten.load(Ordering::Relaxed) >= 50).then_some(())
    })
    .await;

    let back = Node::with(rig.settings(), shelf);
    reader.finds(&chain, &[(1, 0, 50)]).await;
    assert_eq!(back.membership.epoch(), epoch + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_proved_wrong_is_forgotten() {
    let rig = Rig::new();
    let (node, reader) = (Node::new(&rig, 1).await, Node::new(&rig, 2).await);
    let chain = chain(1, 20);
    node.add(&chain);
    reader.finds(&chain, &[(1, 0, 20)]).await;
    node.lose(&chain[12..]);
    let owner = reader.locate(&chain).await.runs[0].owner.clone();
    chain[12..].iter().for_each(|key| reader.directory().forget(*key, &owner));
    reader.finds(&chain, &[(1, 0, 12)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_owners_of_a_block_are_known_and_a_fifth_takes_the_place_of_the_first() {
    let rig = Rig::new();
    let chain = chain(1, 3);
    let reader = Node::new(&rig, 9).await;
    let mut nodes = Vec::new();
    for number in 1..=5 {
        let node = Node::new(&rig, number).await;
        node.add(&chain);
        eventually("it is published", PATIENCE, async || {
            let located = reader.locate(&chain).await;
            runs(&located).contains(&(number, 0, 3)).then_some(())
        })
        .await;
        nodes.push(node);
    }
    reader.finds(&chain, &[(2, 0, 3), (3, 0, 3), (4, 0, 3), (5, 0, 3)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_of_the_fleet_wrote_is_refused_and_overwritten() {
    let rig = Rig::new();
    let (node, reader) = (Node::new(&rig, 1).await, Node::new(&rig, 2).await);
    let chain = chain(1, 40);
    node.add(&chain);
    reader.finds(&chain, &[(1, 0, 40)]).await;
    // Every value of every bucket becomes one of these; some buckets are none any more.
    let values = ["", "x", "12345", "123456789012345678901", "abcd"];
    let mut spoilt = 0;
    for server in rig.cluster.masters() {
        let keys = rig.cluster.command(server, ["KEYS", "{*"]).unwrap();
        let is_bucket = |key: &&str| !key.ends_with(':') && !key.starts_with("{nodes}");
        for key in keys.lines().filter(is_bucket) {
            if spoilt % 7 == 6 {
                rig.cluster.command(server, ["SET", key, "no bucket"]).unwrap();
            } else {
                let script = "for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do \
                              redis.call('HSET', KEYS[1], field, ARGV[1]) end";
                let value = values[spoilt % values.len()];
                rig.cluster.command(server, ["EVAL", script, "1", key, value]).unwrap();
            }
            spoilt += 1;
        }
    }
    assert!(spoilt >= 30, "{spoilt}");
    let located = reader.locate(&chain).await;
    assert_eq!(runs(&located), [], "abcd is node 24930, which nobody is");
    let counts = reader.directory().counts();
    assert!(counts.foreign_values.load(Ordering::Relaxed) > 0);
    assert!(counts.refused_commands.load(Ordering::Relaxed) > 0);
    // Written again, they are as they were.
    node.membership.changed(&chain);
    reader.finds(&chain, &[(1, 0, 40)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_that_is_no_cluster_is_a_directory_too() {
    let rig = Rig::alone();
    let (node, reader) = (Node::new(&rig, 1).await, Node::new(&rig, 2).await);
    let chain = chain(1, 600);
    node.add(&chain);
    reader.finds(&chain, &[(1, 0, 600)]).await;
    node.remove(&chain[10..]);
    reader.finds(&chain, &[(1, 0, 10)]).await;
}
