//! What `refrain bench io` says: JSON for machines, a table with the targets for people.

use super::super::summary::{median, quantile, rounded};
use super::Plan;
use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Gigabytes (1e9 bytes) a second and core-seconds a gigabyte of one round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Round {
    pub(super) raw_write: f64,
    pub(super) store_write: f64,
    pub(super) raw_read: f64,
    pub(super) store_read: f64,
    pub(super) raw_stripe: f64,
    pub(super) store_stripe: f64,
    pub(super) raw_core_seconds: f64,
    pub(super) store_core_seconds: f64,
    pub(super) hash: u64,
}

/// One engine: medians over its rounds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct EngineReport {
    io_engine: &'static str,
    raw_read_gbps: f64,
    store_read_gbps: f64,
    read_ratio: f64,
    raw_write_gbps: f64,
    store_write_gbps: f64,
    write_ratio: f64,
    raw_stripe_read_gbps: f64,
    store_stripe_read_gbps: f64,
    stripe_read_ratio: f64,
    core_seconds_per_gb: f64,
    raw_core_seconds_per_gb: f64,
    read_p50_us_unloaded: f64,
    read_p99_us_unloaded: f64,
    read_p50_us_under_writes: f64,
    read_p99_us_under_writes: f64,
    write_gbps_beside_reads: f64,
    /// Of what the store read: equal for equal flags.
    hash: String,
}

/// All of it; the first engine stands on top.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    first: EngineReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_cpu_percent: Option<f64>,
    block_bytes: u64,
    stripe_bytes: u64,
    blocks: u64,
    depth: u32,
    rounds: u32,
    engines: BTreeMap<&'static str, EngineReport>,
}

impl EngineReport {
    pub(super) fn new(
        io_engine: &'static str,
        rounds: &[Round],
        (unloaded, loaded): &(Vec<f64>, Vec<f64>),
        write_gbps_beside_reads: f64,
        hash: u64,
    ) -> Self {
        let of = |value: fn(&Round) -> f64| {
            rounded(median(&rounds.iter().map(value).collect::<Vec<_>>()))
        };
        let micros = |values: &[f64], share: f64| quantile(values, share).round();
        Self {
            io_engine,
            raw_read_gbps: of(|round| round.raw_read),
            store_read_gbps: of(|round| round.store_read),
            read_ratio: of(|round| round.store_read / round.raw_read),
            raw_write_gbps: of(|round| round.raw_write),
            store_write_gbps: of(|round| round.store_write),
            write_ratio: of(|round| round.store_write / round.raw_write),
            raw_stripe_read_gbps: of(|round| round.raw_stripe),
            store_stripe_read_gbps: of(|round| round.store_stripe),
            stripe_read_ratio: of(|round| round.store_stripe / round.raw_stripe),
            core_seconds_per_gb: of(|round| round.store_core_seconds),
            raw_core_seconds_per_gb: of(|round| round.raw_core_seconds),
            read_p50_us_unloaded: micros(unloaded, 0.5),
            read_p99_us_unloaded: micros(unloaded, 0.99),
            read_p50_us_under_writes: micros(loaded, 0.5),
            read_p99_us_under_writes: micros(loaded, 0.99),
            write_gbps_beside_reads: rounded(write_gbps_beside_reads),
            hash: format!("{hash:016x}"),
        }
    }

    fn write_table(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{:28}{:>10}{:>10}{:>8}  target", self.io_engine, "raw", "store", "share")?;
        let mut line = |what: &str, raw: f64, store: f64, share: f64, least: f64| {
            let verdict = if share >= least { "met" } else { "missed" };
            writeln!(
                out,
                "  {what:26}{raw:>10.3}{store:>10.3}{share:>8.3}  >= {least:.2} {verdict}"
            )
        };
        line("read, GB/s", self.raw_read_gbps, self.store_read_gbps, self.read_ratio, 0.95)?;
        let stripes = (self.raw_stripe_read_gbps, self.store_stripe_read_gbps);
        line("read by stripe, GB/s", stripes.0, stripes.1, self.stripe_read_ratio, 0.90)?;
        line("write, GB/s", self.raw_write_gbps, self.store_write_gbps, self.write_ratio, 0.90)?;
        let (raw, store) = (self.raw_core_seconds_per_gb, self.core_seconds_per_gb);
        let verdict = if store <= 0.10 { "met" } else { "missed" };
        let name = "read, core-seconds a GB";
        writeln!(out, "  {name:26}{raw:>10.3}{store:>10.3}{:>8}  <= 0.10 {verdict}", "")?;
        let (p50, p99) = (self.read_p50_us_unloaded, self.read_p99_us_unloaded);
        writeln!(out, "  one block alone            p50 {p50} us, p99 {p99} us")?;
        let (p50, p99) = (self.read_p50_us_under_writes, self.read_p99_us_under_writes);
        let beside = self.write_gbps_beside_reads;
        writeln!(out, "  beside {beside:.3} GB/s of writes  p50 {p50} us, p99 {p99} us")?;
        writeln!(out, "  hash of what was read      {}", self.hash)
    }
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        reports: Vec<EngineReport>,
        idle_cpu_percent: Option<f64>,
    ) -> Result<Self> {
        let first = reports.first().context("no engine was measured")?.clone();
        Ok(Self {
            first,
            idle_cpu_percent: idle_cpu_percent.map(rounded),
            block_bytes: plan.block_bytes,
            stripe_bytes: plan.stripe_bytes(),
            blocks: plan.blocks,
            depth: plan.depth,
            rounds: plan.rounds,
            engines: reports.into_iter().map(|report| (report.io_engine, report)).collect(),
        })
    }

    pub(super) fn write_table(&self, out: &mut impl Write) -> io::Result<()> {
        let Self { blocks, block_bytes, stripe_bytes, depth, rounds, .. } = self;
        writeln!(
            out,
            "{blocks} blocks of {block_bytes} bytes in stripes of {stripe_bytes}, {depth} in \
             flight; medians of {rounds} rounds"
        )?;
        self.first.write_table(out)?;
        for report in self.engines.values().filter(|r| r.io_engine != self.first.io_engine) {
            report.write_table(out)?;
        }
        if let Some(percent) = self.idle_cpu_percent {
            let verdict = if percent <= 0.5 { "met" } else { "missed" };
            writeln!(
                out,
                "idle sidecar                {percent:.2} % of a core  <= 0.50 {verdict}"
            )?;
        }
        Ok(())
    }
}
