//! One JSON line a request, in the order in which requests are finished.

use super::outcome::Outcome;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(super) struct HitLog {
    path: PathBuf,
    out: BufWriter<File>,
}

impl HitLog {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self { path: path.to_owned(), out: BufWriter::new(file) })
    }

    pub(super) fn write(&mut self, outcome: &Outcome) -> Result<()> {
        write(&mut self.out, outcome).with_context(|| format!("write {}", self.path.display()))
    }

    pub(super) fn finish(mut self) -> Result<()> {
        self.out.flush().with_context(|| format!("write {}", self.path.display()))
    }
}

fn write(out: &mut impl Write, outcome: &Outcome) -> Result<()> {
    serde_json::to_writer(&mut *out, outcome)?;
    Ok(out.write_all(b"\n")?)
}

#[cfg(test)]
mod tests {
    //! Proves which keys a line has.

    use super::*;
    use serde_json::Value;

    #[test]
    fn line_says_what_was_asked_and_what_was_hit_by_tier() {
        let outcome = Outcome {
            index: 12,
            blocks: 9,
            hit_host: 3,
            hit_ssd: 2,
            lookup_us: 310,
            load_us: 900,
            miss: Some("damaged"),
            ..Outcome::default()
        };
        let mut out = Vec::new();
        write(&mut out, &outcome).unwrap();
        write(&mut out, &Outcome::default()).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let expected = [
            ("index", 12),
            ("blocks", 9),
            ("hit_host", 3),
            ("hit_ssd", 2),
            ("lookup_us", 310),
            ("load_us", 900),
        ];
        for (key, value) in expected {
            assert_eq!(lines[0][key], value, "{key}");
        }
        assert_eq!(lines[0]["miss"], "damaged");
        assert!(lines[1].get("miss").is_none() && lines[1].get("error").is_none());
    }
}
