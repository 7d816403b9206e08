//! Where in a file a key stands: what a refusal points at.

use super::{ConfigError, Invalid};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// A place in a file, written `FILE:LINE:COLUMN`; both count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub path: PathBuf,
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}:{}", self.path.display(), self.line, self.column)
    }
}

/// A config's text, and the file that it came from.
pub(super) struct Source<'t> {
    text: &'t str,
    path: &'t Path,
}

/// A key with a value that is no table.
struct Leaf {
    /// As in `drives[0].path`.
    name: String,
    key: Range<usize>,
    value: Range<usize>,
}

impl<'t> Source<'t> {
    pub(super) fn new(text: &'t str, path: &'t Path) -> Self {
        Self { text, path }
    }

    /// What the parser minds, with the key where its words leave it out.
    pub(super) fn malformed(&self, error: &toml::de::Error) -> ConfigError {
        let at = error.span().map_or(0, |span| span.start);
        let mut reason = error.message().to_owned();
        for (word, ours) in [("unknown field", "unknown key"), ("missing field", "missing key")] {
            if let Some(rest) = reason.strip_prefix(word) {
                reason = format!("{ours}{rest}");
            }
        }
        let leaf = self.leaves().into_iter().find(|leaf| leaf.value.contains(&at));
        if let Some(leaf) = leaf {
            reason = format!("{}: {reason}", leaf.name);
        }
        ConfigError::Malformed { place: self.place(at), reason }
    }

    /// A refusal with its place; without one where the file does not say the value.
    pub(super) fn refused(&self, invalid: Invalid) -> ConfigError {
        let leaves = self.leaves();
        let find = |name: &String| {
            // A whole table is found by its first key.
            let within = |leaf: &&Leaf| leaf.name.strip_prefix(name.as_str()).is_some_and(is_rest);
            leaves.iter().find(within).map(|leaf| leaf.key.start)
        };
        match invalid.keys().iter().find_map(find) {
            Some(at) => ConfigError::Refused { place: self.place(at), invalid },
            None => ConfigError::Invalid(invalid),
        }
    }

    fn place(&self, at: usize) -> Place {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place {
            path: self.path.into(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    /// None of a text that is not TOML.
    fn leaves(&self) -> Vec<Leaf> {
        let mut leaves = Vec::new();
        if let Ok(table) = DeTable::parse(self.text) {
            collect(table.get_ref(), "", &mut leaves);
        }
        leaves
    }
}

fn is_rest(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('.') || rest.starts_with('[')
}

fn collect(table: &DeTable<'_>, within: &str, leaves: &mut Vec<Leaf>) {
    for (key, value) in table {
        let dot = if within.is_empty() { "" } else { "." };
        let name = format!("{within}{dot}{}", key.get_ref());
        if let Some(table) = value.get_ref().as_table() {
            collect(table, &name, leaves);
            continue;
        }
        let items = value.get_ref().as_array().into_iter().flatten();
        let tables = items.enumerate().filter_map(|(index, item)| {
            DeValue::as_table(item.get_ref()).map(|table| (index, table))
        });
        let before = leaves.len();
        for (index, table) in tables {
            collect(table, &format!("{name}[{index}]"), leaves);
        }
        if leaves.len() == before {
            leaves.push(Leaf { name, key: key.span(), value: value.span() });
        }
    }
}
