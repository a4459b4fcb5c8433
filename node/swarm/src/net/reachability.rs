//! Whether others can dial this node: what those who tried said.
//!
//! That somebody has dialled this node proves little: it may have sat in the same room, or come through a hole that was
//! punched for it. So members are asked to dial it anew, from a port that no router has seen, at the address that they
//! see it at. The answers are facts about those who gave them: a node may be reached from its own network and from
//! nowhere else.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::ListenPort;

use crate::limits::{REACHABILITY_AGE, REACHABILITY_ASKED, REACHABILITY_PAUSE};

/// What follows from what members said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// Nobody could say yet.
    Unknown,
    /// All who were asked reached this node.
    ByAll,
    /// Some reached it, others did not: it may be behind a router, with colleagues beside it.
    BySome,
    /// Nobody reached it.
    ByNone,
}

#[derive(Debug, Clone)]
struct Outcome {
    /// Where it reached this node; empty: nowhere. None: it could not say.
    at: Option<Vec<Multiaddr>>,
    when: Instant,
}

impl Outcome {
    fn is_fresh(&self, now: Instant) -> bool {
        let age = match self.at {
            Some(_) => REACHABILITY_AGE,
            None => REACHABILITY_PAUSE,
        };
        now.duration_since(self.when) < age
    }
}

/// What members said. Bounded by those asked within [`REACHABILITY_AGE`].
#[derive(Debug, Default)]
pub(crate) struct Reachability(BTreeMap<NodeKey, Outcome>);

impl Reachability {
    /// Whom to ask now, of those connected without another one between and where they are seen: those elsewhere
    /// first, because what a neighbour says is true for neighbours alone.
    pub(crate) fn ask_now(&mut self, mut connected: Vec<(NodeKey, IpAddr)>, now: Instant) -> Vec<NodeKey> {
        self.0.retain(|_, outcome| outcome.is_fresh(now));
        connected.sort_by_key(|(peer, address)| (!is_public(*address), *peer));
        let wanted = connected.into_iter().take(REACHABILITY_ASKED);
        wanted
            .map(|(peer, _)| peer)
            .filter(|peer| !self.0.contains_key(peer))
            .collect()
    }

    /// A member has tried, or could not.
    pub(crate) fn said(&mut self, peer: NodeKey, at: Option<Vec<Multiaddr>>, now: Instant) {
        self.0.insert(peer, Outcome { at, when: now });
    }

    pub(crate) fn verdict(&self, now: Instant) -> Reached {
        let (mut yes, mut no) = (0, 0);
        for (_, reached) in self.by(now) {
            if reached { yes += 1 } else { no += 1 }
        }
        match (yes, no) {
            (0, 0) => Reached::Unknown,
            (_, 0) => Reached::ByAll,
            (0, _) => Reached::ByNone,
            _ => Reached::BySome,
        }
    }

    /// Who said what.
    pub(crate) fn by(&self, now: Instant) -> impl Iterator<Item = (NodeKey, bool)> {
        let fresh = self.0.iter().filter(move |(_, outcome)| outcome.is_fresh(now));
        fresh.filter_map(|(peer, outcome)| Some((*peer, !outcome.at.as_ref()?.is_empty())))
    }

    /// Where this node was reached.
    pub(crate) fn addresses(&self, now: Instant) -> Vec<Multiaddr> {
        let fresh = self.0.values().filter(|outcome| outcome.is_fresh(now));
        let mut all: Vec<Multiaddr> = fresh
            .flat_map(|outcome| outcome.at.clone().unwrap_or_default())
            .collect();
        all.sort();
        all.dedup();
        all
    }
}

/// As the driver and those who ask share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedReachability(Arc<Mutex<Reachability>>);

impl SharedReachability {
    pub(crate) fn with<T>(&self, action: impl FnOnce(&mut Reachability) -> T) -> T {
        action(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The machine that an address leads to directly.
pub(crate) fn machine(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(address) => Some(address.into()),
        Protocol::Ip6(address) => Some(address.into()),
        _ => None,
    }
}

/// The port that an address names, where it is one that nodes listen at.
pub(crate) fn port(address: &Multiaddr) -> Option<ListenPort> {
    let mut parts = address.iter().skip(1);
    match (parts.next()?, parts.next()) {
        (Protocol::Tcp(port), None | Some(Protocol::P2p(_))) => Some(ListenPort::Tcp(port)),
        (Protocol::Udp(port), Some(Protocol::QuicV1)) => Some(ListenPort::Quic(port)),
        _ => None,
    }
}

/// The address of a port of a machine.
pub(crate) fn address(machine: IpAddr, port: ListenPort) -> Multiaddr {
    let machine = Multiaddr::from(machine);
    match port {
        ListenPort::Tcp(port) => machine.with(Protocol::Tcp(port)),
        ListenPort::Quic(port) => machine.with(Protocol::Udp(port)).with(Protocol::QuicV1),
    }
}

/// Whether an address means the same everywhere.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let shared = address.octets()[0] == 100 && address.octets()[1] & 0xc0 == 64;
            !(address.is_private() || address.is_loopback() || address.is_link_local() || shared)
        }
        IpAddr::V6(address) => address.segments()[0] & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: NodeKey = NodeKey([1; 32]);
    const BOB: NodeKey = NodeKey([2; 32]);

    fn at(text: &str) -> Vec<Multiaddr> {
        vec![text.parse().unwrap()]
    }

    #[test]
    fn what_members_say_counts_for_a_while() {
        let (start, mut reachability) = (Instant::now(), Reachability::default());
        let connected = || {
            vec![
                (ANN, "192.168.1.2".parse().unwrap()),
                (BOB, "203.0.113.9".parse().unwrap()),
            ]
        };
        assert_eq!(
            reachability.ask_now(connected(), start),
            [BOB, ANN],
            "who is elsewhere comes first"
        );
        assert_eq!(reachability.verdict(start), Reached::Unknown);
        reachability.said(ANN, Some(at("/ip4/192.168.1.5/tcp/1")), start);
        assert_eq!(reachability.verdict(start), Reached::ByAll);
        assert_eq!(reachability.ask_now(connected(), start), [BOB]);
        reachability.said(BOB, Some(vec![]), start);
        assert_eq!(
            reachability.verdict(start),
            Reached::BySome,
            "a colleague beside it proves nothing for others"
        );
        assert_eq!(reachability.addresses(start), at("/ip4/192.168.1.5/tcp/1"));
        assert_eq!(
            reachability.by(start).collect::<Vec<_>>(),
            [(ANN, true), (BOB, false)]
        );
        reachability.said(ANN, Some(vec![]), start);
        assert_eq!(reachability.verdict(start), Reached::ByNone);
        let later = start + REACHABILITY_AGE;
        assert_eq!(reachability.verdict(later), Reached::Unknown);
        assert_eq!(reachability.ask_now(connected(), later).len(), 2);
    }

    #[test]
    fn who_cannot_say_is_asked_again_sooner_and_counts_for_nothing() {
        let (start, mut reachability) = (Instant::now(), Reachability::default());
        let connected = || vec![(ANN, "203.0.113.9".parse().unwrap())];
        reachability.said(ANN, None, start);
        assert_eq!(reachability.verdict(start), Reached::Unknown);
        assert!(reachability.ask_now(connected(), start).is_empty());
        assert_eq!(
            reachability.ask_now(connected(), start + REACHABILITY_PAUSE),
            [ANN]
        );
    }

    #[test]
    fn so_many_are_asked_and_no_more() {
        let connected = (0..20).map(|seed| (NodeKey([seed; 32]), "203.0.113.9".parse().unwrap()));
        let asked = Reachability::default().ask_now(connected.collect(), Instant::now());
        assert_eq!(asked.len(), REACHABILITY_ASKED);
    }

    #[test]
    fn ports_come_from_addresses_and_lead_back_to_them() {
        for text in ["/ip4/192.0.2.1/tcp/4001", "/ip6/2001:db8::1/udp/4001/quic-v1"] {
            let whole: Multiaddr = text.parse().unwrap();
            let there = address(machine(&whole).unwrap(), port(&whole).unwrap());
            assert_eq!(there, whole);
        }
        for text in [
            "/dns4/example/tcp/1",
            "/ip4/192.0.2.1/udp/1",
            "/ip4/192.0.2.1/tcp/1/ws",
        ] {
            let other: Multiaddr = text.parse().unwrap();
            assert!(machine(&other).is_none() || port(&other).is_none(), "{text}");
        }
    }
}
