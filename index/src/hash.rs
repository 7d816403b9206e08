//! The keyed hash chain: names for prefixes.
//!
//! Hashes are BLAKE3, 32 bytes, compared whole. The key is derived from the operator's secret and
//! the tenant, so that a leaked index names no prompt and two tenants never meet.

use crate::namespace::NamespaceDigest;
use std::fmt;
use threefish::Threefish256;

/// The version of the key derivation, stored with every record.
pub const KEY_SCHEME: u32 = 1;

/// Tokens that are turned into bytes together; most blocks have fewer.
const TOKENS_AT_ONCE: usize = 128;

const CONTEXT: &str = "refrain.v1 2026-11 tenant key";

const PROOF_CONTEXT: &str = "refrain.v1 2026-11 proof of the secret";

/// Names a prefix: all the tokens of a block and of every block before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceHash(pub [u8; 32]);

impl fmt::Debug for SequenceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SequenceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

/// The key of one tenant's hashes.
#[derive(Clone)]
pub struct TenantKey([u8; 32]);

impl fmt::Debug for TenantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TenantKey(..)")
    }
}

impl TenantKey {
    pub fn derive(secret: &[u8; 32], tenant: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(secret).update(tenant.as_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    /// The chain's seed: what stands as the parent of a prompt's first block.
    pub fn root(&self, namespace: NamespaceDigest) -> SequenceHash {
        SequenceHash(*blake3::keyed_hash(&self.0, &namespace.0).as_bytes())
    }

    /// The hash of a block of `tokens` behind `parent`. `extra` is whatever else makes equal
    /// tokens unequal (multimodal digests, say); it is length-prefixed, as tokens are counted.
    pub fn next(&self, parent: SequenceHash, tokens: &[u32], extra: &[&[u8]]) -> SequenceHash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(b"tokens").update(&parent.0);
        hasher.update(&(tokens.len() as u64).to_le_bytes());
        // A block's tokens at once: a call for each costs as much as the hashing itself.
        let mut bytes = [0; 4 * TOKENS_AT_ONCE];
        for tokens in tokens.chunks(TOKENS_AT_ONCE) {
            let (pieces, _) = bytes.as_chunks_mut();
            for (piece, token) in pieces.iter_mut().zip(tokens) {
                *piece = token.to_le_bytes();
            }
            hasher.update(&bytes[..4 * tokens.len()]);
        }
        for key in extra {
            hasher.update(&(key.len() as u64).to_le_bytes()).update(key);
        }
        SequenceHash(*hasher.finalize().as_bytes())
    }

    /// How names that an engine brings are kept in a namespace.
    pub fn engine_names(&self, namespace: NamespaceDigest) -> EngineNames {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(b"engine names").update(&namespace.0);
        let key = *hasher.finalize().as_bytes();
        EngineNames { key, cipher: Threefish256::new_with_tweak(&key, &[0; 16]) }
    }

    /// The hashes of all full blocks of a prompt; a partial last block has none.
    pub fn chain(
        &self,
        namespace: NamespaceDigest,
        tokens: &[u32],
        block_tokens: usize,
    ) -> Vec<SequenceHash> {
        assert!(block_tokens > 0, "a block holds at least one token");
        let mut parent = self.root(namespace);
        tokens
            .chunks_exact(block_tokens)
            .map(|block| {
                parent = self.next(parent, block, &[]);
                parent
            })
            .collect()
    }
}

/// Wraps the names that an engine has for its blocks. Each names its whole prefix already, so that
/// no parent enters.
///
/// A name of 32 bytes, as SHA-256 makes them, is enciphered as one block: routers, who know blocks by
/// the engine's names, are told them out of the index, which without the key names no prompt. Any
/// other is hashed, and not told.
#[derive(Clone)]
pub struct EngineNames {
    key: [u8; 32],
    cipher: Threefish256,
}

impl fmt::Debug for EngineNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineNames(..)")
    }
}

impl EngineNames {
    /// Whether a wrapped name can be told again.
    pub fn tells(engine_hash: &[u8]) -> bool {
        engine_hash.len() == 32
    }

    pub fn wrap(&self, engine_hash: &[u8]) -> SequenceHash {
        match <[u8; 32]>::try_from(engine_hash) {
            Ok(name) => SequenceHash(through_words(name, |words| {
                self.cipher.encrypt_block_u64(words);
            })),
            Err(_) => SequenceHash(*blake3::keyed_hash(&self.key, engine_hash).as_bytes()),
        }
    }

    /// The name of 32 bytes that was wrapped as `sequence`. Of any other hash, it is noise.
    pub fn unwrap(&self, sequence: SequenceHash) -> [u8; 32] {
        through_words(sequence.0, |words| self.cipher.decrypt_block_u64(words))
    }
}

fn through_words(mut bytes: [u8; 32], work: impl FnOnce(&mut [u64; 4])) -> [u8; 32] {
    let (pieces, _) = bytes.as_chunks_mut::<8>();
    let mut words = [0; 4];
    for (word, piece) in words.iter_mut().zip(&*pieces) {
        *word = u64::from_le_bytes(*piece);
    }
    work(&mut words);
    for (piece, word) in pieces.iter_mut().zip(words) {
        *piece = word.to_le_bytes();
    }
    bytes
}

/// What only a holder of `secret` can answer a nonce with; it tells nothing of the secret.
pub fn prove(secret: &[u8; 32], nonce: &[u8; 32]) -> [u8; 32] {
    let key = blake3::derive_key(PROOF_CONTEXT, secret);
    *blake3::keyed_hash(&key, nonce).as_bytes()
}

#[cfg(test)]
mod tests {
    //! Proves that a hash depends on everything it should name, and on nothing else.

    use super::*;
    use std::collections::BTreeSet;

    const NAMESPACE: NamespaceDigest = NamespaceDigest([8; 32]);

    fn key(tenant: &str) -> TenantKey {
        TenantKey::derive(&[7; 32], tenant)
    }

    #[test]
    fn prompts_share_the_hashes_of_their_common_prefix_alone() {
        let (mut left, right) = ((0..256).collect::<Vec<u32>>(), (0..256).collect::<Vec<u32>>());
        left[130] = 9999;
        let (left, right) =
            (key("a").chain(NAMESPACE, &left, 64), key("a").chain(NAMESPACE, &right, 64));
        assert_eq!(left[..2], right[..2]);
        assert_ne!(left[2], right[2]);
        assert_ne!(left[3], right[3], "an equal block behind another prefix is another block");
    }

    #[test]
    fn a_partial_last_block_has_no_hash() {
        let tokens: Vec<u32> = (0..100).collect();
        assert_eq!(key("a").chain(NAMESPACE, &tokens, 64).len(), 1);
        assert!(key("a").chain(NAMESPACE, &tokens[..63], 64).is_empty());
    }

    #[test]
    fn tenants_namespaces_and_extra_keys_part_equal_tokens() {
        let tokens: Vec<u32> = (0..64).collect();
        let base = key("a").chain(NAMESPACE, &tokens, 64)[0];
        assert_ne!(base, key("b").chain(NAMESPACE, &tokens, 64)[0]);
        assert_ne!(base, key("a").chain(NamespaceDigest([9; 32]), &tokens, 64)[0]);
        let root = key("a").root(NAMESPACE);
        assert_eq!(base, key("a").next(root, &tokens, &[]));
        assert_ne!(base, key("a").next(root, &tokens, &[b"image"]));
        let (one, two) = (
            key("a").next(root, &tokens, &[b"ab", b"c"]),
            key("a").next(root, &tokens, &[b"a", b"bc"]),
        );
        assert_ne!(one, two, "extra keys are length-prefixed");
    }

    #[test]
    fn an_engines_name_is_wrapped_per_tenant_and_namespace() {
        for name in [&b"engine"[..], &[6; 32]] {
            let wrap = |tenant, namespace| key(tenant).engine_names(namespace).wrap(name);
            assert_eq!(wrap("a", NAMESPACE), wrap("a", NAMESPACE));
            assert_ne!(wrap("a", NAMESPACE), wrap("b", NAMESPACE));
            assert_ne!(wrap("a", NAMESPACE), wrap("a", NamespaceDigest([9; 32])));
            assert_ne!(&wrap("a", NAMESPACE).0, name);
        }
    }

    #[test]
    fn a_name_of_32_bytes_is_told_again_by_who_has_the_key_alone() {
        let name = *blake3::hash(b"block").as_bytes();
        let names = key("a").engine_names(NAMESPACE);
        assert_eq!(names.unwrap(names.wrap(&name)), name);
        assert_ne!(key("b").engine_names(NAMESPACE).unwrap(names.wrap(&name)), name);
    }

    #[test]
    fn every_token_of_a_block_counts_in_its_place() {
        for length in [1, 64, 128, 129, 300] {
            let tokens: Vec<u32> = (0..length).collect();
            let parent = SequenceHash([1; 32]);
            let mut hashes = BTreeSet::from([key("a").next(parent, &tokens, &[])]);
            for changed in 0..tokens.len() {
                let mut other = tokens.clone();
                other[changed] += 1 << 24;
                hashes.insert(key("a").next(parent, &other, &[]));
            }
            assert_eq!(hashes.len(), tokens.len() + 1);
        }
    }

    #[test]
    fn names_of_32_bytes_and_no_others_are_told_again() {
        let tells = |length| EngineNames::tells(&vec![1; length]);
        assert!(tells(32) && !tells(31) && !tells(33) && !tells(0) && !tells(64));
    }

    #[test]
    fn a_proof_is_of_its_secret_and_of_its_nonce() {
        let proof = prove(&[7; 32], &[1; 32]);
        assert_eq!(prove(&[7; 32], &[1; 32]), proof);
        assert_ne!(prove(&[8; 32], &[1; 32]), proof);
        assert_ne!(prove(&[7; 32], &[2; 32]), proof);
    }

    #[test]
    fn a_hash_is_shown_whole_in_hex() {
        let mut hash = SequenceHash([0xab; 32]);
        hash.0[31] = 1;
        assert_eq!(hash.to_string(), "ab".repeat(31) + "01");
        assert_eq!(format!("{hash:?}"), hash.to_string());
    }

    #[test]
    fn debug_output_shows_no_key() {
        assert_eq!(format!("{:?}", key("a")), "TenantKey(..)");
        assert_eq!(format!("{:?}", key("a").engine_names(NAMESPACE)), "EngineNames(..)");
    }
}
