//! The commands of `refrain`, each in its own module.

pub mod bench;
pub mod doctor;
pub mod drain;
pub mod drop;
pub mod evict;
pub mod inspect;
pub mod ls;
pub mod replay;
pub mod serve;
pub mod stat;
pub mod tied;
pub mod verify;
