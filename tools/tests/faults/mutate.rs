//! Small changes to bytes, of the kinds that decoders trip over.

/// Changes some of `bytes`, within `limit` bytes.
pub(crate) fn mutate(bytes: &mut Vec<u8>, random: &mut fastrand::Rng, limit: usize) {
    for _ in 0..random.u8(1..5) {
        let length = bytes.len();
        let at = random.usize(..=length);
        match random.u8(..8) {
            0 => bytes.truncate(at),
            1 => {
                let mut more = vec![0; random.usize(1..64)];
                random.fill(&mut more);
                bytes.splice(at..at, more);
            }
            2 if length > 0 => {
                let from = random.usize(..length);
                let piece = bytes[from..(from + random.usize(..64)).min(length)].to_vec();
                bytes.splice(at..at, piece);
            }
            3 => {
                // The largest length or number that a varint holds.
                let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
                let end = (at + huge.len()).min(length);
                bytes.splice(at.min(end)..end, huge);
            }
            4 if length >= 8 => {
                let extremes = [0, 1, u64::MAX, u64::MAX - 4095, 1 << 63, u64::from(u32::MAX)];
                let value = extremes[random.usize(..extremes.len())].to_le_bytes();
                let at = random.usize(..=length - 8);
                bytes[at..at + 8].copy_from_slice(&value);
            }
            5 if length > 0 => {
                let at = random.usize(..length);
                bytes.drain(at..(at + random.usize(..32)).min(length));
            }
            _ if length > 0 => {
                let bit = random.usize(..length * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            _ => {}
        }
    }
    bytes.truncate(limit);
}
