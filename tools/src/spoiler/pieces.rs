//! What a sidecar sends over one data connection, told apart, and some of it changed: a bit of an
//! announcement, so of a length or a block's number, of a record's header, or of KV; or it is cut short.
//!
//! A change is made within a part, whose length it leaves as it is: what comes behind it comes as it was
//! sent, and stands where it should.

use fastrand::Rng;
use refrain_proto::data::{HEADER_BYTES, PIECE_BYTES, Piece, WELCOME_BYTES};

/// Of so many parts one is changed, on average; and of so many changes one cuts.
const CHANGED_OF: u32 = 4;
const CUTS_OF: u32 = 4;

/// Follows one connection.
#[derive(Debug)]
pub(super) struct Pieces {
    random: Rng,
    part: Part,
    /// Bytes of the part that are still to come.
    left: u64,
    /// The one that comes or came last, as it was sent.
    announcement: Vec<u8>,
    change: Option<Change>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Welcome,
    Announcement,
    /// What was announced.
    Content,
    /// Nothing that is known, to the end.
    Unknown,
}

/// What becomes of the part.
#[derive(Clone, Copy, Debug)]
struct Change {
    /// From here to that byte.
    distance: u64,
    how: How,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Flip { bit: u8 },
    Cut,
}

/// What is to be sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Passed {
    /// Of the bytes; the connection ends behind them where these are not all.
    pub(super) length: usize,
    pub(super) changed: u64,
}

impl Pieces {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Rng::with_seed(seed),
            part: Part::Welcome,
            left: count(WELCOME_BYTES),
            announcement: Vec::with_capacity(PIECE_BYTES),
            change: None,
        }
    }

    /// Changes some of what comes next, where parts begin in it while it `spoils`.
    pub(super) fn pass(&mut self, bytes: &mut [u8], spoils: bool) -> Passed {
        let (mut at, mut changed) = (0, 0);
        while at < bytes.len() {
            let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
            let now = &mut bytes[at..at + length];
            if self.part == Part::Announcement {
                self.announcement.extend_from_slice(now);
            }
            match &mut self.change {
                Some(Change { distance, how }) if *distance < count(length) => {
                    let place = usize::try_from(*distance).expect("it is within a slice");
                    changed += 1;
                    match *how {
                        How::Flip { bit } => now[place] ^= 1 << bit,
                        How::Cut => return Passed { length: at + place, changed },
                    }
                    self.change = None;
                }
                Some(Change { distance, .. }) => *distance -= count(length),
                None => {}
            }
            self.left -= count(length);
            at += length;
            while self.left == 0 {
                self.begin(spoils);
            }
        }
        Passed { length: at, changed }
    }

    /// The next part, and what becomes of it.
    fn begin(&mut self, spoils: bool) {
        (self.part, self.left) = match self.part {
            Part::Welcome | Part::Content => (Part::Announcement, count(PIECE_BYTES)),
            Part::Announcement => {
                let announced = self.announcement.first_chunk().map(Piece::decode);
                match announced {
                    Some(Ok(Piece::Header { .. })) => (Part::Content, HEADER_BYTES),
                    Some(Ok(Piece::Stripe { length, .. })) => (Part::Content, length),
                    Some(Ok(Piece::End { .. })) => (Part::Announcement, count(PIECE_BYTES)),
                    Some(Err(_)) | None => (Part::Unknown, u64::MAX),
                }
            }
            Part::Unknown => (Part::Unknown, u64::MAX),
        };
        if self.part == Part::Announcement {
            self.announcement.clear();
        }
        let is_due = spoils && self.part != Part::Unknown && self.left > 0;
        self.change = (is_due && self.random.u32(0..CHANGED_OF) == 0).then(|| Change {
            distance: self.random.u64(0..self.left),
            how: match self.random.u32(0..CUTS_OF) {
                0 => How::Cut,
                _ => How::Flip { bit: self.random.u8(0..8) },
            },
        });
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).expect("usize fits")
}

#[cfg(test)]
mod tests {
    //! Proves that what passes stays as it is until it is to be spoiled, and that then bits of every kind
    //! of part are flipped, and connections cut, and nothing else is done.

    use super::*;
    use refrain_proto::data::{EndReason, Welcome};
    use std::collections::BTreeSet;

    const STRIPE: usize = 1000;
    const BLOCKS: u32 = 3;

    /// Two transfers, and what each byte belongs to.
    fn stream() -> (Vec<u8>, Vec<&'static str>) {
        let (mut bytes, mut parts) = (Vec::new(), Vec::new());
        let mut put = |part: &'static str, more: &[u8]| {
            bytes.extend_from_slice(more);
            parts.resize(bytes.len(), part);
        };
        put("welcome", &Welcome::Accepted.encode());
        for _ in 0..2 {
            for block in 0..BLOCKS {
                put("announcement", &Piece::Header { block }.encode());
                put("header", &[7; 4096]);
                let piece = Piece::Stripe { block, stripe: 0, length: count(STRIPE) };
                put("announcement", &piece.encode());
                put("stripe", &[9; STRIPE]);
            }
            let end = Piece::End { loaded: BLOCKS, reason: EndReason::Complete };
            put("end", &end.encode());
        }
        (bytes, parts)
    }

    /// What arrives of it, and how many changes are counted.
    fn passed(seed: u64, spoils: bool) -> (Vec<u8>, u64) {
        let (mut pieces, mut random) = (Pieces::new(seed), Rng::with_seed(seed));
        let (mut sent, _) = stream();
        let (mut arrived, mut changed) = (Vec::new(), 0);
        let mut rest = &mut sent[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(random.usize(1..=rest.len().min(2000)));
            let passed = pieces.pass(now, spoils);
            arrived.extend_from_slice(&now[..passed.length]);
            changed += passed.changed;
            if passed.length < now.len() {
                break;
            }
            rest = later;
        }
        (arrived, changed)
    }

    #[test]
    fn nothing_is_changed_that_is_not_to_be() {
        for seed in 0..50 {
            assert_eq!(passed(seed, false), (stream().0, 0), "seed {seed}");
        }
    }

    #[test]
    fn bits_of_all_parts_are_flipped_and_connections_cut_and_all_of_it_is_counted() {
        let (sent, parts) = stream();
        let (mut hit, mut cut) = (BTreeSet::new(), BTreeSet::new());
        for seed in 0..300 {
            let (arrived, changed) = passed(seed, true);
            let places = (0..arrived.len()).filter(|place| arrived[*place] != sent[*place]);
            let places: Vec<_> = places.collect();
            for place in &places {
                let bits = (arrived[*place] ^ sent[*place]).count_ones();
                assert_eq!(bits, 1, "seed {seed}, byte {place}");
                hit.insert(parts[*place]);
            }
            let is_cut = arrived.len() < sent.len();
            if is_cut {
                cut.insert(parts[arrived.len()]);
            }
            assert_eq!(count(places.len()) + u64::from(is_cut), changed, "seed {seed}");
            assert_eq!(passed(seed, true), (arrived, changed), "seed {seed} again");
        }
        let all = BTreeSet::from(["announcement", "end", "header", "stripe"]);
        assert_eq!((&hit, &cut), (&all, &all));
    }

    #[test]
    fn what_is_not_understood_passes() {
        let mut pieces = Pieces::new(1);
        let mut bytes = vec![0xff; 9000];
        assert_eq!(pieces.pass(&mut bytes, true).length, bytes.len());
        // The announcement that it cannot be has been changed at most.
        assert!(bytes[WELCOME_BYTES + PIECE_BYTES..].iter().all(|byte| *byte == 0xff));
    }
}
