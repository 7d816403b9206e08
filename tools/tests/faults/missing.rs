//! One of two drives is dead, unreadable or not mounted when a sidecar starts: it serves what the
//! other holds, says so, and takes the drive back, with all that it holds, when it is there again.

use crate::faulty::{Fault, Faulty, Healing, Operation, Part};
use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{MIB, Node, Setup, home, refrain};
use crate::fixture::worker::Worker;
use crate::fixture::{PATIENCE, eventually};
use crate::kernel::{EIO, FaultyDrive, setup};
use refrain_client::v1::{self, pin_request, prompt_name};
use std::path::Path;

const SHAPE: Shape = Shape::new(4, 40_000);
const BLOCKS: u64 = 6;
const PROMPTS: u64 = 16;
const EACCES: i32 = 13;

/// What becomes of a drive, and what is said of that.
pub(crate) type Way = (fn(&Faulty), &'static str);

const WAYS: [Way; 3] = [
    (|drive| drive.shut(Fault::Fail(EIO)), "Input/output error"),
    (|drive| drive.shut(Fault::Fail(EACCES)), "Permission denied"),
    (|drive| drive.add(Part::Data, Operation::Read, Fault::Fail(EIO)), "gives none of them"),
];

/// Whichever drive it is: the first one has the secret first.
pub(crate) fn run(count: u64, _: u64) -> String {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut found = 0;
        for round in 0..count {
            let drive = usize::from(!round.is_multiple_of(2));
            found += unmounted(drive).await;
            for way in WAYS {
                match faulty(drive, way).await {
                    Ok(again) => found += again,
                    Err(skipped) => return skipped,
                }
            }
            alone().await;
        }
        format!("{} starts without a drive, {found} blocks found again with it", 4 * count)
    })
}

/// The directory that a drive is mounted on is not there.
async fn unmounted(drive: usize) -> u64 {
    let home = home();
    let (mount, away) = (home.path().join("mount"), home.path().join("away"));
    std::fs::create_dir(&mount).unwrap();
    let fails = || std::fs::rename(&mount, &away).unwrap();
    let mends = || std::fs::rename(&away, &mount).unwrap();
    left_out((drive, &mount.join("drive")), (fails, "No such file"), mends, None).await
}

/// A drive on a file system that fails.
pub(crate) async fn faulty(drive: usize, (fails, why): Way) -> Result<u64, String> {
    let on = FaultyDrive::new(true)?;
    let (fails, mends) = (|| fails(&on.faulty), || on.faulty.heal());
    let healing = Some(on.faulty.healed_at_the_end());
    Ok(left_out((drive, &on.path()), (fails, why), mends, healing).await)
}

/// A node of one drive has nothing to serve without it.
async fn alone() {
    let Ok(drive) = FaultyDrive::new(true) else { return };
    let mut node = Node::start(&patient().at(0, &drive.path()));
    node.stop().await;
    let _healing = drive.faulty.healed_at_the_end();
    drive.faulty.shut(Fault::Fail(EIO));
    assert!(!node.try_start_again(), "it serves nothing");
    assert!(node.said().contains("Input/output error"), "{}", node.said());
    drive.faulty.heal();
    node.start_again();
    node.stop().await;
}

async fn left_out(
    (drive, place): (usize, &Path),
    (fails, why): (impl Fn(), &str),
    mends: impl Fn(),
    healing: Option<Healing<'_>>,
) -> u64 {
    let mut node = Node::start(&of_two(drive, place));
    let _healing = healing;
    let prompts: Vec<_> = (0..PROMPTS).map(|seed| prompt(seed, BLOCKS)).collect();
    fill(&node, &prompts).await;
    node.stop().await;
    fails();

    node.start_again();
    says_so(&node, drive, why).await;
    let worker = Worker::new(&node, SHAPE).await;
    let mut matched = 0;
    for ids in &prompts {
        let loaded = worker.load(ids).await;
        assert!(loaded.loaded == loaded.matched && loaded.held, "{loaded:?}");
        matched += u64::from(loaded.loaded);
    }
    let all = PROMPTS * BLOCKS;
    assert!((1..all).contains(&matched), "{matched} of {all} on one of two drives");
    // What is lost for now may be made anew, and what is new is taken.
    let fresh = prompt(1000, BLOCKS);
    for ids in [&fresh, &prompts[1]] {
        worker.save(ids).await;
        worker.has_all(ids).await;
    }
    drop_tenant(&node, "dropped").await;
    drop(worker);

    mends();
    eventually("the drive is back", PATIENCE, async || {
        node.stats().await.drives[drive].withdrawn.is_empty().then_some(())
    })
    .await;
    is_whole(&node, &prompts, &fresh).await;
    node.stop().await;
    node.start_again();
    is_whole(&node, &prompts, &fresh).await;
    node.stop().await;
    all - matched
}

/// A node of two drives, one of them at `place`.
pub(crate) fn of_two(drive: usize, place: &Path) -> Setup {
    Setup { drives: 2, ..patient() }.at(drive, place)
}

/// As `setup` has it; no drive is withdrawn because the machine is busy.
pub(crate) fn patient() -> Setup {
    let setup = setup();
    let config = setup.config.replace("\"500ms\"", "\"2s\"");
    Setup { config, ..setup }
}

/// Both drives hold prompts, of a tenant that stays and of one that is dropped; one is pinned.
async fn fill(node: &Node, prompts: &[Vec<u64>]) {
    let worker = Worker::new(node, SHAPE).await;
    for (number, ids) in prompts.iter().enumerate() {
        // Half of them begin on one drive, and may go on on the other.
        if number % 2 == 0 {
            worker.save_durably(&ids[..2]).await;
        }
        worker.save_durably(ids).await;
    }
    let dropped = Worker::of_tenant(node, SHAPE, "dropped").await;
    for ids in prompts {
        dropped.save_durably(ids).await;
    }
    let stats = node.stats().await;
    assert!(stats.drives.iter().all(|drive| drive.live_bytes > MIB), "{stats:?}");
    pin(node, &worker, &prompts[0]).await;
}

/// The log, `stat` and `doctor` tell of the drive that is missing, and of nothing else.
async fn says_so(node: &Node, drive: usize, why: &str) {
    let stats = node.stats().await;
    let (missing, other) = (&stats.drives[drive], &stats.drives[1 - drive]);
    assert!(missing.withdrawn.starts_with("is not there: "), "{missing:?}");
    assert!(missing.withdrawn.contains(why), "{missing:?}");
    assert_eq!((missing.writable, missing.segments), (false, 0), "{missing:?}");
    assert!(other.withdrawn.is_empty() && other.writable, "{other:?}");
    assert!(node.said().contains("drive missing: left out"), "{}", node.said());
    let stat = refrain(["stat", "--addr", &node.address().to_string()]);
    assert!(stat.out.contains("WITHDRAWN     is not there: "), "{stat:?}");
    let doctor = refrain(["doctor", "--dir", &other.path]);
    assert!(doctor.code == 1 && doctor.out.contains("withdrawn, it is not there: "), "{doctor:?}");
}

/// All is there but what was dropped; the pin too.
async fn is_whole(node: &Node, prompts: &[Vec<u64>], fresh: &[u64]) {
    let worker = Worker::new(node, SHAPE).await;
    eventually("everything is found again", PATIENCE, async || {
        for ids in prompts {
            if u64::from(worker.matched(ids).await) < BLOCKS {
                return None;
            }
        }
        Some(())
    })
    .await;
    for ids in prompts {
        worker.has_all(ids).await;
    }
    worker.has_all(fresh).await;
    let dropped = Worker::of_tenant(node, SHAPE, "dropped").await;
    for ids in prompts {
        assert_eq!(dropped.matched(ids).await, 0, "dropped while a drive was missing");
    }
    eventually("the pin is back", PATIENCE, async || {
        let stats = node.stats().await;
        let bytes: u64 = stats.drives.iter().map(|drive| drive.pinned_bytes).sum();
        (stats.pins == 1 && bytes > BLOCKS * SHAPE.block_bytes()).then_some(())
    })
    .await;
}

async fn digest(node: &Node, tenant: &str) -> Vec<u8> {
    let request = v1::ListRequest { what: v1::list_request::What::Namespaces.into(), limit: 0 };
    let mut listed = node.admin().await.list(request).await.unwrap().into_inner();
    while let Some(entry) = listed.message().await.unwrap() {
        if let Some(v1::list_entry::Entry::Namespace(namespace)) = entry.entry
            && namespace.tenant == tenant
        {
            return namespace.digest;
        }
    }
    panic!("no namespace of {tenant}");
}

async fn drop_tenant(node: &Node, tenant: &str) {
    // So that it is known by its tenant.
    let _worker = Worker::of_tenant(node, SHAPE, tenant).await;
    let request = v1::DropNamespaceRequest { namespace_digest: digest(node, tenant).await };
    node.admin().await.drop_namespace(request).await.unwrap();
}

async fn pin(node: &Node, worker: &Worker, ids: &[u64]) {
    worker.has_all(ids).await;
    let tokens = crate::fixture::content::tokens(ids);
    let bytes: Vec<u8> = tokens.into_iter().flat_map(u32::to_le_bytes).collect();
    let name = v1::PromptName {
        namespace_digest: digest(node, "tenant").await,
        shard: 0,
        prompt: Some(prompt_name::Prompt::Tokens(bytes.into())),
        extra_keys: Vec::new(),
    };
    let prefix = Some(pin_request::Prefix::Prompt(name));
    node.admin().await.pin(v1::PinRequest { prefix, ttl_ms: 0 }).await.unwrap();
}
