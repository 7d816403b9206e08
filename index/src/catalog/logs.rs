//! Whether RocksDB comes to the end of its logs: the list of its files, and what it wrote last.
//!
//! `RocksDB` 11.8 reads on for ever where a flipped bit makes a record look like one of a recycled log,
//! before it looks at that record's checksum, and nothing ends an `open` from outside. No log of a
//! catalogue is recycled, so whoever opens one looks for such records first. What else is damaged,
//! `RocksDB` finds. A log is made of blocks of 32 KiB, and these of records, each with a checksum, a
//! length and a type before its bytes.

use std::ffi::OsStr;
use std::path::Path;
use std::{fs, io};

const BLOCK: usize = 32 << 10;
const HEADER: usize = 7;
/// The parts of a record, of what tells of the sizes of timestamps, and of what tells of the log
/// before: as a log that is used again has them.
const RECYCLED: [u8; 6] = [5, 6, 7, 8, 11, 131];

/// `false` where `RocksDB` would not come to an end.
pub(super) fn end(catalogue: &Path) -> io::Result<bool> {
    for file in fs::read_dir(catalogue)? {
        let path = file?.path();
        let is_list =
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"MANIFEST-"));
        if (is_list || path.extension() == Some(OsStr::new("log"))) && !ends(&fs::read(&path)?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Follows the lengths where `RocksDB` would have stopped for a wrong checksum, too: what is found
/// there costs a catalogue that was damaged anyway.
fn ends(log: &[u8]) -> bool {
    log.chunks(BLOCK).all(|block| headers(block).all(|[.., kind]| !RECYCLED.contains(&kind)))
}

fn headers(block: &[u8]) -> impl Iterator<Item = [u8; HEADER]> {
    let mut rest = Some(block);
    std::iter::from_fn(move || {
        let (header, after) = rest?.split_first_chunk::<HEADER>()?;
        let length = u16::from_le_bytes([header[4], header[5]]);
        rest = after.get(length.into()..);
        Some(*header)
    })
}

#[cfg(test)]
mod tests {
    //! Proves that no record that looks like a recycled one is handed to `RocksDB`, and that logs as it
    //! writes them, and as a kill leaves them, are.

    use super::*;
    use crate::catalog::{Catalog, OpenState, Run};
    use std::path::PathBuf;

    const STORE: [u8; 16] = [7; 16];

    /// Closed with rows in its log, which its list says nothing of.
    fn catalogue(path: &Path) {
        let (catalog, _) = Catalog::open(path, STORE).unwrap();
        for segment in 0..3 {
            let run =
                Run { segment, generation: 1, start: 4096, end: 8192, sealed: false, rows: vec![] };
            catalog.commit(&run).unwrap();
        }
    }

    fn logs(catalogue: &Path) -> [PathBuf; 2] {
        let files = fs::read_dir(catalogue).unwrap().map(|file| file.unwrap().path());
        let names = ["MANIFEST-", ".log"];
        let files: Vec<_> = files.collect();
        names.map(|name| {
            let of = |path: &&PathBuf| path.file_name().unwrap().to_str().unwrap().contains(name);
            files.iter().find(of).unwrap().clone()
        })
    }

    fn places(log: &[u8]) -> Vec<usize> {
        assert!(log.len() < BLOCK);
        let mut at = 0;
        let kinds = headers(log).map(|header| {
            let kind = at + HEADER - 1;
            at += HEADER + usize::from(u16::from_le_bytes([header[4], header[5]]));
            kind
        });
        kinds.collect()
    }

    #[test]
    fn a_record_that_looks_recycled_empties_the_catalogue_and_is_never_read() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("catalog");
        for which in 0..2 {
            catalogue(&path);
            let log = fs::read(&logs(&path)[which]).unwrap();
            let places = places(&log);
            assert!(places.len() > 2);
            for place in places {
                let _ = fs::remove_dir_all(&path);
                catalogue(&path);
                let file = &logs(&path)[which];
                let mut damaged = fs::read(file).unwrap();
                damaged[place] ^= 4;
                fs::write(file, &damaged).unwrap();
                assert!(!end(&path).unwrap());
                let (_, state) = Catalog::open(&path, STORE).unwrap();
                assert_eq!(state, OpenState::Damaged);
            }
            fs::remove_dir_all(&path).unwrap();
        }
    }

    #[test]
    fn logs_as_they_are_written_and_as_a_kill_leaves_them_end() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("catalog");
        catalogue(&path);
        assert!(end(&path).unwrap());
        assert_eq!(Catalog::open(&path, STORE).unwrap().1, OpenState::Kept);
        let log = fs::read(&logs(&path)[0]).unwrap();
        assert!((0..log.len()).all(|length| ends(&log[..length])));
        assert!(ends(&[log, vec![0; 3 * BLOCK]].concat()));
    }

    #[test]
    fn a_record_is_looked_for_behind_one_that_is_longer_than_its_block() {
        let mut log = vec![0; BLOCK + HEADER];
        log[4] = 0xff;
        log[5] = 0xff;
        assert!(ends(&log));
        log[BLOCK + HEADER - 1] = 8;
        assert!(!ends(&log));
    }
}
