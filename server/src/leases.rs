//! Leases: deadline-bound promises that blocks stay, and reservations of blocks to be saved.
//!
//! A lease holds the segments of its blocks and the frames of its loads, and what a peer has promised
//! of the blocks behind them. It ends when it is
//! released, when its time is up, or with its session; a reservation ends with its lease.

use crate::forecast::Work;
use crate::names::Names;
use crate::namespaces::{Registration, SessionId};
use crate::peers::Remote;
use crate::place::{BlockPlace, Group};
use refrain_store::arena::Frame;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Names a lease; not to be guessed, as it stands for the right to its blocks.
pub(crate) type LeaseId = u64;
/// Names a reservation; as above.
pub(crate) type ReservationId = u64;

/// What a lookup found, for as long as it is promised.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) registration: Arc<Registration>,
    /// Of all full blocks of the prompt.
    pub(crate) names: Names,
    /// Of those that matched on this node's drives; further ones are in memory, or a peer's.
    pub(crate) places: Vec<BlockPlace>,
    /// Behind the places: guests of the host tier that the lookup found there.
    pub(crate) guests: usize,
    /// What a peer has promised behind those; none any more when all that matched is loaded.
    pub(crate) remote: Option<Arc<Remote>>,
    /// Whether those of them that were loaded have been saved here; `None` where nobody began.
    pub(crate) keeping: Option<watch::Receiver<bool>>,
    /// Segments held, each once; none any more when all that matched is loaded.
    pub(crate) held: Vec<Group>,
    /// Loaded under this lease: whoever copies out of them reads no other block's bytes.
    pub(crate) frames: Vec<Arc<Frame>>,
    /// Of the blocks that matched, those that were loaded: they need no drive any more.
    pub(crate) loaded: Vec<Option<Arc<Frame>>>,
    pub(crate) reservations: Vec<ReservationId>,
    /// As its lookup was told.
    pub(crate) expected_load: Duration,
    /// Of a load of all that matched, once there was one.
    pub(crate) work: Option<Work>,
    deadline: Instant,
}

impl Lease {
    pub(crate) fn new(
        registration: Arc<Registration>,
        names: Names,
        (places, guests): (Vec<BlockPlace>, Vec<Arc<Frame>>),
        (deadline, expected_load): (Instant, Duration),
    ) -> Self {
        let mut held: Vec<Group> = places.iter().map(|place| place.group).collect();
        held.sort_unstable();
        held.dedup();
        Self {
            registration,
            names,
            held,
            frames: Vec::new(),
            loaded: places.iter().map(|_| None).chain(guests.iter().cloned().map(Some)).collect(),
            places,
            guests: guests.len(),
            remote: None,
            keeping: None,
            reservations: Vec::new(),
            expected_load,
            work: None,
            deadline,
        }
    }

    /// Blocks that matched, wherever they are.
    pub(crate) fn matched(&self) -> usize {
        self.loaded.len()
    }

    fn session(&self) -> Option<SessionId> {
        self.registration.session
    }
}

/// Blocks of a lease's prompt that a worker is about to send.
#[derive(Debug)]
pub(crate) struct Reservation {
    pub(crate) lease: LeaseId,
    pub(crate) registration: Arc<Registration>,
    pub(crate) names: Names,
    /// Not committed yet, in order.
    pub(crate) blocks: VecDeque<u32>,
    /// Of the queue for saves, for each block.
    pub(crate) block_bytes: u64,
}

impl Reservation {
    /// What it takes of the queue for saves.
    fn bytes(&self) -> u64 {
        u64::try_from(self.blocks.len()).expect("usize fits") * self.block_bytes
    }
}

#[derive(Debug, Default)]
pub(crate) struct Leases {
    by_id: HashMap<LeaseId, Lease>,
    ends: BTreeSet<(Instant, LeaseId)>,
    reservations: HashMap<ReservationId, Reservation>,
    reserved_bytes: u64,
}

impl Leases {
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn reservations(&self) -> usize {
        self.reservations.len()
    }

    /// Of the queue for saves, promised to reservations.
    pub(crate) fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes
    }

    pub(crate) fn add(&mut self, lease: Lease) -> LeaseId {
        let id = unused(&self.by_id);
        self.ends.insert((lease.deadline, id));
        self.by_id.insert(id, lease);
        id
    }

    pub(crate) fn get_mut(&mut self, id: LeaseId) -> Option<&mut Lease> {
        self.by_id.get_mut(&id)
    }

    /// Prolongs a lease; `false` when it is over. A lease is never made shorter.
    pub(crate) fn renew(&mut self, id: LeaseId, deadline: Instant) -> bool {
        let Some(lease) = self.by_id.get_mut(&id) else { return false };
        if deadline > lease.deadline {
            self.ends.remove(&(lease.deadline, id));
            self.ends.insert((deadline, id));
            lease.deadline = deadline;
        }
        true
    }

    /// Ends a lease and its reservations. The caller lets its segments go.
    pub(crate) fn end(&mut self, id: LeaseId) -> Option<Lease> {
        let lease = self.by_id.remove(&id)?;
        self.ends.remove(&(lease.deadline, id));
        for &reservation in &lease.reservations {
            self.end_reservation(reservation);
        }
        Some(lease)
    }

    /// A lease whose time is up.
    pub(crate) fn end_one_expired(&mut self, now: Instant) -> Option<Lease> {
        let &(deadline, id) = self.ends.first()?;
        if deadline > now { None } else { self.end(id) }
    }

    /// When the next lease ends.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.ends.first().map(|(deadline, _)| *deadline)
    }

    /// All leases of a session, ended.
    pub(crate) fn end_session(&mut self, session: SessionId) -> Vec<Lease> {
        let of =
            |(id, lease): (&LeaseId, &Lease)| (lease.session() == Some(session)).then_some(*id);
        let ids: Vec<_> = self.by_id.iter().filter_map(of).collect();
        ids.into_iter().filter_map(|id| self.end(id)).collect()
    }

    pub(crate) fn reserve(&mut self, reservation: Reservation) -> ReservationId {
        let id = unused(&self.reservations);
        self.reserved_bytes += reservation.bytes();
        if let Some(lease) = self.by_id.get_mut(&reservation.lease) {
            lease.reservations.push(id);
        }
        self.reservations.insert(id, reservation);
        id
    }

    pub(crate) fn reservation(&self, id: ReservationId) -> Option<&Reservation> {
        self.reservations.get(&id)
    }

    /// Takes the next blocks out of a reservation, which ends with its last one.
    pub(crate) fn take_reserved(&mut self, id: ReservationId, count: usize) {
        let Some(reservation) = self.reservations.get_mut(&id) else { return };
        let before = reservation.bytes();
        reservation.blocks.drain(..count.min(reservation.blocks.len()));
        self.reserved_bytes -= before - reservation.bytes();
        if reservation.blocks.is_empty() {
            self.abort(id);
        }
    }

    /// Calls a reservation off; `false` when there is none.
    pub(crate) fn abort(&mut self, id: ReservationId) -> bool {
        let Some(reservation) = self.end_reservation(id) else { return false };
        if let Some(lease) = self.by_id.get_mut(&reservation.lease) {
            lease.reservations.retain(|other| *other != id);
        }
        true
    }

    fn end_reservation(&mut self, id: ReservationId) -> Option<Reservation> {
        let reservation = self.reservations.remove(&id)?;
        self.reserved_bytes -= reservation.bytes();
        Some(reservation)
    }
}

/// A name that nobody has; 0 is none.
fn unused<T>(taken: &HashMap<u64, T>) -> u64 {
    loop {
        let id = fastrand::u64(1..);
        if !taken.contains_key(&id) {
            return id;
        }
    }
}

#[cfg(test)]
mod tests {
    //! Proves that leases end when they should, and take their reservations along.

    use super::*;
    use crate::place::NamespaceId;
    use refrain_index::hash::TenantKey;
    use refrain_index::namespace::NamespaceDigest;
    use refrain_store::geometry::Layout;

    fn registration(session: u8) -> Arc<Registration> {
        let (digest, key) = (NamespaceDigest([1; 32]), TenantKey::derive(&[2; 32], "tenant"));
        Arc::new(Registration {
            namespace: NamespaceId(0),
            digest,
            engine_names: key.engine_names(digest),
            key,
            shard: 0,
            block_tokens: 16,
            layout: Layout::new(1, 4096).unwrap(),
            session: Some([session; 16]),
        })
    }

    fn lease(session: u8, deadline: Instant) -> Lease {
        let ends = (deadline, Duration::ZERO);
        let (names, none) = (Names::new(Vec::new(), false), (Vec::new(), Vec::new()));
        Lease::new(registration(session), names, none, ends)
    }

    fn reservation(lease: LeaseId) -> Reservation {
        let (registration, names) = (registration(0), Names::new(Vec::new(), false));
        Reservation { lease, registration, names, blocks: (0..4).collect(), block_bytes: 10 }
    }

    #[test]
    fn leases_expire_in_the_order_of_their_deadlines_unless_renewed() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let (one, two) = (leases.add(lease(1, after(1))), leases.add(lease(1, after(2))));
        assert!(leases.renew(one, after(3)) && leases.renew(one, after(1)));
        assert_eq!(leases.next_end(), Some(after(2)));
        assert!(leases.end_one_expired(after(1)).is_none());
        assert!(leases.end_one_expired(after(2)).is_some());
        assert!(leases.get_mut(two).is_none() && leases.get_mut(one).is_some());
        assert!(!leases.renew(two, after(9)));
        assert_eq!(leases.len(), 1);
    }

    #[test]
    fn a_session_ends_with_its_leases_and_their_reservations() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        let (mine, other) = (leases.add(lease(1, start)), leases.add(lease(2, start)));
        let (first, second) =
            (leases.reserve(reservation(mine)), leases.reserve(reservation(other)));
        assert_eq!(leases.reserved_bytes(), 80);
        assert_eq!(leases.end_session([1; 16]).len(), 1);
        assert_eq!((leases.len(), leases.reserved_bytes()), (1, 40));
        assert!(leases.reservation(first).is_none() && leases.reservation(second).is_some());
    }

    #[test]
    fn a_reservation_ends_with_its_last_block() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        let lease = leases.add(lease(1, start));
        let id = leases.reserve(reservation(lease));
        leases.take_reserved(id, 3);
        assert_eq!((leases.reserved_bytes(), leases.reservations()), (10, 1));
        leases.take_reserved(id, 1);
        assert_eq!((leases.reserved_bytes(), leases.reservations()), (0, 0));
        assert!(!leases.abort(id));
    }
}
