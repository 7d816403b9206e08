//! `refrain drop`: forgets all blocks of a namespace.

use crate::hex::HashPrefix;
use crate::target::TargetArgs;
use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use refrain_client::v1::{list_entry::Entry, list_request::What};
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
    let mut digests = Vec::new();
    sidecar.list(What::Namespaces, 0, |entry| {
        if let Entry::Namespace(namespace) = entry
            && args.namespace.begins(&namespace.digest)
        {
            digests.push(namespace.digest);
        }
        Ok(())
    })?;
    let digest = match digests.len() {
        1 => digests.remove(0),
        0 => bail!("no namespace begins with {}: see `refrain ls namespaces`", args.namespace),
        _ => {
            let names: Vec<_> = digests.iter().map(|digest| crate::hex::hex(digest)).collect();
            bail!("{} begins several namespaces: {}", args.namespace, names.join(", "));
        }
    };
    let name = crate::hex::hex(&digest);
    let blocks = sidecar.drop_namespace(digest)?;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::json!({ "namespace": name, "blocks": blocks }))?;
    } else {
        writeln!(out, "dropped {blocks} blocks of namespace {name}")?;
    }
    Ok(())
}
