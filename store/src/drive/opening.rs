//! A store that is open and locked, and does not serve yet: the time of recovery.

use super::{
    Arc, Arena, Command, Counters, Directory, Drive, DriveConfig, Duration, Engine, Entry, File,
    Generation, GroupEvent, Instant, JoinHandle, Limits, Mapping, Mutex, NewStore, Now, OpenError,
    Path, PathBuf, QUEUE, RECORDS_START, SCRATCH_BYTES, Scan, ScanError, SegmentHead, SegmentId,
    SegmentProblem, SegmentSetup, SegmentState, SegmentStatus, Setup, Shared, SyncSender, Waker,
    Worker, adopt_memory, files, recover, start_thread, sync_channel,
};
use super::{Durability, IoEngine};
use crate::answers::{Answers, Heard};
use crate::check::{ReadError, Wanted};
use crate::device::Medium;
use crate::directory::Access;
use crate::files::FilesError;
use crate::format::RecordHeader;
use crate::geometry::PAGE_SIZE;
use crate::recover::{Damage, Examined, Inspected, SegmentFile};
use crate::superblock::Superblock;
use std::io;

mod outline;

/// What whoever opens a store knows of a segment, from a catalogue or from a scan.
#[derive(Clone, Debug)]
pub struct KnownSegment {
    pub id: SegmentId,
    /// End of its last record.
    pub end: u64,
    pub sealed: bool,
    /// All records where it is not sealed; they are repeated in its footer.
    pub entries: Vec<Entry>,
}

/// An open, locked store over media `M`: files in a directory, unless it is simulated.
#[derive(Debug)]
pub struct Opening<M = File> {
    /// Holds the lock. Media that are no files have none.
    pub(super) directory: Option<Directory>,
    superblock: Superblock,
    path: PathBuf,
    pub(super) media: Vec<Heard<M>>,
    /// Whole pages of each file, up to the size of a segment.
    pub(super) available: Vec<u64>,
    pub(super) heads: Vec<SegmentHead>,
    pub(super) problems: Vec<SegmentProblem>,
    io_engine: IoEngine,
    durability: Durability,
    limits: Limits,
}

/// What a drive's handle is made of, but for who runs it.
struct Parts {
    commands: SyncSender<Command>,
    counters: Arc<Counters>,
    segments: Arc<Mutex<Vec<SegmentStatus>>>,
    superblock: Superblock,
    segment_count: u32,
    path: PathBuf,
    begun: Instant,
    now: Now,
    hang_patience: Duration,
}

impl Parts {
    fn drive(self, waker: Waker, io_engine: &'static str, thread: Option<JoinHandle<()>>) -> Drive {
        let Self { commands, counters, segments, superblock, segment_count, path, .. } = self;
        let (begun, now, hang_patience) = (self.begun, self.now, self.hang_patience);
        let shared = Shared {
            commands,
            waker,
            counters,
            segments,
            thread: Mutex::new(thread),
            io_engine,
            capacity_bytes: superblock.capacity_bytes,
            segment_bytes: superblock.segment_bytes,
            segment_count,
            path,
            begun,
            now,
            hang_patience,
        };
        Drive { shared: Arc::new(shared) }
    }
}

/// Segments of a new store are as many as this, where that gives them a usual size.
const SEGMENTS_WANTED: u64 = 16;
const SEGMENT_MIN: u64 = 16 << 20;
const SEGMENT_MAX: u64 = 1 << 30;

pub(super) fn usual_segment_bytes(capacity: u64) -> u64 {
    let wanted = (capacity / SEGMENTS_WANTED).max(1);
    let power = 1u64 << (u64::BITS - 1 - wanted.leading_zeros());
    power.clamp(SEGMENT_MIN, SEGMENT_MAX)
}

impl Opening {
    /// Opens the store of `config`, or makes it.
    pub fn open(config: &DriveConfig) -> Result<Self, OpenError> {
        Self::open_or_make(config, &Answers::default())
    }

    /// As `open`, and tells of what the drive has answered. Once that was given up, no store is made.
    pub fn open_or_make(config: &DriveConfig, answers: &Answers) -> Result<Self, OpenError> {
        let segment = config.segment_bytes;
        let segment_bytes = segment.unwrap_or_else(|| usual_segment_bytes(config.capacity_bytes));
        let new = NewStore { segment_bytes, capacity_bytes: config.capacity_bytes };
        let directory = Directory::open_or_make(&config.path, new, answers)?;
        Self::enter(directory, answers, (config.io_engine, config.durability))?.readable()
    }

    /// Opens the store of `config` as it is, and makes none: where a drive is missing, the directory
    /// that it should be mounted on may lie on another.
    pub fn open_again(config: &DriveConfig, answers: &Answers) -> Result<Self, OpenError> {
        let directory = Directory::open_existing(&config.path)?;
        Self::enter(directory, answers, (config.io_engine, config.durability))?.readable()
    }

    /// Refuses a store of which no segment can be read, rather than write over all of them.
    fn readable(self) -> Result<Self, OpenError> {
        let unreadable =
            |problem: &&SegmentProblem| matches!(problem, SegmentProblem::Unreadable { .. });
        if self.problems.iter().filter(unreadable).count() < self.heads.len() {
            Ok(self)
        } else {
            Err(OpenError::Unreadable { path: self.path })
        }
    }

    /// Opens the store at `path` as it is.
    pub fn open_existing(path: &Path) -> Result<Self, OpenError> {
        Self::enter_alone(Directory::open_existing(path)?)
    }

    /// Opens the store at `path` to look at it: nothing on the disk changes, not even what is
    /// wrong. It cannot be started.
    pub fn open_read_only(path: &Path) -> Result<Self, OpenError> {
        Self::enter_alone(Directory::open_read_only(path)?)
    }

    /// Nobody watches how far it is.
    fn enter_alone(directory: Directory) -> Result<Self, OpenError> {
        Self::enter(directory, &Answers::default(), (IoEngine::Auto, Durability::Group))
    }

    fn enter(
        directory: Directory,
        answers: &Answers,
        (io_engine, durability): (IoEngine, Durability),
    ) -> Result<Self, OpenError> {
        let (files, truncated) = files::open_all(&directory, answers)?;
        let segment_bytes = directory.superblock().segment_bytes;
        let mut available = Vec::new();
        for (id, file) in (0..).map(SegmentId).zip(&files) {
            let path = || directory.path().join(files::name(id));
            let length =
                file.metadata().map_err(|source| FilesError::Open { path: path(), source });
            available.push(length?.len().min(segment_bytes) / PAGE_SIZE * PAGE_SIZE);
            answers.note();
        }
        let truncated = truncated.into_iter();
        let problems = truncated.map(|t| SegmentProblem::Truncated { id: t.id, found: t.found });
        Self {
            superblock: *directory.superblock(),
            path: directory.path().into(),
            directory: Some(directory),
            media: heard(files, answers),
            available,
            heads: Vec::new(),
            problems: problems.collect(),
            io_engine,
            durability,
            limits: Limits::default(),
        }
        .entered()
    }

    /// Starts the drive's thread over what is `known`; segments that are not are free.
    pub fn start(
        mut self,
        arenas: &[Arc<Mapping>],
        known: Vec<KnownSegment>,
        on_group: Box<dyn FnMut(GroupEvent) + Send>,
    ) -> Result<Drive, OpenError> {
        let directory = self.directory.take().expect("files lie in a directory");
        assert_eq!(directory.access(), Access::ReadWrite, "a drive writes");
        let io_engine = self.io_engine;
        let scratch = Mapping::create("refrain-scratch", SCRATCH_BYTES)?;
        let mut adopted = vec![Arc::clone(&scratch)];
        adopted.extend_from_slice(arenas);
        let now = Arc::new(Instant::now);
        let (parts, worker, files) = self.into_parts(scratch, known, now, on_group);
        let (thread, waker, io_engine) = start_thread(files, io_engine, worker, directory)?;
        adopt_memory(adopted, parts.commands.clone(), waker.clone())?;
        Ok(parts.drive(waker, io_engine, Some(thread)))
    }
}

impl<M: Medium> Opening<M> {
    /// A store over whole segments that are no files, for whoever gives it a device later.
    pub fn over(
        superblock: Superblock,
        path: PathBuf,
        media: Vec<M>,
        durability: Durability,
    ) -> Result<Self, OpenError> {
        Self {
            directory: None,
            superblock,
            path,
            available: vec![superblock.segment_bytes; media.len()],
            media: heard(media, &Answers::default()),
            heads: Vec::new(),
            problems: Vec::new(),
            io_engine: IoEngine::Auto,
            durability,
            limits: Limits::default(),
        }
        .entered()
    }

    /// The drive as [`Opening::start`] has it, without its thread: whoever holds the worker is
    /// that thread, and gives it the time of `now`. `waker` says that there is work for it.
    pub fn detached(
        self,
        (waker, now): (Waker, Now),
        scratch: Arc<Mapping>,
        known: Vec<KnownSegment>,
        on_group: Box<dyn FnMut(GroupEvent) + Send>,
    ) -> (Drive, Worker) {
        let (parts, worker, _) = self.into_parts(scratch, known, now, on_group);
        (parts.drive(waker, "detached", None), worker)
    }

    fn entered(mut self) -> Result<Self, OpenError> {
        self.look_at_heads();
        let newer =
            |problem: &&SegmentProblem| matches!(problem, SegmentProblem::NewerVersion { .. });
        match self.problems.iter().find(newer) {
            Some(&problem) => Err(problem.into()),
            None => Ok(self),
        }
    }

    /// Reads every segment's head, and tells what is wrong with segments by them.
    pub(super) fn look_at_heads(&mut self) {
        let store_id = self.store_id();
        self.heads.clear();
        self.problems.retain(|problem| matches!(problem, SegmentProblem::Truncated { .. }));
        for (id, file) in (0..).map(SegmentId).zip(&self.media) {
            let (head, problem) = recover::head(file, id, store_id);
            let cut = SegmentProblem::Unreadable { id };
            let known = |problem: &SegmentProblem| matches!(problem, SegmentProblem::Truncated { id: at, .. } if *at == id);
            let problem = problem.filter(|&problem| {
                // Too short to have a head: that it was cut says so already.
                problem != cut || !self.problems.iter().any(known)
            });
            self.heads.push(head);
            self.problems.extend(problem);
        }
        // An untrusted head may stand for any use before: none of them may be repeated.
        let unknown = |it: &&SegmentProblem| {
            it.is_of_head() || matches!(it, SegmentProblem::Unreadable { .. })
        };
        let ids = self.problems.iter().filter(unknown);
        let untrusted: Vec<_> = ids.map(SegmentProblem::segment).collect();
        let told = untrusted.iter().filter_map(|&id| recover::last_generation(&self.segment(id)));
        let newest = self.heads.iter().map(|head| head.generation).chain(told).max();
        for id in untrusted {
            let next = newest.map_or(1, |newest| newest.0 + 1);
            self.heads[id.index()].generation = Generation(next);
        }
    }

    /// Bounds other than the usual ones.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    pub fn store_id(&self) -> [u8; 16] {
        self.superblock.store_id
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn segment_bytes(&self) -> u64 {
        self.superblock.segment_bytes
    }

    pub fn capacity_bytes(&self) -> u64 {
        self.superblock.capacity_bytes
    }

    pub fn segment_count(&self) -> u32 {
        u32::try_from(self.heads.len()).expect("ids have 32 bits")
    }

    /// Every segment, by id.
    pub fn segments(&self) -> &[SegmentHead] {
        &self.heads
    }

    /// What was found wrong with whole segments: their blocks are misses.
    pub fn problems(&self) -> &[SegmentProblem] {
        &self.problems
    }

    /// The records of a segment from byte `from` on: [`RECORDS_START`], or the end of what is known.
    pub fn scan(&self, segment: SegmentId, from: u64) -> Result<Scan, ScanError> {
        recover::scan(&self.segment(segment), from.max(RECORDS_START))
    }

    /// Looks a segment through for damage that a scan passes over.
    pub fn examine(&self, segment: SegmentId) -> Result<Examined, ScanError> {
        let mut examined = recover::examine(&self.segment(segment))?;
        // A problem of the whole segment says so already.
        let whole = |problem: &SegmentProblem| {
            problem.segment() == segment && !matches!(problem, SegmentProblem::Truncated { .. })
        };
        if self.problems.iter().any(whole) {
            examined.damage.retain(|damage| !matches!(damage, Damage::Head { .. }));
        }
        Ok(examined)
    }

    /// Reads one record and checks all of it.
    pub fn read_record(
        &self,
        segment: SegmentId,
        entry: &Entry,
    ) -> Result<RecordHeader, ReadError> {
        let segment = self.segment(segment);
        recover::read_record(&segment, &wanted(&segment, entry), entry)
    }

    /// Reads one record and says of each part whether it is what was written.
    pub fn inspect_record(&self, segment: SegmentId, entry: &Entry) -> Inspected {
        let segment = self.segment(segment);
        recover::inspect_record(&segment, &wanted(&segment, entry), entry)
    }

    /// Makes durable what a scan of a segment has found.
    pub fn sync(&self, segment: SegmentId) -> io::Result<()> {
        self.segment(segment).file.sync()
    }

    pub(super) fn segment(&self, id: SegmentId) -> SegmentFile<'_> {
        let index = id.index();
        SegmentFile {
            file: &self.media[index],
            head: self.heads[index],
            store_id: self.store_id(),
            segment_bytes: self.segment_bytes(),
            available: self.available[index],
        }
    }

    fn into_parts(
        self,
        scratch: Arc<Mapping>,
        known: Vec<KnownSegment>,
        now: Now,
        on_group: Box<dyn FnMut(GroupEvent) + Send>,
    ) -> (Parts, Worker, Vec<M>) {
        let counters = Arc::new(Counters::default());
        let (begun, hang_patience) = (now(), self.limits.hang_patience);
        let engine = Engine::new(Setup {
            store_id: self.store_id(),
            segment_bytes: self.segment_bytes(),
            durability: self.durability,
            limits: self.limits,
            segments: self.setups(known),
            scratch: Arena::new(scratch),
            counters: Arc::clone(&counters),
            on_group,
        });
        let segments = Arc::new(Mutex::new(engine.segments()));
        let (commands, receiver) = sync_channel(QUEUE);
        let worker = Worker {
            engine,
            commands: receiver,
            segments: Arc::clone(&segments),
            counters: Arc::clone(&counters),
            begun,
            stopping: false,
        };
        let segment_count = self.segment_count();
        let Self { superblock, path, media, .. } = self;
        let parts = Parts {
            commands,
            counters,
            segments,
            superblock,
            segment_count,
            path,
            begun,
            now,
            hang_patience,
        };
        let media = media.into_iter().map(|heard| heard.medium).collect();
        (parts, worker, media)
    }

    fn setups(&self, known: Vec<KnownSegment>) -> Vec<SegmentSetup> {
        let mut setups: Vec<_> = self
            .heads
            .iter()
            .map(|head| SegmentSetup {
                status: SegmentStatus {
                    id: head.id,
                    generation: head.generation,
                    birth: head.birth,
                    state: SegmentState::Free,
                    end: RECORDS_START,
                },
                entries: Vec::new(),
            })
            .collect();
        for KnownSegment { id, end, sealed, entries } in known {
            let setup = &mut setups[id.index()];
            if end > RECORDS_START && setup.status.generation.0 > 0 {
                setup.status.end = end;
                setup.status.state = if sealed { SegmentState::Sealed } else { SegmentState::Open };
                setup.entries = entries;
            }
        }
        setups
    }
}

fn heard<M>(media: Vec<M>, answers: &Answers) -> Vec<Heard<M>> {
    let heard = |medium| Heard { medium, answers: answers.clone() };
    media.into_iter().map(heard).collect()
}

fn wanted(segment: &SegmentFile<'_>, entry: &Entry) -> Wanted {
    Wanted {
        store_id: segment.store_id,
        address: segment.address(entry.offset),
        sequence_hash: entry.sequence_hash,
        shard: entry.shard,
        namespace: entry.namespace,
    }
}
