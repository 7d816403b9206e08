//! An entry's value: one to four owners, the longest there first, each in four bytes.

use super::NodeId;

/// Owners of one block; one more takes the place of the oldest.
pub(super) const OWNERS_MAX: usize = 4;
const OWNER: usize = 4;

/// A node in one of its epochs, as an entry names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) node: NodeId,
    pub(super) epoch: u16,
}

impl Claim {
    pub(super) fn encode(self) -> [u8; OWNER] {
        let ([a, b], [c, d]) = (self.node.0.to_be_bytes(), self.epoch.to_be_bytes());
        [a, b, c, d]
    }
}

/// `None` for what no function of ours writes.
pub(super) fn decode(value: &[u8]) -> Option<Vec<Claim>> {
    let (claims, rest) = value.as_chunks::<OWNER>();
    if claims.is_empty() || claims.len() > OWNERS_MAX || !rest.is_empty() {
        return None;
    }
    let claim = |&[a, b, c, d]: &[u8; OWNER]| Claim {
        node: NodeId(u16::from_be_bytes([a, b])),
        epoch: u16::from_be_bytes([c, d]),
    };
    Some(claims.iter().map(claim).collect())
}

#[cfg(test)]
mod tests {
    //! Proves that every value is what was encoded, or is refused.

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn owners_come_back(owners in prop::collection::vec((any::<u16>(), any::<u16>()), 1..=4)) {
            let claims: Vec<_> =
                owners.into_iter().map(|(node, epoch)| Claim { node: NodeId(node), epoch }).collect();
            let value: Vec<u8> = claims.iter().flat_map(|claim| claim.encode()).collect();
            prop_assert_eq!(decode(&value), Some(claims));
        }

        #[test]
        fn what_is_no_list_of_owners_is_refused(value in prop::collection::vec(any::<u8>(), 0..40)) {
            let is_list = !value.is_empty() && value.len() <= 16 && value.len() % 4 == 0;
            prop_assert_eq!(decode(&value).is_some(), is_list);
        }
    }
}
