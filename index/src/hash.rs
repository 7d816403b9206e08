//! The keyed hash chain: names for prefixes.
//!
//! Hashes are BLAKE3, 32 bytes, compared whole. The key is derived from the operator's secret and
//! the tenant, so that a leaked index names no prompt and two tenants never meet.

use crate::namespace::NamespaceDigest;
use std::fmt;

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

    /// Wraps a hash that an engine brings. It already names its whole prefix, so that no parent
    /// enters.
    pub fn wrap(&self, namespace: NamespaceDigest, engine_hash: &[u8]) -> SequenceHash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(b"engine").update(&namespace.0).update(engine_hash);
        SequenceHash(*hasher.finalize().as_bytes())
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

/// What only a holder of `secret` can answer a nonce with; it tells nothing of the secret.
pub fn prove(secret: &[u8; 32], nonce: &[u8; 32]) -> [u8; 32] {
    let key = blake3::derive_key(PROOF_CONTEXT, secret);
    *blake3::keyed_hash(&key, nonce).as_bytes()
}

#[cfg(test)]
mod tests {
    //! Proves that a hash depends on everything it should name, and on nothing else.

    use super::*;

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
    fn an_engine_hash_is_wrapped_per_tenant_and_namespace() {
        let wrapped = key("a").wrap(NAMESPACE, b"engine");
        assert_eq!(wrapped, key("a").wrap(NAMESPACE, b"engine"));
        assert_ne!(wrapped, key("b").wrap(NAMESPACE, b"engine"));
        assert_ne!(wrapped, key("a").wrap(NamespaceDigest([9; 32]), b"engine"));
    }

    #[test]
    fn debug_output_shows_no_key() {
        assert_eq!(format!("{:?}", key("a")), "TenantKey(..)");
    }
}
