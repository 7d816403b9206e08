//! Proves, with the real command over real stores, that operators see what is stored and what is
//! damaged, that looking changes nothing, and that what cannot be answered is refused by name.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod damage;
mod fixture;
mod refusals;
mod views;
