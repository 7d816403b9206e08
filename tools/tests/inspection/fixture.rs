//! A real store of a chain of blocks, the commands over it, and what can go wrong with its files.

use refrain_store::arena::{Arena, Mapping};
use refrain_store::drive::{DriveConfig, IoEngine, KnownSegment, Opening};
use refrain_store::engine::{Append, Durability, NewRecord, Payload};
use refrain_store::files;
use refrain_store::geometry::{HEADER_SIZE, Layout, SegmentId};
use refrain_store::segment::Entry;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::channel;

pub(crate) const SEGMENT: u64 = 16 << 20;
const SEGMENTS: u64 = 3;
/// Fifteen fill the first segment, the rest lie in an open one.
pub(crate) const BLOCKS: u64 = 20;
pub(crate) const SEALED: u64 = 15;

pub(crate) struct Store {
    _parent: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) error: String,
}

impl Ran {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("{}{}", self.out, self.error))
    }

    /// Asserts a refusal that says `expected`.
    pub(crate) fn refused(&self, expected: &str) {
        let Self { code, error, .. } = self;
        assert_eq!(*code, 1, "{error}");
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

pub(crate) fn refrain<const N: usize>(arguments: [&str; N]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_refrain"));
    let output = command.args(arguments).env_remove("REFRAIN_ADDRESS").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran {
        code: output.status.code().expect("it ends by itself"),
        out: text(output.stdout),
        error: text(output.stderr),
    }
}

pub(crate) fn parent() -> tempfile::TempDir {
    // Not where tests usually write: an older kernel has no O_DIRECT on tmpfs.
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn hash(block: u64) -> [u8; 32] {
    let mut hash = [7; 32];
    hash[..8].copy_from_slice(&block.to_le_bytes());
    hash
}

impl Store {
    /// Blocks 0 to `BLOCKS`, each behind the one before.
    pub(crate) fn new() -> Self {
        let parent = parent();
        let path = parent.path().join("store");
        let config = DriveConfig {
            path: path.clone(),
            capacity_bytes: SEGMENTS * SEGMENT,
            segment_bytes: Some(SEGMENT),
            io_engine: IoEngine::Auto,
            durability: Durability::Group,
        };
        let opening = Opening::open(&config).unwrap();
        let known = opening.segments().iter().map(|head| KnownSegment {
            id: head.id,
            end: 0,
            sealed: false,
            entries: Vec::new(),
        });
        let known = known.collect();
        let arena = Arena::new(Mapping::create("test", 64 << 20).unwrap());
        let arenas = [std::sync::Arc::clone(arena.mapping())];
        let drive = opening.start(&arenas, known, Box::new(|_| {})).unwrap();
        let layout = Layout::new(8, 131_072).unwrap();
        for block in 0..BLOCKS {
            let frame = arena.allocate(layout.stored_length()).unwrap();
            let region = frame.region().slice(0, layout.stored_length() - HEADER_SIZE);
            let mut content = vec![0; usize::try_from(layout.payload_length).unwrap()];
            fastrand::Rng::with_seed(block).fill(&mut content);
            region.copy_from(0, &content);
            let (sender, receiver) = channel();
            let append = Append {
                header: NewRecord {
                    key_scheme: 1,
                    sequence_hash: hash(block),
                    shard: 0,
                    parent: hash(block.wrapping_sub(1)),
                    namespace: [9; 32],
                    epoch: 3,
                    position: u32::try_from(block).unwrap(),
                },
                payload: Payload::new(&layout, region).unwrap(),
                keep: Some(Box::new(frame)),
                reply: Box::new(move |outcome| sender.send(outcome).unwrap()),
            };
            drive.append(append).unwrap();
            receiver.recv().unwrap().unwrap();
        }
        drive.stop();
        Self { _parent: parent, path }
    }

    pub(crate) fn directory(&self) -> &str {
        self.path.to_str().unwrap()
    }

    pub(crate) fn verify(&self) -> Ran {
        refrain(["verify", "--json", "--dir", self.directory()])
    }

    pub(crate) fn repair(&self) -> Ran {
        refrain(["verify", "--json", "--repair", "--dir", self.directory()])
    }

    pub(crate) fn file(&self, segment: u32) -> PathBuf {
        self.path.join(files::name(SegmentId(segment)))
    }

    pub(crate) fn entry(&self, segment: u32, index: usize) -> Entry {
        let opening = Opening::open_read_only(&self.path).unwrap();
        opening.scan(SegmentId(segment), 0).unwrap().entries.remove(index)
    }

    pub(crate) fn end(&self, segment: u32) -> u64 {
        let opening = Opening::open_read_only(&self.path).unwrap();
        opening.scan(SegmentId(segment), 0).unwrap().end
    }

    /// One page of a segment.
    pub(crate) fn page(&self, segment: u32, offset: u64) -> [u8; 4096] {
        let mut page = [0; 4096];
        File::open(self.file(segment)).unwrap().read_exact_at(&mut page, offset).unwrap();
        page
    }

    pub(crate) fn write(&self, segment: u32, offset: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(self.file(segment)).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    pub(crate) fn flip(&self, segment: u32, offset: u64) {
        let file = File::options().read(true).write(true).open(self.file(segment)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 0x20], offset).unwrap();
    }

    pub(crate) fn cut(&self, segment: u32, length: u64) {
        let file = File::options().write(true).open(self.file(segment)).unwrap();
        file.set_len(length).unwrap();
    }

    pub(crate) fn swap(&self, one: u32, other: u32) {
        let aside = self.path.join("aside");
        std::fs::rename(self.file(one), &aside).unwrap();
        std::fs::rename(self.file(other), self.file(one)).unwrap();
        std::fs::rename(aside, self.file(other)).unwrap();
    }

    /// Every file as it stands: its bytes, and when they and their keeping were last changed.
    pub(crate) fn state(&self) -> BTreeMap<PathBuf, (u64, u64, [i64; 4])> {
        files_in(&self.path)
            .map(|path| {
                let bytes = std::fs::read(&path).unwrap();
                let data = path.metadata().unwrap();
                let times = [data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec()];
                let sum = refrain_store::format::checksum(&bytes);
                (path, (bytes.len() as u64, sum, times))
            })
            .collect()
    }
}

fn files_in(path: &Path) -> impl Iterator<Item = PathBuf> {
    path.read_dir().unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file())
}
