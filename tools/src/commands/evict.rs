//! `refrain evict`: forgets a block, and all that stand behind it.

use crate::hex::{HashPrefix, hex};
use crate::target::TargetArgs;
use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use refrain_client::v1::inspect_request::Subject;
use std::collections::BTreeSet;
use std::io::{self, Write};

/// Forgets a block and all blocks behind it in its chains, in every shard or in one.
#[derive(ClapArgs, Debug)]
pub struct Args {
    /// First hex digits of the block's sequence hash
    #[arg(value_name = "BLOCK")]
    block: HashPrefix,
    /// Only this rank's share
    #[arg(long)]
    shard: Option<u32>,
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let mut sidecar = args.target.sidecar("evict a block")?;
    let found = sidecar.inspect(Subject::HashPrefix(args.block.bytes()))?.records;
    let found = found.into_iter().filter_map(|record| record.block);
    let keys: BTreeSet<_> = found
        .filter(|block| args.block.begins(&block.sequence_hash))
        .filter(|block| args.shard.is_none_or(|shard| shard == block.shard))
        .map(|block| (block.sequence_hash, block.shard))
        .collect();
    let hashes: BTreeSet<_> = keys.iter().map(|(hash, _)| hash.clone()).collect();
    if hashes.len() > 1 {
        let names: Vec<_> = hashes.iter().map(|hash| hex(hash)).collect();
        bail!("{} begins several blocks, give more digits: {}", args.block, names.join(", "));
    }
    if keys.is_empty() {
        bail!("no block begins with {}", args.block);
    }
    let mut blocks = 0;
    for (hash, shard) in keys {
        blocks += sidecar.evict(hash, shard)?;
    }
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::json!({ "blocks": blocks }))?;
    } else {
        writeln!(out, "evicted {blocks} blocks")?;
    }
    Ok(())
}
