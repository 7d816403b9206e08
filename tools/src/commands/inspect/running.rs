//! What a running sidecar says.

use super::{Answer, Record, Segment, Stripe, digest};
use crate::admin::Admin;
use crate::hex::hex;
use crate::subject::Subject;
use anyhow::{Context, Result, bail};
use refrain_client::v1;

pub(super) fn inspect(sidecar: &mut Admin, subject: &Subject) -> Result<Answer> {
    match subject {
        Subject::Block(prefix) => {
            let records = sidecar.inspect_blocks(prefix)?.into_iter();
            Ok(Answer::Records(records.map(record).collect::<Result<_>>()?))
        }
        &Subject::Segment { drive, segment } => {
            let drive = match drive {
                Some(drive) => drive,
                None => match sidecar.stats()?.drives.len() {
                    1 => 0,
                    drives => bail!("there are {drives} drives: say DRIVE/SEGMENT, as in 0/12"),
                },
            };
            let answer = sidecar.inspect_segment(drive, segment)?;
            let found = answer.segment.with_context(|| format!("no segment {drive}/{segment}"))?;
            Ok(Answer::Segment(Segment {
                row: found.into(),
                birth: None,
                problems: Vec::new(),
                blocks: answer.blocks.into_iter().map(Into::into).collect(),
            }))
        }
    }
}

fn record(record: v1::RecordInfo) -> Result<Record> {
    let v1::RecordInfo { block, parent, position, stripes, verdict } = record;
    let block = block.context("sidecar tells of a record without its block")?;
    let stripe = |stripe: v1::StripeInfo| Stripe {
        offset: stripe.offset,
        length: stripe.length,
        checksum: digest(stripe.checksum),
        good: stripe.good,
    };
    Ok(Record {
        block: block.into(),
        parent: hex(&parent),
        position,
        header: None,
        stripes: stripes.into_iter().map(stripe).collect(),
        verdict,
    })
}
