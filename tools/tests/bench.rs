//! Proves, on the real binary at small sizes, that the measurements come to an end with all their
//! figures, that they leave nothing behind, and neither does Ctrl-C.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// On the disk of the build: others may refuse O_DIRECT.
fn directory() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory is made")
}

fn bench(directory: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_refrain"));
    command.arg("bench").args(args).arg("--dir").arg(directory);
    command
}

fn is_empty(directory: &Path) -> bool {
    directory.read_dir().expect("it is there").next().is_none()
}

fn measured(directory: &Path, args: &[&str]) -> Value {
    let output = bench(directory, args).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(is_empty(directory), "nothing stays behind");
    serde_json::from_slice(&output.stdout).expect("one JSON value")
}

fn assert_positive(report: &Value, keys: &[&str]) {
    for key in keys {
        let value = report[key].as_f64();
        assert!(value.is_some_and(|value| value > 0.0), "{key} in {report}");
    }
}

#[test]
fn io_measures_raw_device_and_store_and_an_idle_sidecar() {
    let directory = directory();
    let size = ["--block-bytes", "1MiB", "--layers", "16", "--size", "32MiB", "--rounds", "1"];
    let few = ["--latency-reads", "8", "--idle-seconds", "1", "--json"];
    let report = measured(directory.path(), &[&["io"], &size[..], &few[..]].concat());
    let rates = ["raw_read_gbps", "store_read_gbps", "read_ratio", "raw_write_gbps"];
    assert_positive(&report, &rates);
    let more = ["store_write_gbps", "write_ratio", "stripe_read_ratio", "core_seconds_per_gb"];
    assert_positive(&report, &more);
    assert_positive(&report, &["read_p99_us_unloaded", "read_p99_us_under_writes"]);
    assert!(report["idle_cpu_percent"].is_number());
    assert_eq!((&report["block_bytes"], &report["depth"]), (&(1 << 20).into(), &8.into()));
    // What was read is a matter of the flags, not of the engine.
    let engines = report["engines"].as_object().expect("one a name");
    assert!(engines.contains_key("blocking"));
    assert!(engines.values().all(|engine| engine["hash"] == report["hash"]));
}

#[test]
fn lookup_measures_index_and_socket() {
    let directory = directory();
    let args = ["lookup", "--blocks", "5000", "--block-tokens", "16", "--lookups", "5", "--json"];
    let report = measured(directory.path(), &args);
    assert_eq!(report["resident_blocks"], 5000);
    let keys = ["socket_p50_us", "socket_p99_us", "in_process_p50_us", "in_process_p99_us"];
    assert_positive(&report, &keys);
    assert_positive(&report, &["bytes_per_block", "hash_us"]);
}

#[test]
fn ctrl_c_ends_a_measurement_and_leaves_nothing() {
    let directory = directory();
    let mut command = bench(directory.path(), &["io", "--size", "96MiB", "--rounds", "100000"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    while is_empty(directory.path()) {
        std::thread::yield_now();
    }
    kill_process(Pid::from_child(&child), Signal::INT).expect("it runs");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("interrupted"), "{said}");
    assert!(is_empty(directory.path()), "nothing stays behind");
}

#[test]
fn what_cannot_be_measured_is_refused_with_what_to_do() {
    let directory = directory();
    let refused = |args: &[&str], advice: &str| {
        let output = bench(directory.path(), args).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(advice), "{said}");
        assert!(is_empty(directory.path()), "nothing stays behind");
    };
    refused(&["io", "--block-bytes", "1MiB"], "give another --layers");
    refused(&["io", "--size", "8MiB"], "give at least");
    refused(&["io", "--size", "1PiB"], "make it smaller, or give another --dir");
}
