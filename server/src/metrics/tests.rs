//! Proves that a scrape tells what was counted, that nothing is absent before, and what drives say.

use super::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn has(metrics: &Metrics, line: &str) {
    let text = metrics.text();
    assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
}

/// What a histogram counts up to a bound, however the bound is written.
fn bucket(metrics: &Metrics, name: &str, bound: f64) -> Option<u64> {
    metrics.text().lines().find_map(|line| {
        let (found, count) = line.strip_prefix(name)?.strip_prefix("{le=\"")?.split_once("\"} ")?;
        let found: f64 = found.parse().ok()?;
        ((found - bound).abs() < bound * 1e-9).then(|| count.parse().ok())?
    })
}

fn drive(read_bytes: u64) -> DriveStats {
    DriveStats {
        io_engine: "uring",
        writable: true,
        withdrawn: None,
        capacity_bytes: 1 << 30,
        segment_bytes: 1 << 26,
        segments: 16,
        segments_free: 9,
        read_bytes,
        written_bytes: 5,
        queued_read_bytes: 0,
        queued_write_bytes: 0,
        read_bytes_per_second: 7,
        write_bytes_per_second: 8,
        checksum_failures: 1,
        read_errors: 2,
        write_errors: 3,
        syncs: 4,
    }
}

#[test]
fn what_was_counted_is_told() {
    let metrics = Metrics::new();
    metrics.lookups.inc();
    metrics.matched_blocks.inc_by(12);
    metrics.loaded_blocks.of(Source::Ssd).inc_by(5);
    metrics.loaded_bytes.of(Source::Host).inc_by(4096);
    metrics.refused_blocks.of(Refusal::NoSpace).inc_by(2);
    metrics.evicted_blocks.of(Eviction::Reclaim).inc_by(3);
    metrics.sessions.inc();
    metrics.blocks.set(1_000_000);
    metrics.restart_seconds.set(0.25);
    metrics.lookup_seconds.observe(15e-6);
    has(&metrics, "refrain_lookups_total 1");
    has(&metrics, "refrain_matched_blocks_total 12");
    has(&metrics, r#"refrain_loaded_blocks_total{tier="ssd"} 5"#);
    has(&metrics, r#"refrain_loaded_bytes_total{tier="host"} 4096"#);
    has(&metrics, r#"refrain_refused_blocks_total{reason="no_space"} 2"#);
    has(&metrics, r#"refrain_evicted_blocks_total{reason="reclaim"} 3"#);
    has(&metrics, "refrain_sessions 1");
    has(&metrics, "refrain_blocks 1000000");
    has(&metrics, "refrain_restart_seconds 0.25");
    assert_eq!(bucket(&metrics, "refrain_lookup_seconds_bucket", 10e-6), Some(0));
    assert_eq!(bucket(&metrics, "refrain_lookup_seconds_bucket", 20e-6), Some(1));
    has(&metrics, "refrain_lookup_seconds_count 1");
    has(&metrics, r#"refrain_build_info{version="0.0.0"} 1"#);
}

#[test]
fn every_value_of_a_label_is_there_before_it_is_counted() {
    let metrics = Metrics::new();
    for reason in ["deadline", "damaged", "no_memory", "drive", "peer"] {
        has(&metrics, &format!("refrain_missed_blocks_total{{reason=\"{reason}\"}} 0"));
    }
    for reason in ["busy", "no_space", "read_only", "draining", "no_parent"] {
        has(&metrics, &format!("refrain_refused_blocks_total{{reason=\"{reason}\"}} 0"));
    }
    for end in ["over", "broken", "lie", "late"] {
        has(&metrics, &format!("refrain_fetches_total{{end=\"{end}\"}} 0"));
    }
    for reason in ["reclaim", "drop", "evict", "damage"] {
        has(&metrics, &format!("refrain_evicted_blocks_total{{reason=\"{reason}\"}} 0"));
    }
}

#[test]
fn a_counter_by_label_adds_up_and_parts_its_values() {
    let metrics = Metrics::new();
    for (amount, &(reason, _)) in (1..).zip(Miss::ALL) {
        metrics.missed_blocks.of(reason).inc_by(amount);
    }
    assert_eq!(metrics.missed_blocks.total(), 1 + 2 + 3 + 4 + 5);
    assert_eq!(metrics.missed_blocks.of(Miss::Damaged).get(), 2);
    has(&metrics, r#"refrain_missed_blocks_total{reason="drive"} 4"#);
}

#[test]
fn drives_are_asked_at_each_scrape_and_parted_by_path() {
    let metrics = Metrics::new();
    assert!(!metrics.text().contains("refrain_drive"));
    let read = Arc::new(AtomicU64::new(100));
    let now = Arc::clone(&read);
    metrics.watch_drives(move || {
        let stats = |more| drive(now.load(Ordering::Relaxed) + more);
        vec![("/mnt/a".into(), stats(0)), ("/mnt/b".into(), stats(1))]
    });
    has(&metrics, r#"refrain_drive_read_bytes_total{drive="/mnt/a"} 100"#);
    has(&metrics, r#"refrain_drive_read_bytes_total{drive="/mnt/b"} 101"#);
    has(&metrics, r#"refrain_drive_segments_free{drive="/mnt/a"} 9"#);
    has(&metrics, r#"refrain_drive_writable{drive="/mnt/b"} 1"#);
    read.store(900, Ordering::Relaxed);
    has(&metrics, r#"refrain_drive_read_bytes_total{drive="/mnt/a"} 900"#);
}

#[test]
fn no_name_stands_twice_and_every_metric_is_explained() {
    let metrics = Metrics::new();
    metrics.watch_drives(|| vec![("/mnt/a".into(), drive(0))]);
    let text = metrics.text();
    let after = |word: &str| -> Vec<&str> {
        let names = text.lines().filter_map(|line| line.strip_prefix(word)?.split(' ').next());
        names.collect()
    };
    let (types, helps) = (after("# TYPE "), after("# HELP "));
    assert!(types.len() > 40, "{} metrics", types.len());
    assert_eq!(types.iter().collect::<BTreeSet<_>>().len(), types.len());
    assert_eq!(types.iter().collect::<BTreeSet<_>>(), helps.iter().collect());
}
