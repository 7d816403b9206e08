//! `refrain inspect`: all that is known of a block or a segment.

use crate::hex::hex;
use crate::rows::{self, Row, size};
use crate::subject::Subject;
use crate::target::{Target, TargetArgs};
use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use serde::Serialize;
use std::collections::BTreeSet;
use std::io::{self, Write};

mod running;
mod stopped;

/// Show all that is known of a block or a segment
///
/// Of a block every field of its header, its place, and whether each stripe is what was written;
/// of a segment its state, what is damaged, and its blocks.
#[derive(ClapArgs, Debug)]
#[command(after_help = "Examples:
  refrain inspect 4fa1                         the block whose sequence hash begins so
  refrain inspect 0/12                         segment 12 of drive 0
  refrain inspect segment-00000012 --dir /mnt/nvme0")]
pub struct Args {
    /// First hex digits of a sequence hash, DRIVE/SEGMENT, or the name of a segment's file
    #[arg(value_name = "BLOCK|SEGMENT")]
    subject: Subject,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// One record of a block.
#[derive(Clone, Debug, Serialize)]
struct Record {
    #[serde(flatten)]
    block: rows::Block,
    parent: String,
    position: u32,
    /// Of a stopped store, as what follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<Header>,
    stripes: Vec<Stripe>,
    /// `good`, or what is wrong.
    verdict: String,
}

/// Fields that only the header tells.
#[derive(Clone, Debug, Serialize)]
struct Header {
    store_id: String,
    key_scheme: u32,
    epoch: u64,
    payload_bytes: u64,
    checksum: String,
}

#[derive(Clone, Debug, Serialize)]
struct Stripe {
    offset: u64,
    length: u64,
    checksum: String,
    good: bool,
}

/// One segment with its blocks.
#[derive(Clone, Debug, Serialize)]
struct Segment {
    #[serde(flatten)]
    row: rows::Segment,
    /// Orders the segments of a drive by age; of a stopped store.
    #[serde(skip_serializing_if = "Option::is_none")]
    birth: Option<u64>,
    problems: Vec<String>,
    blocks: Vec<rows::Block>,
}

enum Answer {
    Records(Vec<Record>),
    Segment(Segment),
}

pub fn run(args: &Args) -> Result<()> {
    let answer = match args.target.open()? {
        Target::Running(mut sidecar) => running::inspect(&mut sidecar, &args.subject)?,
        Target::Stopped(drives) => stopped::inspect(&drives, &args.subject)?,
    };
    if let Answer::Records(records) = &answer {
        check_one(&args.subject, records)?;
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    super::printed(print(&answer, args.json, &mut out).and_then(|()| Ok(out.flush()?)))
}

fn print(answer: &Answer, json: bool, out: &mut impl Write) -> Result<()> {
    match answer {
        Answer::Records(records) if json => {
            writeln!(out, "{}", serde_json::json!({ "records": records }))?;
        }
        Answer::Records(records) => records.iter().try_for_each(|record| record.print(out))?,
        Answer::Segment(segment) if json => {
            writeln!(out, "{}", serde_json::to_string(segment)?)?;
        }
        Answer::Segment(segment) => segment.print(out)?,
    }
    Ok(())
}

/// The records of one block: a rank each, and more where it was stored again.
fn check_one(subject: &Subject, records: &[Record]) -> Result<()> {
    let Subject::Block(prefix) = subject else { return Ok(()) };
    let hashes: BTreeSet<_> = records.iter().map(|record| &record.block.sequence_hash).collect();
    if hashes.is_empty() {
        bail!("no block begins with {prefix}: `refrain ls blocks` lists them");
    }
    if hashes.len() > 1 {
        let mut message = format!("{prefix} begins {} blocks, give more digits:", hashes.len());
        for hash in hashes.iter().take(SHOWN) {
            message.push_str("\n  ");
            message.push_str(hash);
        }
        if hashes.len() > SHOWN {
            message.push_str("\n  ...");
        }
        bail!(message);
    }
    Ok(())
}

/// Hashes listed of those that a prefix may mean.
const SHOWN: usize = 20;

impl Record {
    fn print(&self, out: &mut impl Write) -> Result<()> {
        let Self { block, parent, position, header, stripes, verdict } = self;
        let rows::Block { sequence_hash, shard, namespace, drive, segment, .. } = block;
        writeln!(out, "block        {sequence_hash}")?;
        writeln!(out, "shard        {shard}")?;
        writeln!(out, "namespace    {namespace}")?;
        match position {
            0 => writeln!(out, "parent       none: the first block (seed {parent})")?,
            _ => writeln!(out, "parent       {parent}")?,
        }
        writeln!(out, "position     {position}")?;
        let rows::Block { generation, offset, stored_bytes, .. } = block;
        writeln!(out, "place        segment {drive}/{segment}, byte {offset}")?;
        writeln!(out, "generation   {generation}")?;
        writeln!(out, "stored       {stored_bytes} bytes ({})", size(*stored_bytes))?;
        if let Some(header) = header {
            let Header { store_id, key_scheme, epoch, payload_bytes, checksum } = header;
            writeln!(out, "payload      {payload_bytes} bytes")?;
            writeln!(out, "epoch        {epoch}")?;
            writeln!(out, "key scheme   {key_scheme}")?;
            writeln!(out, "store        {store_id}")?;
            writeln!(out, "checksum     {checksum}")?;
        }
        if let (Some(in_host), Some(idle)) = (block.in_host, block.idle_seconds) {
            let tier = if in_host { "in memory and on SSD" } else { "on SSD" };
            let pinned = if block.pinned == Some(true) { ", pinned" } else { "" };
            writeln!(out, "tier         {tier}, last used {idle} s ago{pinned}")?;
        }
        writeln!(out, "verdict      {verdict}")?;
        for (index, stripe) in stripes.iter().enumerate() {
            let Stripe { offset, length, checksum, good } = stripe;
            let good = if *good { "good" } else { "DAMAGED" };
            writeln!(out, "stripe {index:<4}  byte {offset}, {length} bytes, {checksum}, {good}")?;
        }
        Ok(writeln!(out)?)
    }
}

impl Segment {
    fn print(&self, out: &mut impl Write) -> Result<()> {
        let rows::Segment { drive, segment, generation, state, live_blocks, live_bytes, end } =
            &self.row;
        writeln!(out, "segment      {drive}/{segment}, {state}")?;
        writeln!(out, "generation   {generation}")?;
        if let Some(birth) = self.birth {
            writeln!(out, "birth        {birth}")?;
        }
        writeln!(out, "end          byte {end} ({})", size(*end))?;
        writeln!(out, "live         {live_blocks} blocks, {}", size(*live_bytes))?;
        for problem in &self.problems {
            writeln!(out, "problem      {problem}")?;
        }
        writeln!(out, "{}", rows::BLOCKS)?;
        for block in &self.blocks {
            writeln!(out, "{}", Row::Block(block.clone()).line())?;
        }
        Ok(())
    }
}

fn digest(checksum: u64) -> String {
    hex(&checksum.to_be_bytes())
}
