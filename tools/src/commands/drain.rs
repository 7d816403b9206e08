//! `refrain drain`: ends a sidecar in good order.

use crate::target::TargetArgs;
use anyhow::Result;
use clap::Args as ClapArgs;
use std::io::{self, Write};

/// Has the sidecar refuse new work, finish what runs, sync, and end. SIGTERM does the same.
#[derive(ClapArgs, Debug)]
pub struct Args {
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

pub fn run(args: &Args) -> Result<()> {
    args.target.sidecar("drain it")?.drain()?;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::json!({ "drained": true }))?;
    } else {
        writeln!(out, "drained: the sidecar has finished its work and ends")?;
    }
    Ok(())
}
