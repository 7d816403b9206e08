//! Proves the arithmetic of a report, and what makes a replay fail.

use super::*;

fn frame() -> Frame {
    Frame {
        block_bytes: 1_000_000,
        block_tokens: 512,
        workers: 1,
        concurrency: 1,
        nodes: 1,
        capacity_bytes: None,
        elapsed: Duration::from_secs(2),
        late_max: Duration::ZERO,
        ideal: Ideal { requests: 2, input_tokens: 10_240, hit_tokens: 5120, unique_blocks: 10 },
        interrupted: false,
        restarts: Restarts::default(),
        spoiled: None,
    }
}

fn outcome(hit_host: u32, hit_ssd: u32, saved: u32) -> Outcome {
    Outcome {
        input_tokens: 5120,
        blocks: 10,
        matched: hit_host + hit_ssd,
        hit_host,
        hit_ssd,
        saved,
        lookup_us: 100,
        load_us: 1000,
        expected_load_us: 1500,
        ..Outcome::default()
    }
}

fn report(outcomes: &[Outcome], frame: &Frame) -> Report {
    let mut totals = Totals::default();
    for outcome in outcomes {
        totals.add(outcome);
    }
    totals.report(frame)
}

#[test]
fn rates_are_of_what_was_loaded_and_of_the_time_it_took() {
    let report = report(&[outcome(0, 0, 10), outcome(1, 3, 6)], &frame());
    assert_eq!((report.requests, report.blocks_asked, report.blocks_saved), (2, 20, 16));
    assert_eq!((report.blocks_hit_host, report.blocks_hit_ssd, report.hit_tokens), (1, 3, 2048));
    let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found}");
    close(report.token_hit_rate, 0.2);
    close(report.ideal_token_hit_rate, 0.5);
    // 4 MB in the one millisecond of the only load; 4 and 16 MB in two seconds.
    close(report.load_gbps, 4.0);
    close(report.read_gbps, 0.002);
    close(report.write_gbps, 0.008);
    close(report.expected_load_error_p90.unwrap(), 0.5);
    assert_eq!(report.lookup_us, Percentiles { p50: 100, p99: 100, max: 100 });
    assert_eq!(report.verdict(), None);
    assert_eq!(report.restart_ms, None);
}

#[test]
fn forecast_counts_only_where_all_of_it_came_and_some_from_ssd() {
    let broken = Outcome { matched: 9, miss: Some("damaged"), ..outcome(1, 3, 0) };
    let report = report(&[outcome(4, 0, 0), broken], &frame());
    assert_eq!(report.expected_load_error_p90, None);
    assert_eq!(report.misses, BTreeMap::from([("damaged", 1)]));
}

#[test]
fn percentile_is_the_least_value_that_so_many_do_not_exceed() {
    let check = |count: u64, expected: [u64; 3]| {
        let mut values: Vec<_> = (1..=count).rev().collect();
        let Percentiles { p50, p99, max } = percentiles(&mut values);
        assert_eq!([p50, p99, max], expected, "of {count}");
    };
    check(0, [0, 0, 0]);
    check(1, [1, 1, 1]);
    check(2, [1, 2, 2]);
    check(100, [50, 99, 100]);
    check(1000, [500, 990, 1000]);
}

#[test]
fn wrong_bytes_and_errors_fail_a_replay_and_lost_leases_do_not() {
    let lost = Outcome { leases_lost: 2, sidecar_losses: 1, ..outcome(0, 0, 0) };
    assert_eq!(report(&[lost], &frame()).verdict(), None);
    let error = |index| Outcome { index, error: Some("no".into()), ..Outcome::default() };
    let failed = report(&[error(7), error(9)], &frame());
    assert_eq!(failed.verdict().unwrap(), "2 requests failed; the first: request 7: no");
    let wrong = Outcome { wrong_bytes: 3, ..outcome(1, 1, 0) };
    assert_eq!(report(&[wrong], &frame()).verdict().unwrap(), "3 bytes came back wrong");
}

#[test]
fn report_has_the_keys_that_are_promised() {
    let value = serde_json::to_value(report(&[outcome(1, 3, 6)], &frame())).unwrap();
    let promised = [
        "requests",
        "input_tokens",
        "hit_tokens",
        "token_hit_rate",
        "ideal_token_hit_rate",
        "blocks_asked",
        "blocks_hit_host",
        "blocks_hit_ssd",
        "blocks_saved",
        "blocks_refused",
        "wrong_bytes",
        "errors",
        "elapsed_s",
        "load_gbps",
        "read_gbps",
        "write_gbps",
        "expected_load_error_p90",
        "sidecar_losses",
        "waited_ms",
        "restarts",
        "restart_ms",
    ];
    for key in promised {
        assert!(value.get(key).is_some(), "{key}");
    }
    for key in ["lookup_us", "load_us"] {
        for part in ["p50", "p99", "max"] {
            assert!(value[key][part].is_u64(), "{key}.{part}");
        }
    }
}
