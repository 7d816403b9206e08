//! The catalogue is of no account: whatever becomes of it while the sidecar is stopped, the next
//! one starts, says where it found its blocks, and finds every one of them.

use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{Node, Setup, flip};
use crate::fixture::worker::Worker;
use std::fs;
use std::path::{Path, PathBuf};

const SHAPE: Shape = Shape::new(4, 30_000);
const PROMPTS: u64 = 12;
const BLOCKS: u64 = 8;

/// A stopped sidecar with sealed segments and an open one, and its catalogue.
async fn stopped() -> (Node, PathBuf) {
    let mut node = Node::start(&Setup::default());
    let worker = Worker::new(&node, SHAPE).await;
    for seed in 0..PROMPTS {
        worker.save(&prompt(seed, BLOCKS)).await;
    }
    node.stop().await;
    let catalogue = node.drive(0).join("catalog");
    assert!(catalogue.join("CURRENT").exists());
    (node, catalogue)
}

/// Starts the sidecar, has every block compared, stops it; where it says it found them.
async fn check(node: &mut Node, what: &str) -> String {
    node.start_again();
    let stats = node.stats().await;
    assert_eq!(stats.blocks, PROMPTS * BLOCKS, "{what}");
    let worker = Worker::new(node, SHAPE).await;
    for seed in 0..PROMPTS {
        worker.has_all(&prompt(seed, BLOCKS)).await;
    }
    node.stop().await;
    stats.restart_source
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|it| it.unwrap().path()).collect();
    files.sort();
    files
}

/// Puts the catalogue back as it was.
fn restore(saved: &Path, catalogue: &Path) {
    fs::remove_dir_all(catalogue).unwrap();
    fs::create_dir(catalogue).unwrap();
    for file in files(saved) {
        fs::copy(&file, catalogue.join(file.file_name().unwrap())).unwrap();
    }
}

#[tokio::test]
async fn an_untouched_catalogue_is_used() {
    let (mut node, _) = stopped().await;
    assert_eq!(check(&mut node, "untouched").await, "catalog");
}

#[tokio::test]
async fn a_deleted_catalogue_is_made_again_from_the_disk() {
    let (mut node, catalogue) = stopped().await;
    fs::remove_dir_all(&catalogue).unwrap();
    assert_eq!(check(&mut node, "deleted").await, "disk");
    assert_eq!(check(&mut node, "made again").await, "catalog");
}

#[tokio::test]
async fn a_catalogue_replaced_by_something_else_is_made_again_from_the_disk() {
    let (mut node, catalogue) = stopped().await;
    fs::remove_dir_all(&catalogue).unwrap();
    fs::write(&catalogue, b"no directory").unwrap();
    assert_eq!(check(&mut node, "a file").await, "disk");

    let (mut other, others) = stopped().await;
    fs::remove_dir_all(&catalogue).unwrap();
    fs::rename(&others, &catalogue).unwrap();
    assert_eq!(check(&mut node, "another store's").await, "disk");
    assert_eq!(check(&mut other, "moved away").await, "disk");
}

/// Damages each file of the catalogue in turn.
async fn check_each(damage: fn(&Path)) {
    let (mut node, catalogue) = stopped().await;
    let saved = catalogue.with_extension("saved");
    fs::rename(&catalogue, &saved).unwrap();
    fs::create_dir(&catalogue).unwrap();
    let files: Vec<_> = files(&saved).into_iter().filter(|file| file.is_file()).collect();
    assert!(files.len() >= 4, "{files:?}");
    for file in files {
        restore(&saved, &catalogue);
        damage(&catalogue.join(file.file_name().unwrap()));
        check(&mut node, &file.display().to_string()).await;
    }
}

#[tokio::test]
async fn a_flipped_bit_in_the_middle_of_any_of_its_files_loses_nothing() {
    check_each(|file| {
        let bytes = fs::metadata(file).unwrap().len();
        if bytes > 0 {
            flip(file, bytes / 2);
        }
    })
    .await;
}

#[tokio::test]
async fn any_of_its_files_cut_short_or_missing_loses_nothing() {
    check_each(|file| {
        let bytes = fs::metadata(file).unwrap().len();
        fs::File::options().write(true).open(file).unwrap().set_len(bytes / 2).unwrap();
    })
    .await;
    check_each(|file| fs::remove_file(file).unwrap()).await;
}
