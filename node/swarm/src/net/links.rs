//! What is known of the connections to each member: where they lead, and how long a round trip takes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use libp2p::Multiaddr;
use libp2p::swarm::ConnectionId;
use tokio::sync::Notify;
use tvix_node_protocol::envelope::NodeKey;

use super::relays::is_relayed;
use crate::limits::UNREACHABLE;

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
    /// The least that was measured: what takes longer is a machine that has other things to do.
    least_round_trip: Option<Duration>,
    /// When it last made a direct connection to this node.
    came: Option<Instant>,
    /// When it did not answer a question; none: it has given a sign of life since.
    silent: Option<Instant>,
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

    /// The other end of the connection without another member between, the one that is used first.
    pub(crate) fn direct(&self) -> Option<Multiaddr> {
        let mut all = self.connections.iter().map(|connection| &connection.address);
        all.find(|address| !is_relayed(address)).cloned()
    }

    /// When it last made a direct connection to this node.
    pub(crate) fn came(&self) -> Option<Instant> {
        self.came
    }

    /// As it was measured last.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Whether it did not answer a question lately, and has given no sign of life since.
    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        self.silent
            .is_some_and(|since| now.duration_since(since) < UNREACHABLE)
    }

    /// The least that was measured since there is a connection: how far away the member is.
    pub(crate) fn least_round_trip(&self) -> Option<Duration> {
        self.least_round_trip
    }
}

/// The connections to members. Bounded by the connections there may be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Links {
    links: Arc<Mutex<BTreeMap<NodeKey, Link>>>,
    /// Somebody has made a connection.
    came: Arc<Notify>,
}

impl Links {
    fn with<T>(&self, action: impl FnOnce(&mut BTreeMap<NodeKey, Link>) -> T) -> T {
        action(&mut self.links.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn connected(&self, peer: NodeKey, id: ConnectionId, address: Multiaddr, dialled: bool) {
        let came = (!dialled && !is_relayed(&address)).then(Instant::now);
        let connection = Connection { id, address, dialled };
        self.with(|links| {
            let link = links.entry(peer).or_default();
            link.connections.push(connection);
            link.came = came.or(link.came);
        });
        self.came.notify_waiters();
    }

    /// A member made one more direct connection than there may be.
    pub(crate) fn knocked(&self, peer: NodeKey) {
        self.with(|links| {
            if let Some(link) = links.get_mut(&peer) {
                link.came = Some(Instant::now());
            }
        });
        self.came.notify_waiters();
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
                link.silent = None;
                let least = link
                    .least_round_trip
                    .map_or(round_trip, |least| least.min(round_trip));
                link.least_round_trip = Some(least);
            }
        });
    }

    /// A member did not answer a question in time.
    pub(crate) fn fell_silent(&self, peer: NodeKey, now: Instant) {
        self.with(|links| {
            if let Some(link) = links.get_mut(&peer) {
                link.silent = Some(now);
            }
        });
    }

    /// Whether a member makes a direct connection to this node, or has since then; waits for it a little.
    pub(crate) async fn has_come(&self, peer: NodeKey, since: Instant, patience: Duration) -> bool {
        let coming = async {
            loop {
                let news = self.came.notified();
                if self.get(peer).came().is_some_and(|came| came >= since) {
                    return;
                }
                news.await;
            }
        };
        tokio::time::timeout(patience, coming).await.is_ok()
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
        assert_eq!(links.get(peer).direct(), Some(address(1)));
        let came = links.get(peer).came().unwrap();
        links.connected(peer, two, address(2), true);
        assert_eq!(links.get(peer).dialled(), Some(address(2)));
        assert_eq!(
            links.get(peer).came(),
            Some(came),
            "this node made the second one"
        );
        links.measured(peer, Duration::from_millis(2));
        links.closed(peer, one);
        let link = links.get(peer);
        assert_eq!(link.addresses(), ["/ip4/127.0.0.1/tcp/2"]);
        assert_eq!(link.round_trip(), Some(Duration::from_millis(2)));
        assert_eq!(link.least_round_trip(), Some(Duration::from_millis(2)));
        links.measured(peer, Duration::from_millis(9));
        assert_eq!(links.get(peer).round_trip(), Some(Duration::from_millis(9)));
        assert_eq!(links.get(peer).least_round_trip(), Some(Duration::from_millis(2)));
        let now = Instant::now();
        links.fell_silent(peer, now);
        assert!(links.get(peer).is_silent(now));
        assert!(!links.get(peer).is_silent(now + UNREACHABLE));
        links.measured(peer, Duration::from_millis(9));
        assert!(!links.get(peer).is_silent(now), "it gave a sign of life");
        links.closed(peer, two);
        links.fell_silent(peer, now);
        assert!(links.with(|links| links.is_empty()));
    }
}
