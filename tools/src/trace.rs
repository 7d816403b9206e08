//! Request traces: JSON Lines, gzip'd or plain, one request a line, prompts as opaque block ids.

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use thiserror::Error;

/// Where a line goes wrong.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TraceError {
    #[error("open trace")]
    Open(#[source] io::Error),
    #[error("read trace, line {line}")]
    Read { line: u64, source: io::Error },
    #[error("trace line {line} is not a request")]
    Malformed { line: u64, source: serde_json::Error },
    #[error("trace line {line} has neither or both of `hash_ids` and `hash_runs`")]
    Ids { line: u64 },
    #[error("trace line {line}: {ids} block ids do not fit {tokens} input tokens")]
    Length { line: u64, ids: u64, tokens: u64 },
}

/// One request as it stands in a file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Line {
    /// Milliseconds from the start.
    pub timestamp: u64,
    pub input_length: u64,
    pub output_length: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_ids: Option<Vec<u64>>,
    /// The same list run-length coded: first id and count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_runs: Option<Vec<(u64, u64)>>,
}

/// One request: the ids of its full blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub timestamp_ms: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub blocks: Vec<u64>,
}

/// What a cache that forgets nothing would serve: the bound that a replay is held against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ideal {
    pub requests: u64,
    pub input_tokens: u64,
    pub hit_tokens: u64,
    pub unique_blocks: u64,
}

impl Ideal {
    /// Share of the input tokens that stand in full blocks of the longest prefix seen before.
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people; tokens stay below 2^53")]
    pub fn token_hit_rate(&self) -> f64 {
        self.hit_tokens as f64 / self.input_tokens.max(1) as f64
    }
}

/// Requests of `path`, in order; gzip is told by its first bytes, not by the name.
pub fn read(
    path: &Path,
    block_tokens: u64,
) -> Result<impl Iterator<Item = Result<Request, TraceError>> + use<>, TraceError> {
    let mut file = BufReader::new(File::open(path).map_err(TraceError::Open)?);
    let gzip = file.fill_buf().map_err(TraceError::Open)?.starts_with(&[0x1f, 0x8b]);
    let reader: Box<dyn Read + Send> =
        if gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    Ok(parse(BufReader::new(reader), block_tokens))
}

/// Requests of a plain text, one a line; blank lines are passed over.
pub fn parse(
    text: impl BufRead,
    block_tokens: u64,
) -> impl Iterator<Item = Result<Request, TraceError>> {
    assert!(block_tokens > 0, "a block holds at least one token");
    (1..).zip(text.lines()).filter_map(move |(line, text)| match text {
        Err(source) => Some(Err(TraceError::Read { line, source })),
        Ok(text) if text.trim().is_empty() => None,
        Ok(text) => Some(parse_line(line, &text, block_tokens)),
    })
}

fn parse_line(line: u64, text: &str, block_tokens: u64) -> Result<Request, TraceError> {
    let found: Line =
        serde_json::from_str(text).map_err(|source| TraceError::Malformed { line, source })?;
    let tokens = found.input_length;
    let full = tokens / block_tokens;
    let length = |ids| TraceError::Length { line, ids, tokens };
    // Some files list the partial last block too; a list may be longer than `full` by that one.
    let limit = tokens.div_ceil(block_tokens);
    let mut blocks = match (found.hash_ids, found.hash_runs) {
        (Some(ids), None) => ids,
        (None, Some(runs)) => {
            let count = runs.iter().try_fold(0u64, |sum, run| sum.checked_add(run.1));
            // Counted before expanding: a damaged count must not take the machine's memory.
            match count {
                Some(count) if count <= limit => runs
                    .iter()
                    .flat_map(|&(first, n)| (0..n).map(move |i| first.wrapping_add(i)))
                    .collect(),
                Some(count) => return Err(length(count)),
                None => return Err(length(u64::MAX)),
            }
        }
        (None, None) | (Some(_), Some(_)) => return Err(TraceError::Ids { line }),
    };
    let ids = blocks.len() as u64;
    if ids != full && ids != limit {
        return Err(length(ids));
    }
    blocks.truncate(usize::try_from(full).expect("no more than the list's length"));
    Ok(Request {
        timestamp_ms: found.timestamp,
        input_tokens: tokens,
        output_tokens: found.output_length,
        blocks,
    })
}

/// A cache that forgets nothing.
#[derive(Clone, Debug)]
pub struct Unlimited {
    block_tokens: u64,
    seen: HashSet<u64>,
    ideal: Ideal,
}

impl Unlimited {
    pub fn new(block_tokens: u64) -> Self {
        Self { block_tokens, seen: HashSet::new(), ideal: Ideal::default() }
    }

    /// Serves a request, and keeps all of it; how many of its blocks there were.
    pub fn serve(&mut self, request: &Request) -> u64 {
        let hit = request.blocks.iter().take_while(|id| self.seen.contains(*id)).count() as u64;
        self.seen.extend(&request.blocks);
        self.ideal.requests += 1;
        self.ideal.input_tokens += request.input_tokens;
        self.ideal.hit_tokens += hit * self.block_tokens;
        self.ideal.unique_blocks = self.seen.len() as u64;
        hit
    }

    /// What it has served so far.
    pub fn ideal(&self) -> Ideal {
        self.ideal
    }
}

/// Replays `requests` against a cache that forgets nothing.
pub fn ideal(
    requests: impl Iterator<Item = Result<Request, TraceError>>,
    block_tokens: u64,
) -> Result<Ideal, TraceError> {
    let mut unlimited = Unlimited::new(block_tokens);
    for request in requests {
        unlimited.serve(&request?);
    }
    Ok(unlimited.ideal())
}

#[cfg(test)]
mod tests {
    //! Proves that both codings give the same request, and that a damaged line is named.

    use super::*;

    fn blocks(text: &str) -> Result<Vec<Vec<u64>>, String> {
        parse(text.as_bytes(), 512)
            .map(|request| request.map(|r| r.blocks).map_err(|e| e.to_string()))
            .collect()
    }

    #[test]
    fn ids_and_runs_give_the_same_full_blocks() {
        let ids = r#"{"timestamp":0,"input_length":1600,"output_length":1,"hash_ids":[4,5,6,9]}"#;
        let runs = r#"{"timestamp":0,"input_length":1600,"output_length":1,"hash_runs":[[4,3]],"session":1}"#;
        assert_eq!(blocks(ids), Ok(vec![vec![4, 5, 6]]));
        assert_eq!(blocks(runs), Ok(vec![vec![4, 5, 6]]));
    }

    #[test]
    fn a_damaged_line_is_named_by_its_number() {
        let good = r#"{"timestamp":0,"input_length":512,"output_length":1,"hash_ids":[4]}"#;
        let check = |bad: &str, expected: &str| {
            assert_eq!(blocks(&format!("{good}\n{bad}\n")), Err(expected.to_owned()));
        };
        check("{", "trace line 2 is not a request");
        check(
            r#"{"timestamp":0,"input_length":512,"output_length":1}"#,
            "trace line 2 has neither or both of `hash_ids` and `hash_runs`",
        );
        check(
            r#"{"timestamp":0,"input_length":512,"output_length":1,"hash_runs":[[0,18446744073709551615]]}"#,
            "trace line 2: 18446744073709551615 block ids do not fit 512 input tokens",
        );
    }

    #[test]
    fn ideal_counts_the_longest_contiguous_prefix_of_full_blocks() {
        let text = r#"{"timestamp":0,"input_length":1536,"output_length":1,"hash_ids":[1,2,3]}
{"timestamp":1,"input_length":1600,"output_length":1,"hash_ids":[1,9,3,8]}"#;
        let ideal = ideal(parse(text.as_bytes(), 512), 512).unwrap();
        assert_eq!((ideal.hit_tokens, ideal.unique_blocks, ideal.requests), (512, 4, 2));
    }
}
