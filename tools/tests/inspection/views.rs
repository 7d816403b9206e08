//! Lists, numbers and single records agree with what was stored.

use crate::fixture::{BLOCKS, SEALED, Store, refrain};
use refrain_store::geometry::HEADER_SIZE;
use serde_json::Value;

fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn lists_show_every_block_namespace_and_segment() {
    let store = Store::new();
    let list = |what| refrain(["ls", what, "--json", "--dir", store.directory()]);
    let blocks = rows(&list("blocks").out);
    assert_eq!(blocks.len() as u64, BLOCKS);
    assert_eq!(blocks[3]["sequence_hash"], format!("03{}{}", "00".repeat(7), "07".repeat(24)));
    let namespaces = rows(&list("namespaces").out);
    assert_eq!(namespaces.len(), 1);
    assert_eq!(namespaces[0]["blocks"], BLOCKS);
    let segments = rows(&list("segments").out);
    let states: Vec<_> = segments.iter().map(|row| row["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["sealed", "open", "free"]);
    assert_eq!(segments[0]["live_blocks"], SEALED);
    let table = refrain(["ls", "blocks", "--limit", "2", "--dir", store.directory()]);
    assert_eq!(table.out.lines().count(), 3, "{}", table.out);
}

#[test]
fn stat_sums_a_stopped_store() {
    let store = Store::new();
    let stat = refrain(["stat", "--json", "--dir", store.directory()]).json();
    assert_eq!(stat["blocks"], BLOCKS);
    assert_eq!(stat["drives"][0]["segments_free"], 1);
    assert_eq!(stat["live_bytes"], BLOCKS * ((1 << 20) + HEADER_SIZE));
    assert_eq!(stat["running"], Value::Null);
    let table = refrain(["stat", "--dir", store.directory()]);
    assert!(table.out.contains("blocks          20, 20"), "{}", table.out);
}

#[test]
fn inspect_shows_every_field_and_checks_every_stripe() {
    let store = Store::new();
    store.flip(0, store.entry(0, 5).offset + HEADER_SIZE + 700_001);
    let inspect = |block| refrain(["inspect", block, "--json", "--dir", store.directory()]);
    let good = inspect("04").json();
    let record = &good["records"][0];
    assert_eq!((&record["verdict"], &record["position"]), (&"good".into(), &4.into()));
    assert_eq!(
        (&record["header"]["epoch"], &record["header"]["key_scheme"]),
        (&3.into(), &1.into())
    );
    assert_eq!(record["parent"], format!("03{}{}", "00".repeat(7), "07".repeat(24)));
    assert_eq!(record["stripes"].as_array().unwrap().len(), 4);
    let damaged = inspect("05").json();
    let stripes = damaged["records"][0]["stripes"].as_array().unwrap().clone();
    let verdicts: Vec<_> = stripes.iter().map(|stripe| stripe["good"].as_bool().unwrap()).collect();
    assert_eq!(verdicts, [true, true, false, true]);
    assert!(damaged["records"][0]["verdict"].as_str().unwrap().contains("stripe 2 has checksum"));
    let table = refrain(["inspect", "05", "--dir", store.directory()]);
    assert!(table.out.contains("DAMAGED"), "{}", table.out);
}

#[test]
fn inspect_shows_a_segment_under_each_of_its_names() {
    let store = Store::new();
    let inspect = |name| refrain(["inspect", name, "--json", "--dir", store.directory()]).json();
    let segment = inspect("0/1");
    assert_eq!(segment, inspect("segment-00000001"));
    assert_eq!(segment["live_blocks"], BLOCKS - SEALED);
    assert_eq!(segment["blocks"].as_array().unwrap().len() as u64, BLOCKS - SEALED);
}

#[test]
fn looking_leaves_every_file_as_it_was() {
    let store = Store::new();
    let before = store.state();
    let directory = store.directory();
    for code in [
        refrain(["ls", "--dir", directory]).code,
        refrain(["stat", "--dir", directory]).code,
        refrain(["inspect", "04", "--dir", directory]).code,
        refrain(["inspect", "0/0", "--dir", directory]).code,
    ] {
        assert_eq!(code, 0);
    }
    assert_eq!(store.state(), before);
}

#[test]
fn doctor_finds_a_good_drive_fit_and_leaves_nothing_behind() {
    let store = Store::new();
    let before = store.state();
    let doctor = refrain(["doctor", "--json", "--dir", store.directory()]);
    assert_eq!(doctor.code, 0, "{}", doctor.out);
    assert_eq!(store.state(), before);
    let report = doctor.json();
    let names: Vec<_> = report["checks"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    for name in ["kernel", "io_uring", "memlock", "huge pages", "open files", "permissions"] {
        assert!(names.contains(&&name.into()), "{name} is missing from {names:?}");
    }
    for name in ["store", "O_DIRECT", "free space", "disk rate", "clock"] {
        assert!(names.contains(&&name.into()), "{name} is missing from {names:?}");
    }
}
