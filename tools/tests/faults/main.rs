//! Heavy loops of faults over real stores and real sidecars: never a wrong byte, never a hang, never
//! a panic, only misses. Each says what it claims, with which seed, and how often it held.
//!
//! `cargo test` runs all of them, some hundred or thousand times each; with a command and a count
//! any of them runs for as long as somebody likes:
//!
//!     cargo test --release -p refrain --test faults -- damage --count 1000000
#![expect(clippy::unwrap_used, reason = "a claim that meets an error has failed")]

#[path = "../fixture/mod.rs"]
#[expect(dead_code, reason = "claims about a sidecar use more of it")]
mod fixture;

mod damage;
mod image;
mod progress;

use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;
use std::time::Instant;

#[derive(Parser)]
#[command(about = "Faults, over and over; without a command all of them, as often as CI does")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Only those whose name holds this
    filter: Option<String>,
    /// Taken from `cargo test`, and of no effect
    #[arg(long, hide = true)]
    nocapture: bool,
    /// Taken from `cargo test`, and of no effect
    #[arg(long, hide = true)]
    test_threads: Option<usize>,
}

#[derive(Subcommand)]
enum Command {
    /// Flip bits, swap, lose and bring back pages of a closed store's segments and superblock
    Damage(Loop),
    /// Flip bits of a closed store's catalogue
    Catalogue(Loop),
    /// Flip bits of any file of a store, and serve from it
    Served(Loop),
}

/// How often, and from where.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Loop {
    /// Faults to make; CI's number where it is not given
    #[arg(long)]
    count: Option<u64>,
    /// Repeats an earlier run
    #[arg(long)]
    seed: Option<u64>,
}

/// One claim: its name, and the loop that holds it against faults.
struct Claim {
    name: &'static str,
    /// Of faults in CI.
    count: u64,
    run: fn(u64, u64) -> String,
}

const CLAIMS: &[Claim] = &[
    Claim {
        name: "damage: flipped, swapped, lost and stale pages are found, or cost nothing",
        count: 90_000,
        run: damage::segments::run,
    },
    Claim {
        name: "catalogue: a flipped bit never makes a row that was not written",
        count: 6_000,
        run: damage::catalogue::run,
    },
    Claim {
        name: "served: a store with flipped bits serves right bytes or says why it does not start",
        count: 4_000,
        run: damage::served::run,
    },
];

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (filter, settings) = match cli.command {
        None => (cli.filter.unwrap_or_default(), Loop { count: None, seed: None }),
        Some(Command::Damage(settings)) => ("damage:".to_owned(), settings),
        Some(Command::Catalogue(settings)) => ("catalogue:".to_owned(), settings),
        Some(Command::Served(settings)) => ("served:".to_owned(), settings),
    };
    let mut held = 0;
    for claim in CLAIMS.iter().filter(|claim| claim.name.contains(&filter)) {
        let seed = settings.seed.unwrap_or_else(|| fastrand::u64(..));
        println!("{} (--seed {seed})", claim.name);
        let begin = Instant::now();
        let said = (claim.run)(settings.count.unwrap_or(claim.count), seed);
        println!("  held: {said}, in {:.1} s", begin.elapsed().as_secs_f64());
        held += 1;
    }
    println!("faults: {held} passed, 0 failed");
    ExitCode::SUCCESS
}
