//! A prompt as a command line names it: tokens in a file, or a request of a trace.

use crate::admin::Admin;
use crate::commands::replay;
use crate::hex::{HashPrefix, hex};
use crate::{namespace, trace};
use anyhow::{Context, Result, bail};
use clap::Args;
use refrain_client::v1::{PromptName, prompt_name};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

// A doc comment would take the place of the command's own help.
#[derive(Args, Clone, Debug)]
pub struct PromptArgs {
    /// File with the prompt's token ids: decimal numbers, parted by blanks or commas, as in a JSON
    /// array; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "trace")]
    pub tokens: Option<PathBuf>,
    /// Trace whose request is meant, with the tokens that `refrain replay` shows for it
    #[arg(long, value_name = "FILE", requires = "request")]
    pub trace: Option<PathBuf>,
    /// Its number in the trace, from 0, as in the hit log
    #[arg(long, value_name = "INDEX", requires = "trace")]
    pub request: Option<u64>,
    /// Tokens of a block of the trace
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..))]
    pub block_tokens: u64,
    /// First hex digits of the prompt's namespace, where workers have registered several
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: Option<HashPrefix>,
}

impl PromptArgs {
    /// The prompt; `None` where neither tokens nor a trace is given.
    pub fn name(&self, sidecar: &mut Admin, shard: u32) -> Result<Option<PromptName>> {
        let tokens = match (&self.tokens, &self.trace, self.request) {
            (Some(path), ..) => tokens_in(path)?,
            (None, Some(path), Some(index)) => self.request_tokens(path, index)?,
            (None, ..) => return Ok(None),
        };
        let tokens: Vec<u8> = tokens.into_iter().flat_map(u32::to_le_bytes).collect();
        Ok(Some(PromptName {
            namespace_digest: self.digest(sidecar)?,
            shard,
            prompt: Some(prompt_name::Prompt::Tokens(tokens.into())),
            extra_keys: Vec::new(),
        }))
    }

    fn request_tokens(&self, path: &Path, index: u64) -> Result<Vec<u32>> {
        let read = || format!("read {}", path.display());
        let mut requests = trace::read(path, self.block_tokens).with_context(read)?;
        let request = requests.nth(usize::try_from(index)?);
        let request = request.with_context(|| format!("{} has no request {index}", path.display()));
        Ok(replay::tokens(&request?.with_context(read)?.blocks))
    }

    fn digest(&self, sidecar: &mut Admin) -> Result<Vec<u8>> {
        if let Some(prefix) = &self.namespace {
            return namespace::named(sidecar, prefix);
        }
        let mut known = namespace::all(sidecar)?;
        known.retain(|namespace| !namespace.tenant.is_empty());
        if known.len() > 1 {
            let names = known.iter().map(|namespace| {
                let name = hex(&namespace.digest);
                format!("\n  {name:.16}  {}, {}", namespace.tenant, namespace.model)
            });
            bail!("several namespaces are in use, say --namespace:{}", names.collect::<String>());
        }
        let only = known.pop();
        let digest = only.map(|namespace| namespace.digest);
        digest.context("no worker has registered a namespace since the sidecar's start")
    }
}

fn tokens_in(path: &Path) -> Result<Vec<u32>> {
    let read = || format!("read tokens from {}", path.display());
    let mut text = String::new();
    if path.as_os_str() == "-" {
        io::stdin().lock().read_to_string(&mut text).with_context(read)?;
    } else {
        text = std::fs::read_to_string(path).with_context(read)?;
    }
    tokens(&text).with_context(read)
}

fn tokens(text: &str) -> Result<Vec<u32>> {
    let is_between = |c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']');
    let words = text.split(is_between).filter(|word| !word.is_empty());
    let token = |word: &str| {
        word.parse().with_context(|| format!("{word:?} is no token id: give numbers below 2^32"))
    };
    words.map(token).collect()
}

#[cfg(test)]
mod tests {
    //! Proves which texts are tokens.

    use super::*;

    #[test]
    fn numbers_parted_by_blanks_or_commas_are_tokens() {
        assert_eq!(tokens("[1, 2,3]\n").unwrap(), [1, 2, 3]);
        assert_eq!(tokens("1 2\n\n4294967295\n").unwrap(), [1, 2, u32::MAX]);
        assert_eq!(tokens("").unwrap(), [0; 0]);
        for (text, word) in [("1 -2", "-2"), ("[4294967296]", "4294967296"), ("a", "a")] {
            let error = tokens(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{word:?} is no token id")), "{error}");
        }
    }
}
