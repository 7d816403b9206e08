//! A sidecar as a child of this process: this same binary, stopped when nobody needs it any more.

use super::scratch::Interrupt;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Opening a drive of some gigabytes and reading what is on it takes seconds at most.
const START_LIMIT: Duration = Duration::from_mins(1);
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// What the kernel counts a process's time in, on every machine, for those who read it.
const TICK: Duration = Duration::from_millis(10);
/// Between two looks at a child that starts or stops.
const PAUSE: Duration = Duration::from_millis(10);

pub(super) struct Sidecar {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Sidecar {
    /// Starts a sidecar on the store `directory` and waits until it answers; how long that took is
    /// the second part.
    pub(super) fn start(
        directory: &Path,
        capacity_bytes: u64,
        interrupt: &Interrupt,
    ) -> Result<(Self, Duration)> {
        let binary = std::env::current_exe().context("find this binary")?;
        let base = directory.parent().unwrap_or(directory);
        let (socket, log) = (base.join("s"), base.join("sidecar.log"));
        let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let begin = Instant::now();
        let child = Command::new(&binary)
            .arg("serve")
            .arg("--dir")
            .arg(directory)
            .args(["--capacity", &capacity_bytes.to_string()])
            .arg("--listen")
            .arg(format!("unix:{}", socket.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        let mut sidecar = Self { child, socket, log };
        sidecar.wait_for_socket(begin, interrupt)?;
        Ok((sidecar, begin.elapsed()))
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    fn wait_for_socket(&mut self, begin: Instant, interrupt: &Interrupt) -> Result<()> {
        while UnixStream::connect(&self.socket).is_err() {
            interrupt.check()?;
            if let Some(status) = self.child.try_wait().context("wait for the sidecar")? {
                bail!("the sidecar ended with {status}: {}", self.last_words());
            }
            if begin.elapsed() > START_LIMIT {
                bail!("the sidecar did not listen within {START_LIMIT:?}: {}", self.last_words());
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Processor time that the sidecar has taken so far.
    pub(super) fn processor_time(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.child.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        // The name in parentheses may hold anything; user and system time are the 12th and 13th
        // field behind it.
        let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        let ticks: Vec<u64> = ticks.collect::<Result<_, _>>().with_context(|| path.clone())?;
        if ticks.len() != 2 {
            bail!("{path} has no processor times");
        }
        Ok(TICK * u32::try_from(ticks.iter().sum::<u64>()).unwrap_or(u32::MAX))
    }

    /// Asks the sidecar to stop, and waits until it has.
    pub(super) fn stop(mut self) -> Result<()> {
        let status = self.end()?;
        if !status.success() {
            bail!("the sidecar stopped with {status}: {}", self.last_words());
        }
        Ok(())
    }

    fn end(&mut self) -> Result<ExitStatus> {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // One that is gone already is waited for all the same.
            let _ = kill_process(pid, Signal::TERM);
        }
        let begin = Instant::now();
        while begin.elapsed() < STOP_LIMIT {
            if let Some(status) = self.child.try_wait().context("wait for the sidecar")? {
                return Ok(status);
            }
            std::thread::sleep(PAUSE);
        }
        self.child.kill().context("kill the sidecar")?;
        self.child.wait().context("wait for the sidecar")
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        // A refused command line says why first, a failed start last.
        let first = log.lines().find(|line| line.starts_with("error"));
        let last = log.lines().rev().find(|line| !line.trim().is_empty());
        first.or(last).unwrap_or("it said nothing").to_owned()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.end();
        }
    }
}
