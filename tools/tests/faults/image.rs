//! A directory as it was, to be made again after it was damaged.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Every file of a directory, by its path within.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    pub(crate) files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Image {
    pub(crate) fn of(directory: &Path) -> Self {
        let mut image = Self::default();
        image.add(directory, Path::new(""));
        image
    }

    fn add(&mut self, root: &Path, within: &Path) {
        for entry in fs::read_dir(root.join(within)).unwrap() {
            let entry = entry.unwrap();
            let name = within.join(entry.file_name());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                self.add(root, &name);
            } else if kind.is_file() {
                self.files.insert(name, fs::read(entry.path()).unwrap());
            }
        }
    }

    /// Only what lies below `within`, or only what does not.
    pub(crate) fn split(self, within: &str) -> (Self, Self) {
        let (inside, outside) =
            self.files.into_iter().partition(|(path, _)| path.starts_with(within));
        (Self { files: inside }, Self { files: outside })
    }

    /// Makes a directory that holds nothing else.
    pub(crate) fn write(&self, directory: &Path) {
        let _ = fs::remove_dir_all(directory);
        fs::create_dir_all(directory).unwrap();
        fs::set_permissions(directory, Permissions::from_mode(0o700)).unwrap();
        for (name, bytes) in &self.files {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        }
    }

    /// Makes files of a directory that has all of them what they were, in place.
    pub(crate) fn rewrite(&self, directory: &Path, only: impl Fn(&Path) -> bool) {
        for (name, bytes) in self.files.iter().filter(|(name, _)| only(name)) {
            let file = File::options().write(true).open(directory.join(name)).unwrap();
            file.write_all_at(bytes, 0).unwrap();
        }
    }
}
