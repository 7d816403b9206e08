//! Files that a replay writes beside its report.

use super::Args;
use super::args::How;
use super::hit_log::HitLog;
use super::outcome::Outcome;
use super::plot::Plot;
use anyhow::Result;
use std::time::Duration;

/// Those that were asked for. Times are from the start of the replay.
#[derive(Debug, Default)]
pub(super) struct Records {
    hit_log: Option<HitLog>,
    plot: Option<Plot>,
}

impl Records {
    pub(super) fn create(args: &Args) -> Result<Self> {
        let plot = |path| Plot::create(path, args.nodes, args.block_tokens);
        Ok(Self {
            hit_log: args.hit_log.as_deref().map(HitLog::create).transpose()?,
            plot: args.plot.as_deref().map(plot).transpose()?,
        })
    }

    pub(super) fn served(&mut self, outcome: &Outcome) -> Result<()> {
        if let Some(plot) = &mut self.plot {
            plot.add(outcome);
        }
        self.hit_log.as_mut().map_or(Ok(()), |log| log.write(outcome))
    }

    pub(super) fn disturbed(&mut self, how: How, at: Duration) {
        if let Some(plot) = &mut self.plot {
            plot.disturbed(how, at);
        }
    }

    /// What was disturbed is there again.
    pub(super) fn restored(&mut self, at: Duration) {
        if let Some(plot) = &mut self.plot {
            plot.restored(at);
        }
    }

    pub(super) fn finish(self) -> Result<()> {
        let logged = self.hit_log.map_or(Ok(()), HitLog::finish);
        self.plot.map_or(Ok(()), Plot::finish).and(logged)
    }
}
