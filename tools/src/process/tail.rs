//! The last of what a child wrote to its standard error.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::process::ChildStderr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Enough for an error and what led to it.
const LINES_MAX: usize = 20;

/// Reads on its own thread, so that the child never waits for its reader.
#[derive(Debug)]
pub(super) struct Tail {
    lines: Arc<Mutex<VecDeque<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Tail {
    pub(super) fn follow(stderr: ChildStderr) -> Self {
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let shared = Arc::clone(&lines);
        let read = move || {
            let mut stderr = BufReader::new(stderr);
            let mut line = Vec::new();
            while stderr.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                let mut lines = shared.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.len() == LINES_MAX {
                    lines.pop_front();
                }
                lines.push_back(text);
            }
        };
        let reader = thread::Builder::new().name("child-stderr".into()).spawn(read).ok();
        Self { lines, reader }
    }

    /// What a child that has ended said last; waits until all of it has been read.
    pub(super) fn read_out(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            // It cannot panic; and if it did, what it has read would still stand.
            let _ = reader.join();
        }
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.is_empty() {
            return "(nothing)".into();
        }
        lines.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    }
}
