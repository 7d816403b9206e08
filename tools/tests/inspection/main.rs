//! Proves, with the real command over real stores, that operators see what is stored and what is
//! damaged, that looking changes nothing, and that what cannot be answered is refused by name.

mod damage;
mod fixture;
mod refusals;
mod views;
