//! A child process that says why it ended, and that is killed when it is dropped.

use rustix::process::{Pid, Signal, kill_process};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use tail::Tail;

mod tail;

/// Runs, or has ended.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    stderr: Tail,
    /// Keeps the thread alive that the kernel takes for the parent.
    _parent: mpsc::Sender<()>,
}

impl Process {
    /// Starts it without a standard input and output, and out of the terminal's group: Ctrl-C is for
    /// whoever holds it.
    pub(crate) fn spawn(mut command: Command) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        // To the kernel the parent is the thread that forks, and callers' threads come and go.
        let (report, spawned) = mpsc::sync_channel(1);
        let (parent, released) = mpsc::channel::<()>();
        let stay = move || {
            if report.send(command.spawn()).is_ok() {
                // Nothing is ever sent: it ends with its sender.
                let _ = released.recv();
            }
        };
        thread::Builder::new().name("child-parent".into()).spawn(stay)?;
        let gone = |_| Err(io::Error::other("thread that starts it is gone"));
        let mut child = spawned.recv().unwrap_or_else(gone)?;
        let stderr = Tail::follow(child.stderr.take().expect("it is piped"));
        Ok(Self { child, stderr, _parent: parent })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// What it said last; waits for its end.
    pub(crate) fn last_words(&mut self) -> String {
        self.stderr.read_out()
    }

    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let raw = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // Until it was waited for, nobody else can have its number.
        Ok(kill_process(raw.expect("the kernel gave it"), signal)?)
    }

    /// SIGKILL; returns when it is gone.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Of one that has ended and was waited for, this is nothing.
        let _ = self.kill();
    }
}
