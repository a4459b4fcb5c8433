//! How much each peer may still ask.

use std::collections::HashMap;

use tvix_node_protocol::envelope::NodeKey;

/// A budget per peer that fills up again with time.
#[derive(Debug)]
pub struct Allowance {
    per_minute: u32,
    /// What is left, in sixtieths, and when that was.
    left: HashMap<NodeKey, (u64, u64)>,
}

impl Allowance {
    /// Every peer may use so much in a minute on average, and at most so much at once.
    #[must_use]
    pub fn new(per_minute: u32) -> Self {
        Self {
            per_minute,
            left: HashMap::new(),
        }
    }

    /// Takes from a peer's budget at the time `now` in seconds; false where it is used up.
    pub fn take(&mut self, peer: NodeKey, amount: u32, now: u64) -> bool {
        let full = u64::from(self.per_minute) * 60;
        let (left, since) = self.left.get(&peer).copied().unwrap_or((full, now));
        let gained = now
            .saturating_sub(since)
            .saturating_mul(u64::from(self.per_minute));
        let left = left.saturating_add(gained).min(full);
        let wanted = u64::from(amount) * 60;
        let enough = wanted <= left;
        let left = if enough { left - wanted } else { left };
        self.left.insert(peer, (left, now));
        enough
    }

    /// Forgets all peers but these: who is not a member has no budget to remember.
    pub fn retain(&mut self, is_member: impl Fn(NodeKey) -> bool) {
        self.left.retain(|peer, _| is_member(*peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: NodeKey = NodeKey([1; 32]);
    const BOB: NodeKey = NodeKey([2; 32]);

    #[test]
    fn a_budget_is_used_up_and_fills_up_again() {
        let mut allowance = Allowance::new(60);
        assert!(allowance.take(ANN, 60, 100));
        assert!(!allowance.take(ANN, 1, 100));
        assert!(allowance.take(BOB, 60, 100), "each peer has its own");
        assert!(allowance.take(ANN, 10, 110));
        assert!(!allowance.take(ANN, 1, 110));
        assert!(
            allowance.take(ANN, 60, 100_000),
            "and never has more than a minute's"
        );
        assert!(!allowance.take(ANN, 1, 100_000));
        assert!(!allowance.take(ANN, 1, 50), "a clock set back gains nothing");
    }
}
