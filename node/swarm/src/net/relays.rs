//! Through which members this node lets itself be reached, and reaches others.
//!
//! A node that not all members can dial, as one behind a NAT, asks members that it reaches directly to pass on
//! connections to it. The connection that is passed on is encrypted from end to end; both sides then try to find a
//! direct one.

use std::collections::HashMap;
use std::time::Instant;

use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

use super::reachability::Reached;
use crate::limits::{RELAY_PATIENCE, RELAY_PAUSE, RELAYS};

/// Whether an address leads through another node.
pub(crate) fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// The way through a node, from where that can be reached.
pub(crate) fn through(relay: PeerId, at: &Multiaddr) -> Option<Multiaddr> {
    if is_relayed(at) {
        return None;
    }
    let parts = at.iter().filter(|part| !matches!(part, Protocol::P2p(_)));
    let way: Multiaddr = parts.collect();
    Some(way.with(Protocol::P2p(relay)).with(Protocol::P2pCircuit))
}

/// Reservations at other members. Bounded by [`RELAYS`], and the members.
#[derive(Debug)]
pub(crate) struct Relays {
    since: Instant,
    held: HashMap<ListenerId, PeerId>,
    /// Not to be asked before.
    pauses: HashMap<PeerId, Instant>,
}

impl Relays {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            since: now,
            held: HashMap::new(),
            pauses: HashMap::new(),
        }
    }

    /// Whom to ask for a reservation now, of the members that this node has reached directly.
    pub(crate) fn wanted(
        &self,
        reached: Reached,
        candidates: impl Iterator<Item = PeerId>,
        now: Instant,
    ) -> Vec<PeerId> {
        let needed = match reached {
            Reached::ByAll => false,
            Reached::BySome | Reached::ByNone => true,
            Reached::Unknown => now.duration_since(self.since) >= RELAY_PATIENCE,
        };
        if !needed {
            return Vec::new();
        }
        let may = |peer: &PeerId| {
            !self.held.values().any(|held| held == peer)
                && self.pauses.get(peer).is_none_or(|end| *end <= now)
        };
        let room = RELAYS.saturating_sub(self.held.len());
        candidates.filter(may).take(room).collect()
    }

    /// Reservations that are not needed, because everybody reaches this node.
    pub(crate) fn unneeded(&self, reached: Reached) -> Vec<ListenerId> {
        match reached {
            Reached::ByAll => self.held.keys().copied().collect(),
            _ => Vec::new(),
        }
    }

    /// A reservation was asked for.
    pub(crate) fn asked(&mut self, listener: ListenerId, relay: PeerId) {
        self.held.insert(listener, relay);
    }

    /// A reservation was refused, or is over.
    pub(crate) fn lost(&mut self, listener: ListenerId, now: Instant) {
        if let Some(relay) = self.held.remove(&listener) {
            self.pause(relay, now);
        }
    }

    /// It is of no use to ask for some time.
    pub(crate) fn pause(&mut self, relay: PeerId, now: Instant) {
        self.pauses.retain(|_, end| *end > now);
        self.pauses.insert(relay, now + RELAY_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_reached_asks_two_and_pauses_where_one_refuses() {
        let start = Instant::now();
        let (now, peers) = (start + RELAY_PATIENCE, [(); 3].map(|()| PeerId::random()));
        let mut relays = Relays::new(start);
        let wanted_if = |relays: &Relays, reached, at| relays.wanted(reached, peers.iter().copied(), at);
        let wanted = |relays: &Relays, at| wanted_if(relays, Reached::Unknown, at);
        assert!(wanted(&relays, start).is_empty());
        assert!(wanted_if(&relays, Reached::ByAll, now).is_empty());
        for reached in [Reached::BySome, Reached::ByNone] {
            assert_eq!(
                wanted_if(&relays, reached, start),
                peers[..2],
                "it is known: no patience is needed"
            );
        }
        assert_eq!(wanted(&relays, now), peers[..2]);
        let (one, two) = (ListenerId::next(), ListenerId::next());
        relays.asked(one, peers[0]);
        relays.asked(two, peers[1]);
        assert!(wanted(&relays, now).is_empty());
        relays.lost(one, now);
        assert_eq!(wanted(&relays, now), [peers[2]]);
        assert_eq!(wanted(&relays, now + RELAY_PAUSE), [peers[0]]);
        assert!(relays.unneeded(Reached::BySome).is_empty());
        assert_eq!(relays.unneeded(Reached::ByAll), [two]);
    }

    #[test]
    fn the_way_through_a_member_is_from_where_that_was_reached() {
        let relay = PeerId::random();
        let at: Multiaddr = format!("/ip4/192.0.2.1/tcp/1/p2p/{relay}").parse().unwrap();
        let way = through(relay, &at).unwrap();
        assert_eq!(
            way.to_string(),
            format!("/ip4/192.0.2.1/tcp/1/p2p/{relay}/p2p-circuit")
        );
        assert!(is_relayed(&way) && !is_relayed(&at));
        assert!(through(relay, &way).is_none());
    }
}
