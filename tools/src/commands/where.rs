//! `refrain where`: which nodes are thought to hold a prompt, or a block.

use crate::block;
use crate::hex::HashPrefix;
use crate::prompt::PromptArgs;
use crate::target::TargetArgs;
use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use refrain_client::v1::{BlockNames, WhereRun, where_request::Subject};
use serde::Serialize;
use std::io::{self, Write};

/// Say which nodes of the fleet are thought to hold a prompt's blocks, or one block
///
/// The directory's word is a hint: the nodes themselves know. The sidecar that is asked tells of its
/// own blocks what it holds.
#[derive(ClapArgs, Debug)]
#[command(after_help = "Examples:
  refrain where --tokens prompt.json                 runs of blocks, and who has each
  refrain where --trace trace.jsonl --request 12     of a request that `refrain replay` made
  refrain where 4fa1                                 one block that is resident here, by its hash
  refrain where 4fa1...                              or any block, by all 64 digits")]
pub struct Args {
    /// Hex digits of a block's sequence hash: the first ones where it is resident here, else all 64
    #[arg(value_name = "BLOCK", conflicts_with_all = ["tokens", "trace", "namespace"])]
    block: Option<HashPrefix>,
    #[command(flatten)]
    prompt: PromptArgs,
    /// The rank whose share is meant
    #[arg(long, default_value_t = 0)]
    shard: u32,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Debug, Serialize)]
struct Places {
    blocks: u32,
    /// Blocks that nobody could answer for.
    unknown: u32,
    runs: Vec<Run>,
}

#[derive(Debug, Serialize)]
struct Run {
    node: u32,
    epoch: u32,
    address: String,
    first: u32,
    blocks: u32,
    /// Whether it is the sidecar that was asked.
    here: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let mut sidecar = args.target.sidecar("look into the directory")?;
    let subject = if let Some(prompt) = args.prompt.name(&mut sidecar, args.shard)? {
        Subject::Prompt(prompt)
    } else if let Some(prefix) = &args.block {
        let hash = if prefix.digits() == 64 {
            prefix.bytes()
        } else {
            let named = block::named(&mut sidecar, prefix, Some(args.shard))?;
            named.into_iter().map(|name| name.sequence_hash).next().unwrap_or_default()
        };
        let (shard, sequence_hashes) = (args.shard, vec![hash]);
        Subject::Blocks(BlockNames { shard, sequence_hashes, ..BlockNames::default() })
    } else {
        bail!("give a block's hash, --tokens or --trace");
    };
    let answer = sidecar.r#where(subject)?;
    let places = Places {
        blocks: answer.prompt_blocks,
        unknown: answer.unknown_blocks,
        runs: answer.runs.into_iter().map(Run::from).collect(),
    };
    let mut out = io::stdout().lock();
    let printed = if args.json {
        Ok(writeln!(out, "{}", serde_json::to_string(&places)?)?)
    } else {
        places.print(&mut out).map_err(Into::into)
    };
    super::printed(printed)
}

impl Places {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        for Run { node, epoch, address, first, blocks, here } in &self.runs {
            let last = first + blocks - 1;
            let here = if *here { ", this one" } else { "" };
            writeln!(out, "blocks {first}-{last}: node {node} in epoch {epoch}, {address}{here}")?;
        }
        if self.runs.is_empty() {
            writeln!(out, "none of {} blocks is known to be anywhere", self.blocks)?;
        }
        if self.unknown > 0 {
            writeln!(out, "{} of {} blocks: nobody could answer", self.unknown, self.blocks)?;
        }
        Ok(())
    }
}

impl From<WhereRun> for Run {
    fn from(run: WhereRun) -> Self {
        let WhereRun { node, epoch, address, first_block, blocks, here } = run;
        Self { node, epoch, address, first: first_block, blocks, here }
    }
}
