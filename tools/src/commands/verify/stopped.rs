//! The disks of a stopped store are read record by record, and put right where that is asked for.

use super::{Damaged, Report};
use crate::rows::Block;
use crate::stopped::{self, Found};
use crate::target::{Target, TargetArgs};
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use refrain_index::chain::{BlockKey, Chain, Place};
use refrain_index::hash::SequenceHash;
use refrain_store::check::ReadError;
use refrain_store::drive::Opening;
use refrain_store::recover::{Damage, SegmentProblem};
use refrain_store::segment::Entry;

/// The index asks where a block lies; here it does not matter.
#[derive(Clone, Copy, Debug)]
struct Anywhere;

impl Place for Anywhere {
    fn group(&self) -> u32 {
        0
    }
}

/// `drives` were opened to be looked at; a repair opens them again through `target`.
pub(super) fn verify(
    mut drives: Vec<Opening>,
    target: &TargetArgs,
    repair: bool,
    bar: &ProgressBar,
) -> Result<Report> {
    let mut report = Report::default();
    let mut found = stopped::examine(&drives);
    let problems = segment_problems(&drives, &found);
    let before = problems.len() as u64;
    for (kind, text) in problems {
        report.count(kind, 1);
        report.problems.push(text);
    }
    if repair {
        drop(drives);
        drives = match target.open_with(Opening::open_existing)? {
            Target::Stopped(drives) => drives,
            Target::Running(_) => bail!("a sidecar has started on the store meanwhile: try again"),
        };
        for opening in &mut drives {
            let path = opening.path().display().to_string();
            opening.repair_segments().with_context(|| format!("repair segments in {path}"))?;
        }
        found = stopped::examine(&drives);
        let left = segment_problems(&drives, &found);
        // Files that were cut are whole again now that they are open for writing.
        let left =
            left.iter().filter(|(kind, _)| *kind != SegmentProblem::TRUNCATED).count() as u64;
        report.repaired = before.saturating_sub(left);
    }
    bar.set_length(found.iter().map(Found::live_bytes).sum());
    let mut good = Vec::new();
    for found in &found {
        let opening = found.opening(&drives);
        Segment { opening, found, repair }.verify(&mut report, &mut good, bar);
    }
    report.orphans = Chain::default().restore(good, 0).orphans as u64;
    Ok(report)
}

/// What is wrong with whole segments, and with their heads.
fn segment_problems(drives: &[Opening], found: &[Found]) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    for (drive, opening) in drives.iter().enumerate() {
        let texts = opening.problems().iter();
        problems.extend(texts.map(|problem| (problem.kind(), format!("drive {drive}: {problem}"))));
    }
    for found in found {
        let heads = found.examined.damage.iter();
        let heads = heads.filter(|damage| matches!(damage, Damage::Head { .. }));
        let drive = found.drive;
        problems.extend(heads.map(|damage| (damage.kind(), format!("drive {drive}: {damage}"))));
        let unreadable = found.unreadable.as_ref();
        problems.extend(
            unreadable.map(|error| ("unreadable segment", format!("drive {drive}: {error}"))),
        );
    }
    problems
}

/// A block as the index takes it.
type Indexed = (BlockKey, Option<SequenceHash>, Anywhere);

/// A segment whose records are read.
struct Segment<'a> {
    opening: &'a Opening,
    found: &'a Found,
    repair: bool,
}

impl Segment<'_> {
    fn verify(&self, report: &mut Report, good: &mut Vec<Indexed>, bar: &ProgressBar) {
        let Found { drive, head, examined, .. } = self.found;
        let (mut footer, mut withdrawn) = (false, false);
        for damage in &examined.damage {
            if let Damage::Header { offset, next, .. } = *damage {
                self.mend(report, || self.opening.close_gap(head.id, offset, next));
            } else if matches!(damage, Damage::Footer { .. }) {
                footer = true;
            } else {
                // Told with the segments as a whole.
                continue;
            }
            report.count(damage.kind(), 1);
            report.problems.push(format!("drive {drive}: {damage}"));
        }
        for entry in self.found.entries() {
            report.blocks += 1;
            report.bytes += entry.stored_length();
            match self.opening.read_record(head.id, entry) {
                Ok(_) => good.push(indexed(entry)),
                Err(ReadError::Withdrawn) => {
                    report.blocks -= 1;
                    report.withdrawn += 1;
                    withdrawn = true;
                }
                Err(error) => {
                    report.count(error.kind(), 1);
                    self.mend(report, || self.opening.withdraw_record(head.id, entry));
                    let block = Block::stopped(*drive, *head, entry);
                    let verdict = format!("{:#}", anyhow::Error::new(error));
                    report.damaged_blocks.push(Damaged { block, verdict });
                    withdrawn = true;
                }
            }
            bar.inc(entry.stored_length());
            bar.set_message(format!("{} blocks, {} damaged", report.blocks, report.damaged));
        }
        if footer {
            self.mend(report, || self.opening.reseal(head.id));
        } else if self.repair && withdrawn && examined.scan.sealed {
            // Its footer lists them still. Should this fail, reads find them withdrawn all the same.
            let _ = self.opening.reseal(head.id);
        }
    }

    /// Does what puts one damage right, where that is asked for.
    fn mend(&self, report: &mut Report, repair: impl FnOnce() -> std::io::Result<()>) {
        if !self.repair {
            return;
        }
        match repair() {
            Ok(()) => report.repaired += 1,
            Err(error) => report.problems.push(format!(
                "drive {}, segment {}: repair: {error}",
                self.found.drive, self.found.head.id.0
            )),
        }
    }
}

fn indexed(entry: &Entry) -> Indexed {
    let key = BlockKey { sequence: SequenceHash(entry.sequence_hash), shard: entry.shard };
    let parent = (entry.position > 0).then_some(SequenceHash(entry.parent));
    (key, parent, Anywhere)
}
