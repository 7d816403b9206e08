//! What a block holds, as a function of which block it is.
//!
//! Every 8-byte word depends on the seed, the shard, the block's id and all ids before it, the
//! layer, and the place within the layer. So a byte of another block, an older one, another layer
//! or another place is seen: nothing but the right bytes compares equal.

/// Odd, and its multiples are spread evenly.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Names what one block of a prompt holds: hashed over its id and all ids before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity(u64);

/// The contents of all blocks of one shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contents {
    seed: u64,
    layer_bytes: usize,
}

impl Contents {
    pub(super) fn new(seed: u64, shard: u32, layer_bytes: usize) -> Self {
        assert!(layer_bytes > 0, "a layer holds at least one byte");
        Self { seed: mix(mix(seed) ^ u64::from(shard)), layer_bytes }
    }

    /// The identities of a prompt's blocks.
    pub(super) fn identities(&self, ids: &[u64]) -> Vec<Identity> {
        let chain = |parent: &mut u64, id: &u64| {
            *parent = mix(*parent ^ mix(id.wrapping_add(STEP)));
            Some(Identity(*parent))
        };
        ids.iter().scan(self.seed, chain).collect()
    }

    /// Writes whole layers of a block, from `first_layer` on.
    pub(super) fn fill(&self, block: Identity, first_layer: u32, bytes: &mut [u8]) {
        for (layer, bytes) in (first_layer..).zip(bytes.chunks_mut(self.layer_bytes)) {
            let key = key(block, layer);
            let (words, rest) = bytes.as_chunks_mut::<8>();
            for (place, found) in (0..).zip(&mut *words) {
                *found = word(key, place).to_le_bytes();
            }
            let last = word(key, words.len() as u64).to_le_bytes();
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }

    /// How many bytes of these layers are not what [`Contents::fill`] would write.
    pub(super) fn wrong_bytes(&self, block: Identity, first_layer: u32, bytes: &[u8]) -> u64 {
        let layers = (first_layer..).zip(bytes.chunks(self.layer_bytes));
        layers.map(|(layer, bytes)| wrong_bytes_of_layer(key(block, layer), bytes)).sum()
    }
}

fn wrong_bytes_of_layer(key: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let difference =
        |(place, found): (u64, &[u8; 8])| u64::from_le_bytes(*found) ^ word(key, place);
    let last = word(key, words.len() as u64).to_le_bytes();
    let wrong_rest = rest.iter().zip(last).filter(|(found, expected)| **found != *expected).count();
    // Nearly always nothing differs: that is found out without counting, or branching.
    if (0..).zip(words).map(difference).fold(0, |all, one| all | one) == 0 {
        return wrong_rest as u64;
    }
    let wrong = |difference: u64| difference.to_le_bytes().into_iter().filter(|b| *b != 0).count();
    let wrong_words: usize = (0..).zip(words).map(difference).map(wrong).sum();
    (wrong_words + wrong_rest) as u64
}

fn key(block: Identity, layer: u32) -> u64 {
    mix(block.0 ^ u64::from(layer).wrapping_add(1).wrapping_mul(STEP))
}

/// One multiplication a word, so that filling and checking outrun any drive.
fn word(key: u64, place: u64) -> u64 {
    let mixed = key.wrapping_add(place.wrapping_mul(STEP));
    let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ (mixed >> 32)
}

/// The finaliser of `SplitMix64`: every bit of the input reaches every bit of the output.
pub(super) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    //! Proves that contents are seen to be right only where all that names them is.

    use super::*;

    const LAYER_BYTES: usize = 1003;

    fn filled(contents: Contents, block: Identity, layers: std::ops::Range<u32>) -> Vec<u8> {
        let mut bytes = vec![0; layers.len() * LAYER_BYTES];
        contents.fill(block, layers.start, &mut bytes);
        bytes
    }

    /// Of bytes that are equal by chance alone, one in 256 is.
    fn check_foreign(contents: Contents, block: Identity, bytes: &[u8]) {
        let wrong = contents.wrong_bytes(block, 2, bytes);
        assert!(wrong * 100 > bytes.len() as u64 * 98, "{wrong} of {}", bytes.len());
    }

    #[test]
    fn every_single_wrong_byte_is_counted() {
        let contents = Contents::new(1, 0, LAYER_BYTES);
        let block = contents.identities(&[5, 6])[1];
        let good = filled(contents, block, 2..5);
        assert_eq!(contents.wrong_bytes(block, 2, &good), 0);
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 1 << (place % 8);
            assert_eq!(contents.wrong_bytes(block, 2, &bad), 1, "byte {place}");
        }
        let zeros = vec![0; good.len()];
        check_foreign(contents, block, &zeros);
    }

    #[test]
    fn contents_of_anything_else_are_wrong_nearly_everywhere() {
        let contents = Contents::new(1, 0, LAYER_BYTES);
        let blocks = contents.identities(&[5, 6, 7]);
        let block = blocks[1];
        let layers = 2..4;
        check_foreign(contents, block, &filled(contents, blocks[0], layers.clone()));
        check_foreign(contents, block, &filled(contents, blocks[2], layers.clone()));
        // The same id behind another prefix, another seed, another shard, another layer.
        check_foreign(contents, block, &filled(contents, contents.identities(&[6])[0], 2..4));
        for other in [Contents::new(2, 0, LAYER_BYTES), Contents::new(1, 1, LAYER_BYTES)] {
            let same = other.identities(&[5, 6])[1];
            check_foreign(contents, block, &filled(other, same, layers.clone()));
        }
        check_foreign(contents, block, &filled(contents, block, 3..5));
    }

    #[test]
    fn shifted_contents_are_wrong_at_every_distance() {
        let contents = Contents::new(1, 0, 1 << 16);
        let block = contents.identities(&[5])[0];
        let mut bytes = vec![0; 1 << 16];
        contents.fill(block, 0, &mut bytes);
        for distance in [1, 7, 8, 64, 512, 2048, 4096, 32_768] {
            let mut shifted = bytes.clone();
            shifted.rotate_left(distance);
            let wrong = contents.wrong_bytes(block, 0, &shifted);
            assert!(wrong > 64_000, "{wrong} at {distance}");
        }
    }
}
