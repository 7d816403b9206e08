//! Proves that a sidecar of our own is there when it is said to be, and gone when it is not.

use refrain::sidecar::{Sidecar, SidecarConfig, SidecarError};
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn start(directory: &TempDir) -> Sidecar {
    let mut config =
        SidecarConfig::new(&directory.path().join("store"), 64 << 20).expect("it has a path");
    config.executable = env!("CARGO_BIN_EXE_refrain").into();
    config.flags = ["--load-arena", "16MiB"].map(Into::into).to_vec();
    Sidecar::start(config).expect("it starts")
}

fn directory() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory is made")
}

fn accepts(sidecar: &Sidecar) -> bool {
    UnixStream::connect(sidecar.address().path()).is_ok()
}

#[test]
fn sidecar_accepts_from_its_start_to_its_kill_or_stop() {
    let directory = directory();
    let mut sidecar = start(&directory);
    assert!(accepts(&sidecar));
    let first = sidecar.pid();
    sidecar.kill().unwrap();
    assert!(!accepts(&sidecar));
    assert_eq!(sidecar.pid(), None);
    assert!(matches!(sidecar.kill(), Err(SidecarError::NotRunning)));

    assert_eq!(sidecar.restart().unwrap(), sidecar.start_time());
    assert!(accepts(&sidecar) && sidecar.pid().is_some());
    assert_ne!(sidecar.pid(), first);
    sidecar.check().unwrap();
    // One that runs is stopped first.
    sidecar.restart().unwrap();
    assert!(accepts(&sidecar));
    sidecar.stop().unwrap();
    assert!(!accepts(&sidecar));
}

#[test]
fn dropped_sidecar_is_gone() {
    let directory = directory();
    let sidecar = start(&directory);
    let path = sidecar.address().path().to_owned();
    drop(sidecar);
    assert!(UnixStream::connect(path).is_err());
}

#[test]
fn sidecar_that_dies_by_itself_is_noticed_with_what_it_said() {
    let directory = directory();
    let mut sidecar = start(&directory);
    let pid = Pid::from_raw(sidecar.pid().unwrap().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let begun = Instant::now();
    let error = loop {
        if let Err(error) = sidecar.check() {
            break error;
        }
        assert!(begun.elapsed() < Duration::from_mins(1));
        std::thread::yield_now();
    };
    assert!(
        matches!(&error, SidecarError::Ended { stderr, .. } if stderr.contains("INFO")),
        "{error}"
    );
}
