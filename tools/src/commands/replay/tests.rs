//! Proves which requests are replayed, and when a replay fails.

use super::*;
use clap::Parser;
use std::path::Path;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

const GOOD: &str = r#"{"timestamp":0,"input_length":600,"output_length":1,"hash_ids":[1]}"#;

fn args(trace: &Path, flags: &str) -> Args {
    let words = ["replay", trace.to_str().unwrap(), "--capacity", "1GiB"];
    Line::parse_from(words.into_iter().chain(flags.split_whitespace())).args
}

fn check_survey(text: &str, flags: &str, expected: Result<u64, &str>) {
    let trace = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(trace.path(), text).unwrap();
    let found = survey(&args(trace.path(), flags)).map_err(|error| format!("{error:#}"));
    match (&found, expected) {
        (Ok(found), Ok(expected)) => assert_eq!(*found, expected),
        (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
        (found, expected) => panic!("{found:?}, not {expected:?}"),
    }
}

#[test]
fn slice_is_what_is_left_after_skip_up_to_limit() {
    let text = [GOOD; 10].join("\n");
    check_survey(&text, "", Ok(10));
    check_survey(&text, "--skip 4", Ok(6));
    check_survey(&text, "--skip 4 --limit 3", Ok(3));
    check_survey(&text, "--limit 30", Ok(10));
    check_survey(&text, "--skip 10", Err("has no request to replay"));
    check_survey("", "", Err("has no request to replay"));
}

#[test]
fn damaged_line_is_named_before_anything_runs() {
    let text = [GOOD, GOOD, "{}", GOOD].join("\n");
    check_survey(&text, "", Err("trace line 3 is not a request"));
    check_survey(&text, "--limit 2", Ok(2));
    check_survey(&text, "--block-tokens 100", Err("trace line 1: 1 block ids do not fit"));
    assert!(survey(&args(Path::new("/nowhere"), "")).is_err());
}
