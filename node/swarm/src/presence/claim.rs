//! What a keeper of records hands on, held against what its holder signed.

use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::Claim;
use tvix_node_protocol::presence::{Epoch, PresenceHeader, PresenceKey, unpack};

use crate::limits::CLOCK_SKEW;

/// Who says so, and the keys of what it says that it has, at the time `now` in seconds since 1970; none where the
/// claim does not hold. It may have crossed two clocks on its way.
#[must_use]
pub fn claimed(claim: &Claim, swarm: SwarmId, epoch: Epoch, now: u64) -> Option<(NodeKey, Vec<PresenceKey>)> {
    let header: PresenceHeader = claim
        .header
        .open()
        .inspect_err(|error| tracing::debug!(holder = %claim.header.signer, %error, "a record that was handed on does not hold"))
        .ok()?;
    let keys = unpack(&claim.keys)?;
    header.check_structure(claim.header.signer).ok()?;
    header.check_keys(&keys).ok()?;
    let holds = header.swarm == swarm
        && header.epoch == epoch
        && now <= header.not_after.saturating_add(2 * CLOCK_SKEW);
    holds.then_some((header.holder, keys))
}
