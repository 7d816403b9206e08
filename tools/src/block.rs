//! Which resident blocks a command means: those of all shards that share a hash, or of one.

use crate::admin::Admin;
use crate::hex::{HashPrefix, hex};
use anyhow::{Result, bail};
use refrain_client::v1::BlockName;
use std::collections::BTreeSet;

/// The shards of the one block whose hash begins so.
pub fn named(
    sidecar: &mut Admin,
    prefix: &HashPrefix,
    shard: Option<u32>,
) -> Result<Vec<BlockName>> {
    let found = sidecar.inspect_blocks(prefix)?.into_iter().filter_map(|record| record.block);
    let keys: BTreeSet<_> = found
        .filter(|block| shard.is_none_or(|shard| shard == block.shard))
        .map(|block| (block.sequence_hash, block.shard))
        .collect();
    let hashes: BTreeSet<_> = keys.iter().map(|(hash, _)| hash).collect();
    if hashes.len() > 1 {
        let names: Vec<_> = hashes.into_iter().map(|hash| hex(hash)).collect();
        bail!("{prefix} begins several blocks, give more digits: {}", names.join(", "));
    }
    if keys.is_empty() {
        bail!("no block begins with {prefix}");
    }
    let name = |(sequence_hash, shard)| BlockName { sequence_hash, shard };
    Ok(keys.into_iter().map(name).collect())
}
