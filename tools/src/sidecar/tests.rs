//! Proves that a sidecar which does not start is told of in its own words.

use super::*;

fn start(executable: &str) -> SidecarError {
    let directory = tempfile::tempdir().unwrap();
    let mut config = SidecarConfig::new(directory.path(), 1 << 30).unwrap();
    config.executable = executable.into();
    Sidecar::start(config).unwrap_err()
}

#[test]
fn child_that_ends_at_its_start_is_shown_with_what_it_said() {
    // A shell takes the first argument for a script, which is not there.
    let error = start("/bin/sh");
    assert!(
        matches!(&error, SidecarError::Ended { stderr, .. } if stderr.contains("tied")),
        "{error}"
    );
}

#[test]
fn program_that_is_not_there_is_named() {
    let error = start("/nowhere/refrain");
    assert_eq!(error.to_string(), "start sidecar /nowhere/refrain");
}

#[test]
fn path_too_long_for_a_socket_is_refused_before_anything_starts() {
    let directory = Path::new("/tmp").join("d".repeat(100));
    let error = Sidecar::start(SidecarConfig::new(&directory, 1 << 30).unwrap()).unwrap_err();
    assert!(matches!(error, SidecarError::Address(AddressError::Long { .. })), "{error}");
}
