//! An explanation for people: a line for each run of blocks, and what to do about it.

use super::{Answer, Run};
use std::io::{self, Write};
use std::time::Duration;

pub(super) fn print(answer: &Answer, out: &mut impl Write) -> io::Result<()> {
    let Answer { prompt_blocks, matched_blocks, tail_tokens, runs, other_namespace, .. } = answer;
    writeln!(out, "{matched_blocks} of {prompt_blocks} blocks hit")?;
    for run in runs {
        let (first, last) = (run.first_block, run.first_block + run.blocks - 1);
        let blocks = if first == last { first.to_string() } else { format!("{first}..{last}") };
        let verdict = if matches!(run.fate, "host" | "ssd") { "hit" } else { "miss" };
        writeln!(out, "{blocks:<14} {verdict:<5} {}", sentence(run, answer))?;
    }
    if *tail_tokens > 0 {
        writeln!(out, "{tail_tokens} tokens fill no block: they are computed each time")?;
    }
    let Some(other) = other_namespace else { return Ok(()) };
    let (name, matched) = (&other.namespace, other.matched_blocks);
    writeln!(out, "namespace {name:.16} has {matched} blocks of this prompt; it differs in")?;
    for difference in &other.differences {
        let field = &difference.field;
        writeln!(out, "  {field:<17} here {}, there {}", difference.here, difference.there)?;
    }
    Ok(())
}

fn sentence(run: &Run, answer: &Answer) -> String {
    let ago = time(run.ago_ms.unwrap_or(0));
    let behind = if run.behind { ", as a block before it went" } else { "" };
    match run.fate {
        "host" => "in memory and on SSD".into(),
        "ssd" => "on SSD".into(),
        "elsewhere" => "stored, but behind another block than here: no prefix".into(),
        "refused" => format!("not saved {ago} ago: {}", refused(run.refusal.unwrap_or("unknown"))),
        "reclaimed" => {
            let whom = run.for_namespace.as_deref();
            let whom = whom.map(|name| format!(" for saves of namespace {name:.16}"));
            format!("reclaimed {ago} ago{}{behind}", whom.unwrap_or_default())
        }
        "evicted" => format!("evicted by an operator {ago} ago{behind}"),
        "dropped" => format!("dropped with its namespace {ago} ago"),
        "damaged" => format!("damaged, found {ago} ago{behind}: see the sidecar's log"),
        "other_namespace" => "not known here, but in another namespace: see below".into(),
        _ => unknown(answer),
    }
}

fn refused(why: &str) -> &str {
    match why {
        "busy" => "the drives were behind",
        "no_space" => "no segment was free, as reclaim was behind",
        "read_only" => "no drive took writes",
        "draining" => "the sidecar was about to end",
        "no_parent" => "the block before it was not there",
        other => other,
    }
}

fn unknown(answer: &Answer) -> String {
    let removals = answer.removals_known_ms;
    let when = if removals >= answer.uptime_ms {
        format!("before the sidecar started, {} ago", time(answer.uptime_ms))
    } else {
        format!("longer ago than {}", time(removals))
    };
    format!("not known: never stored, or removed {when}")
}

fn time(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{} h", Duration::from_secs(seconds).as_secs() / 3600),
    }
}

#[cfg(test)]
mod tests {
    //! Proves that times read well, and that what is not known is said to be so.

    use super::*;

    #[test]
    fn what_is_not_known_says_how_far_back_memory_goes() {
        let mut answer = Answer {
            prompt_blocks: 1,
            matched_blocks: 0,
            tail_tokens: 3,
            runs: Vec::new(),
            other_namespace: None,
            removals_known_ms: 90_000,
            refusals_known_ms: 0,
            uptime_ms: 90_000,
        };
        let before_start = "removed before the sidecar started, 90 s ago";
        assert!(unknown(&answer).ends_with(before_start), "{}", unknown(&answer));
        answer.uptime_ms = 7_200_000;
        assert!(unknown(&answer).ends_with("removed longer ago than 90 s"), "{}", unknown(&answer));
        assert_eq!(
            (time(119_999), time(120_000), time(7_200_000)),
            ("119 s".into(), "2 min".into(), "2 h".into())
        );
    }
}
