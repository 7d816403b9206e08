//! Proves when a socket is taken over, and that whoever serves one keeps it.

use super::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::sync::Barrier;

fn at(directory: &tempfile::TempDir) -> (PathBuf, PathBuf) {
    let path = directory.path().join("refrain.sock");
    let beside = session::socket_path(&path);
    (path, beside)
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o777
}

#[test]
fn both_sockets_answer_until_they_are_dropped_and_are_gone_then() {
    let directory = tempfile::tempdir().unwrap();
    let (path, beside) = at(&directory);
    let sockets = Sockets::bind(&path, 0o600).unwrap();
    UnixStream::connect(&path).unwrap();
    UnixStream::connect(&beside).unwrap();
    assert_eq!((mode(&path), mode(&beside)), (0o600, 0o600));
    drop(sockets);
    assert_eq!(directory.path().read_dir().unwrap().count(), 0);
}

#[test]
fn permissions_are_those_asked_for_whatever_the_umask() {
    let directory = tempfile::tempdir().unwrap();
    let (path, beside) = at(&directory);
    let _sockets = Sockets::bind(&path, 0o666).unwrap();
    assert_eq!((mode(&path), mode(&beside)), (0o666, 0o666));
}

#[test]
fn socket_that_is_served_is_refused_and_goes_on_being_served() {
    let directory = tempfile::tempdir().unwrap();
    let (path, beside) = at(&directory);
    let first = Sockets::bind(&path, 0o600).unwrap();
    let error = Sockets::bind(&path, 0o600).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "socket {} is served by another sidecar: stop it, or listen elsewhere",
            path.display()
        )
    );
    UnixStream::connect(&path).unwrap();
    UnixStream::connect(&beside).unwrap();
    drop(first);

    // Only the session's is served: the other must not be taken either.
    let session = UnixListener::bind(&beside).unwrap();
    assert!(
        matches!(Sockets::bind(&path, 0o600), Err(SocketError::InUse { path }) if path == beside)
    );
    assert!(!path.exists());
    drop(session);
}

#[test]
fn sockets_that_a_kill_left_are_taken_over() {
    let directory = tempfile::tempdir().unwrap();
    let (path, beside) = at(&directory);
    // A closed listener leaves its name, as a killed process does.
    drop(UnixListener::bind(&path).unwrap());
    drop(UnixListener::bind(&beside).unwrap());
    let _sockets = Sockets::bind(&path, 0o600).unwrap();
    UnixStream::connect(&path).unwrap();
    UnixStream::connect(&beside).unwrap();
}

#[test]
fn anything_but_a_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (path, _) = at(&directory);
    std::fs::write(&path, "kept").unwrap();
    let refused =
        format!("{} is there and is no socket: remove it, or listen elsewhere", path.display());
    assert_eq!(Sockets::bind(&path, 0o600).unwrap_err().to_string(), refused);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "kept");

    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("elsewhere", &path).unwrap();
    assert_eq!(Sockets::bind(&path, 0o600).unwrap_err().to_string(), refused);
}

#[test]
fn missing_directory_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let error = Sockets::bind(&missing.join("refrain.sock"), 0o600).unwrap_err();
    let expected = format!(
        "open directory {0} of socket {0}/refrain.sock: make it, or listen elsewhere",
        missing.display()
    );
    assert_eq!(error.to_string(), expected);
}

#[test]
fn socket_of_a_successor_survives_the_end_of_its_predecessor() {
    let directory = tempfile::tempdir().unwrap();
    let (path, beside) = at(&directory);
    let first = Sockets::bind(&path, 0o600).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::remove_file(&beside).unwrap();
    let _second = Sockets::bind(&path, 0o600).unwrap();
    drop(first);
    UnixStream::connect(&path).unwrap();
    UnixStream::connect(&beside).unwrap();
}

#[test]
fn of_many_that_find_a_stale_socket_at_once_one_gets_it() {
    const RIVALS: usize = 8;
    let directory = tempfile::tempdir().unwrap();
    let (path, _) = at(&directory);
    for _ in 0..20 {
        drop(UnixListener::bind(&path).unwrap());
        let start = Barrier::new(RIVALS);
        let rival = || {
            start.wait();
            Sockets::bind(&path, 0o600)
        };
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let rivals: Vec<_> = (0..RIVALS).map(|_| scope.spawn(rival)).collect();
            rivals.into_iter().map(|rival| rival.join().unwrap()).collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        assert_eq!(won.len(), 1);
        assert!(lost.iter().all(|lost| matches!(lost, Err(SocketError::InUse { .. }))));
        UnixStream::connect(&path).unwrap();
    }
}

#[test]
fn directory_that_may_not_be_written_is_named() {
    if rustix::process::geteuid().is_root() {
        // Permissions bind nobody here; a directory of the kernel does.
        let error = Sockets::bind(Path::new("/proc/refrain.sock"), 0o600).unwrap_err();
        assert_eq!(error.to_string(), "listen on socket /proc/refrain.sock.session");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (path, _) = at(&directory);
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o500)).unwrap();
    assert!(matches!(Sockets::bind(&path, 0o600), Err(SocketError::Bind { .. })));
}
