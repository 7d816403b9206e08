//! Servers that are killed, hang or are emptied cost hits at most, and nothing for long.

use crate::fixture::eventually;
use crate::rig::{Node, Rig, WHOLE_AGAIN, chain, runs};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// What a lookup may take at most, and a little more than that.
const DEADLINE: Duration = Duration::from_secs(2);

/// Blocks that a lookup knows nothing of.
async fn unknown(reader: &Node, chain: &[refrain_index::chain::BlockKey]) -> usize {
    reader.locate(chain).await.unknown.iter().map(ExactSizeIterator::len).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_answer_while_a_master_is_away_and_writes_go_on_after_its_replacement() {
    let mut rig = Rig::new();
    let (node, reader) = (Node::new(&rig, 1).await, Node::new(&rig, 2).await);
    let chain = chain(1, 250);
    node.add(&chain[..200]);
    reader.finds(&chain, &[(1, 0, 200)]).await;
    let master = rig.cluster.masters()[0];
    rig.cluster.kill(master).unwrap();
    // At once: nobody has noticed yet.
    let located = reader.locate(&chain).await;
    assert_eq!((runs(&located), located.unknown), (vec![(1, 0, 200)], vec![]));
    node.add(&chain[200..]);
    reader.finds_within(WHOLE_AGAIN, &chain, &[(1, 0, 250)]).await;
    let epoch = node.membership.epoch();
    rig.cluster.restart(master).unwrap();
    rig.cluster.settled().unwrap();
    reader.finds(&chain, &[(1, 0, 250)]).await;
    assert_eq!(node.membership.epoch(), epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_hangs_and_a_replica_that_is_killed_cost_a_moment() {
    let mut rig = Rig::new();
    let (node, reader) = (Node::new(&rig, 1).await, Node::new(&rig, 2).await);
    let chain = chain(1, 200);
    node.add(&chain);
    reader.finds(&chain, &[(1, 0, 200)]).await;
    let master = rig.cluster.masters()[0];
    rig.cluster.signal(master, Signal::STOP).unwrap();
    let begun = Instant::now();
    let located = reader.locate(&chain).await;
    assert!(begun.elapsed() < 10 * DEADLINE, "{:?}", begun.elapsed());
    // What its replica had no time to say is unknown, and ends no prefix.
    assert_eq!(runs(&located), vec![(1, 0, 200)]);
    reader.finds_within(WHOLE_AGAIN, &chain, &[(1, 0, 200)]).await;
    rig.cluster.signal(master, Signal::CONT).unwrap();
    reader.finds_within(WHOLE_AGAIN, &chain, &[(1, 0, 200)]).await;

    rig.cluster.settled().unwrap();
    let masters = rig.cluster.masters();
    let replica = (0..rig.cluster.len()).find(|server| !masters.contains(server)).unwrap();
    rig.cluster.kill(replica).unwrap();
    reader.finds_within(WHOLE_AGAIN, &chain, &[(1, 0, 200)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_ends_at_its_deadline_with_what_is_known_by_then() {
    let rig = Rig::new();
    let (node, reader) = (Node::new(&rig, 1).await, Node::new(&rig, 2).await);
    let chain = chain(1, 200);
    node.add(&chain);
    reader.finds(&chain, &[(1, 0, 200)]).await;
    let hung = rig.cluster.masters();
    for server in &hung {
        rig.cluster.signal(*server, Signal::STOP).unwrap();
    }
    let begun = Instant::now();
    let located = reader.locate_within(&chain, Duration::from_millis(50)).await;
    let took = begun.elapsed();
    assert!(took < DEADLINE, "{took:?}");
    assert_eq!((runs(&located), located.unknown), (vec![], std::iter::once(0..200).collect()));
    for server in &hung {
        rig.cluster.signal(*server, Signal::CONT).unwrap();
    }
    reader.finds(&chain, &[(1, 0, 200)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_lost_everything_is_whole_again_by_itself() {
    let mut rig = Rig::new();
    let (node, reader) = (Node::new(&rig, 1).await, Node::new(&rig, 2).await);
    let chain = chain(1, 500);
    node.add(&chain);
    reader.finds(&chain, &[(1, 0, 500)]).await;
    for master in rig.cluster.masters() {
        rig.cluster.command(master, ["FLUSHALL", "ASYNC"]).unwrap();
    }
    reader.finds_within(WHOLE_AGAIN, &chain, &[(1, 0, 500)]).await;

    (0..rig.cluster.len()).for_each(|server| rig.cluster.kill(server).unwrap());
    let begun = Instant::now();
    assert_eq!(unknown(&reader, &chain).await, 500);
    assert!(begun.elapsed() < 2 * DEADLINE);
    // What happens meanwhile is not lost.
    node.remove(&chain[400..]);
    (0..rig.cluster.len()).for_each(|server| rig.cluster.restart(server).unwrap());
    reader.finds_within(WHOLE_AGAIN, &chain, &[(1, 0, 400)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_move_to_another_server_are_followed() {
    let rig = Rig::new();
    let (node, reader) = (Node::new(&rig, 1).await, Node::new(&rig, 2).await);
    let chain = chain(1, 100);
    node.add(&chain[..50]);
    reader.finds(&chain, &[(1, 0, 50)]).await;
    // A fail-over by hand changes every slot's server, while both go on.
    let masters = rig.cluster.masters();
    let mut asked: Option<Instant> = None;
    eventually("replicas are masters", WHOLE_AGAIN, async || {
        let now = rig.cluster.masters();
        let behind = (0..rig.cluster.len()).filter(|it| !masters.contains(it) && !now.contains(it));
        // A server that got no turn for some seconds has given its fail-over up.
        if asked.is_none_or(|at| at.elapsed() > Duration::from_secs(10)) {
            asked = Some(Instant::now());
            behind.for_each(|server| drop(rig.cluster.command(server, ["CLUSTER", "FAILOVER"])));
        }
        (now.len() == 3 && now.iter().all(|server| !masters.contains(server))).then_some(())
    })
    .await;
    node.add(&chain[50..]);
    reader.finds(&chain, &[(1, 0, 100)]).await;
}
