//! `refrain verify`: reads and checks everything that is stored.

use crate::rows::{Block, size};
use crate::target::{Target, TargetArgs};
use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Instant;

mod running;
mod stopped;

/// Read and check everything that is stored
///
/// The exit status is 1 where damage was found and not repaired.
///
/// A running sidecar withdraws what it finds damaged by itself. A stopped store is left as it is,
/// byte for byte, unless --repair is given: then damaged records are withdrawn for good, and
/// damaged footers, heads, and files in a wrong place are put right.
#[derive(ClapArgs, Debug)]
#[command(after_help = "Examples:
  refrain verify                                  the sidecar of this node, while it serves
  refrain verify --rate 200MiB                    the same, with little to be felt of it
  refrain verify --dir /mnt/nvme0                 a stopped store: changes nothing
  refrain verify --dir /mnt/nvme0 --repair        the same, and withdraws what is damaged

Give every drive of a store: a block whose parent lies on a drive not given counts as an orphan.")]
pub struct Args {
    /// Withdraw what is damaged; a running sidecar does so anyway
    #[arg(long)]
    repair: bool,
    /// Bytes a second to read at most, of a running sidecar
    #[arg(long, value_name = "BYTES")]
    rate: Option<bytesize::ByteSize>,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    blocks: u64,
    bytes: u64,
    /// Of all kinds: blocks and parts of segments.
    damaged: u64,
    damaged_by_kind: BTreeMap<&'static str, u64>,
    repaired: u64,
    /// Withdrawn by an earlier repair.
    withdrawn: u64,
    /// Blocks that nobody reaches, as one before them is gone; no damage.
    orphans: u64,
    problems: Vec<String>,
    damaged_blocks: Vec<Damaged>,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Damaged {
    #[serde(flatten)]
    block: Block,
    verdict: String,
}

pub fn run(args: &Args) -> Result<()> {
    let bar = if args.json { ProgressBar::hidden() } else { bar() };
    let report = verify(&args.target, args.repair, args.rate, &bar)?;
    bar.finish_and_clear();
    let mut out = io::stdout().lock();
    let shown = if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)
    } else {
        report.print(&mut out)
    };
    super::printed(shown.map_err(Into::into))?;
    match report.left() {
        0 => Ok(()),
        _ if args.repair => bail!("damage is left that could not be repaired"),
        left => bail!("{left} damaged: `refrain verify --repair` withdraws them"),
    }
}

/// Reads and checks everything that is stored at `target`; `rate` is for a running sidecar.
pub fn verify(
    target: &TargetArgs,
    repair: bool,
    rate: Option<bytesize::ByteSize>,
    bar: &ProgressBar,
) -> Result<Report> {
    let begin = Instant::now();
    let mut report = match target.open()? {
        Target::Running(mut sidecar) => {
            running::verify(&mut sidecar, rate.map_or(0, |rate| rate.0), bar)?
        }
        Target::Stopped(_) if rate.is_some() => {
            bail!("--rate is for a running sidecar: nobody waits for a stopped store");
        }
        Target::Stopped(drives) => stopped::verify(drives, target, repair, bar)?,
    };
    report.seconds = begin.elapsed().as_secs_f64();
    Ok(report)
}

fn bar() -> ProgressBar {
    let template =
        "{wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {msg}";
    let style = ProgressStyle::with_template(template).expect("the template is well formed");
    ProgressBar::new(0).with_style(style)
}

impl Report {
    /// Damage that was found, of all kinds.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }

    /// Damage that is there still.
    pub fn left(&self) -> u64 {
        self.damaged - self.repaired
    }

    fn count(&mut self, kind: &'static str, number: u64) {
        self.damaged += number;
        *self.damaged_by_kind.entry(kind).or_default() += number;
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let rate = size(per_second(self.bytes, self.seconds));
        writeln!(out, "blocks          {}", self.blocks)?;
        writeln!(out, "bytes           {}, {rate} a second", size(self.bytes))?;
        writeln!(out, "damaged         {}", self.damaged)?;
        for (kind, number) in &self.damaged_by_kind {
            writeln!(out, "  {kind:<17} {number}")?;
        }
        writeln!(out, "repaired        {}", self.repaired)?;
        if self.withdrawn > 0 {
            writeln!(out, "withdrawn       {} before", self.withdrawn)?;
        }
        if self.orphans > 0 {
            writeln!(out, "orphans         {}: a block before them is gone", self.orphans)?;
        }
        for problem in &self.problems {
            writeln!(out, "problem         {problem}")?;
        }
        for Damaged { block, verdict } in self.damaged_blocks.iter().take(SHOWN) {
            let Block { sequence_hash, shard, drive, segment, offset, .. } = block;
            writeln!(
                out,
                "damaged block   {sequence_hash:.16}, shard {shard}, segment {drive}/{segment}, \
                 byte {offset}: {verdict}"
            )?;
        }
        let more = self.damaged_blocks.len().saturating_sub(SHOWN);
        if more > 0 {
            writeln!(out, "                and {more} more, all with --json")?;
        }
        Ok(())
    }
}

/// Damaged blocks named in a table.
const SHOWN: usize = 20;

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate for people"
)]
fn per_second(bytes: u64, seconds: f64) -> u64 {
    (bytes as f64 / seconds.max(1e-9)) as u64
}
