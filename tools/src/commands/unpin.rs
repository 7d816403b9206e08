//! `refrain unpin`: lets a prefix go.

use crate::prefix::PrefixArgs;
use crate::target::TargetArgs;
use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use std::io::{self, Write};

/// End the pin of a prefix: its blocks are kept for as long as others are
///
/// By a block: the pin that ends with it. By a prompt: every pin that ends with one of its blocks.
#[derive(ClapArgs, Debug)]
#[command(after_help = "Examples:
  refrain ls pins                             what is pinned
  refrain unpin 4fa1
  refrain unpin --tokens system-prompt.json")]
pub struct Args {
    #[command(flatten)]
    prefix: PrefixArgs,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let mut sidecar = args.target.sidecar("unpin a prefix")?;
    let mut pins = 0;
    for prefix in args.prefix.prefixes(&mut sidecar)? {
        pins += sidecar.unpin(prefix)?;
    }
    if pins == 0 {
        bail!("no pin ends with it: `refrain ls pins` lists them");
    }
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::json!({ "pins": pins }))?;
    } else {
        writeln!(out, "ended {pins} pins")?;
    }
    Ok(())
}
