//! What cannot be answered is refused, with its name and what to do.

use crate::fixture::{Store, parent, refrain};
use refrain_store::directory::Directory;
use refrain_store::format::checksum;
use std::path::Path;

const COMMANDS: [&[&str]; 4] = [&["ls"], &["stat"], &["inspect", "00"], &["verify"]];

/// Every command that looks into a directory refuses this one.
fn all_refuse(directory: &Path, expected: &str) {
    let directory = directory.to_str().unwrap();
    for command in COMMANDS {
        match command {
            [name] => refrain([name, "--dir", directory]).refused(expected),
            [name, block] => refrain([name, block, "--dir", directory]).refused(expected),
            _ => unreachable!("COMMANDS has no such row"),
        }
    }
}

#[test]
fn a_directory_that_is_no_store_is_refused_and_left_empty() {
    let parent = parent();
    all_refuse(parent.path(), "holds no store");
    assert_eq!(parent.path().read_dir().unwrap().count(), 0);
    refrain(["verify", "--repair", "--dir", parent.path().to_str().unwrap()])
        .refused("holds no store");
    assert_eq!(parent.path().read_dir().unwrap().count(), 0);
    all_refuse(&parent.path().join("absent"), "No such file");
}

#[test]
fn a_store_of_a_newer_format_is_refused_by_its_version() {
    let store = Store::new();
    let path = store.path.join("superblock");
    let mut bytes = std::fs::read(&path).unwrap();
    for page in bytes.chunks_exact_mut(4096) {
        page[8..12].copy_from_slice(&9u32.to_le_bytes());
        let sum = checksum(&page[..4088]);
        page[4088..].copy_from_slice(&sum.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    all_refuse(&store.path, "format version 9");
    let doctor = refrain(["doctor", "--dir", store.directory()]);
    assert_eq!(doctor.code, 1);
    assert!(doctor.out.contains("format version 9"), "{}", doctor.out);
}

#[test]
fn a_directory_that_takes_no_files_is_wrong() {
    // Nobody may make files there, whoever runs the tests.
    let doctor = refrain(["doctor", "--dir", "/proc/self/task"]);
    doctor.refused("checks are wrong");
    assert!(doctor.out.contains("takes no new file"), "{}", doctor.out);
}

#[test]
fn unknown_and_ambiguous_names_are_refused() {
    let store = Store::new();
    let inspect = |name| refrain(["inspect", name, "--dir", store.directory()]);
    inspect("ff").refused("no block begins with ff");
    let ambiguous = inspect("1");
    ambiguous.refused("begins 4 blocks");
    ambiguous.refused(&format!("13{}{}", "00".repeat(7), "07".repeat(24)));
    inspect("0/9").refused("the drive has 3");
    inspect("4/0").refused("no drive 4");
    let malformed = inspect("xyz");
    assert_eq!(malformed.code, 2);
    assert!(malformed.error.contains("names no block and no segment"), "{}", malformed.error);
}

#[test]
fn an_address_where_nobody_listens_is_named() {
    let parent = parent();
    let address = format!("unix:{}", parent.path().join("none.sock").display());
    for ran in [
        refrain(["stat", "--addr", &address]),
        refrain(["verify", "--addr", &address]),
        refrain(["drain", "--addr", &address]),
        refrain(["evict", "00", "--addr", &address]),
        refrain(["drop", "00", "--addr", &address]),
    ] {
        ran.refused("no sidecar answers at unix:");
    }
    let malformed = refrain(["stat", "--addr", "tcp://127.0.0.1:1"]);
    assert_eq!(malformed.code, 2);
    assert!(malformed.error.contains("write unix:PATH"), "{}", malformed.error);
}

#[test]
fn a_held_directory_is_asked_about_at_the_address_it_names() {
    let store = Store::new();
    let held = Directory::open_existing(&store.path).unwrap();
    all_refuse(&store.path, "does not say where it listens");
    let nobody = store.path.parent().unwrap().join("none.sock");
    std::fs::write(store.path.join("address"), format!("unix:{}", nobody.display())).unwrap();
    all_refuse(&store.path, &format!("no sidecar answers at unix:{}", nobody.display()));
    std::fs::write(store.path.join("address"), "nonsense").unwrap();
    all_refuse(&store.path, "is no address");
    drop(held);
    assert_eq!(store.verify().code, 0);
}

#[test]
fn only_a_running_sidecar_evicts_drops_and_drains() {
    let store = Store::new();
    for ran in [
        refrain(["drain", "--dir", store.directory()]),
        refrain(["evict", "00", "--dir", store.directory()]),
        refrain(["drop", "09", "--dir", store.directory()]),
    ] {
        ran.refused("no sidecar runs on this store");
    }
}
