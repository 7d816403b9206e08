//! A running sidecar reads its blocks and withdraws what is damaged.

use super::{Damaged, Report};
use crate::admin::Admin;
use anyhow::Result;
use indicatif::ProgressBar;

pub(super) fn verify(sidecar: &mut Admin, rate: u64, bar: &ProgressBar) -> Result<Report> {
    let bytes = sidecar.stats()?.drives.iter().map(|drive| drive.live_bytes).sum();
    bar.set_length(bytes);
    let mut report = Report::default();
    sidecar.verify(rate, |progress| {
        (report.blocks, report.bytes) = (progress.blocks, progress.bytes);
        report.damaged = progress.damaged;
        let withdrawn = progress.withdrawn.into_iter();
        report.damaged_blocks.extend(
            withdrawn.map(|block| Damaged { block: block.into(), verdict: "withdrawn".into() }),
        );
        bar.set_position(progress.bytes);
        bar.set_message(format!("{} of {} blocks", progress.blocks, progress.total_blocks));
    })?;
    if report.damaged > 0 {
        report.damaged_by_kind.insert("block", report.damaged);
    }
    report.repaired = report.damaged;
    Ok(report)
}
