//! Proves that runs come back as far as they are without gaps, and that nothing damaged, foreign or
//! withdrawn does.

use super::*;
use std::fs;

const STORE_ID: [u8; 16] = [1; 16];
const START: u64 = 8192;

fn row(offset: u64) -> Row {
    let sequence = *blake3::hash(&offset.to_le_bytes()).as_bytes();
    let (parent, namespace) = ([2; 32], [3; 32]);
    Row { offset, length: 4096, sequence, shard: 0, position: 1, parent, namespace, epoch: 0 }
}

fn run(segment: u32, generation: u64, start: u64, rows: u64) -> Run {
    let end = start + rows * 8192;
    let rows = (0..rows).map(|index| row(start + index * 8192)).collect();
    Run { segment, generation, start, end, sealed: false, rows }
}

struct Fixture(tempfile::TempDir);

impl Fixture {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("catalog")
    }

    fn open(&self) -> (Catalog, OpenState) {
        Catalog::open(&self.path(), STORE_ID).unwrap()
    }
}

#[test]
fn runs_come_back_in_order_after_a_restart_without_a_close() {
    let fixture = Fixture::new();
    let (catalog, state) = fixture.open();
    assert_eq!(state, OpenState::Fresh);
    let (one, two) = (run(0, 1, START, 3), run(0, 1, START + 3 * 8192, 2));
    catalog.commit(&two).unwrap();
    catalog.commit(&one).unwrap();
    catalog.commit(&Run { sealed: true, ..run(7, 4, START, 1) }).unwrap();
    drop(catalog);
    let (catalog, state) = fixture.open();
    assert_eq!(state, OpenState::Kept);
    let found = catalog.load(START).unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].end, found[0].sealed), (two.end, false));
    assert_eq!(found[0].rows, [one.rows, two.rows].concat());
    assert_eq!((found[1].segment, found[1].generation, found[1].sealed), (7, 4, true));
}

#[test]
fn a_gap_ends_what_is_known() {
    let fixture = Fixture::new();
    let (catalog, _) = fixture.open();
    catalog.commit(&run(0, 1, START, 1)).unwrap();
    catalog.commit(&run(0, 1, START + 5 * 8192, 1)).unwrap();
    catalog.commit(&run(1, 1, START + 8192, 1)).unwrap();
    let found = catalog.load(START).unwrap();
    assert_eq!((found[0].end, found[0].rows.len()), (START + 8192, 1));
    assert_eq!((found[1].end, found[1].rows.len()), (0, 0));
}

#[test]
fn withdrawn_rows_forgotten_segments_and_older_generations_do_not_count() {
    let fixture = Fixture::new();
    let (catalog, _) = fixture.open();
    catalog.commit(&run(0, 1, START, 3)).unwrap();
    catalog.withdraw(0, 1, START + 8192).unwrap();
    catalog.withdraw(0, 9, START).unwrap();
    catalog.commit(&run(1, 1, START, 3)).unwrap();
    catalog.forget_segment(1).unwrap();
    catalog.commit(&run(2, 1, START, 3)).unwrap();
    catalog.commit(&run(2, 2, START, 1)).unwrap();
    let found = catalog.load(START).unwrap();
    let offsets = |segment: &SegmentRows| segment.rows.iter().map(|r| r.offset).collect::<Vec<_>>();
    assert_eq!(offsets(&found[0]), [START, START + 2 * 8192]);
    assert_eq!((found[1].segment, found[1].generation, found[1].rows.len()), (2, 2, 1));
}

#[test]
fn what_is_withdrawn_before_its_run_is_added_stays_withdrawn() {
    let fixture = Fixture::new();
    let (catalog, _) = fixture.open();
    catalog.withdraw(0, 2, START + 8192).unwrap();
    catalog.withdraw(0, 1, START).unwrap();
    catalog.commit(&run(0, 1, START, 1)).unwrap();
    let withdrawn = catalog.withdrawn().unwrap();
    catalog.forget_runs(0, 2, &withdrawn).unwrap();
    assert!(catalog.load(START).unwrap().is_empty());
    catalog.commit(&run(0, 2, START, 3)).unwrap();
    let mut rows = run(0, 2, START, 3).rows;
    rows.retain(|row| !withdrawn.holds(0, 2, row.offset));
    assert_eq!(rows.iter().map(|r| r.offset).collect::<Vec<_>>(), [START, START + 2 * 8192]);
    assert_eq!(catalog.load(START).unwrap()[0].rows, rows);
}

#[test]
fn a_withdrawn_record_reaches_back_in_its_own_use_of_its_own_segment_alone() {
    let mut withdrawn = Withdrawn::default();
    assert!(!withdrawn.reaches(3, 7, 0) && !withdrawn.holds(3, 7, START));
    withdrawn.add(3, 7, START);
    assert!(withdrawn.holds(3, 7, START));
    assert!(withdrawn.reaches(3, 7, START - 1) && withdrawn.reaches(3, 7, START));
    assert!(!withdrawn.reaches(3, 7, START + 1), "what ends behind it is not its place");
    assert!(!withdrawn.reaches(3, 8, START), "another use");
    assert!(!withdrawn.reaches(4, 7, START), "another segment");
}

#[test]
fn another_stores_catalogue_and_a_damaged_one_are_emptied() {
    let fixture = Fixture::new();
    let (catalog, _) = fixture.open();
    catalog.commit(&run(0, 1, START, 3)).unwrap();
    drop(catalog);
    let (catalog, state) = Catalog::open(&fixture.path(), [9; 16]).unwrap();
    assert_eq!((state, catalog.load(START).unwrap()), (OpenState::OtherStore, vec![]));
    drop(catalog);
    fs::write(fixture.path().join("CURRENT"), b"garbage").unwrap();
    let (catalog, state) = Catalog::open(&fixture.path(), [9; 16]).unwrap();
    assert_eq!((state, catalog.load(START).unwrap()), (OpenState::Damaged, vec![]));
    drop(catalog);
    fs::remove_dir_all(fixture.path()).unwrap();
    fs::write(fixture.path(), b"a file in its place").unwrap();
    let (_, state) = Catalog::open(&fixture.path(), [9; 16]).unwrap();
    assert_eq!(state, OpenState::Damaged);
}

#[test]
fn a_catalogue_for_which_there_is_no_place_is_refused_and_nothing_is_removed() {
    let fixture = Fixture::new();
    let file = fixture.0.path().join("file");
    fs::write(&file, b"somebody's").unwrap();
    let refused = Catalog::open(&file.join("catalog"), STORE_ID).unwrap_err();
    assert!(matches!(refused, CatalogError::Open { .. }), "{refused:?}");
    assert_eq!(fs::read(&file).unwrap(), b"somebody's");
}

#[test]
fn flipped_bits_in_the_files_are_found_or_harmless() {
    let fixture = Fixture::new();
    let (catalog, _) = fixture.open();
    let runs: Vec<_> = (0..8).map(|segment| run(segment, 1, START, 200)).collect();
    for run in &runs {
        catalog.commit(run).unwrap();
    }
    catalog.close().unwrap();
    let expected: Vec<Row> = runs.iter().flat_map(|run| run.rows.clone()).collect();
    let table = fs::read_dir(fixture.path()).unwrap().map(|entry| entry.unwrap().path());
    let table = table.filter(|path| path.extension().is_some_and(|e| e == "sst")).max().unwrap();
    let good = fs::read(&table).unwrap();
    for step in 0..40 {
        let mut damaged = good.clone();
        let at = step * good.len() / 40;
        damaged[at] ^= 4;
        fs::write(&table, &damaged).unwrap();
        let (catalog, state) = fixture.open();
        if state == OpenState::Damaged {
            return; // Emptied: the file under test is gone, and with it the danger.
        }
        if let Ok(found) = catalog.load(START) {
            let found: Vec<Row> = found.into_iter().flat_map(|segment| segment.rows).collect();
            assert_eq!(found, expected, "byte {at}");
        }
    }
}

#[test]
fn a_value_under_another_key_is_damage() {
    let fixture = Fixture::new();
    let (catalog, _) = fixture.open();
    let moved = put(place_key(RUN, 3, START), run(4, 1, START, 1).encode());
    catalog.pairs.write(vec![moved]).unwrap();
    assert!(matches!(catalog.load(START), Err(CatalogError::Damaged)));
    let catalog = catalog.emptied(STORE_ID).unwrap();
    assert_eq!(catalog.load(START).unwrap(), []);
}

#[test]
fn a_value_of_another_version_or_with_part_of_a_row_is_none() {
    let value = run(3, 1, START, 2).encode();
    let decoded = |value| Run::decode(3, START, &Run::resealed(3, START, value));
    assert_eq!(decoded(value.clone()), Some(run(3, 1, START, 2)));
    let mut newer = value.clone();
    newer[0] += 1;
    assert_eq!(decoded(newer), None);
    assert_eq!(decoded(value[1..].to_vec()), None);
    let cut = value[..value.len() - 1].to_vec();
    assert_eq!(decoded(cut), None);
}
