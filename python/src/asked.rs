//! What is looked up: a prompt, or blocks by an engine's names.

use crate::numbers;
use pyo3::prelude::*;
use refrain_client::Prompt;

/// A prompt, as Python gave it.
pub(crate) enum Asked {
    Tokens { tokens: Vec<u32>, extra_keys: Vec<Vec<u8>> },
    Hashes(Vec<Vec<u8>>),
    Separate(Vec<Vec<u8>>),
}

impl Asked {
    pub(crate) fn tokens(tokens: &Bound<'_, PyAny>, extra_keys: Vec<Vec<u8>>) -> PyResult<Self> {
        Ok(Self::Tokens { tokens: numbers::integers(tokens)?, extra_keys })
    }

    pub(crate) fn hashes(hashes: Vec<Vec<u8>>, separate: bool) -> Self {
        if separate { Self::Separate(hashes) } else { Self::Hashes(hashes) }
    }

    pub(crate) fn prompt(&self) -> Prompt<'_> {
        match self {
            Self::Tokens { tokens, extra_keys } => Prompt::Keyed { tokens, extra_keys },
            Self::Hashes(hashes) => Prompt::Engine(hashes),
            Self::Separate(hashes) => Prompt::Separate(hashes),
        }
    }

    /// How many it fills.
    pub(crate) fn blocks(&self, block_tokens: u32) -> u32 {
        let blocks = match self {
            Self::Tokens { tokens, .. } => {
                let tokens = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
                return tokens.checked_div(block_tokens).unwrap_or(0);
            }
            Self::Hashes(hashes) | Self::Separate(hashes) => hashes.len(),
        };
        u32::try_from(blocks).unwrap_or(u32::MAX)
    }

    pub(crate) fn is_separate(&self) -> bool {
        matches!(self, Self::Separate(_))
    }
}
