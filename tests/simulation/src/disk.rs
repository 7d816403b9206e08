//! The simulated disk: segments as pages, each with what is durable and what is not yet.
//!
//! # The fault model
//!
//! A page of 4 KiB is written whole or not at all; a write of several pages is torn between any of
//! them. A write that has completed is read back by whoever reads next. It is durable once a sync
//! of its file that began later has succeeded.
//!
//! - **Power loss**, at any point: of each page, any of the versions since the last sync is left,
//!   or the one before, each page for itself: so unsynced writes are dropped and reordered, and
//!   what was in flight is torn. Sometimes all of them are left, or none, or all up to some moment.
//! - **A process that is killed**: what has completed is left; of what was in flight, some pages.
//! - **A failed sync**: pages that it should have made durable are or are not, and those that are
//!   not are gone: a later sync that succeeds does not bring them back.
//! - **A failed, short or interrupted operation** has done some of its pages, in any of which the
//!   failed one is not among the first.
//! - **Lost and misdirected writes, misdirected reads and rotten bits** are reported by nobody. The
//!   disk notes which segments they hit: in these alone may promised blocks be missing.
//! - **Latency**: some microseconds, or far more; operations complete in any order, or never.

use fastrand::Rng;
use std::collections::BTreeSet;
use std::sync::Arc;

pub const PAGE: usize = 4096;
const PAGE_BYTES: u64 = 4096;

/// `None` is a page of zeros.
pub type Content = Option<Arc<[u8; PAGE]>>;

#[derive(Clone, Debug, Default)]
struct Page {
    durable: Content,
    /// Written since, in order, each with its number.
    volatile: Vec<(u64, Content)>,
}

impl Page {
    fn latest(&self) -> &Content {
        self.volatile.last().map_or(&self.durable, |(_, content)| content)
    }
}

#[derive(Clone, Debug)]
struct Segment {
    pages: Vec<Page>,
    /// Pages with something volatile.
    dirty: BTreeSet<usize>,
}

/// What leaves a disk's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    PowerLoss,
    Kill,
}

/// A change of the disk, as a recorder sees it.
#[derive(Clone, Debug)]
pub enum Change {
    /// One operation's pages, the first of them at page `first`; operations are counted.
    Written { number: u64, segment: usize, first: usize, pages: Vec<Content> },
    /// All that was written to a segment up to operation `covered` is durable.
    Synced { segment: usize, covered: u64 },
}

/// One drive's segments.
#[derive(Debug)]
pub struct Disk {
    segments: Vec<Segment>,
    segment_bytes: u64,
    written: u64,
    /// Segments that silent faults have hit. A new use does not make up for it: where it was the
    /// head that was lost, the next use has the same number, and stands among what is left of this.
    damaged: BTreeSet<usize>,
    recorded: Option<Vec<Change>>,
}

impl Disk {
    pub fn new(segments: usize, segment_bytes: u64) -> Self {
        let pages = vec![Page::default(); index(segment_bytes / PAGE_BYTES)];
        let segment = Segment { pages, dirty: BTreeSet::new() };
        Self {
            segments: vec![segment; segments],
            segment_bytes,
            written: 0,
            damaged: BTreeSet::new(),
            recorded: None,
        }
    }

    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    pub fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// What `changes` leave, of which `keep` says whether a page was written: the number of its
    /// operation, and which page of that it is.
    pub fn replay<'c>(
        segments: usize,
        segment_bytes: u64,
        changes: impl Iterator<Item = &'c Change>,
        keep: impl Fn(u64, usize) -> bool,
    ) -> Self {
        let mut disk = Self::new(segments, segment_bytes);
        for change in changes {
            let Change::Written { number, segment, first, pages } = change else { continue };
            for (index, content) in pages.iter().enumerate() {
                if keep(*number, index) {
                    disk.segments[*segment].pages[first + index].durable.clone_from(content);
                }
            }
        }
        disk
    }

    /// Notes every change from now on.
    pub fn record(&mut self) {
        self.recorded = Some(Vec::new());
    }

    pub fn recorded(&self) -> &[Change] {
        self.recorded.as_deref().unwrap_or_default()
    }

    pub fn read(&self, segment: usize, offset: u64, bytes: &mut [u8]) {
        let first = self.page_of(segment, offset, bytes.len());
        let pages = &self.segments[segment].pages[first..];
        for (bytes, page) in bytes.chunks_mut(PAGE).zip(pages) {
            match page.latest() {
                Some(content) => bytes.copy_from_slice(&content[..bytes.len()]),
                None => bytes.fill(0),
            }
        }
    }

    /// Writes whole pages; `keep` says of each whether it is written at all.
    pub fn write(
        &mut self,
        segment: usize,
        offset: u64,
        bytes: &[u8],
        mut keep: impl FnMut(usize) -> bool,
    ) {
        let first = self.page_of(segment, offset, bytes.len());
        self.written += 1;
        let (pages, _) = bytes.as_chunks::<PAGE>();
        for (index, page) in pages.iter().enumerate().filter(|(index, _)| keep(*index)) {
            let content = (page != &[0; PAGE]).then(|| Arc::new(*page));
            self.segments[segment].pages[first + index].volatile.push((self.written, content));
            self.segments[segment].dirty.insert(first + index);
        }
        if let Some(recorded) = &mut self.recorded {
            let pages = pages.iter().map(|page| Some(Arc::new(*page))).collect();
            recorded.push(Change::Written { number: self.written, segment, first, pages });
        }
    }

    /// Of the writes so far the last one's number: what a sync that begins now will cover.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// A sync of what was written up to `covered` has ended well.
    pub fn synced(&mut self, segment: usize, covered: u64) {
        self.settle(segment, covered, |_| true);
        if let Some(recorded) = &mut self.recorded {
            recorded.push(Change::Synced { segment, covered });
        }
    }

    /// A sync of what was written up to `covered` has failed: some of that is gone.
    pub fn sync_failed(&mut self, segment: usize, covered: u64, random: &mut Rng) {
        self.settle(segment, covered, |_| random.bool());
    }

    /// Makes pages durable as they were at `covered`, or as they were before.
    fn settle(&mut self, segment: usize, covered: u64, mut keep: impl FnMut(usize) -> bool) {
        let Segment { pages, dirty } = &mut self.segments[segment];
        dirty.retain(|&index| {
            let page = &mut pages[index];
            let count = page.volatile.iter().take_while(|(number, _)| *number <= covered).count();
            if count > 0 {
                let (_, last) = page.volatile.drain(..count).next_back().expect("some are drained");
                if keep(index) {
                    page.durable = last;
                }
            }
            !page.volatile.is_empty()
        });
    }

    /// Power is lost, or the process killed, which costs nothing that was written.
    pub fn cut(&mut self, cut: Cut, random: &mut Rng) {
        if cut == Cut::Kill {
            return;
        }
        let share = [0, 500, 500, 900, 1000][random.usize(0..5)];
        let until = if random.u8(0..4) == 0 { random.u64(0..=self.written) } else { u64::MAX };
        for Segment { pages, dirty } in &mut self.segments {
            for index in std::mem::take(dirty) {
                let page = &mut pages[index];
                let mut versions = std::mem::take(&mut page.volatile);
                versions.retain(|(number, _)| *number <= until);
                if !versions.is_empty() && random.u32(0..1000) < share {
                    let last = versions.len() - 1;
                    let chosen = if share == 1000 { last } else { random.usize(0..=last) };
                    page.durable = versions.swap_remove(chosen).1;
                }
            }
        }
    }

    /// A bit of some written page flips.
    pub fn rot(&mut self, random: &mut Rng) {
        let segment = random.usize(0..self.segments.len());
        let pages = &mut self.segments[segment].pages;
        let written = pages.iter_mut().filter(|page| page.latest().is_some()).count();
        if written == 0 {
            return;
        }
        let nth = random.usize(0..written);
        let page = pages.iter_mut().filter(|page| page.latest().is_some()).nth(nth);
        let page = page.expect("counted above");
        let content = match page.volatile.last_mut() {
            Some((_, content)) => content,
            None => &mut page.durable,
        };
        let content = Arc::make_mut(content.as_mut().expect("chosen for it"));
        content[random.usize(0..PAGE)] ^= 1 << random.u8(0..8);
        self.damaged.insert(segment);
    }

    /// Something was done to a segment that nobody will be told of.
    pub fn note_damage(&mut self, segment: usize) {
        self.damaged.insert(segment);
    }

    pub fn is_damaged(&self, segment: usize) -> bool {
        self.damaged.contains(&segment)
    }

    fn page_of(&self, segment: usize, offset: u64, length: usize) -> usize {
        let whole = offset.is_multiple_of(PAGE_BYTES) && length.is_multiple_of(PAGE);
        assert!(whole, "bytes {offset}+{length} are not whole pages");
        let end = offset + u64::try_from(length).expect("usize fits");
        assert!(
            segment < self.segments.len() && end <= self.segment_bytes,
            "bytes {offset}+{length} lie outside segment {segment}: above the bound"
        );
        index(offset / PAGE_BYTES)
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("usize has 64 bits")
}
