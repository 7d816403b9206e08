//! `refrain bench lookup`: how long the longest prefix match of a long prompt takes.
//!
//! In process: the RAM index alone, the hashes given. Through the socket: a real sidecar on a store
//! of the same blocks, asked by a real client with tokens, so that hashing, gRPC and the lease are
//! in it. Each lookup asks for another prompt: nothing of it is in a processor's cache.

use super::fill::{PAYLOAD, PROMPT_BLOCKS, Prompts};
use super::scratch::Scratch;
use super::sidecar::Sidecar;
use super::summary::{median, micros, quantile, rounded};
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use refrain_client::{Client, ClientConfig, Prompt};
use refrain_index::chain::{BlockKey, Chain, Place};
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const EXAMPLES: &str = "\
Examples:
  A million resident blocks of 64 tokens, asked for by prompts of 2,048 blocks:
    refrain bench lookup
  The same with blocks of 16 tokens, as JSON:
    refrain bench lookup --block-tokens 16 --json

It starts a sidecar of its own on a directory that it makes and removes. Blocks take 8 KiB each of
reserved space there, which stays unwritten: no lookup reads a payload.";

/// Measures prefix matches: in process, and through a sidecar's socket.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Directory to work in
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Resident blocks
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(2048..))]
    blocks: u64,
    /// Tokens of a block
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    block_tokens: u32,
    /// Lookups of either kind
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    lookups: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    resident_blocks: u64,
    prompt_blocks: u64,
    block_tokens: u32,
    lookups: u64,
    in_process_p50_us: f64,
    in_process_p99_us: f64,
    /// Of the RAM index.
    bytes_per_block: f64,
    /// Hashing all blocks of a prompt, the median; part of what the socket takes.
    hash_us: f64,
    socket_p50_us: f64,
    socket_p99_us: f64,
    /// From the sidecar's start to its first answer, without a catalogue.
    sidecar_start_seconds: f64,
}

/// As large as what a sidecar keeps of a block.
#[derive(Clone, Copy)]
struct At {
    segment: u32,
    _place: [u32; 3],
}

impl Place for At {
    fn group(&self) -> u32 {
        self.segment
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let prompts = Prompts::new(args.blocks, args.block_tokens, args.seed)?;
    let scratch = Scratch::new(&args.dir)?;
    scratch.require(prompts.capacity_bytes() + (1 << 30))?;
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("its own field"));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar.set_message("measuring the index");
    let within = in_process(args, &prompts)?;
    scratch.interrupt().check()?;
    bar.set_message("filling a store");
    let directory = scratch.path().join("store");
    let capacity = prompts.fill(&directory, scratch.interrupt())?;
    bar.set_message("starting a sidecar");
    let (sidecar, started) = Sidecar::start(&directory, capacity, scratch.interrupt())?;
    bar.set_message("looking up");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let socket = runtime.block_on(through_socket(args, &prompts, &sidecar, &scratch))?;
    sidecar.stop()?;
    bar.finish_and_clear();
    let report = Report {
        resident_blocks: args.blocks,
        prompt_blocks: PROMPT_BLOCKS,
        block_tokens: args.block_tokens,
        lookups: args.lookups,
        in_process_p50_us: rounded(median(&within.micros)),
        in_process_p99_us: rounded(quantile(&within.micros, 0.99)),
        bytes_per_block: rounded(within.bytes_per_block),
        hash_us: rounded(within.hash_us),
        socket_p50_us: rounded(median(&socket)),
        socket_p99_us: rounded(quantile(&socket, 0.99)),
        sidecar_start_seconds: rounded(started.as_secs_f64()),
    };
    report.write(args.json)
}

struct WithinProcess {
    micros: Vec<f64>,
    bytes_per_block: f64,
    hash_us: f64,
}

/// A prompt for each lookup; whole ones alone, in a random order.
fn asked(args: &Args) -> impl Iterator<Item = u64> + use<> {
    let whole = args.blocks / PROMPT_BLOCKS;
    let mut random = fastrand::Rng::with_seed(args.seed.wrapping_add(1));
    (0..args.lookups).map(move |_| random.u64(0..whole))
}

fn in_process(args: &Args, prompts: &Prompts) -> Result<WithinProcess> {
    let mut chain = Chain::default();
    for (index, block) in (0u32..).zip(prompts.saved()) {
        let key = BlockKey { sequence: block.hash, shard: 0 };
        let place = At { segment: index / 100_000, _place: [index, 2, 0] };
        chain.insert(key, block.parent, place, 0).context("fill the index")?;
    }
    let (mut found, mut hashing) = (Vec::new(), Vec::new());
    for (now, index) in (1u32..).zip(asked(args)) {
        let tokens = prompts.tokens(index);
        let begin = Instant::now();
        let hashes = prompts.hashes(&tokens);
        hashing.push(begin.elapsed());
        let begin = Instant::now();
        let matched = chain.match_prefix(0, &hashes, now).len();
        found.push(begin.elapsed());
        if u64::try_from(matched).ok() != Some(PROMPT_BLOCKS) {
            bail!("{matched} blocks of a resident prompt were found");
        }
    }
    let bytes_per_block = per_block(chain.bytes(), args.blocks);
    Ok(WithinProcess {
        micros: micros(&found),
        bytes_per_block,
        hash_us: median(&micros(&hashing)),
    })
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn per_block(bytes: u64, blocks: u64) -> f64 {
    bytes as f64 / blocks as f64
}

async fn through_socket(
    args: &Args,
    prompts: &Prompts,
    sidecar: &Sidecar,
    scratch: &Scratch,
) -> Result<Vec<f64>> {
    let address = format!("unix:{}", sidecar.socket().display());
    let config = ClientConfig {
        address: address.parse()?,
        session_arena_bytes: 1 << 20,
        deadline: Duration::from_secs(10),
    };
    let client = Client::connect(config).await?;
    let registration = client.register(prompts.wire_namespace(), 0, PAYLOAD).await?;
    let mut found = Vec::new();
    for index in asked(args) {
        scratch.interrupt().check()?;
        let tokens = prompts.tokens(index);
        let begin = Instant::now();
        let lookup = registration.lookup(Prompt::Tokens(&tokens)).await?;
        found.push(begin.elapsed());
        if u64::from(lookup.matched_blocks) != PROMPT_BLOCKS {
            let matched = lookup.matched_blocks;
            bail!(
                "the sidecar found {matched} blocks of a prompt of {PROMPT_BLOCKS} resident ones"
            );
        }
        lookup.release().await?;
    }
    Ok(micros(&found))
}

impl Report {
    fn write(&self, json: bool) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if json {
            writeln!(out, "{}", serde_json::to_string(self)?)?;
            return Ok(());
        }
        let verdict = |met: bool| if met { "met" } else { "missed" };
        writeln!(
            out,
            "{} lookups of prompts of {} blocks of {} tokens, {} blocks resident",
            self.lookups, self.prompt_blocks, self.block_tokens, self.resident_blocks
        )?;
        let (p50, p99) = (self.in_process_p50_us, self.in_process_p99_us);
        let met = verdict(p99 <= 300.0);
        writeln!(out, "in process, hashes given    p50 {p50} us, p99 {p99} us  <= 300 {met}")?;
        let (p50, p99) = (self.socket_p50_us, self.socket_p99_us);
        let met = verdict(p99 <= 2000.0);
        writeln!(out, "through the socket          p50 {p50} us, p99 {p99} us  <= 2000 {met}")?;
        writeln!(out, "of which hashing            p50 {} us", self.hash_us)?;
        let met = verdict(self.bytes_per_block <= 150.0);
        writeln!(
            out,
            "index                       {} bytes a block  <= 150 {met}",
            self.bytes_per_block
        )?;
        let seconds = self.sidecar_start_seconds;
        writeln!(out, "sidecar start from disk     {seconds} s")?;
        Ok(())
    }
}
