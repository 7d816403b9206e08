//! `refrain pin`: keeps a prefix from reclaim.

use crate::hex::hex;
use crate::prefix::PrefixArgs;
use crate::rows::size;
use crate::target::TargetArgs;
use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use refrain_server::config::parse_duration;
use serde::Serialize;
use std::io::{self, Write};
use std::time::Duration;

/// Keep a prefix: reclaim moves its blocks on, until their time is up or they are unpinned
///
/// A pin takes in a block and all blocks before it, over restarts and kills. Up to a quarter of a
/// drive's capacity may be pinned; beyond that a pin is refused. `refrain evict` and `refrain drop`
/// take pinned blocks too, as does damage, and their pins with them. To pin a prefix again gives
/// it the new time.
#[derive(ClapArgs, Debug)]
#[command(after_help = "Examples:
  refrain pin 4fa1 --ttl 12h               the prefix that ends with the block whose hash begins so
  refrain pin --tokens system-prompt.json  as much of a prompt as is stored, until it is unpinned
  refrain ls pins                          what is pinned, and for how long")]
pub struct Args {
    #[command(flatten)]
    prefix: PrefixArgs,
    /// How long, as in `90s`, `30m` or `12h`; without it until it is unpinned
    #[arg(long, value_parser = parse_duration)]
    ttl: Option<Duration>,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Debug, Serialize)]
struct Pinned {
    sequence_hash: String,
    shard: u32,
    blocks: u64,
    bytes: u64,
}

pub fn run(args: &Args) -> Result<()> {
    let mut sidecar = args.target.sidecar("pin a prefix")?;
    let mut pinned = Vec::new();
    for prefix in args.prefix.prefixes(&mut sidecar)? {
        let answer = sidecar.pin(prefix, args.ttl)?;
        let block = answer.block.context("sidecar tells of a pin without its block")?;
        pinned.push(Pinned {
            sequence_hash: hex(&block.sequence_hash),
            shard: block.shard,
            blocks: answer.blocks,
            bytes: answer.bytes,
        });
    }
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::json!({ "pinned": pinned }))?;
        return Ok(());
    }
    for Pinned { sequence_hash, shard, blocks, bytes } in &pinned {
        let size = size(*bytes);
        writeln!(out, "pinned {blocks} blocks, {size}, up to {sequence_hash} of shard {shard}")?;
    }
    Ok(())
}
