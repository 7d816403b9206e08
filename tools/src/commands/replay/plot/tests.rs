//! Proves where the points of a plot lie, and that what was disturbed is marked.

use super::*;
use crate::commands::replay::args::Victim;

const BLOCK: u64 = 512;

fn plot() -> Plot {
    let file = tempfile::NamedTempFile::new().unwrap();
    Plot::create(file.path(), 2, BLOCK).unwrap()
}

/// Ten blocks, half of which an unlimited cache would have had.
fn outcome(served_ms: u64, hit_ssd: u32, hit_peer: u32) -> Outcome {
    let (input_tokens, ideal_hit) = (10 * BLOCK, 5);
    Outcome { served_ms, input_tokens, ideal_hit, hit_ssd, hit_peer, ..Outcome::default() }
}

/// The path of an element that has an id.
fn path<'a>(svg: &'a str, id: &str) -> &'a str {
    let start = format!("<path id=\"{id}\" d=\"");
    let (_, rest) = svg.split_once(&start).expect("it is drawn");
    rest.split_once('"').expect("it ends").0
}

#[test]
fn windows_are_points_in_the_middle_of_their_seconds() {
    let mut plot = plot();
    for outcome in [outcome(100, 2, 0), outcome(900, 0, 2), outcome(1000, 4, 1)] {
        plot.add(&outcome);
    }
    let svg = plot.drawn();
    // Two seconds and 50 % within the axes; 20, 50 and in both 50 percent are hit.
    assert_eq!(path(&svg, "all"), "M202.5 196.4L467.5 56.0");
    assert_eq!(path(&svg, "own"), "M202.5 243.2L467.5 102.8");
    assert_eq!(path(&svg, "ideal"), "M202.5 56.0L467.5 56.0");
    assert!(!svg.contains("disturbance"));
}

#[test]
fn second_in_which_nothing_was_finished_breaks_the_line() {
    let mut plot = plot();
    for at in [0, 1000, 3000, 4000] {
        plot.add(&outcome(at, 1, 0));
    }
    let svg = plot.drawn();
    let all = path(&svg, "all");
    assert_eq!((all.matches('M').count(), all.matches('L').count()), (2, 2), "{all}");
}

#[test]
fn long_replay_has_wider_windows() {
    let mut plot = plot();
    for second in 0..500 {
        plot.add(&outcome(1000 * second, 1, 0));
    }
    let svg = plot.drawn();
    assert_eq!(path(&svg, "all").matches(['M', 'L']).count(), 167);
    assert!(svg.contains("windows of 3 s"));
}

#[test]
fn disturbance_is_marked_until_all_is_back() {
    let mut plot = plot();
    plot.add(&outcome(9999, 1, 0));
    plot.disturbed(How::Kill(Victim::Master), Duration::from_secs(2));
    let svg = plot.drawn();
    assert_eq!(path(&svg, "disturbance"), "M176.0 44V290");
    assert!(svg.contains("master killed") && !svg.contains("away"), "{svg}");
    plot.restored(Duration::from_secs(7));
    assert!(plot.drawn().contains("<rect id=\"away\" x=\"176.0\" y=\"56\" width=\"265.0\""));
}

#[test]
fn replay_without_a_request_is_drawn_too() {
    let svg = plot().drawn();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
}
