//! What the real kernel says of a failing drive, through a file system of ours and through a loop
//! device whose disk is pulled away: errors on data, on the catalogue's log, on both; a full file
//! system; a drive that hangs, and one that dies, beside another that does not.

use crate::faulty::{Fault, Faulty, Operation, Part};
use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{MIB, Node, Setup, home, refrain};
use crate::fixture::worker::Worker;
use crate::fixture::{PATIENCE, eventually};
use refrain_client::{Client, ClientConfig};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SHAPE: Shape = Shape::new(4, 40_000);
const BLOCKS: u64 = 4;
pub(crate) const EIO: i32 = 5;
const ENOSPC: i32 = 28;
/// A load's deadline, and what may come on top of it on a busy machine.
const DEADLINE: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(5);

/// A drive on a file system that fails as it is told.
pub(crate) struct FaultyDrive {
    pub(crate) faulty: Faulty,
    home: TempDir,
}

impl FaultyDrive {
    pub(crate) fn new(asynchronous: bool) -> Result<Self, String> {
        let home = home();
        let (root, mountpoint) = (home.path().join("root"), home.path().join("mount"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&mountpoint).unwrap();
        let faulty = Faulty::mount(&root, &mountpoint, asynchronous);
        let faulty =
            faulty.map_err(|error| format!("SKIPPED: FUSE cannot be mounted here: {error}"))?;
        Ok(Self { faulty, home })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.home.path().join("mount/drive")
    }
}

impl Drop for FaultyDrive {
    fn drop(&mut self) {
        self.faulty.heal();
        // Lazily, and before its directory goes: whoever has a file open there holds it.
        let _ = Command::new("umount").arg("-l").arg(self.home.path().join("mount")).status();
    }
}

pub(crate) fn setup() -> Setup {
    Setup { capacity: 32 * MIB, segment: 2 * MIB, ..Setup::default() }
        .with("load_deadline = \"2s\"")
        .with("drive_patience = \"500ms\"")
        .with("start_patience = \"3s\"")
        .with("load_arena = \"16MiB\"")
}

fn in_runtime(future: impl Future<Output = String>) -> String {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

/// A write, a sync, the catalogue's log, and all of them fail: with EIO, and for want of space.
pub(crate) fn errors(count: u64, seed: u64) -> String {
    in_runtime(async move {
        let cases: &[&[(Part, Operation)]] = &[
            &[(Part::Data, Operation::Write)],
            &[(Part::Data, Operation::Sync)],
            &[(Part::Log, Operation::Write)],
            &[(Part::Log, Operation::Sync)],
            &[(Part::Data, Operation::Sync), (Part::Log, Operation::Write)],
        ];
        let mut met = 0;
        for round in 0..count {
            for (index, case) in cases.iter().enumerate() {
                let errno =
                    if (seed + round + index as u64).is_multiple_of(2) { EIO } else { ENOSPC };
                match errors_of(case, errno).await {
                    Ok(faults) => met += faults,
                    Err(skipped) => return skipped,
                }
            }
        }
        format!(
            "{met} operations failed in {} cases, data, log and both; nothing acknowledged was lost",
            count * cases.len() as u64
        )
    })
}

async fn errors_of(case: &[(Part, Operation)], errno: i32) -> Result<u64, String> {
    let drive = FaultyDrive::new(errno == EIO)?;
    let mut node = Node::start(&setup().at(0, &drive.path()));
    let worker = Worker::new(&node, SHAPE).await;
    let before: Vec<_> = (0..5).map(|seed| prompt(seed, BLOCKS)).collect();
    for ids in &before {
        worker.save_durably(ids).await;
    }
    for &(part, operation) in case {
        drive.faulty.add(part, operation, Fault::Fail(errno));
    }
    let hits_data = case.iter().any(|(part, _)| *part == Part::Data);
    let ids = prompt(100, BLOCKS);
    let lookup = worker.lookup(&ids).await.unwrap();
    let saved = worker.save_under(&lookup, &ids, true).await.unwrap();
    lookup.release().await.unwrap();
    assert_eq!(saved.durable, !hits_data, "{case:?}: {saved:?}");
    drive.faulty.heal();
    for ids in &before {
        worker.has_all(ids).await;
    }
    // What failed once is not tried again and believed.
    let late = prompt(101, BLOCKS);
    let lookup = worker.lookup(&late).await.unwrap();
    let saved = worker.save_under(&lookup, &late, true).await.unwrap();
    lookup.release().await.unwrap();
    let writable = node.stats().await.drives[0].writable;
    assert_eq!((saved.durable, writable), (!hits_data, !hits_data), "{case:?}: {saved:?}");
    let met = drive.faulty.met();
    assert!(met > 0 || !hits_data, "{case:?} was never met");
    drop(worker);
    node.kill();
    node.start_again();
    let worker = Worker::new(&node, SHAPE).await;
    for ids in &before {
        worker.has_all(ids).await;
    }
    for ids in [&ids, &late] {
        let loaded = worker.load(ids).await;
        assert!(loaded.loaded == loaded.matched && loaded.held, "{case:?}: {loaded:?}");
        assert!(hits_data || u64::from(loaded.loaded) == BLOCKS, "{case:?}: {loaded:?}");
    }
    assert!(node.stats().await.drives[0].writable);
    worker.save_durably(&prompt(102, BLOCKS)).await;
    node.kill();
    Ok(met)
}

/// One of two drives does not answer any more, then does again.
pub(crate) fn hangs(count: u64, _: u64) -> String {
    in_runtime(async move {
        for round in 0..count {
            if let Err(skipped) = withdrawn("hangs", Fault::Hang, round.is_multiple_of(2)).await {
                return skipped;
            }
        }
        format!(
            "{count} times: withdrawn and told of, the other serves on, put back, all found again"
        )
    })
}

/// One of two drives gives an error for everything, then works again.
pub(crate) fn dies(count: u64, _: u64) -> String {
    in_runtime(async move {
        for round in 0..count {
            let is_even = round.is_multiple_of(2);
            if let Err(skipped) = withdrawn("fails", Fault::Fail(EIO), is_even).await {
                return skipped;
            }
        }
        format!(
            "{count} times: withdrawn and told of, the other serves on, put back, all found again"
        )
    })
}

/// A worker whose loads end soon.
async fn hurried(node: &Node) -> Worker {
    let client = Client::connect(ClientConfig {
        address: node.address(),
        session_arena_bytes: 16 * MIB,
        deadline: DEADLINE,
    });
    Worker::with(client.await.unwrap(), SHAPE, 0, false).await
}

/// Both drives hold prompts; where each lies.
async fn filled(node: &Node) -> (Vec<Vec<u64>>, Vec<Vec<u64>>) {
    let worker = Worker::new(node, SHAPE).await;
    let (mut faulty, mut good) = (Vec::new(), Vec::new());
    let mut known = 0;
    for seed in 0..24 {
        let ids = prompt(seed, BLOCKS);
        worker.save_durably(&ids).await;
        let live = node.stats().await.drives[0].live_bytes;
        if live > known { &mut faulty } else { &mut good }.push(ids);
        known = live;
    }
    assert!(faulty.len() > 3 && good.len() > 3, "{} and {}", faulty.len(), good.len());
    (faulty, good)
}

async fn withdrawn(why: &str, fault: Fault, asynchronous: bool) -> Result<(), String> {
    let drive = FaultyDrive::new(asynchronous)?;
    let mut node = Node::start(&Setup { drives: 2, ..setup() }.at(0, &drive.path()));
    let (faulty, good) = filled(&node).await;
    // So that nothing is in memory.
    node.stop().await;
    node.start_again();
    let worker = hurried(&node).await;
    let _healing = drive.faulty.healed_at_the_end();
    drive.faulty.add(Part::Data, Operation::Read, fault);
    eventually("the drive is withdrawn", PATIENCE, async || {
        for ids in &faulty {
            let begun = Instant::now();
            let loaded = worker.load(ids).await;
            assert!(loaded.loaded == 0 && begun.elapsed() < DEADLINE + GRACE, "{loaded:?}");
        }
        node.stats().await.drives[0].withdrawn.starts_with(why).then_some(())
    })
    .await;
    let doctor = refrain(["doctor", "--dir", drive.path().to_str().unwrap()]);
    assert!(doctor.code == 1 && doctor.out.contains(&format!("withdrawn, it {why}")), "{doctor:?}");
    let stat = refrain(["stat", "--addr", &node.address().to_string()]);
    assert!(stat.out.contains("WITHDRAWN"), "{stat:?}");
    // The other drive serves on, takes new prompts, and those that are lost for now.
    for ids in &good {
        worker.has_all(ids).await;
    }
    for ids in &faulty[..2] {
        assert_eq!(worker.matched(ids).await, 0, "nothing is offered that cannot be had");
        worker.save(ids).await;
        worker.has_all(ids).await;
    }
    let fresh = prompt(1000, BLOCKS);
    worker.save(&fresh).await;
    worker.has_all(&fresh).await;

    drive.faulty.heal();
    eventually("the drive is back", PATIENCE, async || {
        node.stats().await.drives[0].withdrawn.is_empty().then_some(())
    })
    .await;
    for ids in faulty.iter().chain(&good).chain([&fresh]) {
        worker.has_all(ids).await;
    }
    drop(worker);
    node.stop().await;
    Ok(())
}

/// A file system on a loop device, of which only root can make one.
struct LoopDisk {
    home: TempDir,
}

impl LoopDisk {
    fn new(bytes: u64) -> Result<Self, String> {
        let disk = Self { home: home() };
        let image = disk.image();
        File::create(&image).unwrap().set_len(bytes).unwrap();
        fs::create_dir(disk.path()).unwrap();
        run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()])?;
        run("mount", &["-o", "loop", image.to_str().unwrap(), disk.path().to_str().unwrap()])?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.home.path().join("image")
    }

    fn path(&self) -> PathBuf {
        self.home.path().join("mount")
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // Lazily: a disk that is gone cannot be written out.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let ran = Command::new(program).args(arguments).output();
    let ran = ran.map_err(|error| format!("SKIPPED: {program}: {error}"))?;
    if ran.status.success() {
        return Ok(());
    }
    Err(format!("SKIPPED: {program}: {}", String::from_utf8_lossy(&ran.stderr).trim()))
}

/// A file system that others fill to its last byte: data has its room, the catalogue has not.
pub(crate) fn full(count: u64, _: u64) -> String {
    in_runtime(async move {
        for _ in 0..count {
            if let Err(skipped) = filled_from_outside().await {
                return skipped;
            }
        }
        format!("{count} times: saves go on, and all of them are there after a kill")
    })
}

async fn filled_from_outside() -> Result<(), String> {
    let disk = LoopDisk::new(192 << 20)?;
    let mut node = Node::start(&setup().at(0, &disk.path().join("drive")));
    let worker = Worker::new(&node, SHAPE).await;
    fill(&disk.path().join("others"));
    let prompts: Vec<_> = (0..40).map(|seed| prompt(seed, BLOCKS)).collect();
    for ids in &prompts {
        worker.save_durably(ids).await;
    }
    assert!(node.stats().await.drives[0].writable);
    drop(worker);
    node.kill();
    fs::remove_file(disk.path().join("others")).unwrap();
    node.start_again();
    let worker = Worker::new(&node, SHAPE).await;
    for ids in &prompts {
        worker.has_all(ids).await;
    }
    drop(worker);
    node.stop().await;
    Ok(())
}

fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for bytes in [vec![1; 1 << 20], vec![1; 4096]] {
        while std::io::Write::write_all(&mut file, &bytes).is_ok() {}
    }
    let _ = file.sync_all();
}

/// A disk that is pulled: everything on it is an I/O error of the block layer.
pub(crate) fn pulled(count: u64, _: u64) -> String {
    in_runtime(async move {
        for _ in 0..count {
            if let Err(skipped) = pulled_away().await {
                return skipped;
            }
        }
        format!("{count} times: its blocks are misses, the other drive serves on")
    })
}

async fn pulled_away() -> Result<(), String> {
    let disk = LoopDisk::new(192 << 20)?;
    let mut node = Node::start(&Setup { drives: 2, ..setup() }.at(0, &disk.path().join("drive")));
    let (faulty, good) = filled(&node).await;
    node.stop().await;
    node.start_again();
    let worker = hurried(&node).await;
    File::options().write(true).open(disk.image()).unwrap().set_len(0).unwrap();
    eventually("the drive is withdrawn", PATIENCE, async || {
        for ids in &faulty {
            let begun = Instant::now();
            let loaded = worker.load(ids).await;
            assert!(loaded.loaded == 0 && begun.elapsed() < DEADLINE + GRACE, "{loaded:?}");
        }
        node.stats().await.drives[0].withdrawn.starts_with("fails").then_some(())
    })
    .await;
    for ids in good.iter().chain(&faulty) {
        worker.save(ids).await;
        worker.has_all(ids).await;
    }
    drop(worker);
    node.kill();
    Ok(())
}
