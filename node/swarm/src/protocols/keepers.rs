//! Finding the members that keep a region of the key space.

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::presence::Region;

use crate::core::{Core, lock};
use crate::limits::PRESENCE_RENEWAL;
use crate::net::transport::CLOSEST;

/// The members closest to a region, as far as they are known without asking anybody: in a small team, where everyone is
/// in everyone's routing table, and where they were found out lately.
pub(crate) async fn known(core: &Core, region: Region) -> Option<Vec<NodeKey>> {
    if core.team.members().len() <= CLOSEST.get() {
        return Some(core.network.closest(region.label(), false).await);
    }
    lock(&core.keepers).get(region, core.team.now())
}

/// The members closest to a region, after a walk through others' routing tables.
pub(crate) async fn walk(core: &Core, region: Region) -> Vec<NodeKey> {
    let found = core.network.closest(region.label(), true).await;
    // Before anybody was reached, a walk leads nowhere; its outcome is not to be believed for long.
    if found.len() >= CLOSEST.get() && !core.connected().is_empty() {
        let until = core.team.now().saturating_add(PRESENCE_RENEWAL.as_secs());
        lock(&core.keepers).found(region, found.clone(), until);
    }
    found
}
