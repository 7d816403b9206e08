//! A node over simulated drives, under virtual time, from a seed.
//!
//! Production code runs from the lookup to the page: the node, its index, its reclaim, recovery,
//! the engine, the catalogue's rows. Simulated are the disk ([`disk`] has the fault model), the
//! time, RocksDB's files, and the order in which threads go on. One seed is one run, always the
//! same.

mod audit;
pub mod catalogue;
pub mod client;
pub mod crash;
pub mod device;
pub mod disk;
pub mod drive;
pub mod faults;
pub mod hunt;
pub mod model;
pub mod names;
pub mod plan;
pub mod tasks;
pub mod time;
pub mod world;
