//! Entries as they are written: new ones by a plain command, all others by a function that looks what
//! is there.

use super::answer::integer;
use super::cluster::{From, Op};
use super::owners::Claim;
use super::slots::{Spot, bucket_key};
use super::{Shared, counts};
use crate::chain::BlockKey;
use redis::{Value, cmd};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a batch tries to be written.
const PATIENCE: Duration = Duration::from_secs(3);

/// A block, whose claim on it, and what becomes of that.
pub(super) type Wanted = (BlockKey, Claim, Write);
/// Slot, bucket, and what is done there for whom.
type Place = (u16, u32, Write, Claim);
type Fields = Vec<(BlockKey, [u8; 6])>;

/// What becomes of an owner in some entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Write {
    Put,
    Remove,
    /// Another's, which proved wrong.
    Forget,
}

impl Shared {
    /// Has claims written into entries, or out of them; the blocks that no server took.
    pub(super) async fn write(&self, writes: Vec<Wanted>) -> Vec<BlockKey> {
        let Some(bits) = self.registry().bucket_bits else {
            return writes.into_iter().map(|(key, ..)| key).collect();
        };
        let deadline = Instant::now() + PATIENCE;
        let left = self.write_new(writes, bits, deadline).await;
        self.rewrite(&left, bits, deadline).await
    }

    /// Publishes blocks that have no entry, as nearly all have none that are published: a function
    /// costs a server three times as much. What is left to write.
    async fn write_new(&self, writes: Vec<Wanted>, bits: u8, deadline: Instant) -> Vec<Wanted> {
        let is_put = |(.., write): &Wanted| *write == Write::Put;
        let (puts, mut left): (Vec<_>, Vec<_>) = writes.into_iter().partition(is_put);
        let op = |&(key, claim, _): &Wanted| {
            let spot = Spot::of(key, bits);
            let mut command = cmd("HSETNX");
            command.arg(spot.bucket_key(bits)).arg(&spot.field[..]).arg(&claim.encode()[..]);
            Op { slot: spot.slot, command }
        };
        let ops: Vec<_> = puts.iter().map(op).collect();
        let answers = self.cluster.run(&ops, From::Master, deadline).await;
        let is_written = |answer: &Option<Value>| answer.as_ref().and_then(integer) == Some(1);
        counts::add(&self.counts.published, answers.iter().filter(|one| is_written(one)).count());
        // Those that were refused too: the function has a key make way that is no bucket.
        let others = puts.into_iter().zip(&answers).filter(|(_, answer)| !is_written(answer));
        left.extend(others.map(|(put, _)| put));
        left
    }

    /// Changes entries by what they say, those of one bucket in one call of a function.
    async fn rewrite(&self, writes: &[Wanted], bits: u8, deadline: Instant) -> Vec<BlockKey> {
        let mut calls: BTreeMap<Place, Fields> = BTreeMap::new();
        for &(key, claim, write) in writes {
            let Spot { slot, bucket, field } = Spot::of(key, bits);
            calls.entry((slot, bucket, write, claim)).or_default().push((key, field));
        }
        let op = |(place, fields): (&Place, &Fields)| {
            let &(slot, bucket, write, claim) = place;
            let function = match write {
                Write::Put => "refrain1_put",
                Write::Remove | Write::Forget => "refrain1_del",
            };
            let mut command = cmd("FCALL");
            command.arg(function).arg(1).arg(bucket_key(slot, bucket, bits));
            command.arg(&claim.encode()[..]);
            for (_, field) in fields {
                command.arg(&field[..]);
            }
            Op { slot, command }
        };
        let ops: Vec<_> = calls.iter().map(op).collect();
        let answers = self.cluster.run(&ops, From::Master, deadline).await;
        let mut failed = Vec::new();
        for ((&(.., write, _), fields), answer) in calls.iter().zip(answers) {
            match answer.as_ref().and_then(integer) {
                Some(changed) => match write {
                    // All that were acknowledged: those of a put whose answer was lost are there
                    // already when it is done again.
                    Write::Put => counts::add(&self.counts.published, fields.len()),
                    Write::Remove => {
                        let changed = usize::try_from(changed).unwrap_or(0);
                        counts::add(&self.counts.unpublished, changed);
                    }
                    Write::Forget => counts::add(&self.counts.forgotten, fields.len()),
                },
                None => failed.extend(fields.iter().map(|(key, _)| *key)),
            }
        }
        counts::add(&self.counts.failed_writes, failed.len());
        failed
    }

    /// Takes others' claims that proved wrong out of their entries.
    pub(super) async fn take_out(&self, wrong: &[(BlockKey, Claim)]) {
        let writes: Vec<_> =
            wrong.iter().map(|&(key, claim)| (key, claim, Write::Forget)).collect();
        // One that is not written is found again.
        self.write(writes).await;
    }
}
