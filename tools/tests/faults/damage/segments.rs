//! Segments and superblock, as `Opening`, a scan and `refrain verify` see them.

use super::{Stores, quick_home};
use crate::progress::{Rounds, on_every_core};
use indicatif::ProgressBar;
use refrain::commands::verify::verify;
use refrain::target::TargetArgs;
use refrain_store::drive::Opening;
use refrain_store::files;
use refrain_store::geometry::{HEADER_SIZE, PAGE_SIZE, RECORDS_START, SegmentId};
use refrain_store::segment::{Entry, SegmentHead};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Faults of one round at most: two in a record, or in a head and a footer, must do no more harm
/// than one in each.
const FAULTS: u64 = 24;
const PAGE: usize = 4096;

/// What a record may be found to be.
#[derive(Debug, PartialEq, Eq)]
struct Truth {
    entry: Entry,
    payload: Vec<u8>,
}

/// A record of the store as it was closed last.
#[derive(Debug)]
struct Live {
    segment: SegmentId,
    sealed: bool,
    entry: Entry,
}

pub(super) struct World {
    pub(super) stores: Stores,
    /// By block key: also what earlier uses of segments held, as a stale page may bring it back.
    truths: HashMap<([u8; 32], u32), Truth>,
    live: Vec<Live>,
    /// Pages that hold more than payload.
    telling: Vec<(PathBuf, usize)>,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    rounds: u64,
    flips: u64,
    swapped: u64,
    lost: u64,
    stale: u64,
    refused: u64,
    detected: u64,
    harmless: u64,
    repaired: u64,
}

/// What one round did.
#[derive(Debug, Default)]
pub(super) struct Done {
    flips: u64,
    /// Also pages in a wrong place, or not written at all.
    pages: bool,
    touched: BTreeMap<(PathBuf, usize), u64>,
}

pub(crate) fn run(count: u64, seed: u64) -> String {
    let world = World::new();
    let counted = on_every_core(seed, |_, cores, mut random, rounds| {
        world.rounds(count.div_ceil(cores as u64), &mut random, &rounds)
    });
    let mut all = Counts::default();
    for one in counted {
        all.rounds += one.rounds;
        all.flips += one.flips;
        all.swapped += one.swapped;
        all.lost += one.lost;
        all.stale += one.stale;
        all.refused += one.refused;
        all.detected += one.detected;
        all.harmless += one.harmless;
        all.repaired += one.repaired;
    }
    let Counts { rounds, flips, swapped, lost, stale, refused, detected, harmless, repaired } = all;
    format!(
        "{flips} flipped bits, {swapped} swapped, {lost} lost and {stale} stale pages in {rounds} \
         rounds over {} records: {detected} detected, {harmless} harmless, {refused} refused to \
         open; {repaired} repaired",
        world.live.len()
    )
}

impl World {
    pub(super) fn new() -> Self {
        let mut stores = super::small::make();
        for image in &mut stores.history {
            image.files.retain(|name, _| {
                let name = name.to_str().unwrap();
                name.starts_with("segment-") || name == "superblock"
            });
        }
        let mut world =
            Self { stores, truths: HashMap::new(), live: Vec::new(), telling: Vec::new() };
        let home = quick_home();
        let path = home.path().join("store");
        for image in &world.stores.history {
            image.write(&path);
            let opening = Opening::open_read_only(&path).unwrap();
            assert!(opening.problems().is_empty());
            // The last one counts.
            world.live.clear();
            for head in opening.segments() {
                let scan = opening.scan(head.id, RECORDS_START).unwrap();
                for entry in scan.entries {
                    let payload = payload(&path, head.id, &entry);
                    let (segment, sealed) = (head.id, scan.sealed);
                    world.live.push(Live { segment, sealed, entry: entry.clone() });
                    let key = (entry.sequence_hash, entry.shard);
                    world.truths.insert(key, Truth { entry, payload });
                }
            }
        }
        assert!(world.live.len() > 20 && world.live.iter().any(|live| !live.sealed));
        world.find_telling_pages();
        world
    }

    fn find_telling_pages(&mut self) {
        let mut telling = BTreeSet::new();
        for (name, bytes) in &self.stores.last().files {
            telling.extend([(name.clone(), 0), (name.clone(), 1)]);
            let last = bytes.len() / PAGE - 1;
            telling.extend((last.saturating_sub(3)..=last).map(|page| (name.clone(), page)));
        }
        for Live { segment, entry, .. } in &self.live {
            telling.insert((PathBuf::from(files::name(*segment)), page_of(entry.offset)));
            // Behind a sealed segment's last record its footer lies.
            let end = page_of(entry.offset + entry.stored_length());
            telling.insert((PathBuf::from(files::name(*segment)), end));
        }
        self.telling = telling.into_iter().collect();
    }

    fn rounds(&self, flips: u64, random: &mut fastrand::Rng, rounds: &Rounds) -> Counts {
        let home = quick_home();
        let path = home.path().join("store");
        self.stores.last().write(&path);
        let mut counts = Counts::default();
        while counts.flips < flips {
            let seed = random.u64(..);
            let mut random = fastrand::Rng::with_seed(seed);
            let done = self.damage(&path, &mut random, &mut counts);
            counts.flips += done.flips;
            counts.rounds += 1;
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.check(&path, &done, &mut counts);
            }));
            if let Err(panic) = checked {
                eprintln!("round {seed:#x} touched {:?}", done.touched);
                std::panic::resume_unwind(panic);
            }
            // A repair may have written anywhere, and made short files whole.
            self.stores.last().rewrite(&path, |_| true);
            rounds.send(()).unwrap();
        }
        counts
    }

    pub(super) fn damage(
        &self,
        path: &Path,
        random: &mut fastrand::Rng,
        counts: &mut Counts,
    ) -> Done {
        let mut done = Done::default();
        let any = |random: &mut fastrand::Rng| {
            if random.bool() {
                self.telling[random.usize(..self.telling.len())].clone()
            } else {
                let (name, bytes) = super::any_file(self.stores.last(), random);
                (name.clone(), random.usize(..bytes.len() / PAGE))
            }
        };
        for _ in 0..random.u64(1..=FAULTS) {
            let (name, page) = any(random);
            let kind = random.u8(..32);
            let write = |name: &Path, page: usize, bytes: &[u8]| {
                let file = File::options().write(true).open(path.join(name)).unwrap();
                file.write_all_at(bytes, page as u64 * PAGE_SIZE).unwrap();
            };
            let mut bytes = read_page(&path.join(&name), page);
            match kind {
                0 => {
                    let (other, place) = any(random);
                    write(&name, page, &read_page(&path.join(&other), place));
                    write(&other, place, &bytes);
                    *done.touched.entry((other, place)).or_default() += 1;
                    counts.swapped += 1;
                }
                1 => {
                    write(&name, page, &[0; PAGE]);
                    counts.lost += 1;
                }
                2 => {
                    let history = &self.stores.history;
                    let before = &history[random.usize(..history.len())].files[&name];
                    write(&name, page, &before[page * PAGE..][..PAGE]);
                    counts.stale += 1;
                }
                _ => {
                    let bit = random.usize(..PAGE * 8);
                    bytes[bit / 8] ^= 1 << (bit % 8);
                    write(&name, page, &bytes);
                    done.flips += 1;
                }
            }
            done.pages |= kind < 3;
            *done.touched.entry((name, page)).or_default() += 1;
        }
        done
    }

    fn check(&self, path: &Path, done: &Done, counts: &mut Counts) {
        let target = TargetArgs { dir: vec![path.into()], addr: None };
        let look = |repair| verify(&target, repair, None, &ProgressBar::hidden());
        let report = match look(false) {
            Ok(report) => report,
            Err(error) => {
                let superblock = |page| (PathBuf::from("superblock"), page);
                let both = [0, 1].map(|page| done.touched.contains_key(&superblock(page)));
                assert!(both == [true, true] || done.pages, "refused to open: {error:#}");
                counts.refused += 1;
                return;
            }
        };
        let found = self.read_live(path);
        let lost: Vec<_> = self.live.iter().filter(|live| !found.contains(&key(live))).collect();
        for live in &lost {
            assert!(self.may_be_lost(live, done), "lost, and nothing near it touched: {live:?}");
        }
        // What looks as if nothing had ever been written cannot be told from that.
        let is_told = report.damaged() > 0;
        let tells = |live: &&&Live| !done.pages && done.most_in(live) <= 2;
        assert!(is_told || lost.iter().filter(tells).count() == 0, "not told: {lost:?}");
        if is_told {
            counts.detected += 1;
        } else {
            counts.harmless += 1;
        }
        let report = look(true).unwrap();
        counts.repaired += report.damaged() - report.left();
        let again = look(false).unwrap();
        assert_eq!(again.damaged(), 0, "left by a repair");
        let repaired = self.read_live(path);
        let gone: Vec<_> = found.difference(&repaired).collect();
        assert!(gone.is_empty(), "a repair lost {gone:?}");
    }

    /// Of what a start from the disk can read, the blocks that were live when the store was closed. A
    /// repaired head may end an earlier use that had come back, and bring the last one again.
    pub(super) fn read_live(&self, path: &Path) -> BTreeSet<Key> {
        let live: BTreeSet<_> = self.live.iter().map(key).collect();
        self.read(path).intersection(&live).copied().collect()
    }

    /// Every block that a start from the disk finds and can read; asserts that each is what it was.
    fn read(&self, path: &Path) -> BTreeSet<Key> {
        let opening = Opening::open_read_only(path).unwrap();
        let mut found = BTreeSet::new();
        for &SegmentHead { id, .. } in opening.segments() {
            let scan = opening.scan(id, RECORDS_START).unwrap();
            for entry in scan.entries {
                let Ok(header) = opening.read_record(id, &entry) else { continue };
                let truth = &self.truths[&(header.sequence_hash, header.shard)];
                assert_eq!(header.position, truth.entry.position);
                assert_eq!(header.parent, truth.entry.parent);
                assert_eq!(header.namespace, truth.entry.namespace);
                assert_eq!(header.epoch, truth.entry.epoch);
                let payload = payload(path, id, &entry);
                for stripe in &header.stripes {
                    let range = to_usize(stripe.offset)..to_usize(stripe.offset + stripe.length);
                    assert!(payload[range.clone()] == truth.payload[range], "wrong bytes");
                }
                found.insert((header.sequence_hash, header.shard));
            }
        }
        found
    }

    /// Whether the damage lies where it may cost this record.
    fn may_be_lost(&self, live: &Live, done: &Done) -> bool {
        let name = PathBuf::from(files::name(live.segment));
        let is = |page: usize| done.touched.contains_key(&(name.clone(), page));
        let own =
            page_of(live.entry.offset)..page_of(live.entry.offset + live.entry.stored_length());
        if is(0) || is(1) || own.clone().any(is) {
            return true;
        }
        let of_segment = self.live.iter().filter(|other| other.segment == live.segment);
        let end = of_segment.clone().map(|other| other.entry.offset + other.entry.stored_length());
        let end = page_of(end.max().unwrap());
        let last = to_usize(self.stores.last().files[&name].len() as u64) / PAGE - 1;
        let footer = (end..end + 2).any(is) || is(last);
        // Without a footer a damaged header hides what stands behind it.
        (footer || !live.sealed)
            && of_segment
                .filter(|other| other.entry.offset < live.entry.offset)
                .any(|other| is(page_of(other.entry.offset)))
    }
}

impl Done {
    /// Faults in the page of those that may cost a record that has the most of them.
    fn most_in(&self, live: &Live) -> u64 {
        let name = PathBuf::from(files::name(live.segment));
        let of_segment = self.touched.iter().filter(|((file, _), _)| *file == name);
        of_segment.map(|(_, faults)| *faults).max().unwrap_or(0)
    }
}

pub(super) type Key = ([u8; 32], u32);

fn key(live: &Live) -> Key {
    (live.entry.sequence_hash, live.entry.shard)
}

fn payload(path: &Path, segment: SegmentId, entry: &Entry) -> Vec<u8> {
    let file = File::open(path.join(files::name(segment))).unwrap();
    let mut bytes = vec![0; to_usize(entry.stored_length() - HEADER_SIZE)];
    file.read_exact_at(&mut bytes, entry.offset + HEADER_SIZE).unwrap();
    bytes
}

fn read_page(path: &Path, page: usize) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    File::open(path).unwrap().read_exact_at(&mut bytes, page as u64 * PAGE_SIZE).unwrap();
    bytes
}

fn page_of(offset: u64) -> usize {
    to_usize(offset / PAGE_SIZE)
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap()
}
