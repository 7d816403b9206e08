//! Namespaces this process has met, and who registered in them.

use crate::place::{BlockPlace, NamespaceId};
use refrain_index::hash::{EngineNames, SequenceHash, TenantKey};
use refrain_index::namespace::{Namespace, NamespaceDigest};
use refrain_store::geometry::{Layout, LayoutError};
use std::collections::HashMap;
use std::sync::Arc;

/// Names a session; from its handshake.
pub(crate) type SessionId = [u8; 16];

/// One worker's shard of one namespace.
#[derive(Debug)]
pub struct Registration {
    pub(crate) namespace: NamespaceId,
    pub(crate) digest: NamespaceDigest,
    pub(crate) key: TenantKey,
    pub(crate) engine_names: EngineNames,
    pub(crate) shard: u32,
    pub(crate) block_tokens: usize,
    pub(crate) layout: Layout,
    /// `None` for a client without shared memory.
    pub(crate) session: Option<SessionId>,
}

impl Registration {
    /// A worker's shard of `namespace`, which must be one that can be registered.
    pub(crate) fn new(
        (id, digest): (NamespaceId, NamespaceDigest),
        namespace: &Namespace,
        key: TenantKey,
        shard: u32,
        session: Option<SessionId>,
    ) -> Result<Self, LayoutError> {
        Ok(Self {
            namespace: id,
            digest,
            engine_names: key.engine_names(digest),
            key,
            shard,
            block_tokens: usize::try_from(namespace.block_tokens).expect("32 bits fit"),
            layout: Layout::new(namespace.layers, namespace.layer_bytes)?,
            session,
        })
    }

    /// What stands as the parent of a prompt's first block, in headers.
    pub(crate) fn root(&self) -> SequenceHash {
        self.key.root(self.digest)
    }
}

/// A namespace and what is resident of it.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) digest: NamespaceDigest,
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
    /// Not known until a worker registers it after a start.
    pub(crate) described: Option<Arc<Namespace>>,
    /// Once a worker has looked up by names that can be told again.
    pub(crate) engine_names: Option<EngineNames>,
}

#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    known: Vec<Known>,
    by_digest: HashMap<NamespaceDigest, NamespaceId>,
}

impl Namespaces {
    /// The number of a namespace, which it gets when it is first met.
    pub(crate) fn meet(&mut self, digest: NamespaceDigest) -> NamespaceId {
        let known = &mut self.known;
        *self.by_digest.entry(digest).or_insert_with(|| {
            let id = u32::try_from(known.len()).expect("fewer than 2^32 namespaces");
            known.push(Known { digest, blocks: 0, bytes: 0, described: None, engine_names: None });
            NamespaceId(id)
        })
    }

    pub(crate) fn describe(&mut self, id: NamespaceId, namespace: &Namespace) {
        let known = self.get_mut(id);
        known.described.get_or_insert_with(|| Arc::new(namespace.clone()));
    }

    /// Its blocks are told by the engine's names from now on; whether they were not before.
    pub(crate) fn tell_engine_names(&mut self, id: NamespaceId, names: &EngineNames) -> bool {
        let known = self.get_mut(id);
        let is_new = known.engine_names.is_none();
        known.engine_names.get_or_insert_with(|| names.clone());
        is_new
    }

    pub(crate) fn find(&self, digest: NamespaceDigest) -> Option<NamespaceId> {
        self.by_digest.get(&digest).copied()
    }

    pub(crate) fn get(&self, id: NamespaceId) -> &Known {
        &self.known[index(id)]
    }

    pub(crate) fn all(&self) -> &[Known] {
        &self.known
    }

    /// In the order in which they were met.
    pub(crate) fn numbered(
        &self,
    ) -> impl DoubleEndedIterator<Item = (NamespaceId, &Known)> + ExactSizeIterator {
        self.known.iter().enumerate().map(|(index, known)| {
            (NamespaceId(u32::try_from(index).expect("fewer than 2^32 namespaces")), known)
        })
    }

    pub(crate) fn enter(&mut self, place: &BlockPlace) {
        let known = self.get_mut(place.namespace);
        known.blocks += 1;
        known.bytes += place.stored_length();
    }

    pub(crate) fn leave(&mut self, place: &BlockPlace) {
        let known = self.get_mut(place.namespace);
        known.blocks -= 1;
        known.bytes -= place.stored_length();
    }

    fn get_mut(&mut self, id: NamespaceId) -> &mut Known {
        &mut self.known[index(id)]
    }
}

fn index(id: NamespaceId) -> usize {
    usize::try_from(id.0).expect("32 bits fit")
}

/// Registrations by their number, one for each session, namespace and shard.
#[derive(Debug, Default)]
pub(crate) struct Registrations {
    by_id: HashMap<u64, Arc<Registration>>,
    ids: HashMap<(Option<SessionId>, NamespaceId, u32), u64>,
}

impl Registrations {
    /// Registers, or finds what is registered alike.
    pub(crate) fn add(&mut self, id: u64, registration: Registration) -> u64 {
        let Registration { session, namespace, shard, .. } = registration;
        let id = *self.ids.entry((session, namespace, shard)).or_insert(id);
        self.by_id.insert(id, Arc::new(registration));
        id
    }

    pub(crate) fn get(&self, id: u64) -> Option<Arc<Registration>> {
        self.by_id.get(&id).cloned()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn end_session(&mut self, session: SessionId) {
        self.by_id.retain(|_, registration| registration.session != Some(session));
        self.ids.retain(|(of, _, _), _| *of != Some(session));
    }
}
