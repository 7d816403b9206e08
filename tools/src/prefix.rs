//! Which prefix a command pins or lets go: by its last block, or by a prompt.

use crate::admin::Admin;
use crate::block;
use crate::hex::HashPrefix;
use crate::prompt::PromptArgs;
use anyhow::{Result, bail};
use clap::Args;
use refrain_client::v1::{BlockName, PromptName};

// A doc comment would take the place of the command's own help.
#[derive(Args, Clone, Debug)]
pub struct PrefixArgs {
    /// First hex digits of the sequence hash of the prefix's last block
    #[arg(value_name = "BLOCK", conflicts_with_all = ["tokens", "trace", "namespace"])]
    block: Option<HashPrefix>,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Only this rank's share; of a prompt, rank 0's where none is given
    #[arg(long)]
    shard: Option<u32>,
}

/// One prefix, of one shard.
#[derive(Clone, Debug)]
pub enum Prefix {
    Block(BlockName),
    Prompt(PromptName),
}

impl PrefixArgs {
    pub fn prefixes(&self, sidecar: &mut Admin) -> Result<Vec<Prefix>> {
        if let Some(name) = self.prompt.name(sidecar, self.shard.unwrap_or(0))? {
            return Ok(vec![Prefix::Prompt(name)]);
        }
        let Some(block) = &self.block else {
            bail!("give the last block of a prefix, --tokens or --trace");
        };
        let named = block::named(sidecar, block, self.shard)?;
        Ok(named.into_iter().map(Prefix::Block).collect())
    }
}
