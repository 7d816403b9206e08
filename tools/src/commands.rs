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
pub mod set_epoch;
pub mod stat;
pub mod tied;
pub mod verify;

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
