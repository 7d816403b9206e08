//! Proves that a directory comes back as it was made, belongs to one sidecar at a time, and is
//! refused when it is not whole.

use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};

const NEW: NewStore = NewStore { segment_bytes: 1 << 26, capacity_bytes: 1 << 30 };

fn parent() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn reopened_directory_keeps_its_identity_and_segment_size() {
    let parent = parent();
    let path = parent.path().join("store");
    let made = *Directory::open(&path, NEW).unwrap().superblock();
    let other = NewStore { segment_bytes: 1 << 27, ..NEW };
    assert_eq!(*Directory::open(&path, other).unwrap().superblock(), made);
    assert_eq!(made.segment_bytes, NEW.segment_bytes);
}

#[test]
fn a_second_holder_is_refused_with_the_name_of_the_first() {
    let parent = parent();
    let path = parent.path().join("store");
    let first = Directory::open(&path, NEW).unwrap();
    let refused = Directory::open(&path, NEW).unwrap_err();
    let named = format!("process {}", std::process::id());
    assert!(matches!(&refused, DirectoryError::InUse { holder, .. } if *holder == named));
    drop(first);
    Directory::open(&path, NEW).unwrap();
}

#[test]
fn two_stores_have_two_identities() {
    let parent = parent();
    let open = |name| *Directory::open(&parent.path().join(name), NEW).unwrap().superblock();
    assert_ne!(open("a").store_id, open("b").store_id);
}

#[test]
fn nobody_else_may_look_into_a_store() {
    let parent = parent();
    let path = parent.path().join("store");
    Directory::open(&path, NEW).unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join("superblock")), 0o600);
    assert_eq!(mode(&path.join("lock")), 0o600);
}

#[test]
fn links_in_the_place_of_our_files_are_refused() {
    let parent = parent();
    let (path, target) = (parent.path().join("store"), parent.path().join("target"));
    Directory::open(&path, NEW).unwrap();
    std::fs::rename(path.join("superblock"), &target).unwrap();
    symlink(&target, path.join("superblock")).unwrap();
    assert!(matches!(Directory::open(&path, NEW), Err(DirectoryError::Open { .. })));
    symlink(&path, parent.path().join("link")).unwrap();
    let link = parent.path().join("link");
    assert!(matches!(Directory::open(&link, NEW), Err(DirectoryError::Open { .. })));
}

#[test]
fn a_truncated_superblock_is_refused_and_left_as_it_is() {
    let parent = parent();
    let path = parent.path().join("store");
    Directory::open(&path, NEW).unwrap();
    std::fs::write(path.join("superblock"), b"short").unwrap();
    let refused = Directory::open(&path, NEW).unwrap_err();
    assert!(matches!(refused, DirectoryError::Superblock { source: SuperblockError::Damaged, .. }));
    assert_eq!(std::fs::read(path.join("superblock")).unwrap(), b"short");
}

#[test]
fn capacity_below_one_segment_is_refused() {
    let parent = parent();
    let new = NewStore { segment_bytes: 1 << 26, capacity_bytes: 1 << 25 };
    let refused = Directory::open(&parent.path().join("store"), new).unwrap_err();
    assert!(matches!(refused, DirectoryError::Capacity { .. }));
    assert!(!parent.path().join("store").exists());
}

#[test]
fn a_new_capacity_is_taken_and_counted() {
    let parent = parent();
    let path = parent.path().join("store");
    let made = *Directory::open(&path, NEW).unwrap().superblock();
    let larger = NewStore { capacity_bytes: 1 << 31, ..NEW };
    let resized = *Directory::open(&path, larger).unwrap().superblock();
    assert_eq!((resized.capacity_bytes, resized.sequence), (1 << 31, 2));
    assert_eq!(resized.store_id, made.store_id);
    assert_eq!(*Directory::open_existing(&path).unwrap().superblock(), resized);
}

#[test]
fn a_directory_without_a_store_is_not_made_one_by_looking() {
    let parent = parent();
    let opened = Directory::open_existing(parent.path());
    assert!(matches!(opened, Err(DirectoryError::NoStore { .. })), "{opened:?}");
    assert!(!parent.path().join("superblock").exists());
}

#[test]
fn those_who_look_share_a_store_and_leave_it_as_it_is() {
    let parent = parent();
    let path = parent.path().join("store");
    Directory::open(&path, NEW).unwrap();
    let lock = std::fs::read(path.join("lock")).unwrap();
    let first = Directory::open_read_only(&path).unwrap();
    let second = Directory::open_read_only(&path).unwrap();
    assert_eq!(first.superblock(), second.superblock());
    assert!(matches!(Directory::open(&path, NEW), Err(DirectoryError::InUse { .. })));
    drop((first, second));
    assert_eq!(std::fs::read(path.join("lock")).unwrap(), lock);
    let writer = Directory::open(&path, NEW).unwrap();
    assert!(matches!(Directory::open_read_only(&path), Err(DirectoryError::InUse { .. })));
    drop(writer);
}

#[test]
fn a_holder_that_is_gone_is_not_named() {
    let parent = parent();
    let path = parent.path().join("store");
    Directory::open(&path, NEW).unwrap();
    // Greater than any process id.
    std::fs::write(path.join("lock"), "process 2147483647").unwrap();
    let _looking = Directory::open_read_only(&path).unwrap();
    let refused = Directory::open(&path, NEW).unwrap_err();
    let DirectoryError::InUse { holder, .. } = refused else { panic!("{refused}") };
    assert_eq!(holder, "another process");
}

#[test]
fn a_store_is_not_made_for_whom_nobody_waits_any_more() {
    let parent = parent();
    let (there, absent) = (parent.path().join("there"), parent.path().join("absent"));
    let made = *Directory::open(&there, NEW).unwrap().superblock();
    let answers = Answers::default();
    answers.give_up();
    let opened = Directory::open_or_make(&there, NEW, &answers).unwrap();
    assert_eq!(*opened.superblock(), made, "what is there is opened late");
    let refused = Directory::open_or_make(&absent, NEW, &answers);
    assert!(matches!(refused, Err(DirectoryError::NoStore { .. })), "{refused:?}");
    assert!(!absent.join("superblock").exists());
    Directory::open(&absent, NEW).unwrap();
}
