//! `refrain explain`: why a prompt hits or misses, block by block.

use crate::hex::{HashPrefix, hex};
use crate::prompt::PromptArgs;
use crate::target::TargetArgs;
use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use refrain_client::v1::{self, Fate, explain_request::Subject};
use serde::Serialize;
use std::io::{self, Write};

mod text;

/// Say of each block of a prompt why it hits, or why it misses
///
/// In memory, on SSD, refused when it was to be saved, reclaimed and for whose saves, evicted,
/// dropped, damaged, or a hit in another namespace (and which field of that differs). A sidecar
/// remembers its last 100,000 removals and 25,000 refusals, and none from before its start; of a
/// block that it does not know, it says how far back it does. Asking is no hit: nothing is touched.
#[derive(ClapArgs, Debug)]
#[command(after_help = "Examples:
  refrain explain --tokens prompt.json             a prompt's token ids, as in [1, 15043, 3186]
  refrain explain --trace day.jsonl.gz --request 7 a request that `refrain replay` has replayed
  refrain explain 4fa1...                          one block by all 64 digits of its hash")]
pub struct Args {
    /// Sequence hashes in the order of their prompt, all 64 digits of each
    #[arg(value_name = "BLOCK", conflicts_with_all = ["tokens", "trace", "namespace"])]
    blocks: Vec<HashPrefix>,
    #[command(flatten)]
    prompt: PromptArgs,
    /// This rank's share
    #[arg(long, default_value_t = 0)]
    shard: u32,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// What a sidecar says of a prompt.
#[derive(Clone, Debug, Serialize)]
struct Answer {
    prompt_blocks: u32,
    matched_blocks: u32,
    tail_tokens: u32,
    runs: Vec<Run>,
    #[serde(skip_serializing_if = "Option::is_none")]
    other_namespace: Option<Other>,
    removals_known_ms: u64,
    refusals_known_ms: u64,
    uptime_ms: u64,
}

/// Blocks one behind the other of which the same is known.
#[derive(Clone, Debug, Serialize)]
struct Run {
    first_block: u32,
    blocks: u32,
    sequence_hash: String,
    fate: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ago_ms: Option<u64>,
    /// It went as a block before it did.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    behind: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    for_namespace: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Other {
    namespace: String,
    matched_blocks: u32,
    differences: Vec<Difference>,
}

#[derive(Clone, Debug, Serialize)]
struct Difference {
    field: String,
    here: String,
    there: String,
}

pub fn run(args: &Args) -> Result<()> {
    let mut sidecar = args.target.sidecar("explain a prompt")?;
    let subject = match args.prompt.name(&mut sidecar, args.shard)? {
        Some(name) => Subject::Prompt(name),
        None if args.blocks.is_empty() => bail!("give --tokens, --trace, or blocks by their hash"),
        None => Subject::Blocks(blocks(args)?),
    };
    let answer = Answer::try_from(sidecar.explain(subject)?)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let printed = if args.json {
        serde_json::to_writer(&mut out, &answer)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        text::print(&answer, &mut out)
    };
    super::printed(printed.and_then(|()| out.flush()).map_err(Into::into))
}

fn blocks(args: &Args) -> Result<v1::BlockNames> {
    let whole = |block: &HashPrefix| {
        block.whole().with_context(|| {
            format!("{block} is not a whole hash: of a block that is gone, give all 64 digits")
        })
    };
    let sequence_hashes = args.blocks.iter().map(whole).collect::<Result<_>>()?;
    Ok(v1::BlockNames { shard: args.shard, sequence_hashes, ..Default::default() })
}

impl TryFrom<v1::ExplainResponse> for Answer {
    type Error = anyhow::Error;

    fn try_from(answer: v1::ExplainResponse) -> Result<Self> {
        let other = answer.other_namespace.map(|other| Other {
            namespace: hex(&other.namespace_digest),
            matched_blocks: other.matched_blocks,
            differences: other.differences.into_iter().map(Into::into).collect(),
        });
        Ok(Self {
            prompt_blocks: answer.prompt_blocks,
            matched_blocks: answer.matched_blocks,
            tail_tokens: answer.tail_tokens,
            runs: answer.runs.into_iter().map(Run::try_from).collect::<Result<_>>()?,
            other_namespace: other,
            removals_known_ms: answer.removals_known_ms,
            refusals_known_ms: answer.refusals_known_ms,
            uptime_ms: answer.uptime_ms,
        })
    }
}

impl TryFrom<v1::FateRun> for Run {
    type Error = anyhow::Error;

    fn try_from(run: v1::FateRun) -> Result<Self> {
        let fate = match run.fate() {
            Fate::Host => "host",
            Fate::Ssd => "ssd",
            Fate::Elsewhere => "elsewhere",
            Fate::Unknown => "unknown",
            Fate::Refused => "refused",
            Fate::Reclaimed => "reclaimed",
            Fate::Evicted => "evicted",
            Fate::Dropped => "dropped",
            Fate::Damaged => "damaged",
            Fate::OtherNamespace => "other_namespace",
            Fate::Unspecified => bail!("sidecar tells a fate that this command does not know"),
        };
        let has_gone = matches!(
            run.fate(),
            Fate::Refused | Fate::Reclaimed | Fate::Evicted | Fate::Dropped | Fate::Damaged
        );
        let refused = run.fate() == Fate::Refused;
        Ok(Self {
            first_block: run.first_block,
            blocks: run.blocks,
            sequence_hash: hex(&run.sequence_hash),
            fate,
            refusal: refused.then(|| super::refusal(run.refusal())),
            ago_ms: has_gone.then_some(run.ago_ms),
            behind: run.behind,
            for_namespace: (!run.for_namespace.is_empty()).then(|| hex(&run.for_namespace)),
        })
    }
}

impl From<v1::FieldDifference> for Difference {
    fn from(difference: v1::FieldDifference) -> Self {
        let v1::FieldDifference { field, here, there } = difference;
        Self { field, here, there }
    }
}
