//! When a member that is not connected is dialled again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tvix_node_protocol::envelope::NodeKey;

use crate::limits::{REDIAL_FIRST, REDIAL_LAST};

/// Pauses after failures. Bounded by the members.
#[derive(Debug, Default)]
pub(crate) struct Redial(HashMap<NodeKey, (Instant, Duration)>);

impl Redial {
    /// Whether it is time to dial this member.
    pub(crate) fn is_due(&self, key: NodeKey, now: Instant) -> bool {
        self.0.get(&key).is_none_or(|(at, _)| *at <= now)
    }

    /// It is being dialled: not again before a pause, which grows. When that is over.
    pub(crate) fn dialled(&mut self, key: NodeKey, now: Instant) -> Instant {
        let pause = self
            .0
            .get(&key)
            .map_or(REDIAL_FIRST, |(_, pause)| (*pause * 2).min(REDIAL_LAST));
        self.0.insert(key, (now + pause, pause));
        now + pause
    }

    /// It is connected.
    pub(crate) fn connected(&mut self, key: NodeKey) {
        self.0.remove(&key);
    }

    pub(crate) fn retain(&mut self, is_member: impl Fn(NodeKey) -> bool) {
        self.0.retain(|key, _| is_member(*key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: NodeKey = NodeKey([1; 32]);

    #[test]
    fn pauses_grow_and_end() {
        let mut redial = Redial::default();
        let mut now = Instant::now();
        let mut pauses = vec![];
        for _ in 0..12 {
            assert!(redial.is_due(ANN, now));
            redial.dialled(ANN, now);
            let pause = redial.0[&ANN].1;
            assert!(!redial.is_due(ANN, now + pause - Duration::from_millis(1)));
            now += pause;
            pauses.push(pause);
        }
        assert_eq!(pauses[..3], [REDIAL_FIRST, REDIAL_FIRST * 2, REDIAL_FIRST * 4]);
        assert_eq!(pauses[11], REDIAL_LAST);
        redial.connected(ANN);
        redial.dialled(ANN, now);
        assert_eq!(redial.0[&ANN].1, REDIAL_FIRST);
    }
}
