//! Runs this program again with other arguments, as a process that ends when its parent does.
//!
//! What [`crate::sidecar`] starts must not outlive it, not even when it is killed. The kernel sends
//! the signal that is asked for here, to this process and to what it becomes; so the sidecar itself
//! knows nothing of parents.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Process id of the parent
    parent: i32,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    arguments: Vec<OsString>,
}

/// Returns only when it cannot become the other command.
pub fn run(args: Args) -> Result<()> {
    // A sidecar that loses its parent drains, as it does for anybody.
    set_parent_process_death_signal(Some(Signal::TERM)).context("tie to the parent process")?;
    // A parent that died before that sends nothing.
    if getppid().map(Pid::as_raw_nonzero).is_none_or(|parent| parent.get() != args.parent) {
        bail!("process {} that started this one is gone", args.parent);
    }
    let executable = std::env::current_exe().context("find this program")?;
    let error = Command::new(&executable).args(args.arguments).exec();
    Err(error).with_context(|| format!("run {}", executable.display()))
}
