//! The values that a label of ours may have, and a counter for each of them.

use crate::fates::Eviction;
use crate::load::Miss;
use crate::peers::{Asked, Fetched};
use crate::save::Refusal;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use std::marker::PhantomData;

/// A label with few values, all known: each is reported from the start, as 0.
pub trait Label: Copy + 'static {
    const NAME: &'static str;
    /// Every value with its text; a value's place is its discriminant.
    const ALL: &'static [(Self, &'static str)];

    fn index(self) -> usize;
}

macro_rules! label {
    ($name:ty as $label:literal { $($value:ident = $text:literal),+ $(,)? }) => {
        impl Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [(Self, &'static str)] = &[$((Self::$value, $text)),+];

            fn index(self) -> usize {
                // Whoever adds a value is told here that it has no text.
                match self { $(Self::$value => {}),+ }
                self as usize
            }
        }
    };
}

/// Where a loaded block came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Host,
    Ssd,
    Peer,
}

label!(Source as "tier" { Host = "host", Ssd = "ssd", Peer = "peer" });

label!(Miss as "reason" {
    Deadline = "deadline",
    Damaged = "damaged",
    NoMemory = "no_memory",
    Drive = "drive",
    Peer = "peer",
});

label!(Asked as "end" {
    Offered = "offered",
    Nothing = "nothing",
    Refused = "refused",
    Late = "late",
    Failed = "failed",
});

label!(Fetched as "end" {
    Over = "over",
    Broken = "broken",
    Lie = "lie",
    Late = "late",
});

label!(Refusal as "reason" {
    Busy = "busy",
    NoSpace = "no_space",
    ReadOnly = "read_only",
    Draining = "draining",
    NoParent = "no_parent",
});

label!(Eviction as "reason" {
    Reclaim = "reclaim",
    Drop = "drop",
    Evict = "evict",
    Damage = "damage",
});

/// A counter for each value of a label; a clone counts the same.
#[derive(Clone, Debug)]
pub struct CounterBy<L> {
    counters: Vec<Counter>,
    label: PhantomData<fn(L)>,
}

impl<L: Label> CounterBy<L> {
    pub(super) fn register(registry: &mut Registry, name: &str, help: &str) -> Self {
        let family = Family::<[(&'static str, &'static str); 1], Counter>::default();
        let counter =
            |&(_, text): &(L, &'static str)| family.get_or_create_owned(&[(L::NAME, text)]);
        let counters = L::ALL.iter().map(counter).collect();
        registry.register(name, help, family);
        Self { counters, label: PhantomData }
    }

    pub fn of(&self, value: L) -> &Counter {
        &self.counters[value.index()]
    }

    pub fn total(&self) -> u64 {
        self.counters.iter().map(Counter::get).sum()
    }
}
