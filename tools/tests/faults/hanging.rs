//! One of two drives does not answer when a sidecar starts: that start does not wait for it, nor does a
//! stop, and nobody opens it a second time. A node's only drive that hangs ends the start by its name.
//!
//! A process whose thread hangs in the kernel is kept by it until the drive has answered, however it
//! ends: what it says at its end is waited for here, and the process after that.

use crate::faulty::{Fault, Operation, Part};
use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{Node, Setup};
use crate::fixture::worker::Worker;
use crate::fixture::{PATIENCE, eventually};
use crate::kernel::FaultyDrive;
use crate::missing::{self, Way, of_two, patient};
use refrain_store::directory::{Directory, DirectoryError};
use rustix::process::{Pid, Signal, kill_process};
use std::process::{Child, ExitStatus};

const SHAPE: Shape = Shape::new(4, 40_000);
const BLOCKS: u64 = 6;

const HANGS: &str = "hangs: it has answered nothing for 3s";
/// And whether it hangs only once its store is locked.
const WAYS: [(Way, bool); 3] = [
    ((|drive| drive.add(Part::Data, Operation::Read, Fault::Hang), HANGS), true),
    ((|drive| drive.add(Part::Rows, Operation::Read, Fault::Hang), HANGS), true),
    // Ends with an error once it is let go.
    ((|drive| drive.shut(Fault::Hang), HANGS), false),
];

pub(crate) fn run(count: u64, _: u64) -> String {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut found = 0;
        for round in 0..count {
            for (index, (way, is_entered)) in (0..).zip(WAYS) {
                // The first one has the secret first.
                let drive = usize::from((round + index).is_multiple_of(2));
                match missing::faulty(drive, way).await {
                    Ok(again) => found += again,
                    Err(skipped) => return skipped,
                }
                stopped_meanwhile(drive, way, is_entered).await;
                stopped_while_it_starts(drive, way).await;
                alone(way).await;
            }
        }
        let starts = WAYS.len() as u64 * count;
        format!("{starts} starts beside a drive, {found} blocks found again with it; {starts} stops meanwhile, {starts} stops of a start, {starts} refusals")
    })
}

/// A node with something on its drives, stopped.
async fn filled(setup: &Setup) -> Node {
    let mut node = Node::start(setup);
    let worker = Worker::new(&node, SHAPE).await;
    for seed in 0..8 {
        worker.save_durably(&prompt(seed, BLOCKS)).await;
    }
    drop(worker);
    node.stop().await;
    node
}

async fn is_whole(mut node: Node) {
    node.start_again();
    let worker = Worker::new(&node, SHAPE).await;
    for seed in 0..8 {
        worker.has_all(&prompt(seed, BLOCKS)).await;
    }
    drop(worker);
    node.stop().await;
}

/// Of a node that serves without the drive, which may hang with its store locked.
async fn stopped_meanwhile(drive: usize, (hangs, _): Way, is_entered: bool) {
    let faulty = FaultyDrive::new(true).unwrap();
    let mut node = filled(&of_two(drive, &faulty.path())).await;
    let _healing = faulty.faulty.healed_at_the_end();
    hangs(&faulty.faulty);
    node.start_again();
    if is_entered {
        let second = Directory::open_read_only(&faulty.path());
        assert!(matches!(second, Err(DirectoryError::InUse { .. })), "{second:?}");
    }
    node.signal(Signal::TERM);
    says(&node, "stopped\n", 2).await;
    faulty.faulty.heal();
    assert!(node.end().await.success(), "{}", node.said());
    is_whole(node).await;
}

/// Of a node that would wait for much longer.
async fn stopped_while_it_starts(drive: usize, (hangs, _): Way) {
    let faulty = FaultyDrive::new(true).unwrap();
    let setup = of_two(drive, &faulty.path());
    let node = filled(&setup).await;
    let config = setup.config.replace("start_patience = \"3s\"", "start_patience = \"5m\"");
    node.set_up(&Setup { config, ..setup.clone() }.with("drain = \"500ms\""));
    let _healing = faulty.faulty.healed_at_the_end();
    hangs(&faulty.faulty);
    let mut child = node.spawn();
    eventually("the start hangs", PATIENCE, async || (faulty.faulty.met() > 0).then_some(())).await;
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    says(&node, "stopped before it served", 1).await;
    faulty.faulty.heal();
    assert!(ended(&mut child).await.success(), "{}", node.said());
    is_whole(node).await;
}

/// A node that has no other drive.
async fn alone((hangs, why): Way) {
    let faulty = FaultyDrive::new(true).unwrap();
    let node = filled(&patient().at(0, &faulty.path())).await;
    let _healing = faulty.faulty.healed_at_the_end();
    hangs(&faulty.faulty);
    let mut child = node.spawn();
    says(&node, why, 1).await;
    let refusal = format!("refrain: drive {} hangs", faulty.path().display());
    assert!(node.said().contains(&refusal), "{}", node.said());
    faulty.faulty.heal();
    assert_eq!(ended(&mut child).await.code(), Some(1), "{}", node.said());
    is_whole(node).await;
}

/// The sidecars of a node have said something so many times.
async fn says(node: &Node, what: &str, times: usize) {
    eventually(what, PATIENCE, async || (node.said().matches(what).count() >= times).then_some(()))
        .await;
}

async fn ended(child: &mut Child) -> ExitStatus {
    eventually("it ends", PATIENCE, async || child.try_wait().unwrap()).await
}
