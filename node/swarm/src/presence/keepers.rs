//! Who keeps which region, as it was found out last.

use std::collections::HashMap;

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::presence::Region;

/// The members closest to regions. A walk through others' routing tables costs some twenty questions, so what it brought
/// is used until presence is renewed anyway: a node then walks once for each region, however often it has something
/// to tell or to ask. Bounded by the regions there are.
#[derive(Debug, Default)]
pub struct Keepers(HashMap<Region, (Vec<NodeKey>, u64)>);

impl Keepers {
    /// Those found last, the closest first, unless that is too long ago.
    #[must_use]
    pub fn get(&self, region: Region, now: u64) -> Option<Vec<NodeKey>> {
        let (keepers, until) = self.0.get(&region)?;
        (now < *until).then(|| keepers.clone())
    }

    /// A walk brought these, which count until the time `until`.
    pub fn found(&mut self, region: Region, keepers: Vec<NodeKey>, until: u64) {
        self.0.insert(region, (keepers, until));
    }

    /// Forgets what is too old, and regions with somebody who is not a member any more.
    pub fn retain(&mut self, is_member: impl Fn(NodeKey) -> bool, now: u64) {
        self.0
            .retain(|_, (keepers, until)| now < *until && keepers.iter().all(|keeper| is_member(*keeper)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: NodeKey = NodeKey([1; 32]);
    const BOB: NodeKey = NodeKey([2; 32]);

    #[test]
    fn who_keeps_a_region_is_known_for_a_while() {
        let mut keepers = Keepers::default();
        let [one, two] = [0, 1].map(|prefix| Region { bits: 1, prefix });
        assert_eq!(keepers.get(one, 0), None);
        keepers.found(one, vec![ANN, BOB], 100);
        keepers.found(two, vec![BOB], 200);
        assert_eq!(keepers.get(one, 99), Some(vec![ANN, BOB]));
        assert_eq!(keepers.get(one, 100), None);
        keepers.retain(|_| true, 100);
        assert_eq!(keepers.0.len(), 1);
        keepers.found(one, vec![ANN], 200);
        keepers.retain(|key| key == ANN, 100);
        assert_eq!(
            (keepers.get(one, 100), keepers.get(two, 100)),
            (Some(vec![ANN]), None)
        );
    }
}
