//! What is known of the connections to each member: where they lead, and how long a round trip takes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::swarm::ConnectionId;
use tvix_node_protocol::envelope::NodeKey;

use super::relays::is_relayed;

/// One connection to a member.
#[derive(Debug, Clone)]
struct Connection {
    id: ConnectionId,
    address: Multiaddr,
    /// Made by this node, so that the address is one where the member can be reached.
    dialled: bool,
}

/// The connections to one member.
#[derive(Debug, Clone, Default)]
pub(crate) struct Link {
    connections: Vec<Connection>,
    round_trip: Option<Duration>,
}

impl Link {
    /// The other ends of the connections: the one that is used first, which is the oldest, or the oldest direct one
    /// where some lead through another member.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let all = || self.connections.iter().map(|connection| &connection.address);
        let direct = all().filter(|address| !is_relayed(address));
        let relayed = all().filter(|address| is_relayed(address));
        direct.chain(relayed).map(ToString::to_string).collect()
    }

    /// Where this node has reached the member without another one between.
    pub(crate) fn dialled(&self) -> Option<Multiaddr> {
        let direct = |connection: &&Connection| connection.dialled && !is_relayed(&connection.address);
        Some(self.connections.iter().find(direct)?.address.clone())
    }

    /// As it was measured last.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }
}

/// The connections to members. Bounded by the connections there may be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Links(Arc<Mutex<BTreeMap<NodeKey, Link>>>);

impl Links {
    fn with<T>(&self, action: impl FnOnce(&mut BTreeMap<NodeKey, Link>) -> T) -> T {
        action(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn connected(&self, peer: NodeKey, id: ConnectionId, address: Multiaddr, dialled: bool) {
        let connection = Connection { id, address, dialled };
        self.with(|links| links.entry(peer).or_default().connections.push(connection));
    }

    pub(crate) fn closed(&self, peer: NodeKey, connection: ConnectionId) {
        self.with(|links| {
            if let Some(link) = links.get_mut(&peer) {
                link.connections.retain(|other| other.id != connection);
                if link.connections.is_empty() {
                    links.remove(&peer);
                }
            }
        });
    }

    /// A round trip to a member took so long. Says nothing where the connection is gone already.
    pub(crate) fn measured(&self, peer: NodeKey, round_trip: Duration) {
        self.with(|links| {
            if let Some(link) = links.get_mut(&peer) {
                link.round_trip = Some(round_trip);
            }
        });
    }

    pub(crate) fn get(&self, peer: NodeKey) -> Link {
        self.with(|links| links.get(&peer).cloned().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_there_as_long_as_one_of_its_connections() {
        let (links, peer) = (Links::default(), NodeKey([1; 32]));
        let (one, two) = (ConnectionId::new_unchecked(1), ConnectionId::new_unchecked(2));
        let address = |port: u16| -> Multiaddr { format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap() };
        links.measured(peer, Duration::from_millis(1));
        assert!(links.get(peer).round_trip().is_none(), "there is no connection");
        links.connected(peer, one, address(1), false);
        assert!(links.get(peer).dialled().is_none());
        links.connected(peer, two, address(2), true);
        assert_eq!(links.get(peer).dialled(), Some(address(2)));
        links.measured(peer, Duration::from_millis(2));
        links.closed(peer, one);
        let link = links.get(peer);
        assert_eq!(link.addresses(), ["/ip4/127.0.0.1/tcp/2"]);
        assert_eq!(link.round_trip(), Some(Duration::from_millis(2)));
        links.closed(peer, two);
        assert!(links.with(|links| links.is_empty()));
    }
}
