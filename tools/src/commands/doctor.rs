//! `refrain doctor`: what of a machine, and of a drive on it, is wrong for a sidecar.

use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use serde::Serialize;
use std::io::{self, Write};
use std::path::PathBuf;

mod clock;
mod directory;
mod machine;

/// Checks the machine, and with --dir a drive: what was found, and what to do about it. The exit
/// status is 1 where something is wrong; a warning costs speed, not service.
#[derive(ClapArgs, Debug)]
#[command(after_help = "Examples:
  refrain doctor                     the machine alone
  refrain doctor --dir /mnt/nvme0    and a drive: writes and reads 128 MiB there, then removes them

A store that a sidecar holds is not measured: that would slow it down.")]
pub struct Args {
    /// Store directory, or the one where a store should be made
    #[arg(long, value_name = "DIR")]
    dir: Vec<PathBuf>,
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warning,
    Wrong,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: State::Ok, found: found.into(), advice: None }
    }

    fn warning(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        let advice = Some(advice.into());
        Self { name, state: State::Warning, found: found.into(), advice }
    }

    fn wrong(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { state: State::Wrong, ..Self::warning(name, found, advice) }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let watch = clock::Watch::start();
    let mut checks = machine::check();
    for directory in &args.dir {
        checks.extend(directory::check(directory));
    }
    checks.extend(watch.check());
    let mut out = io::stdout().lock();
    if args.json {
        let ok = checks.iter().all(|check| check.state != State::Wrong);
        writeln!(out, "{}", serde_json::json!({ "ok": ok, "checks": checks }))?;
    } else {
        for Check { name, state, found, advice } in &checks {
            let state = match state {
                State::Ok => "ok",
                State::Warning => "warning",
                State::Wrong => "WRONG",
            };
            writeln!(out, "{state:<8} {name:<13} {found}")?;
            if let Some(advice) = advice {
                writeln!(out, "{:<22} -> {advice}", "")?;
            }
        }
        if args.dir.is_empty() {
            writeln!(out, "No drive was looked at: name one by --dir.")?;
        }
    }
    match checks.iter().filter(|check| check.state == State::Wrong).count() {
        0 => Ok(()),
        wrong => bail!("{wrong} of {} checks are wrong", checks.len()),
    }
}
