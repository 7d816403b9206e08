//! A run of records as a value: fixed-width, little-endian, with a checksum over all of it.

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub offset: u64,
    /// Of its payload.
    pub length: u64,
    pub sequence: [u8; 32],
    pub shard: u32,
    pub position: u32,
    pub parent: [u8; 32],
    pub namespace: [u8; 32],
    pub epoch: u64,
}

/// Records of one segment that lie one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub segment: u32,
    pub generation: u64,
    pub start: u64,
    pub end: u64,
    /// Nothing comes behind it.
    pub sealed: bool,
    pub rows: Vec<Row>,
}

const VERSION: u32 = 1;
const HEAD: usize = 24;
const ROW: usize = 128;
const CHECKSUM: usize = 8;

impl Run {
    /// The value of this run.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + self.rows.len() * ROW + CHECKSUM);
        out.extend(VERSION.to_le_bytes());
        out.extend(u32::from(self.sealed).to_le_bytes());
        out.extend(self.generation.to_le_bytes());
        out.extend(self.end.to_le_bytes());
        for row in &self.rows {
            out.extend(row.offset.to_le_bytes());
            out.extend(row.length.to_le_bytes());
            out.extend(row.sequence);
            out.extend(row.shard.to_le_bytes());
            out.extend(row.position.to_le_bytes());
            out.extend(row.parent);
            out.extend(row.namespace);
            out.extend(row.epoch.to_le_bytes());
        }
        let sum = checksum(self.segment, self.start, &out);
        out.extend(sum);
        out
    }

    /// A value with its last bytes replaced by the checksum of those before.
    pub fn resealed(segment: u32, start: u64, mut value: Vec<u8>) -> Vec<u8> {
        value.truncate(value.len().saturating_sub(CHECKSUM));
        value.extend(checksum(segment, start, &value));
        value
    }

    /// `None` for anything but a whole value of this place in this version.
    pub fn decode(segment: u32, start: u64, value: &[u8]) -> Option<Self> {
        let (body, sum) = value.split_last_chunk::<CHECKSUM>()?;
        if checksum(segment, start, body) != *sum {
            return None;
        }
        let (mut head, rows) = body.split_at_checked(HEAD)?;
        if u32::from_le_bytes(take(&mut head)) != VERSION || !rows.len().is_multiple_of(ROW) {
            return None;
        }
        let sealed = u32::from_le_bytes(take(&mut head)) != 0;
        let generation = u64::from_le_bytes(take(&mut head));
        let end = u64::from_le_bytes(take(&mut head));
        let rows = rows.chunks_exact(ROW).map(|mut bytes| Row {
            offset: u64::from_le_bytes(take(&mut bytes)),
            length: u64::from_le_bytes(take(&mut bytes)),
            sequence: take(&mut bytes),
            shard: u32::from_le_bytes(take(&mut bytes)),
            position: u32::from_le_bytes(take(&mut bytes)),
            parent: take(&mut bytes),
            namespace: take(&mut bytes),
            epoch: u64::from_le_bytes(take(&mut bytes)),
        });
        Some(Self { segment, generation, start, end, sealed, rows: rows.collect() })
    }
}

/// The place is part of it: a value under another key is refused.
fn checksum(segment: u32, start: u64, body: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&segment.to_le_bytes()).update(&start.to_le_bytes()).update(body);
    *hasher.finalize().as_bytes().first_chunk().expect("32 bytes hold 8")
}

fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (field, rest) = bytes.split_first_chunk().expect("lengths are checked");
    *bytes = rest;
    *field
}
