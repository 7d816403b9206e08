//! A directory that a measurement works in, gone when it ends, also by Ctrl-C.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// What a shell reports of a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// A directory of this process alone, inside the one that is measured.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    interrupt: Interrupt,
}

/// Whether the user wants an end. The first signal asks for one, the second takes it.
#[derive(Clone, Debug)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Scratch {
    pub(super) fn new(parent: &Path) -> Result<Self> {
        let interrupt = Interrupt::listen()?;
        let path = parent.join(format!(".refrain-bench-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| {
            format!("create {}: give a directory on the drive with --dir", path.display())
        })?;
        Ok(Self { path, interrupt })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// What to say of bytes that are not there.
    pub(super) fn require(&self, bytes: u64) -> Result<()> {
        let disk = rustix::fs::statvfs(&self.path)
            .with_context(|| format!("ask {} for its free space", self.path.display()))?;
        let available = disk.f_bavail * disk.f_frsize;
        if available < bytes {
            bail!(
                "{} has {} free, the measurement takes {}: make it smaller, or give another --dir",
                self.path.display(),
                bytesize::ByteSize(available),
                bytesize::ByteSize(bytes)
            );
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nobody is left to tell, and the next run takes another name.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

impl Interrupt {
    fn listen() -> Result<Self> {
        let raised = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&raised);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("start a runtime for signals")?;
        let enter = runtime.enter();
        let mut interrupts = signal(SignalKind::interrupt()).context("listen to Ctrl-C")?;
        let mut terminations = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
        drop(enter);
        let thread = std::thread::Builder::new().name("refrain-signals".into());
        let watch = move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupts.recv() => {}
                        _ = terminations.recv() => {}
                    }
                    if flag.swap(true, Ordering::Relaxed) {
                        std::process::exit(INTERRUPTED);
                    }
                }
            });
        };
        thread.spawn(watch).context("start a thread for signals")?;
        Ok(Self(raised))
    }

    pub(super) fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Lets time pass, unless the user wants an end.
    pub(super) fn sleep(&self, duration: Duration) -> Result<()> {
        const PAUSE: Duration = Duration::from_millis(100);
        let end = Instant::now() + duration;
        while Instant::now() < end {
            self.check()?;
            std::thread::sleep(PAUSE.min(end.saturating_duration_since(Instant::now())));
        }
        self.check()
    }

    /// Fails once the user wants an end.
    pub(super) fn check(&self) -> Result<()> {
        if self.is_raised() {
            bail!("interrupted: nothing was kept");
        }
        Ok(())
    }
}
