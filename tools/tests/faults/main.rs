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

mod calls;
mod damage;
mod decoders;
mod faulty;
mod hanging;
mod image;
mod kernel;
mod kills;
mod missing;
mod mutate;
mod progress;
mod soak;

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
    /// Cut off the repair of a damaged store after every write; needs FUSE
    Repairs(Loop),
    /// Flip bits of a closed store's catalogue
    Catalogue(Loop),
    /// Flip bits of any file of a store, and serve from it
    Served(Loop),
    /// Kill sidecars and workers under load
    Kills(Loop),
    /// Give every decoder what nobody would
    Decoders(Loop),
    /// Send every method what no client would
    Calls(Loop),
    /// Write into a session arena while it is saved
    Scribbled(Loop),
    /// Hold every block, and let none go
    Held(Loop),
    /// Have the kernel give errors, hang and pull drives away; some of it needs root
    Kernel(Loop),
    /// Mixed load for a long time
    Soak {
        #[arg(long, default_value_t = 10.0)]
        minutes: f64,
        #[arg(long)]
        seed: Option<u64>,
        /// Fail, too, where loads become slower; for a machine that does nothing else
        #[arg(long)]
        steady: bool,
    },
    #[command(hide = true)]
    Worker(kills::WorkerArgs),
    #[command(hide = true)]
    Corpora { directory: std::path::PathBuf },
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
        count: 92_000,
        run: damage::segments::run,
    },
    Claim {
        name: "repairs: cut off after any write, a repair has lost nothing, and is made again",
        count: 150,
        run: damage::cut_repairs::run,
    },
    Claim {
        name: "catalogue: a flipped bit never makes a row that was not written",
        count: 6_000,
        run: damage::catalogue::run,
    },
    Claim {
        name: "served: a store with flipped bits serves right bytes or says why it does not start",
        count: 2_000,
        run: damage::served::run,
    },
    Claim {
        name: "kills: acknowledged blocks outlive any kill, and what is found is right",
        count: 200,
        run: kills::run,
    },
    Claim {
        name: "decoders: whatever they are given, they answer",
        count: 400_000,
        run: decoders::run,
    },
    Claim {
        name: "calls: whatever is sent, every call is answered and others are served",
        count: 3_000,
        run: calls::run,
    },
    Claim {
        name: "scribbled: what changes while it is saved is one moment of it, or a miss",
        count: 60,
        run: calls::scribbled,
    },
    Claim {
        name: "held: a worker that lets nothing go does not stop reclaim",
        count: 60,
        run: calls::held,
    },
    Claim {
        name: "kernel: errors on data, on the log and on both lose nothing that was acknowledged",
        count: 1,
        run: kernel::errors,
    },
    Claim {
        name: "kernel: a drive that hangs is withdrawn, and back when it answers",
        count: 2,
        run: kernel::hangs,
    },
    Claim {
        name: "kernel: a drive that dies is withdrawn, and back when it works",
        count: 2,
        run: kernel::dies,
    },
    Claim {
        name: "kernel: a drive that is missing at the start costs its blocks, and comes back",
        count: 2,
        run: missing::run,
    },
    Claim {
        name: "kernel: a drive that hangs at the start costs its blocks, and comes back",
        count: 1,
        run: hanging::run,
    },
    Claim {
        name: "kernel: a full file system costs a catalogue and no block",
        count: 1,
        run: kernel::full,
    },
    Claim {
        name: "kernel: a disk that is pulled costs its own blocks",
        count: 1,
        run: kernel::pulled,
    },
];

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (filter, settings) = match cli.command {
        None => (cli.filter.unwrap_or_default(), Loop { count: None, seed: None }),
        Some(Command::Damage(settings)) => ("damage:".to_owned(), settings),
        Some(Command::Repairs(settings)) => ("repairs:".to_owned(), settings),
        Some(Command::Catalogue(settings)) => ("catalogue:".to_owned(), settings),
        Some(Command::Served(settings)) => ("served:".to_owned(), settings),
        Some(Command::Kills(settings)) => ("kills:".to_owned(), settings),
        Some(Command::Decoders(settings)) => ("decoders:".to_owned(), settings),
        Some(Command::Calls(settings)) => ("calls:".to_owned(), settings),
        Some(Command::Scribbled(settings)) => ("scribbled:".to_owned(), settings),
        Some(Command::Held(settings)) => ("held:".to_owned(), settings),
        Some(Command::Kernel(settings)) => ("kernel:".to_owned(), settings),
        Some(Command::Soak { minutes, seed, steady }) => {
            let seed = seed.unwrap_or_else(|| fastrand::u64(..));
            println!("soak: {minutes} minutes (--seed {seed})");
            soak::run(minutes, seed, steady);
            return ExitCode::SUCCESS;
        }
        Some(Command::Worker(args)) => {
            kills::work(&args);
            return ExitCode::SUCCESS;
        }
        Some(Command::Corpora { directory }) => {
            decoders::write_corpora(&directory);
            return ExitCode::SUCCESS;
        }
    };
    let (mut held, mut skipped) = (0, 0);
    for claim in CLAIMS.iter().filter(|claim| claim.name.contains(&filter)) {
        let seed = settings.seed.unwrap_or_else(|| fastrand::u64(..));
        println!("{} (--seed {seed})", claim.name);
        let begin = Instant::now();
        let said = (claim.run)(settings.count.unwrap_or(claim.count), seed);
        let seconds = begin.elapsed().as_secs_f64();
        // A machine that cannot do it says so: that is no proof, and no failure.
        if said.starts_with("SKIPPED") {
            println!("  {said}");
            skipped += 1;
        } else {
            println!("  held: {said}, in {seconds:.1} s");
            held += 1;
        }
    }
    println!("faults: {held} passed, 0 failed, {skipped} skipped");
    ExitCode::SUCCESS
}
