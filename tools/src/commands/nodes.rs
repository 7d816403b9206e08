//! `refrain nodes`: who is in the fleet, and who has left it for good.

use crate::target::TargetArgs;
use anyhow::Result;
use clap::Args as ClapArgs;
use refrain_client::v1::NodeInfo;
use serde::Serialize;
use std::io::{self, Write};

/// Say which nodes the fleet has, and which of them live
///
/// What a node holds that is away sleeps until it is back. The registry is a second old, or as old
/// as the directory has not been reached.
#[derive(ClapArgs, Debug)]
pub struct Args {
    /// Strike this node from the registry, as it has left for good and its lease has lapsed: what it
    /// published is void, and is swept within a day. Should it come back, it begins another epoch
    #[arg(long, value_name = "NODE")]
    forget: Option<u16>,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Debug, Serialize)]
struct Fleet {
    /// Whether the directory answers now.
    reached: bool,
    nodes: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    node: u32,
    epoch: u32,
    state: String,
    address: String,
    epoch_seconds: u64,
    /// Whether it is the sidecar that was asked.
    here: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if let Some(node) = args.forget {
        return forget(args, node);
    }
    let answer = args.target.sidecar("name the nodes of its fleet")?.nodes()?;
    let nodes = answer.nodes.into_iter().map(Row::from).collect();
    let fleet = Fleet { reached: answer.reached, nodes };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut print = || -> Result<()> {
        if args.json {
            writeln!(out, "{}", serde_json::to_string(&fleet)?)?;
            return Ok(out.flush()?);
        }
        if !fleet.reached {
            writeln!(out, "the directory is not reached: this is what it said last")?;
        }
        writeln!(out, "{:>5}  {:>5}  {:<8}  {:>10}  address", "node", "epoch", "state", "for")?;
        for Row { node, epoch, state, address, epoch_seconds, here } in &fleet.nodes {
            let here = if *here { " (this one)" } else { "" };
            writeln!(
                out,
                "{node:>5}  {epoch:>5}  {state:<8}  {epoch_seconds:>8} s  {address}{here}"
            )?;
        }
        Ok(out.flush()?)
    };
    super::printed(print())
}

fn forget(args: &Args, node: u16) -> Result<()> {
    args.target.sidecar("have its fleet forget a node")?.forget_node(node)?;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::json!({ "forgotten": node }))?;
    } else {
        writeln!(out, "node {node} is forgotten: what it published is void")?;
    }
    Ok(())
}

impl From<NodeInfo> for Row {
    fn from(info: NodeInfo) -> Self {
        let NodeInfo { node, epoch, state, address, epoch_age_ms, here } = info;
        Self { node, epoch, state, address, epoch_seconds: epoch_age_ms / 1000, here }
    }
}
