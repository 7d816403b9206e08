//! A prompt as an operator names it: by a namespace and tokens, or by an engine's hashes.
//!
//! The names of its blocks are keyed by the tenant, whom a digest does not tell: so a worker must
//! have registered the namespace since the start.

use crate::lookup::{self, Prompt};
use crate::names::Names;
use crate::namespaces::Registration;
use crate::node::Node;
use crate::place::NamespaceId;
use refrain_index::hash::TenantKey;
use refrain_index::namespace::{Namespace, NamespaceDigest};
use thiserror::Error;

/// A prompt that has no names here.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum NameError {
    #[error("namespace is not known: no worker has registered it, and it has no block here")]
    Unknown,
    #[error(
        "namespace has blocks here, but no worker has registered it since the start: its tenant, \
         which names of blocks are keyed by, is not known"
    )]
    Undescribed,
}

impl Node {
    /// What a worker of this namespace and shard would ask as.
    pub(crate) fn asking_as(
        &self,
        digest: NamespaceDigest,
        shard: u32,
    ) -> Result<Registration, NameError> {
        let state = self.state();
        let id = state.namespaces.find(digest).ok_or(NameError::Unknown)?;
        let described = state.namespaces.get(id).described.clone();
        drop(state);
        let namespace = described.ok_or(NameError::Undescribed)?;
        Ok(self.registration_of((id, digest), &namespace, shard))
    }

    pub(crate) fn registration_of(
        &self,
        id: (NamespaceId, NamespaceDigest),
        namespace: &Namespace,
        shard: u32,
    ) -> Registration {
        let key = TenantKey::derive(&self.secret, &namespace.tenant);
        Registration::new(id, namespace, key, shard, None).expect("it was registered before")
    }
}

impl Registration {
    /// The names of a prompt's full blocks.
    pub(crate) fn names(&self, prompt: Prompt<'_>) -> Names {
        lookup::names(self, prompt)
    }

    /// Tokens behind the last full block.
    pub(crate) fn tail(&self, prompt: Prompt<'_>) -> usize {
        match prompt {
            Prompt::Tokens { tokens, .. } => tokens.len() % self.block_tokens,
            Prompt::Engine(_) | Prompt::Separate(_) => 0,
        }
    }
}
