//! Trees that were made for one member alone: what was built from inputs that the policy here does not
//! accept. They are served to that member by their digest, and to nobody else.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::tree::TreeDigest;

use super::limits::{GRANT_TIME, GRANTS};

/// Who may have which tree until when.
#[derive(Debug, Default)]
pub struct Grants(Mutex<HashMap<(NodeKey, TreeDigest), u64>>);

impl Grants {
    /// From `now`, in seconds since 1970, this member may fetch the tree for a while.
    pub fn give(&self, peer: NodeKey, tree: TreeDigest, now: u64) {
        let mut grants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if grants.len() >= GRANTS {
            grants.retain(|_, until| *until >= now);
        }
        if grants.len() >= GRANTS
            && let Some(oldest) = grants
                .iter()
                .min_by_key(|(_, until)| **until)
                .map(|(key, _)| *key)
        {
            grants.remove(&oldest);
        }
        grants.insert((peer, tree), now.saturating_add(GRANT_TIME));
    }

    /// Whether this member may fetch the tree at `now`.
    pub fn has(&self, peer: NodeKey, tree: TreeDigest, now: u64) -> bool {
        let grants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        grants.get(&(peer, tree)).is_some_and(|until| *until >= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_for_one_member_one_tree_and_a_while() {
        let grants = Grants::default();
        let (ann, bob) = (NodeKey([1; 32]), NodeKey([2; 32]));
        let tree = TreeDigest([3; 32]);
        grants.give(ann, tree, 100);
        assert!(grants.has(ann, tree, 100));
        assert!(grants.has(ann, tree, 100 + GRANT_TIME));
        assert!(!grants.has(ann, tree, 101 + GRANT_TIME));
        assert!(!grants.has(bob, tree, 100));
        assert!(!grants.has(ann, TreeDigest([4; 32]), 100));
    }

    #[test]
    fn the_oldest_grants_make_room() {
        let grants = Grants::default();
        let ann = NodeKey([1; 32]);
        let tree = |number: usize| {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&(number as u64).to_le_bytes());
            TreeDigest(digest)
        };
        for number in 0..=GRANTS {
            grants.give(ann, tree(number), number as u64 / 1024);
        }
        let kept = (0..=GRANTS)
            .filter(|number| grants.has(ann, tree(*number), 0))
            .count();
        assert_eq!(kept, GRANTS);
        assert!(grants.has(ann, tree(GRANTS), 0));
    }
}
