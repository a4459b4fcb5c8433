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
use crate::limits::{RELAY_PATIENCE, RELAY_PAUSE, RELAY_SETTLED, RELAYS};

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

/// A reservation.
#[derive(Debug)]
struct Held {
    relay: PeerId,
    /// When it was granted, or renewed; none: it is still asked for.
    accepted: Option<Instant>,
}

/// Reservations at other members. Bounded by [`RELAYS`], and the members.
#[derive(Debug)]
pub(crate) struct Relays {
    since: Instant,
    held: HashMap<ListenerId, Held>,
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
            !self.held.values().any(|held| held.relay == *peer)
                && self.pauses.get(peer).is_none_or(|end| *end <= now)
        };
        let room = RELAYS.saturating_sub(self.held.len());
        candidates.filter(may).take(room).collect()
    }

    /// Reservations that are not needed, because everybody reaches this node. Those alone that were granted or renewed a
    /// moment ago: the library ends in a panic where one is given up whose answer is on its way.
    pub(crate) fn unneeded(&self, reached: Reached, now: Instant) -> Vec<ListenerId> {
        if reached != Reached::ByAll {
            return Vec::new();
        }
        let settled = |held: &Held| {
            let age = held.accepted.map(|accepted| now.duration_since(accepted));
            age.is_some_and(|age| age < RELAY_SETTLED)
        };
        let settled = self.held.iter().filter(|(_, held)| settled(held));
        settled.map(|(listener, _)| *listener).collect()
    }

    /// A reservation was asked for.
    pub(crate) fn asked(&mut self, listener: ListenerId, relay: PeerId) {
        let accepted = None;
        self.held.insert(listener, Held { relay, accepted });
    }

    /// A member has granted a reservation, or renewed it.
    pub(crate) fn accepted(&mut self, relay: PeerId, now: Instant) {
        for held in self.held.values_mut().filter(|held| held.relay == relay) {
            held.accepted = Some(now);
        }
    }

    /// A reservation was refused, or is over.
    pub(crate) fn lost(&mut self, listener: ListenerId, now: Instant) {
        if let Some(held) = self.held.remove(&listener) {
            self.pause(held.relay, now);
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
        assert!(
            relays.unneeded(Reached::ByAll, now).is_empty(),
            "its answer is on its way"
        );
        relays.accepted(peers[0], now);
        assert!(
            relays.unneeded(Reached::ByAll, now).is_empty(),
            "that is another's"
        );
        relays.accepted(peers[1], now);
        assert!(relays.unneeded(Reached::BySome, now).is_empty());
        assert_eq!(relays.unneeded(Reached::ByAll, now), [two]);
        let later = now + RELAY_SETTLED;
        assert!(
            relays.unneeded(Reached::ByAll, later).is_empty(),
            "it may be asked for anew"
        );
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
