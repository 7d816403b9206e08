//! `refrain evict`: forgets a block, and all that stand behind it.

use crate::block;
use crate::hex::HashPrefix;
use crate::target::TargetArgs;
use anyhow::Result;
use clap::Args as ClapArgs;
use std::io::{self, Write};

/// Forget a block and all blocks behind it, in every shard or in one
#[derive(ClapArgs, Debug)]
pub struct Args {
    /// First hex digits of the block's sequence hash
    #[arg(value_name = "BLOCK")]
    block: HashPrefix,
    /// Only this rank's share
    #[arg(long)]
    shard: Option<u32>,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let mut sidecar = args.target.sidecar("evict a block")?;
    let mut blocks = 0;
    for block in block::named(&mut sidecar, &args.block, args.shard)? {
        blocks += sidecar.evict(block.sequence_hash, block.shard)?;
    }
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::json!({ "blocks": blocks }))?;
    } else {
        writeln!(out, "evicted {blocks} blocks")?;
    }
    Ok(())
}
