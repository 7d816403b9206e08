//! What the disks of a stopped store say.

use super::{Answer, Header, Record, Segment, Stripe, digest};
use crate::hex::hex;
use crate::rows::Block;
use crate::stopped::{self, Found};
use crate::subject::Subject;
use anyhow::{Context, Result, bail};
use refrain_store::drive::Opening;
use refrain_store::geometry::SegmentId;
use refrain_store::segment::{Entry, SegmentHead};

pub(super) fn inspect(drives: &[Opening], subject: &Subject) -> Result<Answer> {
    match subject {
        Subject::Block(prefix) => {
            let mut records = Vec::new();
            for found in stopped::examine(drives) {
                let opening = found.opening(drives);
                let wanted = found.entries().filter(|entry| prefix.begins(&entry.sequence_hash));
                records.extend(wanted.map(|entry| record(opening, found.drive, found.head, entry)));
            }
            Ok(Answer::Records(records))
        }
        Subject::Segment { drive: None, .. } if drives.len() > 1 => {
            bail!("there are {} drives: say DRIVE/SEGMENT, as in 0/12", drives.len());
        }
        &Subject::Segment { drive, segment } => {
            let drive = drive.unwrap_or(0);
            segment_of(drive, opening(drives, drive)?, SegmentId(segment)).map(Answer::Segment)
        }
    }
}

fn opening(drives: &[Opening], drive: u32) -> Result<&Opening> {
    let index = usize::try_from(drive).expect("32 bits fit");
    drives.get(index).with_context(|| {
        format!("no drive {drive}: {} given by --dir, counted from 0", drives.len())
    })
}

fn segment_of(drive: u32, opening: &Opening, id: SegmentId) -> Result<Segment> {
    let count = opening.segment_count();
    if id.0 >= count {
        bail!("no segment {drive}/{}: the drive has {count}, counted from 0", id.0);
    }
    let head = opening.segments()[usize::try_from(id.0).expect("32 bits fit")];
    let found = Found::new(drive, opening, head);
    let problems = opening.problems().iter();
    let problems = problems.filter(|problem| problem.segment() == id);
    let problems = problems.map(ToString::to_string);
    let damage = found.examined.damage.iter().map(ToString::to_string);
    let unreadable = found.unreadable.as_ref().map(ToString::to_string);
    Ok(Segment {
        row: found.row(opening),
        birth: Some(head.birth),
        problems: problems.chain(damage).chain(unreadable).collect(),
        blocks: found.blocks().collect(),
    })
}

fn record(opening: &Opening, drive: u32, head: SegmentHead, entry: &Entry) -> Record {
    let inspected = opening.inspect_record(head.id, entry);
    let found = inspected.header.as_ref();
    let stripes = found.map(|header| header.stripes.as_slice()).unwrap_or_default();
    let stripes = stripes.iter().zip(&inspected.stripes).map(|(stripe, &good)| Stripe {
        offset: stripe.offset,
        length: stripe.length,
        checksum: digest(stripe.checksum),
        good,
    });
    Record {
        block: Block::stopped(drive, head, entry),
        parent: hex(&entry.parent),
        position: entry.position,
        header: found.map(|header| Header {
            store_id: hex(&header.store_id),
            key_scheme: header.key_scheme,
            epoch: header.epoch,
            payload_bytes: header.payload_length,
            checksum: digest(entry.header_checksum),
        }),
        stripes: stripes.collect(),
        verdict: match &inspected.verdict {
            Ok(()) => "good".to_owned(),
            Err(error) => format!("{:#}", anyhow::Error::new(error.clone())),
        },
    }
}
