//! `refrain bench`: what this machine reaches, measured with the store's own parts.

use anyhow::Result;
use clap::Subcommand;

mod fill;
mod io;
mod lookup;
mod scratch;
mod sidecar;
mod summary;

/// Arguments of `refrain bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The store's reads and writes beside the raw device, in one run
    Io(io::Args),
    /// Longest-prefix matches at a million resident blocks, in process and through the socket
    Lookup(lookup::Args),
}

pub fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Io(args) => io::run(&args),
        Command::Lookup(args) => lookup::run(&args),
    }
}
