//! What peers have shown themselves to be worth.

use std::collections::HashMap;
use std::time::Duration;

use tvix_node_protocol::envelope::NodeKey;

use crate::limits::SPEED_SAMPLE;

/// Seconds a lie is remembered: long enough that a whole session does without the liar.
const LIE_MEMORY: u64 = 24 * 3600;
/// Seconds a failure is remembered: a restart takes less.
const FAILURE_MEMORY: u64 = 60;

#[derive(Debug, Clone, Copy, Default)]
struct Marks {
    lied_until: u64,
    failed_until: u64,
    failures: u32,
}

/// What is known of all peers; there is nothing to bound but the number of members.
#[derive(Debug, Default)]
pub struct Standing {
    /// Those who keep their word have none.
    marks: HashMap<NodeKey, Marks>,
    /// Bytes a second.
    speeds: HashMap<NodeKey, u64>,
}

impl Standing {
    /// The peer sent something that is not what it said.
    pub fn lied(&mut self, peer: NodeKey, now: u64) {
        self.marks.entry(peer).or_default().lied_until = now + LIE_MEMORY;
    }

    /// The peer did not answer, or not to the end.
    pub fn failed(&mut self, peer: NodeKey, now: u64) {
        let marks = self.marks.entry(peer).or_default();
        marks.failed_until = now + FAILURE_MEMORY;
        marks.failures = marks.failures.saturating_add(1);
    }

    /// The peer did what was asked. It makes up for failures, not for lies.
    pub fn served(&mut self, peer: NodeKey) {
        if let Some(marks) = self.marks.get_mut(&peer) {
            (marks.failed_until, marks.failures) = (0, 0);
        }
    }

    /// So many bytes of content came from the peer in so much time. A few say nothing about the link.
    pub fn brought(&mut self, peer: NodeKey, bytes: u64, time: Duration) {
        if bytes < SPEED_SAMPLE {
            return;
        }
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
        let now = bytes.saturating_mul(1_000_000) / micros;
        // Half the old one: a link that has changed shows within a few transfers, a hiccup does not stay.
        let speed = self.speeds.entry(peer).or_insert(now);
        *speed = speed.midpoint(now);
    }

    /// Bytes of content a second that came from the peer of late.
    #[must_use]
    pub fn speed(&self, peer: NodeKey) -> Option<u64> {
        self.speeds.get(&peer).copied()
    }

    /// Whether the peer has lied lately.
    #[must_use]
    pub fn is_liar(&self, peer: NodeKey, now: u64) -> bool {
        self.marks.get(&peer).is_some_and(|marks| now < marks.lied_until)
    }

    /// The best first; among equals the order is kept. Liars come last and are not left out: who has
    /// nobody else may still try, since everything is verified.
    pub fn sort(&self, peers: &mut [NodeKey], now: u64) {
        peers.sort_by_key(|peer| {
            let marks = self.marks.get(peer).copied().unwrap_or_default();
            let failures = if now < marks.failed_until {
                marks.failures
            } else {
                0
            };
            (now < marks.lied_until, failures)
        });
    }

    /// Forgets what is over, and who is not a member any more.
    pub fn expire(&mut self, is_member: impl Fn(NodeKey) -> bool, now: u64) {
        self.speeds.retain(|peer, _| is_member(*peer));
        self.marks
            .retain(|peer, marks| is_member(*peer) && now < marks.lied_until.max(marks.failed_until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(standing: &Standing, now: u64) -> Vec<u8> {
        let mut peers: Vec<NodeKey> = (1..=4).map(|seed| NodeKey([seed; 32])).collect();
        standing.sort(&mut peers, now);
        peers.iter().map(|peer| peer.0[0]).collect()
    }

    #[test]
    fn liars_come_last_and_failures_before_them() {
        let mut standing = Standing::default();
        assert_eq!(sorted(&standing, 0), [1, 2, 3, 4]);
        standing.lied(NodeKey([1; 32]), 0);
        standing.failed(NodeKey([2; 32]), 0);
        assert_eq!(sorted(&standing, 0), [3, 4, 2, 1]);
        standing.served(NodeKey([1; 32]));
        standing.served(NodeKey([2; 32]));
        assert_eq!(sorted(&standing, 0), [2, 3, 4, 1], "a lie is not made up for");
        assert_eq!(
            sorted(&standing, LIE_MEMORY),
            [1, 2, 3, 4],
            "but forgotten in the end"
        );
        standing.expire(|_| true, LIE_MEMORY);
        assert!(standing.marks.is_empty());
    }
    #[test]
    fn a_speed_follows_what_is_measured_and_a_few_bytes_say_nothing() {
        let (mut standing, ann) = (Standing::default(), NodeKey([1; 32]));
        standing.brought(ann, SPEED_SAMPLE - 1, Duration::from_secs(1));
        assert_eq!(standing.speed(ann), None);
        standing.brought(ann, 8 << 20, Duration::from_secs(2));
        assert_eq!(standing.speed(ann), Some(4 << 20));
        standing.brought(ann, 8 << 20, Duration::from_secs(4));
        assert_eq!(standing.speed(ann), Some(3 << 20));
        standing.brought(ann, u64::MAX, Duration::ZERO);
        standing.expire(|_| false, 0);
        assert_eq!(standing.speed(ann), None, "who is no member is forgotten");
    }
}
