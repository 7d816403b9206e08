//! The catalogue alone, as a start reads it: RocksDB's files, and our values in them.

use super::{Stores, block_on, quick_home};
use crate::image::Image;
use crate::progress::{Rounds, on_every_core};
use refrain_index::catalog::{Catalog, OpenState, Row, Run, SegmentRows};
use refrain_store::geometry::RECORDS_START;
use refrain_store::superblock::Superblock;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// Faults of one round at most.
const FAULTS: u64 = 4;

/// A catalogue, and what it says while it is whole.
struct Truth {
    catalogue: Image,
    rows: BTreeMap<u32, SegmentRows>,
}

struct World {
    store_id: [u8; 16],
    /// After a kill, and after a stop.
    truths: Vec<Truth>,
}

#[derive(Debug, Default)]
struct Counts {
    rounds: u64,
    flips: u64,
    whole: u64,
    partial: u64,
    emptied: u64,
}

pub(crate) fn run(count: u64, seed: u64) -> String {
    let world = World::new();
    let counted = on_every_core(seed, |_, cores, mut random, rounds| {
        world.rounds(count.div_ceil(cores as u64), &mut random, &rounds)
    });
    let sum = |of: fn(&Counts) -> u64| counted.iter().map(of).sum::<u64>();
    format!(
        "{} flipped bits in {} rounds: {} read whole, {} in part, {} found damaged and emptied",
        sum(|c| c.flips),
        sum(|c| c.rounds),
        sum(|c| c.whole),
        sum(|c| c.partial),
        sum(|c| c.emptied)
    )
}

impl Truth {
    fn of(store: &Image, store_id: [u8; 16]) -> Self {
        let files = store.clone().split("catalog").0.files.into_iter();
        let strip = |(path, bytes): (PathBuf, Vec<u8>)| {
            (path.strip_prefix("catalog").unwrap().to_owned(), bytes)
        };
        let catalogue = Image { files: files.map(strip).collect() };
        let home = quick_home();
        let path = home.path().join("catalog");
        catalogue.write(&path);
        let (open, state) = Catalog::open(&path, store_id).unwrap();
        assert_eq!(state, OpenState::Kept);
        let rows = open.load(RECORDS_START).unwrap();
        assert!(rows.iter().map(|rows| rows.rows.len()).sum::<usize>() > 20);
        Self { catalogue, rows: rows.into_iter().map(|rows| (rows.segment, rows)).collect() }
    }
}

impl World {
    fn new() -> Self {
        let stores = block_on(Stores::make());
        let superblock = &stores.last().files[Path::new("superblock")];
        let store_id = Superblock::decode(superblock).unwrap().store_id;
        let last = stores.history.iter().rev().take(2);
        Self { store_id, truths: last.map(|image| Truth::of(image, store_id)).collect() }
    }

    fn rounds(&self, flips: u64, random: &mut fastrand::Rng, rounds: &Rounds) -> Counts {
        let home = quick_home();
        let path = home.path().join("catalog");
        let mut counts = Counts::default();
        while counts.flips < flips {
            let seed = random.u64(..);
            let mut random = fastrand::Rng::with_seed(seed);
            let truth = random.choice(&self.truths).unwrap();
            let mut damaged = truth.catalogue.clone();
            for _ in 0..random.u64(1..=FAULTS) {
                let name = super::any_file(&truth.catalogue, &mut random).0;
                let bytes = damaged.files.get_mut(name).unwrap();
                let bit = random.usize(..bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
                counts.flips += 1;
            }
            damaged.write(&path);
            counts.rounds += 1;
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.check(&path, truth, &mut counts);
            }));
            if let Err(panic) = checked {
                eprintln!("round {seed:#x}");
                std::panic::resume_unwind(panic);
            }
            rounds.send(()).unwrap();
        }
        counts
    }

    fn check(&self, path: &Path, truth: &Truth, counts: &mut Counts) {
        let (catalog, _) = Catalog::open(path, self.store_id).unwrap();
        let Ok(found) = catalog.load(RECORDS_START).and_then(|found| {
            catalog.withdrawn()?;
            Ok(found)
        }) else {
            counts.emptied += 1;
            let empty = catalog.emptied(self.store_id).unwrap();
            assert!(empty.load(RECORDS_START).unwrap().is_empty());
            return;
        };
        let mut rows = 0;
        for segment in &found {
            // Of an earlier use, whose end was lost: the head of the segment says so.
            let Some(truth) = truth.rows.get(&segment.segment) else { continue };
            if segment.generation != truth.generation {
                assert!(segment.generation < truth.generation);
                continue;
            }
            let known: HashSet<_> = truth.rows.iter().map(bytes_of).collect();
            assert!(
                segment.end <= truth.end
                    && segment.rows.iter().all(|r| known.contains(&bytes_of(r)))
            );
            assert!(!segment.sealed || segment.end == truth.end);
            rows += segment.rows.len();
        }
        let all: usize = truth.rows.values().map(|rows| rows.rows.len()).sum();
        match rows {
            0 => counts.emptied += 1,
            rows if rows == all => counts.whole += 1,
            _ => counts.partial += 1,
        }
    }
}

/// All of a row, to be found in a set.
fn bytes_of(row: &Row) -> Vec<u8> {
    let run = Run { segment: 0, generation: 0, start: 0, end: 0, sealed: false, rows: vec![*row] };
    run.encode()
}
