//! Generates the gRPC code from the `.proto` file. Without an argument it says whether the
//! committed code is what the file generates; `--write` makes it so.

use anyhow::{Context, Result, bail};
use prost::Message;
use std::fs;
use std::path::Path;

const PROTO: &str = "refrain/v1/refrain.proto";

/// Fields that carry data rather than names: received without a copy.
const DATA: &[&str] = &[
    ".refrain.v1.LookupRequest.tokens",
    ".refrain.v1.PromptName.tokens",
    ".refrain.v1.ReadChunk.data",
    ".refrain.v1.WriteChunk.data",
    ".refrain.v1.OfferRequest.sequence_hashes",
    ".refrain.v1.FetchChunk.data",
];

fn main() -> Result<()> {
    let write = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--write") => true,
        Some(other) => bail!("unknown argument {other:?}: give none to check, --write to write"),
    };
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("find the crate")?;
    let mut descriptors = protox::compile([PROTO], [home.join("proto")])?;
    let target = tempfile::tempdir()?;
    let mut builder = tonic_prost_build::configure().out_dir(target.path());
    for field in DATA {
        builder = builder.bytes(field);
    }
    builder.compile_fds(descriptors.clone())?;
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }

    let code = fs::read(target.path().join("refrain.v1.rs"))?;
    let generated = home.join("src/generated");
    for (name, bytes) in
        [("refrain.v1.rs", code), ("refrain.v1.bin", descriptors.encode_to_vec())]
    {
        let committed = generated.join(name);
        if write {
            fs::write(&committed, bytes)
                .with_context(|| format!("write {}", committed.display()))?;
        } else if !fs::read(&committed).is_ok_and(|found| found == bytes) {
            bail!("{} is not what {PROTO} generates: run this with --write", committed.display());
        }
    }
    Ok(())
}
