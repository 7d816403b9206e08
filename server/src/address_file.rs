//! The file `address` in each store directory: where the sidecar on that store listens.
//!
//! Tools that are given a directory find the sidecar by it, as `unix:PATH` with an absolute path
//! and nothing after it. A sidecar that was killed leaves its file, and the next one replaces it:
//! the file says where to ask, not whether anybody answers.

use crate::config::Listen;
use crate::private_file;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use thiserror::Error;

/// Its name within a store directory.
pub const ADDRESS_FILE: &str = "address";

/// Why a store directory does not say where its sidecar listens.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AddressFileError {
    #[error("write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// The files that were written; dropped, they are removed.
#[must_use]
#[derive(Debug)]
pub struct AddressFiles {
    listen: Listen,
    paths: Mutex<Vec<PathBuf>>,
}

impl AddressFiles {
    /// Writes `listen` into each of `directories`, whose stores the caller holds the locks of: until
    /// those are given back, the files are nobody else's.
    pub fn write<'d>(
        directories: impl IntoIterator<Item = &'d Path>,
        listen: &Listen,
    ) -> Result<Self, AddressFileError> {
        let files = Self { listen: listen.clone(), paths: Mutex::default() };
        directories.into_iter().try_for_each(|directory| files.add(directory))?;
        Ok(files)
    }

    /// Writes the same into one more.
    pub fn add(&self, directory: &Path) -> Result<(), AddressFileError> {
        let path = directory.join(ADDRESS_FILE);
        let written = std::path::absolute(self.listen.path()).and_then(|socket| {
            let mut text = b"unix:".to_vec();
            text.extend(socket.as_os_str().as_encoded_bytes());
            private_file::replace(&path, &text)
        });
        written.map_err(|source| AddressFileError::Write { path: path.clone(), source })?;
        self.paths.lock().unwrap_or_else(PoisonError::into_inner).push(path);
        Ok(())
    }
}

impl Drop for AddressFiles {
    fn drop(&mut self) {
        for path in &*self.paths.lock().unwrap_or_else(PoisonError::into_inner) {
            // A file that stays says what a killed sidecar's does.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    //! Proves that a store says where its sidecar listens for as long as it does.

    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn every_directory_says_the_absolute_address_until_the_sidecar_stops() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let listen: Listen = "unix:run/refrain.sock".parse().unwrap();
        let files = AddressFiles::write([first.path(), second.path()], &listen).unwrap();
        let here = std::env::current_dir().unwrap();
        for directory in [&first, &second] {
            let path = directory.path().join("address");
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text, format!("unix:{}/run/refrain.sock", here.display()));
            assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        }
        drop(files);
        for directory in [&first, &second] {
            assert_eq!(directory.path().read_dir().unwrap().count(), 0);
        }
    }

    #[test]
    fn file_of_a_killed_sidecar_is_replaced_and_no_link_is_written_through() {
        let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let target = elsewhere.path().join("target");
        std::fs::write(&target, "kept").unwrap();
        for name in ["address", "address.new"] {
            std::os::unix::fs::symlink(&target, directory.path().join(name)).unwrap();
        }
        let listen: Listen = "unix:/run/refrain.sock".parse().unwrap();
        let files = AddressFiles::write([directory.path()], &listen).unwrap();
        let text = std::fs::read_to_string(directory.path().join("address")).unwrap();
        assert_eq!(text, "unix:/run/refrain.sock");
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "kept");
        drop(files);
    }

    #[test]
    fn directory_that_cannot_be_written_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let listen: Listen = "unix:/run/refrain.sock".parse().unwrap();
        let error = AddressFiles::write([&*missing], &listen).unwrap_err();
        assert_eq!(error.to_string(), format!("write {}/address", missing.display()));
    }
}
