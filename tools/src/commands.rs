//! The commands of `refrain`, each in its own module.

pub mod bench;
pub mod doctor;
pub mod drain;
pub mod drop;
pub mod evict;
pub mod explain;
pub mod inspect;
pub mod ls;
pub mod nodes;
pub mod pin;
pub mod replay;
pub mod serve;
pub mod set_epoch;
pub mod stat;
pub mod tied;
pub mod unpin;
pub mod verify;
pub mod r#where;

use refrain_client::v1::Refusal;

/// Why a block was not saved, in one word.
fn refusal(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::None => "none",
        Refusal::Busy => "busy",
        Refusal::NoSpace => "no_space",
        Refusal::ReadOnly => "read_only",
        Refusal::Draining => "draining",
        Refusal::NoParent => "no_parent",
        Refusal::Unspecified => "sidecar_lost",
    }
}

/// The outcome of printing: whoever reads only the beginning has seen enough.
fn printed(outcome: anyhow::Result<()>) -> anyhow::Result<()> {
    match outcome {
        Err(error) if is_broken_pipe(&error) => Ok(()),
        outcome => outcome,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
