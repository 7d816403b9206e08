//! The command line of Refrain.

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};
use refrain::commands;
use refrain::trace;
use refrain::workload::Workload;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Refrain: a disk-backed KV-cache store with prefix reuse for LLM inference.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a sidecar: keep the KV of prompts on SSD and serve it to the workers of this node
    Serve(Box<commands::serve::Args>),
    /// Write a seeded synthetic trace: users, system prompts, documents, conversations
    Workload {
        /// File to write; `-` is standard output
        #[arg(short, long, default_value = "-")]
        out: PathBuf,
        #[arg(long, default_value_t = 2000)]
        requests: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Tokens of a block
        #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..))]
        block_tokens: u64,
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
        users: u64,
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
        system_prompts: u64,
        /// Share of input tokens that an unlimited cache would serve; the default is DeepSeek's
        #[arg(long, default_value_t = 0.563, value_parser = share)]
        hit_rate: f64,
    },
    /// Say what an unlimited cache would reach on a trace: the bound of every replay
    Ideal {
        /// JSON Lines, gzip'd or plain, with `hash_ids` or `hash_runs`
        trace: PathBuf,
        /// Tokens of a block
        #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..))]
        block_tokens: u64,
        #[arg(long)]
        json: bool,
    },
    /// Drive a sidecar with the requests of a trace, and compare every byte that comes back
    Replay(Box<commands::replay::Args>),
    #[command(hide = true)]
    Tied(commands::tied::Args),
    Doctor(commands::doctor::Args),
    Ls(commands::ls::Args),
    Stat(commands::stat::Args),
    Inspect(commands::inspect::Args),
    Explain(commands::explain::Args),
    Verify(commands::verify::Args),
    Pin(commands::pin::Args),
    Unpin(commands::unpin::Args),
    Evict(commands::evict::Args),
    Drop(commands::drop::Args),
    SetEpoch(commands::set_epoch::Args),
    Drain(commands::drain::Args),
    Nodes(commands::nodes::Args),
    Where(commands::r#where::Args),
    /// Measure this machine: the store beside its raw device, lookups at a million blocks
    Bench(commands::bench::Args),
    /// Print shell completions
    Completions {
        shell: clap_complete::Shell,
    },
}

fn share(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|e| format!("{e}"))?;
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err("give a share from 0 to 1".into()) }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, outermost first. Without a standard error nobody can be told.
            let _ = writeln!(io::stderr().lock(), "refrain: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Cli::parse().command {
        Command::Serve(args) => commands::serve::run(*args),
        Command::Workload {
            out,
            requests,
            seed,
            block_tokens,
            users,
            system_prompts,
            hit_rate,
        } => {
            let workload =
                Workload { requests, seed, block_tokens, users, system_prompts, hit_rate };
            if out.as_os_str() == "-" {
                return Ok(workload.write(&mut io::stdout().lock())?);
            }
            let file = File::create(&out).with_context(|| format!("create {}", out.display()))?;
            workload
                .write(&mut BufWriter::new(file))
                .with_context(|| format!("write {}", out.display()))
        }
        Command::Ideal { trace, block_tokens, json } => ideal(&trace, block_tokens, json),
        Command::Replay(args) => commands::replay::run(&args),
        Command::Tied(args) => commands::tied::run(args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Ls(args) => commands::ls::run(&args),
        Command::Stat(args) => commands::stat::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Explain(args) => commands::explain::run(&args),
        Command::Verify(args) => commands::verify::run(&args),
        Command::Pin(args) => commands::pin::run(&args),
        Command::Unpin(args) => commands::unpin::run(&args),
        Command::Evict(args) => commands::evict::run(&args),
        Command::Drop(args) => commands::drop::run(&args),
        Command::SetEpoch(args) => commands::set_epoch::run(&args),
        Command::Drain(args) => commands::drain::run(&args),
        Command::Nodes(args) => commands::nodes::run(&args),
        Command::Where(args) => commands::r#where::run(&args),
        Command::Bench(args) => commands::bench::run(args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "refrain", &mut io::stdout());
            Ok(())
        }
    }
}

fn ideal(path: &std::path::Path, block_tokens: u64, json: bool) -> Result<()> {
    let named = || format!("{}", path.display());
    let requests = trace::read(path, block_tokens).with_context(named)?;
    let ideal = trace::ideal(requests, block_tokens).with_context(named)?;
    let mut out = io::stdout().lock();
    if json {
        let mut value = serde_json::to_value(ideal)?;
        value["token_hit_rate"] = ideal.token_hit_rate().into();
        writeln!(out, "{value}")?;
    } else {
        writeln!(out, "requests        {}", ideal.requests)?;
        writeln!(out, "input tokens    {}", ideal.input_tokens)?;
        writeln!(out, "unique blocks   {}", ideal.unique_blocks)?;
        writeln!(out, "token hit rate  {:.1} %", 100.0 * ideal.token_hit_rate())?;
    }
    Ok(())
}
