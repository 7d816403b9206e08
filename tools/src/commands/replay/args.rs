//! The flags of a replay.

use anyhow::{Result, ensure};
use clap::ValueEnum;
use refrain_client::Address;
use refrain_server::config::{parse_duration, parse_size};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  Replay a trace on a sidecar of its own, in a temporary directory here:
    refrain replay trace.jsonl --capacity 8GiB
  The same, killed with SIGKILL half-way and started again: the hit rate must stay the same:
    refrain replay trace.jsonl --capacity 8GiB --kill-at half
  Four nodes of a fleet, each request on any of them; a server of the directory is killed half-way,
  and what that did to the hit rate is drawn:
    refrain replay trace.jsonl --capacity 2GiB --nodes 4 --kill-at half --kill master --plot hits.svg
  A sidecar that runs already, four workers with two requests each in flight, ten times faster than
  the trace was recorded:
    refrain serve --dir /mnt/nvme0/refrain --capacity 800GiB --listen unix:/run/refrain.sock
    refrain replay trace.jsonl.gz --addr unix:/run/refrain.sock --block-bytes 4497408 \\
        --workers 4 --concurrency 2 --speed 10

A trace has block ids and no text. Equal ids stand for equal tokens, and what a block holds follows
from its id, all ids before it and the seed: every byte that is loaded is compared, and a wrong one
ends in exit status 1, as does a request that failed. Hits count in tokens of the trace
(--block-tokens), whatever a block takes on disk (--block-bytes): so a working set of terabytes
replays on a small disk at the same hit rate. The sidecar is shown 16 tokens a block, which changes
nothing but the length of prompts on the wire.

With several requests in flight, a prompt may be looked up before the one that it goes on from has
been saved, and the hit rate stays below the ideal; --speed keeps them as far apart as they were.

With --nodes, each node has a directory and a capacity of its own, and all of them one fleet's
directory: six processes of redis-server (or valkey-server), started and stopped here.

Replayed again on the same directory or sidecar with the same seed, blocks of the last time are hits.
Ctrl-C finishes what runs and prints the report so far; a second one ends at once.";

/// Drive a sidecar with the requests of a trace, and compare every byte that comes back.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// JSON Lines, gzip'd or plain, with `hash_ids` or `hash_runs`
    pub(super) trace: PathBuf,
    /// Bytes of a block as it is stored
    #[arg(long, value_name = "SIZE", default_value = "16KiB", value_parser = parse_size)]
    pub(super) block_bytes: u64,
    /// Tokens of a block in the trace
    #[arg(long, value_name = "N", default_value_t = 512,
        value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) block_tokens: u64,
    /// Layers of a block; must divide --block-bytes [default: as fits]
    #[arg(long, value_name = "N")]
    pub(super) layers: Option<u32>,

    /// Bytes that the sidecar may store, as in 8GiB
    #[arg(long, value_name = "SIZE", required_unless_present = "addr", value_parser = parse_size)]
    pub(super) capacity: Option<u64>,
    /// Store directory of the sidecar [default: a temporary one here, removed at the end]
    #[arg(long)]
    pub(super) dir: Option<PathBuf>,
    /// How the sidecar drives the disk: auto, uring or blocking
    #[arg(long, value_name = "ENGINE")]
    pub(super) io_engine: Option<String>,
    /// What a save waits for: none, group or sync
    #[arg(long, value_name = "WHEN")]
    pub(super) durability: Option<String>,
    /// Memory of the sidecar for loads and hot blocks
    #[arg(long, value_name = "SIZE")]
    pub(super) load_arena: Option<String>,
    /// Use the sidecar that listens there, instead of one of our own
    #[arg(long, value_name = "unix:PATH", conflicts_with_all = [
        "capacity", "dir", "io_engine", "durability", "load_arena", "disturbance"])]
    pub(super) addr: Option<Address>,
    /// Kill the sidecar (SIGKILL) when this request of the replay starts, and start it again
    #[arg(long, value_name = "N|half", group = "disturbance")]
    pub(super) kill_at: Option<At>,
    /// Stop the sidecar (SIGTERM) when this request of the replay starts, and start it again
    #[arg(long, value_name = "N|half", group = "disturbance")]
    pub(super) restart_at: Option<At>,

    /// Nodes of a fleet, each with a sidecar of its own
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "addr",
        value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(super) nodes: u16,
    /// Which node of a fleet serves a request
    #[arg(long, value_name = "HOW", value_enum, default_value_t = RouteBy::Random)]
    pub(super) route: RouteBy,
    /// How long a node's lookup waits for its peers [default: the sidecar's]
    #[arg(long, value_name = "TIME")]
    pub(super) lookup_deadline: Option<String>,
    /// What --kill-at kills; servers of the directory are started again after five seconds
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = Victim::Sidecar,
        requires = "kill_at")]
    pub(super) kill: Victim,
    /// Empty the directory (FLUSHALL ASYNC on its masters) when this request of the replay starts
    #[arg(long, value_name = "N|half", group = "disturbance")]
    pub(super) flush_at: Option<At>,
    /// Hold the first node's sidecar (SIGSTOP) for five seconds when this request of the replay
    /// starts; it is sent no other request until then
    #[arg(long, value_name = "N|half", group = "disturbance")]
    pub(super) pause_at: Option<At>,
    /// Part the first two nodes for ten seconds when this request of the replay starts: what one sends
    /// the other is dropped. Takes root or user namespaces, util-linux and iproute2
    #[arg(long, value_name = "N|half", group = "disturbance")]
    pub(super) part_at: Option<At>,
    /// Change what the first node's sidecar sends its peers for ten seconds when this request of the
    /// replay starts: bits of announcements, headers and KV flip, and connections are cut short, by
    /// --seed
    #[arg(long, value_name = "N|half", group = "disturbance")]
    pub(super) spoil_at: Option<At>,
    /// Stop each node's sidecar (SIGTERM) and start it again, one every five seconds, from when this
    /// request of the replay starts
    #[arg(long, value_name = "N|half", group = "disturbance")]
    pub(super) roll_at: Option<At>,
    /// This process has a network of its own already
    #[arg(long, hide = true)]
    pub(super) apart: bool,

    /// Workers, each with a session of its own
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) workers: u32,
    /// Requests that a worker has in flight
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) concurrency: u32,
    /// How many times faster than recorded requests arrive; 0 is as fast as they are served
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = speed)]
    speed: f64,
    /// Requests to leave out at the start
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) skip: u64,
    /// Requests to replay at most
    #[arg(long, value_name = "N")]
    pub(super) limit: Option<u64>,

    /// How long a load, or any call, may take; what is not there by then is a miss
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub(super) deadline: Duration,
    /// How long a request waits for a sidecar that went away
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub(super) wait: Duration,
    /// How long a request tries to save its blocks while the disk is behind; 0s gives up at once
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub(super) save_patience: Duration,
    /// Let every save wait until it would survive a power loss
    #[arg(long)]
    pub(super) durable: bool,

    /// Other seeds make other contents, which share nothing
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) seed: u64,
    /// Tenants share nothing either
    #[arg(long, default_value = "replay")]
    pub(super) tenant: String,
    /// Print the report as one line of JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Write a JSON line for every request
    #[arg(long, value_name = "FILE")]
    pub(super) hit_log: Option<PathBuf>,
    /// Draw the token hit rate over time, as SVG
    #[arg(long, value_name = "FILE")]
    pub(super) plot: Option<PathBuf>,
}

/// How a fleet's nodes share requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum RouteBy {
    /// Any node, by chance
    Random,
    /// The node that served half of it or more last, or else any
    Affinity,
}

/// What is killed with SIGKILL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Victim {
    /// The sidecar, of a fleet the first node's; started again at once
    Sidecar,
    /// A master of the directory's cluster
    Master,
    /// A replica
    Replica,
    /// All servers of the directory
    Directory,
}

/// A request of the replay, counted from its first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Half,
    Request(u64),
}

/// What is done to our own sidecars, or to their directory, on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Disturbance {
    /// Counted from the first request of the replay.
    pub(super) at: u64,
    pub(super) how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Kill(Victim),
    Restart,
    Flush,
    Pause,
    Part,
    Spoil,
    Roll,
}

impl Args {
    /// `None` waits for nothing.
    pub(super) fn speed(&self) -> Option<f64> {
        (self.speed > 0.0).then_some(self.speed)
    }

    pub(super) fn disturbance(&self, requests: u64) -> Result<Option<Disturbance>> {
        let flags = [
            (self.kill_at, How::Kill(self.kill)),
            (self.restart_at, How::Restart),
            (self.flush_at, How::Flush),
            (self.pause_at, How::Pause),
            (self.part_at, How::Part),
            (self.spoil_at, How::Spoil),
            (self.roll_at, How::Roll),
        ];
        let Some((at, how)) = flags.into_iter().find_map(|(at, how)| Some((at?, how))) else {
            return Ok(None);
        };
        let is_for_one = matches!(how, How::Kill(Victim::Sidecar) | How::Restart);
        ensure!(self.nodes > 1 || is_for_one, "a sidecar alone is no fleet: give --nodes");
        let at = at.request(requests);
        ensure!(at < requests, "there is no request {at} among {requests}, counted from 0");
        Ok(Some(Disturbance { at, how }))
    }
}

impl fmt::Display for How {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Kill(Victim::Sidecar) => "sidecar killed",
            Self::Kill(Victim::Master) => "master killed",
            Self::Kill(Victim::Replica) => "replica killed",
            Self::Kill(Victim::Directory) => "directory killed",
            Self::Restart => "sidecar restarted",
            Self::Flush => "directory emptied",
            Self::Pause => "sidecar held",
            Self::Part => "nodes parted",
            Self::Spoil => "wrong bytes sent",
            Self::Roll => "nodes restarted in turn",
        })
    }
}

impl At {
    fn request(self, requests: u64) -> u64 {
        match self {
            Self::Half => requests / 2,
            Self::Request(number) => number,
        }
    }
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "half" => Ok(Self::Half),
            Ok(number) => Ok(Self::Request(number)),
            Err(_) => Err("give the number of a request, or `half`".into()),
        }
    }
}

fn speed(text: &str) -> Result<f64, String> {
    // Beyond this a trace of a day takes years, or clocks end.
    let in_range = |speed: &f64| *speed == 0.0 || (0.001..=1e6).contains(speed);
    let speed = text.parse().ok().filter(in_range);
    speed.ok_or_else(|| "give a factor from 0.001 to 1000000, or 0".into())
}

#[cfg(test)]
mod tests {
    //! Proves what flags mean, and which are refused.

    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &str) -> Result<Args, String> {
        let words = ["replay", "trace.jsonl"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.args).map_err(|error| error.to_string())
    }

    fn check_disturbance(line: &str, requests: u64, expected: Result<Option<Disturbance>, &str>) {
        let found = args(&format!("--capacity 1GiB {line}")).unwrap().disturbance(requests);
        assert_eq!(found.map_err(|error| error.to_string()), expected.map_err(str::to_owned));
    }

    #[test]
    fn request_of_a_kill_is_a_number_or_half() {
        let kill = |at| Disturbance { at, how: How::Kill(Victim::Sidecar) };
        check_disturbance("", 10, Ok(None));
        check_disturbance("--kill-at half", 11, Ok(Some(kill(5))));
        check_disturbance("--kill-at half", 1, Ok(Some(kill(0))));
        check_disturbance("--restart-at 9", 10, Ok(Some(Disturbance { at: 9, how: How::Restart })));
        let outside = "there is no request 10 among 10, counted from 0";
        check_disturbance("--kill-at 10", 10, Err(outside));
        let of_fleets = [
            ("--kill-at 1 --kill master", How::Kill(Victim::Master)),
            ("--flush-at 1", How::Flush),
            ("--pause-at 1", How::Pause),
            ("--part-at 1", How::Part),
            ("--spoil-at 1", How::Spoil),
            ("--roll-at 1", How::Roll),
        ];
        for (flags, how) in of_fleets {
            let alone = "a sidecar alone is no fleet: give --nodes";
            check_disturbance(flags, 10, Err(alone));
            let disturbance = Disturbance { at: 1, how };
            check_disturbance(&format!("{flags} --nodes 2"), 10, Ok(Some(disturbance)));
        }
        let twice = args("--capacity 1GiB --nodes 2 --flush-at 1 --kill-at 2").unwrap_err();
        assert!(twice.contains("cannot be used with"), "{twice}");
        let error = args("--capacity 1GiB --kill-at middle").unwrap_err();
        assert!(error.contains("give the number of a request, or `half`"), "{error}");
    }

    #[test]
    fn sizes_and_times_are_written_with_units() {
        let args = args("--capacity 8GiB --block-bytes 16KiB --wait 2m --deadline 500ms").unwrap();
        assert_eq!((args.capacity, args.block_bytes), (Some(8 << 30), 16 << 10));
        assert_eq!(
            (args.wait, args.deadline),
            (Duration::from_mins(2), Duration::from_millis(500))
        );
    }

    #[test]
    fn speed_of_zero_waits_for_nothing() {
        assert_eq!(args("--capacity 1GiB").unwrap().speed(), None);
        assert_eq!(args("--capacity 1GiB --speed 0").unwrap().speed(), None);
        assert_eq!(args("--capacity 1GiB --speed 10").unwrap().speed(), Some(10.0));
        for wrong in ["-1", "NaN", "inf", "0.0001", "fast"] {
            assert!(speed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sidecar_is_our_own_or_somebody_elses() {
        assert!(args("").unwrap_err().contains("--capacity"));
        assert!(args("--addr unix:/run/refrain.sock").is_ok());
        for own in ["--capacity 1GiB", "--dir d", "--kill-at half", "--io-engine uring"] {
            let error = args(&format!("--addr unix:/run/refrain.sock {own}")).unwrap_err();
            assert!(error.contains("cannot be used with"), "{error}");
        }
    }
}
