//! A file system of ours over a directory, through FUSE: what fails or hangs, and when, a test says.
//! The sidecar's ring sees it as it sees a drive, which no library in between could make it do.

use files::Files;
use fuser::{BackgroundSession, Config, Errno, MountOption};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

mod files;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write,
    Sync,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Segments.
    Data,
    /// The log of the catalogue.
    Log,
    /// The rest of the catalogue.
    Rows,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Fail(i32),
    Hang,
}

/// A power loss after so many writes of segments: what comes then is answered by an error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    pub(crate) writes: u64,
    pub(crate) last: Last,
}

/// What is left of the last write before a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    Nothing,
    FirstPage,
    Whole,
}

type Held = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Faults {
    rules: Vec<(Part, Operation, Fault)>,
    /// What comes of a look for a name, and of opening one.
    shut: Option<Fault>,
    /// Operations that hang.
    held: Vec<Held>,
    met: u64,
    cut: Option<Cut>,
    /// Writes before a cut that no sync has followed yet, and the most that there were of them.
    unsynced: u64,
    unsynced_max: u64,
}

impl Faults {
    /// How much of a write of `bytes` is done; `None`: the power has gone.
    fn pass(&mut self, bytes: usize) -> Option<usize> {
        let Some(cut) = &mut self.cut else { return Some(bytes) };
        cut.writes = cut.writes.checked_sub(1)?;
        self.unsynced += 1;
        self.unsynced_max = self.unsynced_max.max(self.unsynced);
        match cut.last {
            _ if cut.writes > 0 => Some(bytes),
            Last::Nothing => Some(0),
            Last::FirstPage => Some(bytes.min(4096)),
            Last::Whole => Some(bytes),
        }
    }
}

/// Mounted until it is dropped.
pub(crate) struct Faulty {
    session: Option<BackgroundSession>,
    faults: Arc<Mutex<Faults>>,
}

impl Faulty {
    /// Shows `root` at `mountpoint`. One that is not `asynchronous` holds who begins an operation
    /// until it has ended.
    pub(crate) fn mount(root: &Path, mountpoint: &Path, asynchronous: bool) -> io::Result<Self> {
        let faults = Arc::<Mutex<Faults>>::default();
        let files = Files::new(root, asynchronous, Arc::clone(&faults));
        let mut config = Config::default();
        config.mount_options =
            vec![MountOption::FSName("faulty".into()), MountOption::DefaultPermissions];
        let session = fuser::spawn_mount(files, mountpoint, &config)?;
        Ok(Self { session: Some(session), faults })
    }

    pub(crate) fn add(&self, part: Part, operation: Operation, fault: Fault) {
        self.faults.lock().unwrap().rules.push((part, operation, fault));
    }

    /// Has every look for a name, and every opening of one, fail: at once, or with EIO when it is
    /// healed.
    pub(crate) fn shut(&self, fault: Fault) {
        self.faults.lock().unwrap().shut = Some(fault);
    }

    /// Has the power go after some more writes of segments, or come back; what was left of the cut
    /// before.
    pub(crate) fn cut(&self, cut: Option<Cut>) -> Option<Cut> {
        let mut faults = self.faults.lock().unwrap();
        faults.unsynced = 0;
        std::mem::replace(&mut faults.cut, cut)
    }

    /// The most writes before a cut that no sync had followed.
    pub(crate) fn unsynced_max(&self) -> u64 {
        self.faults.lock().unwrap().unsynced_max
    }

    /// Everything works from now on, also what hung.
    pub(crate) fn heal(&self) {
        let mut faults = self.faults.lock().unwrap();
        faults.rules.clear();
        faults.shut = None;
        let held = std::mem::take(&mut faults.held);
        drop(faults);
        for run in held {
            run();
        }
    }

    /// Heals when it is dropped: before a sidecar, which no kill ends while its drive hangs.
    pub(crate) fn healed_at_the_end(&self) -> Healing<'_> {
        Healing(self)
    }

    /// Operations that met a fault so far.
    pub(crate) fn met(&self) -> u64 {
        self.faults.lock().unwrap().met
    }
}

pub(crate) struct Healing<'f>(&'f Faulty);

impl Drop for Healing<'_> {
    fn drop(&mut self) {
        self.0.heal();
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.heal();
        // Who still has a file open there makes it busy: it goes with its last user.
        let _ = self.session.take().map(BackgroundSession::umount_and_join);
    }
}

impl Files {
    fn is_shut(&self) -> bool {
        self.faults.lock().unwrap().shut.is_some()
    }

    /// Has `refuse` answer whoever looks for a name while names are shut.
    fn refuse(&self, refuse: impl FnOnce(Errno) + Send + 'static) {
        let mut faults = self.faults.lock().unwrap();
        faults.met += 1;
        match faults.shut {
            Some(Fault::Fail(errno)) => refuse(Errno::from_i32(errno)),
            Some(Fault::Hang) => faults.held.push(Box::new(move || refuse(Errno::EIO))),
            // Healed in this very moment.
            None => refuse(Errno::EIO),
        }
    }

    /// Does `run` now, with a fault instead, or when the file system is healed.
    fn faulty(
        &self,
        path: &Path,
        operation: Operation,
        run: impl FnOnce(Option<Errno>) + Send + 'static,
    ) {
        let mut faults = self.faults.lock().unwrap();
        let meets =
            |rule: &&(Part, Operation, Fault)| part_of(path) == Some(rule.0) && rule.1 == operation;
        match faults.rules.iter().find(meets).map(|rule| rule.2) {
            None => {
                drop(faults);
                run(None);
            }
            Some(Fault::Fail(errno)) => {
                faults.met += 1;
                drop(faults);
                run(Some(Errno::from_i32(errno)));
            }
            Some(Fault::Hang) => {
                faults.met += 1;
                faults.held.push(Box::new(move || run(None)));
            }
        }
    }
}

fn part_of(path: &Path) -> Option<Part> {
    let name = path.file_name()?.to_str()?;
    if name.starts_with("segment-") {
        Some(Part::Data)
    } else if path.extension().is_some_and(|extension| extension == "log") {
        Some(Part::Log)
    } else if path.parent().is_some_and(|parent| parent.ends_with("catalog")) {
        Some(Part::Rows)
    } else {
        None
    }
}
