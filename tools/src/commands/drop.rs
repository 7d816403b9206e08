//! `refrain drop`: forgets all blocks of a namespace.

use crate::hex::{HashPrefix, hex};
use crate::namespace;
use crate::target::TargetArgs;
use anyhow::Result;
use clap::Args as ClapArgs;
use std::io::{self, Write};

/// Forget all blocks of a namespace, as when its weights were replaced in place
///
/// `refrain ls namespaces` names them. They are misses at once and for good: records stay on disk
/// until their segments are reused, and count no more.
#[derive(ClapArgs, Debug)]
pub struct Args {
    /// First hex digits of a namespace's digest
    #[arg(value_name = "NAMESPACE")]
    namespace: HashPrefix,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let mut sidecar = args.target.sidecar("drop a namespace")?;
    let digest = namespace::named(&mut sidecar, &args.namespace)?;
    let name = hex(&digest);
    let blocks = sidecar.drop_namespace(digest)?;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::json!({ "namespace": name, "blocks": blocks }))?;
    } else {
        writeln!(out, "dropped {blocks} blocks of namespace {name}")?;
    }
    Ok(())
}
