//! All that changes together, behind one lock: the index and whoever relies on it.
//!
//! A block enters and leaves through here alone, so that its segment, its namespace, the host tier
//! and whoever watches always agree with the index. The lock is held for no longer than a walk
//! along one prompt, or along the blocks of one segment; nothing waits while holding it.

use crate::epochs::Epochs;
use crate::events::{Events, Kind};
use crate::fates::{Fates, Removal};
use crate::forecast::Forecast;
use crate::host_tier::HostTier;
use crate::leases::{Lease, Leases};
use crate::load::BlockRead;
use crate::namespaces::{Namespaces, Registration, Registrations, SessionId};
use crate::pins::{Pins, Until};
use crate::place::{BlockPlace, NamespaceId};
use crate::segments::Segments;
use refrain_index::chain::{BlockKey, Chain, InsertError};
use refrain_index::hash::SequenceHash;
use refrain_store::arena::Mapping;
use refrain_store::geometry::Generation;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) chain: Chain<BlockPlace>,
    pub(crate) segments: Segments,
    pub(crate) namespaces: Namespaces,
    pub(crate) registrations: Registrations,
    pub(crate) leases: Leases,
    pub(crate) host: HostTier,
    /// Session arenas, for reading.
    pub(crate) sessions: HashMap<SessionId, Arc<Mapping>>,
    /// Connections of peers: they register as sessions do, and have no arena.
    pub(crate) links: HashSet<SessionId>,
    /// Blocks on their way from a drive or a peer: who wants one of them shares its read.
    pub(crate) reading: HashMap<BlockKey, Arc<BlockRead>>,
    pub(crate) events: Events,
    pub(crate) epochs: Epochs,
    pub(crate) forecast: Forecast,
    pub(crate) fates: Fates,
    pub(crate) pins: Pins,
    /// On blocks of a drive that is not there.
    pub(crate) pins_waiting: Vec<(BlockKey, Until)>,
    /// Writes of the pins, by this process and those before it.
    pub(crate) pins_kept: u64,
    pub(crate) draining: bool,
}

/// What became of a block that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entered {
    New,
    /// Somebody else saved it meanwhile; both hold the same.
    Already,
    /// Its parent has gone, or its segment: it cannot be found.
    Lost,
}

impl State {
    /// The epoch that blocks of a namespace are saved in now.
    pub(crate) fn epoch(&self, namespace: NamespaceId) -> u64 {
        self.epochs.get(self.namespaces.get(namespace).digest)
    }

    /// Has routers told by the engine's names what is resident of a namespace.
    pub(crate) fn tell_engine_names(&mut self, of: &Registration) {
        if self.namespaces.tell_engine_names(of.namespace, &of.engine_names) {
            self.events.named(of.namespace);
        }
    }

    /// Lets a written block be found.
    pub(crate) fn enter(
        &mut self,
        key: BlockKey,
        parent: Option<SequenceHash>,
        (place, generation): (BlockPlace, Generation),
        now: u32,
    ) -> Entered {
        match self.chain.insert(key, parent, place, now) {
            Ok(()) => {}
            Err(InsertError::Resident { .. }) => return Entered::Already,
            Err(_) => return Entered::Lost,
        }
        if !self.segments.enter(&place, generation, now) {
            self.chain.remove(key);
            return Entered::Lost;
        }
        self.namespaces.enter(&place);
        self.fates.saved(place.group.drive(), place.namespace);
        self.events.publish(Kind::Stored, &[(key, place.namespace)]);
        Entered::New
    }

    /// Counts in what a restart found in the index.
    pub(crate) fn count_restored(&mut self, now: u32) {
        for (_, place, _) in self.chain.iter() {
            let generation = self.segments.address(&place).generation;
            let counted = self.segments.enter(&place, generation, now);
            assert!(counted, "the generation is the segment's own");
            self.namespaces.enter(&place);
        }
    }

    /// A block was copied to another place; `false` when it is no longer where it was copied from.
    pub(crate) fn moved(
        &mut self,
        key: BlockKey,
        from: BlockPlace,
        (to, generation): (BlockPlace, Generation),
    ) -> bool {
        if self.chain.get(key) != Some(from) {
            return false;
        }
        let written = self.segments.get(to.group).written();
        if !self.segments.enter(&to, generation, written) {
            return false;
        }
        self.segments.leave(&from);
        if self.pins.is_pinned(key) {
            self.segments.unpin(&from);
            self.segments.pin(&to);
        }
        self.chain.replace(key, to);
        true
    }

    /// Removes a block and all behind it, which nobody could reach any more.
    pub(crate) fn remove(
        &mut self,
        top: BlockKey,
        removal: Removal,
    ) -> Vec<(BlockKey, BlockPlace)> {
        // Also a guest, of which nothing else is here.
        self.host.remove(top);
        self.let_pins_go(top);
        let removed = self.chain.remove(top);
        let mut gone: Vec<(BlockKey, NamespaceId)> = Vec::with_capacity(removed.len());
        for &(key, place) in &removed {
            self.segments.leave(&place);
            self.forget_pins(key, &place);
            self.namespaces.leave(&place);
            self.host.remove(key);
            self.fates.went(key, removal, key != top);
            gone.push((key, place.namespace));
        }
        self.events.publish(Kind::Removed, &gone);
        removed
    }

    /// Lets go of what an ended lease held; whether some segment is held no more.
    pub(crate) fn let_go(&mut self, lease: &Lease) -> bool {
        let mut freed = false;
        for &group in &lease.held {
            freed |= self.segments.let_go(group);
        }
        freed
    }
}
