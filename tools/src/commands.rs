//! The commands of `refrain`, each in its own module.

pub mod bench;
