//! A sidecar as a child process: started, waited for, killed, stopped, started again.
//!
//! It never outlives this process. Dropping a [`Sidecar`] kills it; the death of this process, by
//! whatever signal, has the kernel stop it (see [`crate::commands::tied`]). Ctrl-C in a terminal
//! does not reach it: whoever holds it decides when it goes.

use crate::process::Process;
use refrain_client::{Address, AddressError};
use rustix::process::Signal;
use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Between two questions whether it accepts; short, as what is measured is a restart.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(2);

/// What to start.
#[derive(Clone, Debug)]
pub struct SidecarConfig {
    /// The `refrain` binary.
    pub executable: PathBuf,
    pub directory: PathBuf,
    pub capacity_bytes: u64,
    /// Words before its command, of one that runs what follows, as `nsenter` does elsewhere.
    pub within: Vec<OsString>,
    /// Further flags of `refrain serve`.
    pub flags: Vec<OsString>,
    /// How long it may take until it accepts.
    pub start_limit: Duration,
    /// How long it may take to stop after it was asked to; then it is killed.
    pub stop_limit: Duration,
}

/// A sidecar of our own.
#[derive(Debug)]
pub struct Sidecar {
    config: SidecarConfig,
    address: Address,
    process: Option<Process>,
    start_time: Duration,
}

/// Why there is no sidecar, or none any more.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SidecarError {
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("find this program, to start it as a sidecar")]
    Executable { source: io::Error },
    #[error("start sidecar {}", executable.display())]
    Start { executable: PathBuf, source: io::Error },
    #[error("sidecar ended by itself ({status}); it said:\n{stderr}")]
    Ended { status: ExitStatus, stderr: String },
    #[error("sidecar does not accept within {limit:?}; it said:\n{stderr}")]
    Silent { limit: Duration, stderr: String },
    #[error("sidecar did not stop within {limit:?} and was killed; it said:\n{stderr}")]
    Stuck { limit: Duration, stderr: String },
    #[error("sidecar stopped with {status}; it said:\n{stderr}")]
    Stopped { status: ExitStatus, stderr: String },
    #[error("signal the sidecar, or wait for it")]
    Process(#[from] io::Error),
    #[error("sidecar is not running")]
    NotRunning,
}

impl SidecarConfig {
    /// This very program over one directory.
    pub fn new(directory: &Path, capacity_bytes: u64) -> Result<Self, SidecarError> {
        let executable =
            std::env::current_exe().map_err(|source| SidecarError::Executable { source })?;
        Ok(Self {
            executable,
            directory: directory.to_owned(),
            capacity_bytes,
            within: Vec::new(),
            flags: Vec::new(),
            start_limit: Duration::from_mins(2),
            stop_limit: Duration::from_mins(1),
        })
    }

    fn command(&self, address: &Address) -> Command {
        let mut command = match self.within.split_first() {
            Some((runner, words)) => {
                let mut command = Command::new(runner);
                command.args(words).arg(&self.executable);
                command
            }
            None => Command::new(&self.executable),
        };
        command
            .arg("tied")
            .arg(std::process::id().to_string())
            .args(["serve", "--dir"])
            .arg(&self.directory)
            .args(["--capacity", &self.capacity_bytes.to_string()])
            .args(["--listen", &address.to_string()])
            .args(&self.flags);
        command
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("refrain.sock")
    }
}

impl Sidecar {
    /// Starts a sidecar and waits until it accepts.
    pub fn start(config: SidecarConfig) -> Result<Self, SidecarError> {
        let address = format!("unix:{}", config.socket().display()).parse()?;
        let mut sidecar = Self { config, address, process: None, start_time: Duration::ZERO };
        sidecar.launch()?;
        Ok(sidecar)
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    /// `None` between [`Sidecar::kill`] or [`Sidecar::stop`] and [`Sidecar::restart`].
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// From the last start of the process until it accepted.
    pub fn start_time(&self) -> Duration {
        self.start_time
    }

    /// Fails when it has ended without being told to.
    pub fn check(&mut self) -> Result<(), SidecarError> {
        let Some(process) = &mut self.process else {
            return Err(SidecarError::NotRunning);
        };
        match process.ended()? {
            None => Ok(()),
            Some(status) => {
                let stderr = process.last_words();
                self.process = None;
                Err(SidecarError::Ended { status, stderr })
            }
        }
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(&mut self) -> Result<(), SidecarError> {
        let mut process = self.process.take().ok_or(SidecarError::NotRunning)?;
        Ok(process.kill()?)
    }

    /// SIGSTOP, or SIGCONT.
    pub fn signal(&self, signal: Signal) -> Result<(), SidecarError> {
        let process = self.process.as_ref().ok_or(SidecarError::NotRunning)?;
        Ok(process.signal(signal)?)
    }

    /// SIGTERM; returns when the process has finished what runs and is gone.
    pub fn stop(&mut self) -> Result<(), SidecarError> {
        let mut process = self.process.take().ok_or(SidecarError::NotRunning)?;
        let limit = self.config.stop_limit;
        process.signal(Signal::TERM)?;
        let end = Instant::now() + limit;
        let status = loop {
            if let Some(status) = process.ended()? {
                break status;
            }
            if Instant::now() >= end {
                process.kill()?;
                return Err(SidecarError::Stuck { limit, stderr: process.last_words() });
            }
            thread::sleep(ACCEPT_INTERVAL);
        };
        if status.success() {
            Ok(())
        } else {
            Err(SidecarError::Stopped { status, stderr: process.last_words() })
        }
    }

    /// Stops it if it runs, and starts it on the same directory; how long the start took.
    pub fn restart(&mut self) -> Result<Duration, SidecarError> {
        if self.process.is_some() {
            self.stop()?;
        }
        self.launch()?;
        Ok(self.start_time)
    }

    fn launch(&mut self) -> Result<(), SidecarError> {
        let begun = Instant::now();
        let process = Process::spawn(self.config.command(&self.address));
        let executable = &self.config.executable;
        let error = |source| SidecarError::Start { executable: executable.clone(), source };
        let process = self.process.insert(process.map_err(error)?);
        let limit = self.config.start_limit;
        loop {
            if UnixStream::connect(self.address.path()).is_ok() {
                self.start_time = begun.elapsed();
                return Ok(());
            }
            if let Some(status) = process.ended()? {
                let stderr = process.last_words();
                self.process = None;
                return Err(SidecarError::Ended { status, stderr });
            }
            if begun.elapsed() >= limit {
                process.kill()?;
                let stderr = process.last_words();
                self.process = None;
                return Err(SidecarError::Silent { limit, stderr });
            }
            thread::sleep(ACCEPT_INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests;
