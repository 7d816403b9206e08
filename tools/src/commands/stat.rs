//! `refrain stat`: a store at a glance.

use crate::rows::size;
use crate::stopped;
use crate::target::{Target, TargetArgs};
use anyhow::Result;
use clap::Args as ClapArgs;
use refrain_client::v1::{DirectoryStats, DriveStats, PeerStats, StatsResponse};
use refrain_store::drive::Opening;
use serde::Serialize;
use std::io::{self, Write};

/// Say how full a store is and, while its sidecar runs, how well it serves
#[derive(ClapArgs, Debug)]
#[command(after_help = "Examples:
  refrain stat                     the sidecar of this node
  refrain stat --dir /mnt/nvme0    a drive, also while its sidecar is stopped
  refrain stat --json | jq .running.matched_blocks")]
pub struct Args {
    /// JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// All that the command says.
#[derive(Debug, Serialize)]
struct Stat {
    capacity_bytes: u64,
    /// In segments that are not free.
    used_bytes: u64,
    live_bytes: u64,
    blocks: u64,
    drives: Vec<Drive>,
    /// Only a sidecar knows.
    running: Option<Running>,
}

#[derive(Debug, Serialize)]
struct Drive {
    path: String,
    capacity_bytes: u64,
    segment_bytes: u64,
    segments: u64,
    segments_free: u64,
    live_bytes: u64,
    /// Whole segments that are damaged; `refrain verify` names them.
    problems: u64,
    io: Option<Io>,
}

#[derive(Debug, Serialize)]
struct Io {
    engine: String,
    writable: bool,
    /// Why it is asked for nothing; empty while it serves.
    withdrawn: String,
    read_bytes: u64,
    written_bytes: u64,
    moved_bytes: u64,
    queued_read_bytes: u64,
    queued_write_bytes: u64,
    checksum_failures: u64,
    read_errors: u64,
    write_errors: u64,
}

#[derive(Debug, Serialize)]
struct Running {
    version: String,
    uptime_ms: u64,
    restart_us: u64,
    restart_source: String,
    pins: u64,
    pinned_bytes: u64,
    index_bytes: u64,
    host_frames: u64,
    host_bytes: u64,
    arena_bytes: u64,
    sessions: u64,
    leases: u64,
    reservations: u64,
    lookups: u64,
    lookup_blocks: u64,
    matched_blocks: u64,
    loaded_blocks_host: u64,
    loaded_blocks_ssd: u64,
    missed_blocks: u64,
    saved_blocks: u64,
    refused_blocks: u64,
    evicted_blocks: u64,
    damaged_blocks: u64,
    loaded_blocks_peer: u64,
    sent_blocks: u64,
    /// Sidecars that may ask this one.
    links: u64,
    /// Sidecars that this one asks.
    peers: Vec<Peer>,
    /// Of a node of a fleet.
    directory: Option<Directory>,
}

#[derive(Debug, Serialize)]
struct Peer {
    address: String,
    state: String,
    /// Why it was left alone last.
    reason: String,
    bytes_per_second: u64,
    fetched_blocks: u64,
    missed_blocks: u64,
}

#[derive(Debug, Serialize)]
struct Directory {
    node: u32,
    epoch: u32,
    reached: bool,
    joined: bool,
    live_nodes: u32,
    pending: u64,
    published: u64,
    unpublished: u64,
    locates: u64,
    probes: u64,
    unknown_probes: u64,
    audited: u64,
    audited_missing: u64,
}

pub fn run(args: &Args) -> Result<()> {
    let stat = match args.target.open()? {
        Target::Running(mut sidecar) => Stat::running(sidecar.stats()?),
        Target::Stopped(drives) => Stat::stopped(&drives),
    };
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&stat)?)?;
    } else {
        stat.print(&mut out)?;
    }
    Ok(())
}

impl Stat {
    fn of(drives: Vec<Drive>, blocks: u64, running: Option<Running>) -> Self {
        let used = |drive: &Drive| (drive.segments - drive.segments_free) * drive.segment_bytes;
        Self {
            capacity_bytes: drives.iter().map(|drive| drive.capacity_bytes).sum(),
            used_bytes: drives.iter().map(used).sum(),
            live_bytes: drives.iter().map(|drive| drive.live_bytes).sum(),
            blocks,
            drives,
            running,
        }
    }

    fn stopped(drives: &[Opening]) -> Self {
        let found = stopped::examine(drives);
        let mut rows = Vec::new();
        for (number, opening) in (0..).zip(drives) {
            let segments = || found.iter().filter(|found| found.drive == number);
            let free = segments().filter(|found| found.state(opening) == "free").count();
            rows.push(Drive {
                path: opening.path().display().to_string(),
                capacity_bytes: opening.capacity_bytes(),
                segment_bytes: opening.segment_bytes(),
                segments: u64::from(opening.segment_count()),
                segments_free: free as u64,
                live_bytes: segments().map(stopped::Found::live_bytes).sum(),
                problems: opening.problems().len() as u64
                    + segments().map(stopped::Found::damage_count).sum::<u64>(),
                io: None,
            });
        }
        let blocks = found.iter().map(|found| found.entries().count() as u64).sum();
        Self::of(rows, blocks, None)
    }

    fn running(stats: StatsResponse) -> Self {
        let running = Running {
            version: stats.version,
            uptime_ms: stats.uptime_ms,
            restart_us: stats.restart_us,
            restart_source: stats.restart_source,
            pins: stats.pins,
            pinned_bytes: stats.drives.iter().map(|drive| drive.pinned_bytes).sum(),
            index_bytes: stats.index_bytes,
            host_frames: stats.host_frames,
            host_bytes: stats.host_bytes,
            arena_bytes: stats.arena_bytes,
            sessions: stats.sessions,
            leases: stats.leases,
            reservations: stats.reservations,
            lookups: stats.lookups,
            lookup_blocks: stats.lookup_blocks,
            matched_blocks: stats.matched_blocks,
            loaded_blocks_host: stats.loaded_blocks_host,
            loaded_blocks_ssd: stats.loaded_blocks_ssd,
            missed_blocks: stats.missed_blocks,
            saved_blocks: stats.saved_blocks,
            refused_blocks: stats.refused_blocks,
            evicted_blocks: stats.evicted_blocks,
            damaged_blocks: stats.damaged_blocks,
            loaded_blocks_peer: stats.loaded_blocks_peer,
            sent_blocks: stats.sent_blocks,
            links: stats.links,
            peers: stats.peers.into_iter().map(Peer::of).collect(),
            directory: stats.directory.map(Directory::from),
        };
        let drives = stats.drives.into_iter().map(Drive::running).collect();
        Self::of(drives, stats.blocks, Some(running))
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let state = if self.running.is_some() { "running" } else { "stopped, read from its disks" };
        writeln!(out, "sidecar         {state}")?;
        let capacity = size(self.capacity_bytes);
        writeln!(out, "capacity        {capacity}, {} in use", size(self.used_bytes))?;
        writeln!(out, "blocks          {}, {}", self.blocks, size(self.live_bytes))?;
        if let Some(running) = &self.running {
            running.print(out)?;
        }
        for (number, drive) in self.drives.iter().enumerate() {
            drive.print(number, out)?;
        }
        Ok(())
    }
}

impl Drive {
    fn running(drive: DriveStats) -> Self {
        Self {
            path: drive.path,
            capacity_bytes: drive.capacity_bytes,
            segment_bytes: drive.segment_bytes,
            segments: drive.segments.into(),
            segments_free: drive.segments_free.min(drive.segments).into(),
            live_bytes: drive.live_bytes,
            problems: 0,
            io: Some(Io {
                engine: drive.io_engine,
                writable: drive.writable,
                withdrawn: drive.withdrawn,
                read_bytes: drive.read_bytes,
                written_bytes: drive.written_bytes,
                moved_bytes: drive.moved_bytes,
                queued_read_bytes: drive.queued_read_bytes,
                queued_write_bytes: drive.queued_write_bytes,
                checksum_failures: drive.checksum_failures,
                read_errors: drive.read_errors,
                write_errors: drive.write_errors,
            }),
        }
    }

    fn print(&self, number: usize, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "drive {number}         {}", self.path)?;
        let each = size(self.segment_bytes);
        let (free, all) = (self.segments_free, self.segments);
        writeln!(out, "  segments      {free} of {all} free, {each} each")?;
        writeln!(out, "  live          {}", size(self.live_bytes))?;
        if self.problems > 0 {
            writeln!(out, "  damaged       {} places: run `refrain verify`", self.problems)?;
        }
        let Some(io) = &self.io else { return Ok(()) };
        let writable = if io.writable { "" } else { ", writes stopped: see its log" };
        writeln!(out, "  engine        {}{writable}", io.engine)?;
        if !io.withdrawn.is_empty() {
            writeln!(out, "  WITHDRAWN     {}; its blocks are misses", io.withdrawn)?;
        }
        let (read, written, moved) =
            (size(io.read_bytes), size(io.written_bytes), size(io.moved_bytes));
        writeln!(out, "  since start   {read} read, {written} written, {moved} of it moved")?;
        let (reads, writes) = (size(io.queued_read_bytes), size(io.queued_write_bytes));
        writeln!(out, "  queued        {reads} to read, {writes} to write")?;
        let Io { checksum_failures, read_errors, write_errors, .. } = io;
        writeln!(
            out,
            "  failures      {checksum_failures} checksums, {read_errors} reads, {write_errors} writes"
        )
    }
}

impl Running {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let seconds = self.uptime_ms / 1000;
        writeln!(out, "version         {}, up {seconds} s", self.version)?;
        let restart = self.restart_us / 1000;
        writeln!(out, "restart         {restart} ms, from {}", self.restart_source)?;
        writeln!(out, "index           {}", size(self.index_bytes))?;
        writeln!(out, "pinned          {}, by {} pins", size(self.pinned_bytes), self.pins)?;
        let (used, all) = (size(self.host_bytes), size(self.arena_bytes));
        writeln!(out, "host tier       {} blocks, {used} of {all}", self.host_frames)?;
        let Self { sessions, leases, reservations, .. } = self;
        writeln!(out, "sessions        {sessions}, {leases} leases, {reservations} reservations")?;
        let (matched, asked) = (self.matched_blocks, self.lookup_blocks);
        let share = share(matched, asked);
        writeln!(out, "lookups         {}, {matched} of {asked} blocks hit{share}", self.lookups)?;
        let (host, ssd, missed) =
            (self.loaded_blocks_host, self.loaded_blocks_ssd, self.missed_blocks);
        writeln!(out, "loaded          {host} from memory, {ssd} from SSD, {missed} missed")?;
        let (saved, refused) = (self.saved_blocks, self.refused_blocks);
        writeln!(out, "saved           {saved} blocks, {refused} refused")?;
        let (evicted, damaged) = (self.evicted_blocks, self.damaged_blocks);
        writeln!(out, "gone            {evicted} evicted, {damaged} damaged")?;
        if self.links > 0 || !self.peers.is_empty() {
            let (from, to) = (self.loaded_blocks_peer, self.sent_blocks);
            let links = self.links;
            writeln!(out, "peers           {from} blocks from them, {to} to {links} that ask")?;
        }
        self.peers.iter().try_for_each(|peer| peer.print(out))?;
        self.directory.as_ref().map_or(Ok(()), |directory| directory.print(out))
    }
}

impl Peer {
    fn of(stats: PeerStats) -> Self {
        let PeerStats { address, state, reason, bytes_per_second, fetched_blocks, missed_blocks } =
            stats;
        Self { address, state, reason, bytes_per_second, fetched_blocks, missed_blocks }
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let Self { address, state, reason, fetched_blocks, missed_blocks, .. } = self;
        let rate = size(self.bytes_per_second);
        let why = if reason.is_empty() { String::new() } else { format!("; last: {reason}") };
        writeln!(
            out,
            "  {address}: {state}, {fetched_blocks} blocks, {missed_blocks} missed, {rate}/s{why}"
        )
    }
}

impl From<DirectoryStats> for Directory {
    fn from(stats: DirectoryStats) -> Self {
        Self {
            node: stats.node,
            epoch: stats.epoch,
            reached: stats.reached,
            joined: stats.joined,
            live_nodes: stats.live_nodes,
            pending: stats.pending,
            published: stats.published,
            unpublished: stats.unpublished,
            locates: stats.locates,
            probes: stats.probes,
            unknown_probes: stats.unknown_probes,
            audited: stats.audited,
            audited_missing: stats.audited_missing,
        }
    }
}

impl Directory {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let Self { node, epoch, live_nodes, pending, .. } = self;
        if !self.reached {
            writeln!(out, "directory       NOT REACHED: node {node} serves its own disks alone")?;
        } else if !self.joined {
            writeln!(out, "directory       node {node} has not joined: see its log")?;
        } else {
            writeln!(out, "directory       node {node} in epoch {epoch}, {live_nodes} nodes live")?;
        }
        let (published, unpublished) = (self.published, self.unpublished);
        writeln!(
            out,
            "  entries       {published} written, {unpublished} taken out, {pending} due"
        )?;
        let (probes, unknown) = (self.probes, self.unknown_probes);
        writeln!(out, "  lookups       {}, {probes} blocks, {unknown} unknown", self.locates)?;
        let (audited, missing) = (self.audited, self.audited_missing);
        writeln!(out, "  audited       {audited} blocks, {missing} without an entry")
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share for people")]
fn share(part: u64, all: u64) -> String {
    if all == 0 { String::new() } else { format!(", {:.1} %", 100.0 * part as f64 / all as f64) }
}
