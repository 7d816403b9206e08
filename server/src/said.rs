//! Errors in one line.

use std::error::Error;
use std::fmt::Write;

/// An error with what it came from.
pub(crate) fn said(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        write!(text, ": {error}").expect("text takes any line");
        source = error.source();
    }
    text
}
