//! `refrain set-epoch`: puts a namespace into an epoch, on one node after the other.

use crate::hex::{HashPrefix, hex};
use crate::namespace;
use crate::target::TargetArgs;
use anyhow::Result;
use clap::Args as ClapArgs;
use std::io::{self, Write};

/// Raise a namespace's epoch to a number: all its blocks of earlier ones are misses at once
///
/// Does what `refrain drop` does, to a number that you choose: where weights are replaced in place
/// on several nodes, each is put into the same epoch, and doing it twice drops nothing twice. An
/// epoch never falls.
#[derive(ClapArgs, Debug)]
#[command(after_help = "Examples:
  refrain ls namespaces                   the epoch that each namespace is in
  refrain set-epoch 4fa1 2                puts the namespace that begins so into epoch 2")]
pub struct Args {
    /// First hex digits of a namespace's digest; all 64 of one that no worker has used yet
    #[arg(value_name = "NAMESPACE")]
    namespace: HashPrefix,
    /// What it becomes, at least what it is
    #[arg(value_name = "EPOCH")]
    epoch: u64,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let mut sidecar = args.target.sidecar("set an epoch")?;
    let digest = match args.namespace.whole() {
        Some(digest) => digest,
        None => namespace::named(&mut sidecar, &args.namespace)?,
    };
    let name = hex(&digest);
    let answer = sidecar.set_epoch(digest, args.epoch)?;
    let (epoch, blocks) = (answer.epoch, answer.blocks);
    let mut out = io::stdout().lock();
    if args.json {
        let answer = serde_json::json!({ "namespace": name, "epoch": epoch, "blocks": blocks });
        writeln!(out, "{answer}")?;
    } else {
        writeln!(out, "namespace {name} is in epoch {epoch}; {blocks} blocks dropped")?;
    }
    Ok(())
}
