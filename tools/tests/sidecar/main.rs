//! Proves, on real sidecars over real directories, what Refrain promises: never a wrong byte, never
//! a hang, only misses. Sidecars are child processes; they are asked through the client, over gRPC,
//! and by the command line, as workers, routers and operators do.
//!
//! One file holds the claims about one matter. All of them are one program: to link it takes longer
//! than to run it.
#![expect(clippy::unwrap_used, reason = "a claim that meets an error has failed")]

#[path = "../fixture/mod.rs"]
#[expect(dead_code, reason = "the loops of faults use more of it")]
mod fixture;

mod back_pressure;
mod catalogue;
mod damage;
mod drain;
mod epochs;
mod events;
mod explain;
mod forecast;
mod leases;
mod paged;
mod pins;
mod reclaim;
mod refused_calls;
mod refused_starts;
mod removal;
mod round_trip;
mod sudden_death;
mod worker_death;
