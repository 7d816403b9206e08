//! `refrain bench io`: what share of the raw device the store gives.
//!
//! Both write and read the same number of blocks of the same size with as much in flight, in turns:
//! a machine that others use too is slow for both, and the ratio of a round stays. What is told is
//! the median over the rounds.

use super::scratch::{Interrupt, Scratch};
use super::sidecar::Sidecar;
use super::summary::{micros, processor_seconds};
use anyhow::{Context, Result, bail};
use bytesize::ByteSize;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use refrain_store::drive::IoEngine;
use refrain_store::geometry::{Layout, PAGE_SIZE};
use refrain_store::probe::{Pass, Probe, StoreProbe, Watch};
use refrain_store::uring::UringDevice;
use report::{EngineReport, Report, Round};
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

mod report;

const EXAMPLES: &str = "\
Examples:
  Both engines, blocks of DeepSeek-V3, on the drive that holds the current directory:
    refrain bench io
  Another drive, blocks of 64 tokens of Llama-3-70B over all ranks, as JSON:
    refrain bench io --dir /mnt/nvme0 --block-bytes 20MiB --layers 80 --json

It needs three times --size on the drive for as long as it runs, and leaves nothing behind.";

/// Measures the drive of a directory: first raw, then through the store, several times.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Directory on the drive to measure
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Bytes of a block; the default is 64 tokens of DeepSeek-V3
    #[arg(long, value_name = "SIZE", default_value = "4497408")]
    block_bytes: ByteSize,
    /// Layers of a block: they are stored in stripes of whole layers, at least 256 KiB
    #[arg(long, default_value_t = 61, value_parser = clap::value_parser!(u32).range(1..))]
    layers: u32,
    /// Bytes that each pass writes or reads
    #[arg(long, value_name = "SIZE", default_value = "4GiB")]
    size: ByteSize,
    /// Blocks in flight
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=128))]
    depth: u32,
    /// How the device is driven; `auto` measures both
    #[arg(long, value_enum, default_value_t = EngineChoice::Auto)]
    io_engine: EngineChoice,
    /// How often raw device and store take turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Reads one after the other for the latencies, unloaded and beside full writes
    #[arg(long, value_name = "READS", default_value_t = 300)]
    latency_reads: usize,
    /// How long an idle sidecar is watched; 0 leaves it out
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    idle_seconds: u64,
    /// Of the order in which blocks are read
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EngineChoice {
    Auto,
    Uring,
    Blocking,
}

/// What every engine is measured with.
struct Plan {
    layout: Layout,
    block_bytes: u64,
    blocks: u64,
    depth: u32,
    rounds: u32,
    latency_reads: usize,
    /// Blocks in the order of reading.
    order: Vec<u64>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut plan = Plan::new(args)?;
    let scratch = Scratch::new(&args.dir)?;
    scratch.require(3 * plan.blocks * plan.layout.stored_length() + (256 << 20))?;
    // Not before it is known that there is room for so many.
    plan.order = (0..plan.blocks).collect();
    fastrand::Rng::with_seed(args.seed).shuffle(&mut plan.order);
    let engines = engines(args.io_engine)?;
    let bar = plan.bar(engines.len());
    let mut reports = Vec::new();
    for &(name, io_engine) in &engines {
        bar.set_message(name);
        let measured = plan.measure(&scratch, (name, io_engine), &bar);
        // Whatever ended a pass half-way, the user's wish goes first.
        scratch.interrupt().check()?;
        reports.push(measured?);
    }
    bar.finish_and_clear();
    let idle_cpu_percent = match args.idle_seconds {
        0 => None,
        seconds => idle(&scratch, Duration::from_secs(seconds))?,
    };
    let report = Report::new(&plan, reports, idle_cpu_percent)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        report.write_table(&mut out)?;
    }
    Ok(())
}

/// The engines that are asked for; of `auto`, those that there are.
fn engines(choice: EngineChoice) -> Result<Vec<(&'static str, IoEngine)>> {
    let blocking = ("blocking", IoEngine::Blocking);
    if choice == EngineChoice::Blocking {
        return Ok(vec![blocking]);
    }
    let file = File::open("/dev/null").context("open /dev/null")?;
    match UringDevice::new(vec![file]) {
        Ok(_) if choice == EngineChoice::Uring => Ok(vec![("uring", IoEngine::Uring)]),
        Ok(_) => Ok(vec![("uring", IoEngine::Uring), blocking]),
        Err(error) if choice == EngineChoice::Uring => {
            Err(error).context("set up io_uring: allow it, or measure --io-engine blocking")
        }
        Err(error) => {
            let mut out = std::io::stderr().lock();
            writeln!(out, "io_uring is refused here ({error}): only the thread pool is measured")?;
            Ok(vec![blocking])
        }
    }
}

impl Plan {
    fn new(args: &Args) -> Result<Self> {
        let (ByteSize(bytes), layers) = (args.block_bytes, u64::from(args.layers));
        if !bytes.is_multiple_of(layers) {
            bail!("--block-bytes {bytes} is not {layers} equal layers: give another --layers");
        }
        let layout = Layout::new(args.layers, bytes / layers).context("lay out a block")?;
        let blocks = args.size.as_u64() / bytes;
        if blocks < 2 * u64::from(args.depth) {
            bail!(
                "--size {} holds {blocks} blocks: give at least {}, twice those in flight",
                args.size,
                ByteSize(2 * u64::from(args.depth) * bytes)
            );
        }
        let order = Vec::new();
        let (depth, rounds, latency_reads) = (args.depth, args.rounds, args.latency_reads);
        Ok(Self { layout, block_bytes: bytes, blocks, depth, rounds, latency_reads, order })
    }

    fn bar(&self, engines: usize) -> ProgressBar {
        if !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let passes = (6 * u64::from(self.rounds) + 3) * self.blocks;
        let alone = 2 * u64::try_from(self.latency_reads).unwrap_or(0);
        let each = (passes + alone) * self.layout.payload_length;
        let bar = ProgressBar::new(each * u64::try_from(engines).unwrap_or(1));
        let style = "{msg:10} {wide_bar} {bytes} of {total_bytes}, {binary_bytes_per_sec}, {eta}";
        bar.with_style(ProgressStyle::with_template(style).expect("a template of its own fields"))
    }

    /// Bytes of a page-aligned piece that the raw device moves where the store moves a block.
    fn raw_block_bytes(&self) -> u64 {
        self.layout.payload_length.next_multiple_of(PAGE_SIZE)
    }

    fn stripe_bytes(&self) -> u64 {
        self.layout.stripes[0].length.next_multiple_of(PAGE_SIZE)
    }

    /// Pieces of the raw file as the store reads stripes: block by block, in order within each.
    fn stripe_order(&self) -> Vec<u64> {
        let stripes = u64::try_from(self.layout.stripes.len()).expect("at most 128");
        let pieces = self.blocks * self.raw_block_bytes() / self.stripe_bytes();
        let blocks = self.order.iter().flat_map(|block| block * stripes..(block + 1) * stripes);
        blocks.filter(|&piece| piece < pieces).collect()
    }

    fn measure(
        &self,
        scratch: &Scratch,
        (name, io_engine): (&'static str, IoEngine),
        bar: &ProgressBar,
    ) -> Result<EngineReport> {
        let watch = watch(bar, scratch.interrupt());
        let (layout, path) = (self.layout.clone(), scratch.path().join("store"));
        let store = StoreProbe::new(&path, layout, self.depth, self.blocks, io_engine);
        let mut store = store.context("make a store")?.watched(Arc::clone(&watch));
        let raw = store.raw(scratch.path()).watched(watch);
        let stripe_order = self.stripe_order();
        // What counts is written over what is there, as in a store that is full: what it costs to
        // take new space is paid once.
        raw.write().context("write the raw file")?;
        // Twice: the store has room for all blocks two times, and takes turns.
        for _ in 0..2 {
            store.write().context("write through the store")?;
        }
        let (mut rounds, mut hash) = (Vec::new(), None);
        for round in 0..self.rounds {
            let found = self.round(round.is_multiple_of(2), &raw, &mut store, &stripe_order)?;
            if *hash.get_or_insert(found.hash) != found.hash {
                bail!("two passes over the same blocks read other bytes");
            }
            rounds.push(found);
        }
        let alone: Vec<u64> = self.order.iter().copied().cycle().take(self.latency_reads).collect();
        let unloaded = store.read_alone(&alone).context("read blocks one by one")?;
        let loaded = store.read_beside_writes(&alone).context("read blocks beside writes")?;
        let (loaded, written) = loaded;
        let latencies = (micros(&unloaded.latencies), micros(&loaded.latencies));
        let rate = written.gigabytes_per_second();
        Ok(EngineReport::new(name, &rounds, &latencies, rate, hash.unwrap_or(0)))
    }

    /// One turn of each; who comes first changes from round to round.
    fn round(
        &self,
        raw_first: bool,
        raw: &Probe,
        store: &mut StoreProbe,
        stripe_order: &[u64],
    ) -> Result<Round> {
        let mut round = Round::default();
        for turn in [raw_first, !raw_first] {
            if turn {
                let wrote = raw.write().context("write the raw file")?;
                round.raw_write = wrote.gigabytes_per_second();
            } else {
                let wrote = store.write().context("write through the store")?;
                round.store_write = wrote.rate.gigabytes_per_second();
            }
        }
        for turn in [raw_first, !raw_first] {
            let begin = processor_seconds();
            if turn {
                let read = raw.read(&self.order).context("read the raw file")?;
                round.raw_read = read.gigabytes_per_second();
                round.raw_core_seconds = spent(begin, read.bytes);
            } else {
                let Pass { rate, hash, .. } =
                    store.read(&self.order, false).context("read through the store")?;
                (round.store_read, round.hash) = (rate.gigabytes_per_second(), hash);
                round.store_core_seconds = spent(begin, rate.bytes);
            }
        }
        for turn in [raw_first, !raw_first] {
            if turn {
                let read = raw.read_pieces(self.stripe_bytes(), stripe_order);
                round.raw_stripe = read.context("read the raw file")?.gigabytes_per_second();
            } else {
                let Pass { rate, hash, .. } =
                    store.read(&self.order, true).context("read stripes through the store")?;
                round.store_stripe = rate.gigabytes_per_second();
                if hash != round.hash {
                    bail!("stripes and whole blocks read other bytes");
                }
            }
        }
        Ok(round)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn spent(begin: f64, bytes: u64) -> f64 {
    (processor_seconds() - begin) / (bytes as f64 / 1e9)
}

fn watch(bar: &ProgressBar, interrupt: &Interrupt) -> Watch {
    let (bar, interrupt) = (bar.clone(), interrupt.clone());
    Arc::new(move |bytes| {
        bar.inc(bytes);
        !interrupt.is_raised()
    })
}

/// Share of a core that a sidecar takes which nobody asks anything; `None` where none starts.
fn idle(scratch: &Scratch, watched: Duration) -> Result<Option<f64>> {
    let interrupt = scratch.interrupt();
    let started = Sidecar::start(&scratch.path().join("idle"), 256 << 20, interrupt);
    let (sidecar, _) = match started {
        Ok(started) => started,
        Err(error) => {
            interrupt.check()?;
            let mut out = std::io::stderr().lock();
            writeln!(out, "idle_cpu_percent is left out: {error:#}")?;
            return Ok(None);
        }
    };
    settle(&sidecar, interrupt)?;
    let before = sidecar.processor_time()?;
    interrupt.sleep(watched)?;
    let taken = sidecar.processor_time()?.saturating_sub(before);
    sidecar.stop()?;
    Ok(Some(100.0 * taken.as_secs_f64() / watched.as_secs_f64()))
}

/// A sidecar makes its memory resident after its start. Waits until it no longer takes time, or
/// long enough for one that never stops to show that.
fn settle(sidecar: &Sidecar, interrupt: &Interrupt) -> Result<()> {
    const LOOKS: u32 = 20;
    let mut before = sidecar.processor_time()?;
    for _ in 0..LOOKS {
        interrupt.sleep(Duration::from_secs(1))?;
        let now = sidecar.processor_time()?;
        if now == before {
            return Ok(());
        }
        before = now;
    }
    Ok(())
}
