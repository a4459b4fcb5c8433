//! Builders whose connection broke, until they count as gone.

use std::collections::BTreeMap;

use tokio::time::Instant;
use tvix_node_protocol::envelope::NodeKey;

use super::limits::BUILDER_GONE;

/// When those count as gone who build for this node and are down.
#[derive(Debug, Default)]
pub(super) struct Down(BTreeMap<NodeKey, Instant>);

impl Down {
    /// The connection to a builder broke. One that was back meanwhile has all of its time again.
    pub(super) fn broke(&mut self, builder: NodeKey, now: Instant) {
        self.0.insert(builder, now + BUILDER_GONE);
    }

    /// When it has to be looked at next whether one is gone.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().min().copied()
    }

    /// Those whose time is over by now. They may be back.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<NodeKey> {
        let due = self.0.extract_if(.., |_, at| *at <= now);
        due.map(|(builder, _)| builder).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::limits::BUILDER_BACK;
    use super::*;

    #[test]
    fn a_connection_that_breaks_again_gives_its_builder_all_of_its_time_again() {
        let (bob, carol) = (NodeKey([1; 32]), NodeKey([2; 32]));
        let (mut down, first) = (Down::default(), Instant::now());
        let second = first + BUILDER_GONE - Duration::from_millis(100);
        down.broke(bob, first);
        down.broke(carol, first);
        // Bob was back, and breaks off again just before he would count as gone.
        down.broke(bob, second);
        assert_eq!(down.next(), Some(first + BUILDER_GONE));
        assert_eq!(down.take_due(first + BUILDER_GONE), [carol]);
        // As long as he may be asked again.
        assert!(down.take_due(second + BUILDER_BACK).is_empty());
        assert_eq!(down.next(), Some(second + BUILDER_GONE));
        assert_eq!(down.take_due(second + BUILDER_GONE), [bob]);
        assert_eq!(down.next(), None);
    }
}
