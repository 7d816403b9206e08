//! Damage of a closed store, in every file of it.
//!
//! A real sidecar makes the store, once: two shapes of blocks, several segments, reuse, an epoch.
//! Each round damages a copy, opens it, reads everything, and puts it back.

use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{MIB, Node, Setup, home};
use crate::fixture::worker::Worker;
use crate::image::Image;
use rustix::fs::{Mode, OFlags};
use std::path::PathBuf;
use tempfile::TempDir;

pub(crate) mod catalogue;
pub(crate) mod cut_repairs;
pub(crate) mod segments;
pub(crate) mod served;
mod small;

/// One stripe a block, and two.
const SHAPES: [Shape; 2] = [Shape::new(3, 20_000), Shape::new(4, 70_000)];
const PROMPTS: u64 = 24;
const BLOCKS: u64 = 5;
/// Prompts between two closings.
const SAVED_AT_ONCE: usize = 4;

fn setup() -> Setup {
    Setup { capacity: 6 * MIB, segment: MIB, ..Setup::default() }
        .with("load_arena = \"16MiB\"")
        .with("durability = \"sync\"")
}

/// A store as it was each time it was closed; in between, segments were used again.
struct Stores {
    history: Vec<Image>,
}

/// The prompts that are saved, oldest first.
fn prompts() -> impl Iterator<Item = (Shape, Vec<u64>)> {
    (0..PROMPTS).map(|seed| {
        let shape = SHAPES[usize::from(seed % 4 == 3)];
        (shape, prompt(seed, BLOCKS))
    })
}

impl Stores {
    async fn make() -> Self {
        let mut node = Node::start(&setup());
        let all: Vec<_> = prompts().collect();
        let mut history = Vec::new();
        for some in all.chunks(SAVED_AT_ONCE) {
            save(&node, some).await;
            // A kill leaves the catalogue's log, a stop its tables.
            node.kill();
            history.push(Image::of(&node.drive(0)));
            node.start_again();
            node.stop().await;
            history.push(Image::of(&node.drive(0)));
            node.start_again();
        }
        Self { history }
    }

    /// As it was closed last, or killed before.
    fn closed_or_killed(&self, random: &mut fastrand::Rng) -> &Image {
        &self.history[self.history.len() - random.usize(1..=2)]
    }

    /// As it was closed last.
    fn last(&self) -> &Image {
        self.history.last().unwrap()
    }
}

async fn save(node: &Node, prompts: &[(Shape, Vec<u64>)]) {
    let mut workers = Vec::new();
    for shape in SHAPES {
        workers.push(Worker::new(node, shape).await);
    }
    for (shape, ids) in prompts {
        workers[usize::from(shape.layers == SHAPES[1].layers)].save(ids).await;
    }
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

/// A directory in memory where that takes `O_DIRECT`: then a round waits for no disk.
fn quick_home() -> TempDir {
    let Ok(memory) = tempfile::Builder::new().prefix("s").tempdir_in("/dev/shm") else {
        return home();
    };
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::DIRECT;
    match rustix::fs::open(memory.path().join("direct"), flags, Mode::from_raw_mode(0o600)) {
        Ok(_) => memory,
        Err(_) => home(),
    }
}

fn any_file<'i>(image: &'i Image, random: &mut fastrand::Rng) -> (&'i PathBuf, &'i Vec<u8>) {
    let files: Vec<_> = image.files.iter().filter(|(_, bytes)| !bytes.is_empty()).collect();
    files[random.usize(..files.len())]
}
