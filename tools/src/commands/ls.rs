//! `refrain ls`: what is stored.

use crate::rows::{self, Row};
use crate::stopped::{self, Found};
use crate::target::{Target, TargetArgs};
use anyhow::{Result, bail};
use clap::{Args as ClapArgs, ValueEnum};
use refrain_client::v1::list_request;
use refrain_store::drive::Opening;
use std::io::{self, Write};

/// List blocks, namespaces, segments or pins
///
/// Of a running sidecar: what it serves. Of a stopped store: what its records say.
#[derive(ClapArgs, Debug)]
#[command(after_help = "Examples:
  refrain ls namespaces                 what takes the space of the sidecar of this node
  refrain ls blocks --limit 20          some blocks, and how long nobody has asked for them
  refrain ls segments --dir /mnt/nvme0  the segments of a drive, also while its sidecar is stopped")]
pub struct Args {
    #[arg(value_enum, default_value_t = What::Blocks)]
    what: What,
    /// At most this many rows; 0 lists all
    #[arg(long, default_value_t = 0)]
    limit: u64,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    Blocks,
    Namespaces,
    Segments,
    /// Prefixes that reclaim keeps; a running sidecar tells them
    Pins,
}

pub fn run(args: &Args) -> Result<()> {
    let target = args.target.open()?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let listed = list(args, target, &mut out).and_then(|()| Ok(out.flush()?));
    super::printed(listed)
}

fn list(args: &Args, target: Target, out: &mut impl Write) -> Result<()> {
    if !args.json {
        let head = match args.what {
            What::Blocks => rows::BLOCKS,
            What::Namespaces => rows::NAMESPACES,
            What::Segments => rows::SEGMENTS,
            What::Pins => rows::PINS,
        };
        writeln!(out, "{head}")?;
    }
    let mut print = |row: &Row| -> Result<()> {
        if args.json {
            serde_json::to_writer(&mut *out, row).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            writeln!(out, "{}", row.line())?;
        }
        Ok(())
    };
    match target {
        Target::Running(mut sidecar) => {
            let what = match args.what {
                What::Blocks => list_request::What::Blocks,
                What::Namespaces => list_request::What::Namespaces,
                What::Segments => list_request::What::Segments,
                What::Pins => list_request::What::Pins,
            };
            sidecar.list(what, args.limit, |entry| print(&entry.into()))
        }
        Target::Stopped(_) if matches!(args.what, What::Pins) => {
            bail!("no sidecar runs on this store: start it to list its pins")
        }
        Target::Stopped(drives) => {
            let found = stopped::examine(&drives);
            let rows = rows_of(args.what, &found, &drives);
            // Given back before anybody reads at leisure: a sidecar may want to start.
            drop(drives);
            let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
            let limit = if limit == 0 { usize::MAX } else { limit };
            rows.iter().take(limit).try_for_each(print)
        }
    }
}

fn rows_of(what: What, found: &[Found], drives: &[Opening]) -> Vec<Row> {
    match what {
        What::Blocks => found.iter().flat_map(Found::blocks).map(Row::Block).collect(),
        What::Namespaces => stopped::namespaces(found),
        What::Segments => {
            let row = |found: &Found| Row::Segment(found.row(found.opening(drives)));
            found.iter().map(row).collect()
        }
        What::Pins => Vec::new(),
    }
}
