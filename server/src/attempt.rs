//! A drive that is brought up in a thread of its own: one that hangs may never let it end.
//!
//! Whoever waits may stop, and wait again later. The attempt goes on meanwhile and holds the store's
//! lock, so that there are never two of one drive; what comes of it is there for whoever asks next,
//! and is closed by its own thread where nobody will.

use crate::bring_up::Brought;
use crate::clock::Clock;
use crate::config::Config;
use crate::node::NodeError;
use refrain_store::answers::Answers;
use refrain_store::arena::Arena;
use refrain_store::drive::DriveConfig;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

#[derive(Debug)]
pub(crate) struct Attempt {
    path: PathBuf,
    /// Without any word for so long, the drive hangs.
    patience: Duration,
    answers: Answers,
    outcome: oneshot::Receiver<Result<Brought, NodeError>>,
}

impl Attempt {
    /// Begins to bring up the drive in the directory of `drive`. One that is looked for `again` is not
    /// made.
    pub(crate) fn begin(
        config: &Config,
        drive: &DriveConfig,
        arena: &Arc<Arena>,
        again: bool,
    ) -> Result<Self, NodeError> {
        let answers = Answers::default();
        let (path, patience) = (drive.path.clone(), config.start_patience);
        let (config, drive, arena) = (config.clone(), drive.clone(), Arc::clone(arena));
        let heard = answers.clone();
        let outcome = alone("refrain-start", move || {
            Brought::from_directory(&config, &drive, &arena, (again, &heard))
        })?;
        Ok(Self { path, patience, answers, outcome })
    }

    /// What came of it; `None` where the drive hangs. It may be waited for again.
    pub(crate) async fn outcome(&mut self, clock: &Clock) -> Option<Result<Brought, NodeError>> {
        loop {
            let heard = self.answers.count();
            let end = clock.now() + self.patience;
            if let Some(outcome) = clock.until(end, &mut self.outcome).await {
                return Some(outcome.expect("its thread ends with what came of it"));
            }
            if self.answers.count() == heard {
                self.answers.give_up();
                return None;
            }
        }
    }

    /// That the drive hangs.
    pub(crate) fn hangs(&self) -> NodeError {
        NodeError::Hangs { path: self.path.clone(), patience: self.patience }
    }
}

/// Does `work` on a drive in a thread that nobody need wait for.
pub(crate) fn alone<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>, NodeError> {
    let (done, outcome) = oneshot::channel();
    let work = move || {
        // Where nobody waits any more, what came of it ends here.
        drop(done.send(work()));
    };
    let thread = std::thread::Builder::new().name(name.into()).spawn(work);
    thread.map_err(|source| NodeError::Thread { source })?;
    Ok(outcome)
}
