//! All that is known of each member, for who wants to look.

use std::collections::BTreeMap;
use std::time::Duration;

use tvix_node_protocol::envelope::NodeKey;

use crate::core::{Core, PeerStatus, lock};
use crate::net::PeerTraffic;

/// What is known of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerOverview {
    /// The other ends of the connections to it, as multiaddresses; the first is used. Empty: there is none.
    pub connections: Vec<String>,
    /// Where else it may be reached: what worked last comes first.
    pub addresses: Vec<String>,
    /// How long a round trip took last, where there is a connection and it has been measured.
    pub round_trip: Option<Duration>,
    /// What it offers, where there is a connection and it has said so.
    pub status: Option<PeerStatus>,
    /// Bytes to and from it since the start.
    pub traffic: PeerTraffic,
    /// Bytes of content a second that it brought of late; none: nothing large has come from it.
    pub speed: Option<u64>,
    /// It sent something else than it said within the last day, and is asked last.
    pub lied: bool,
}

/// All members but this node.
pub(crate) fn overview(core: &Core) -> BTreeMap<NodeKey, PeerOverview> {
    let (members, me, now) = (core.team.members(), core.team.me(), core.team.now());
    let mut traffic = core.traffic.read();
    let status = lock(&core.peers).clone();
    let mut view = |peer: NodeKey| {
        let link = core.network.link(peer);
        let addresses = core.contacts.addresses(peer);
        let standing = lock(&core.standing);
        PeerOverview {
            connections: link.addresses(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            round_trip: link.round_trip(),
            status: status.get(&peer).cloned(),
            traffic: traffic.remove(&peer).unwrap_or_default(),
            speed: standing.speed(peer),
            lied: standing.is_liar(peer, now),
        }
    };
    let others: Vec<NodeKey> = members
        .iter()
        .map(|(peer, _)| peer)
        .filter(|peer| *peer != me)
        .collect();
    others.into_iter().map(|peer| (peer, view(peer))).collect()
}
