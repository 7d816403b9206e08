//! What no sidecar or command can work with is refused before anything is changed, in one line that
//! says what is wrong and where.

use crate::fixture::node::{MIB, Node, Setup, home, refrain};
use refrain_store::format::checksum;
use std::fs;
use std::path::Path;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The last line that `refrain serve` says over this directory.
#[track_caller]
fn check_serve(directory: &Path, capacity: &str, expected: &str) {
    let ran = refrain(["serve", "--dir", text(directory), "--capacity", capacity]);
    assert_eq!(ran.error.lines().last(), Some(&*format!("refrain: {expected}")), "{ran:?}");
    assert_eq!(ran.code, 1);
}

#[tokio::test]
async fn a_second_sidecar_is_refused_by_the_name_of_the_first() {
    let node = Node::start(&Setup::default());
    let ran = refrain(["serve", "--config", text(&node.config())]);
    let expected = format!(
        "store directory {} is in use by process {}: stop it, or give another directory",
        node.drive(0).display(),
        node.pid()
    );
    ran.refused(&expected);
    assert_eq!(node.stats().await.blocks, 0, "the first one serves on");
}

#[test]
fn a_capacity_larger_than_the_disk_is_refused_and_takes_nothing() {
    let home = home();
    let store = home.path().join("store");
    let ran = refrain(["serve", "--dir", text(&store), "--capacity", "4000TiB"]);
    let capacity = 4000u64 << 40;
    ran.refused(&format!("capacity of {capacity} bytes is larger than the disk: "));
    let taken: u64 = walk(&store).iter().map(|file| file.metadata().unwrap().len()).sum();
    assert!(taken < MIB, "{taken} bytes are left behind");
    // The directory is good for a capacity that fits.
    let mut node = Node::start(&Setup::default());
    node.kill();
    let ran = refrain(["serve", "--dir", text(&node.drive(0)), "--capacity", "4000TiB"]);
    ran.refused("is larger than the disk");
    node.start_again();
}

fn walk(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_file()).collect()
}

#[tokio::test]
async fn a_directory_of_a_newer_format_is_refused_untouched() {
    let mut node = Node::start(&Setup::default());
    node.stop().await;
    let path = node.drive(0).join("superblock");
    let old = fs::read(&path).unwrap();
    let mut new = old.clone();
    let (pages, _) = new.as_chunks_mut::<4096>();
    for page in pages {
        page[8..12].copy_from_slice(&2u32.to_le_bytes());
        let sum = checksum(&page[..4088]);
        page[4088..].copy_from_slice(&sum.to_le_bytes());
    }
    fs::write(&path, &new).unwrap();
    let expected = format!(
        "open store {}: store has format version 2, this build reads up to 1: use a newer one",
        node.drive(0).display()
    );
    check_serve(&node.drive(0), "64MiB", &expected);
    assert_eq!(fs::read(&path).unwrap(), new);
    fs::write(&path, old).unwrap();
    node.start_again();
}

#[tokio::test]
async fn a_superblock_damaged_in_one_copy_is_used_and_in_both_refused() {
    let mut node = Node::start(&Setup::default());
    node.stop().await;
    let path = node.drive(0).join("superblock");
    crate::fixture::node::flip(&path, 20);
    node.start_again();
    node.stop().await;
    crate::fixture::node::flip(&path, 4096 + 20);
    let store = node.drive(0);
    check_serve(
        &store,
        "64MiB",
        &format!("open store {}: superblock is damaged in both copies", store.display()),
    );
}

#[tokio::test]
async fn one_of_two_drives_that_is_in_use_or_of_a_newer_format_is_refused_by_name() {
    let mut node = Node::start(&Setup { drives: 2, ..Setup::default() });
    node.stop().await;
    let second = node.drive(1);
    let check = |expected: &str| {
        let ran = refrain(["serve", "--config", text(&node.config())]);
        assert_eq!(ran.error.lines().last(), Some(&*format!("refrain: {expected}")), "{ran:?}");
    };
    let lock =
        rustix::fs::open(second.join("lock"), rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty());
    let lock = lock.unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    check(&format!(
        "store directory {} is in use by another process: stop it, or give another directory",
        second.display()
    ));
    // Closing it would not do: a child that another claim starts meanwhile may have it too.
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock).unwrap();
    let path = second.join("superblock");
    let mut bytes = fs::read(&path).unwrap();
    let (pages, _) = bytes.as_chunks_mut::<4096>();
    for page in pages {
        page[8..12].copy_from_slice(&2u32.to_le_bytes());
        let sum = checksum(&page[..4088]);
        page[4088..].copy_from_slice(&sum.to_le_bytes());
    }
    fs::write(&path, &bytes).unwrap();
    check(&format!(
        "open store {}: store has format version 2, this build reads up to 1: use a newer one",
        second.display()
    ));
    assert_eq!(fs::read(&path).unwrap(), bytes, "and is left as it is");
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    let home = home();
    let file = home.path().join("file");
    fs::write(&file, b"no directory").unwrap();
    check_serve(&file, "64MiB", &format!("open {}: Not a directory (os error 20)", file.display()));
    check_serve(
        &file.join("store"),
        "64MiB",
        &format!(
            "create store directory {}: Not a directory (os error 20)",
            file.join("store").display()
        ),
    );
    // Nobody may make files there, whoever runs the tests.
    let readable = Path::new("/proc/self/fdinfo");
    let ran = refrain(["serve", "--dir", text(readable), "--capacity", "64MiB"]);
    ran.refused(&format!("open {}/lock: ", readable.display()));
}

#[test]
fn an_unknown_config_key_is_refused_with_its_line() {
    let home = home();
    let config = home.path().join("refrain.toml");
    let store = home.path().join("store");
    let drive = format!("[[drives]]\npath = \"{}\"\ncapacity = \"64MiB\"\n", store.display());
    let check = |text: &str, expected: &str| {
        fs::write(&config, text).unwrap();
        let ran = refrain(["serve", "--config", config.to_str().unwrap()]);
        ran.refused(&format!("refrain: {}:{expected}", config.display()));
        assert!(!store.exists(), "nothing is made");
    };
    check(&format!("\nsave_queu = \"1MiB\"\n{drive}"), "2:1: unknown key `save_queu`");
    check(&format!("{drive}segmnet = \"4MiB\"\n"), "4:1: unknown key `segmnet`");
    check(&format!("durability = \"often\"\n{drive}"), "1:14: durability: ");
    check(&format!("sessions_max = 0\n{drive}"), "1:1: sessions_max: 0 is not within 1 and 65536");
    check("[[drives]\n", "1:");
}

#[test]
fn a_malformed_trace_line_is_refused_with_its_number() {
    let home = home();
    let trace = home.path().join("trace.jsonl");
    let good = r#"{"timestamp":0,"input_length":1024,"output_length":1,"hash_ids":[1,2]}"#;
    let check = |line: &str, expected: &str| {
        fs::write(&trace, format!("{good}\n\n{line}\n{good}\n")).unwrap();
        let trace = trace.to_str().unwrap();
        refrain(["ideal", trace]).refused(expected);
        let store = home.path().join("store");
        refrain(["replay", trace, "--dir", text(&store), "--capacity", "64MiB", "--json"])
            .refused(expected);
    };
    check("{\"timestamp\":0", "trace line 3 is not a request");
    check("[]", "trace line 3 is not a request");
    check(
        r#"{"timestamp":0,"input_length":1024,"output_length":1}"#,
        "trace line 3 has neither or both of `hash_ids` and `hash_runs`",
    );
    check(
        r#"{"timestamp":0,"input_length":1,"output_length":1,"hash_ids":[1,2,3]}"#,
        "trace line 3: 3 block ids do not fit 1 input tokens",
    );
    let absent = home.path().join("absent");
    refrain(["ideal", text(&absent)]).refused("open trace: No such file or directory");
}
