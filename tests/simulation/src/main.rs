//! Runs seeds: one again, or new ones until the time is up. A seed that fails prints the command
//! that runs it again.

use anyhow::{Result, bail};
use clap::Parser;
use refrain_simulation::hunt::{Until, hunt, scratch};
use refrain_simulation::world;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[derive(Debug, Parser)]
#[command(about = "Run a node over simulated drives, under virtual time, from seeds")]
struct Args {
    /// Run this seed alone, and say what went wrong with it.
    #[arg(long, conflicts_with_all = ["seconds", "seeds", "first"])]
    seed: Option<u64>,
    /// Run seeds for so long.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Run so many seeds instead.
    #[arg(long, conflicts_with = "seconds")]
    seeds: Option<u64>,
    /// The first of them; by default another one every time.
    #[arg(long)]
    first: Option<u64>,
    /// Seeds at a time; by default one a core.
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(seed) = args.seed {
        println!("{:?}", world::plan(seed));
        println!("{:?}", world::run(seed, scratch()?.path()));
        return Ok(());
    }
    let first = args.first.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_secs() << 20
    });
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = args.threads.unwrap_or(cores);
    let time = Until::Elapsed(Duration::from_secs(args.seconds));
    let until = args.seeds.map_or(time, Until::Seeds);
    println!("seeds from {first} on, {until:?}, {threads} at a time");
    let begin = Instant::now();
    match hunt(first, until, threads)? {
        Ok(total) => println!("{total:?} in {:.1?}: nothing found", begin.elapsed()),
        Err(seed) => bail!(
            "seed {seed} fails; again: cargo run --release -p refrain-simulation -- --seed {seed}"
        ),
    }
    Ok(())
}
