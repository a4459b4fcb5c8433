//! With which addresses a member is dialled, and when with the others.
//!
//! TCP has a head start over QUIC: when a program ends, its machine's TCP says so at once, while QUIC
//! falls silent, and whoever waits for a build would wait for a timeout. Where TCP does not get through,
//! QUIC may, and where neither does, another member may pass it on.

use std::collections::HashMap;
use std::error::Error;
use std::time::Instant;

use libp2p::multiaddr::Protocol;
use libp2p::swarm::DialError;
use libp2p::{Multiaddr, PeerId};

use super::relays::is_relayed;
use crate::limits::TCP_HEAD_START;

/// Members that are being dialled. Bounded by the members.
#[derive(Debug, Default)]
pub(crate) struct Dialling(HashMap<PeerId, Tried>);

#[derive(Debug)]
struct Tried {
    addresses: Vec<Multiaddr>,
    /// Dials whose outcome is not known.
    pending: usize,
    /// Why the others came to nothing.
    reasons: Vec<String>,
    /// When the last one began.
    last: Instant,
}

impl Dialling {
    /// The addresses with which to dial a member next, of those that are known: not again what was tried,
    /// TCP first, and last those through another member.
    pub(crate) fn next(&self, peer: PeerId, known: Vec<Multiaddr>) -> Vec<Multiaddr> {
        let tried = self.0.get(&peer).map_or(&[][..], |tried| &tried.addresses);
        let untried = known.into_iter().filter(|address| !tried.contains(address));
        let (relayed, direct): (Vec<_>, Vec<_>) = untried.partition(is_relayed);
        let (tcp, others): (Vec<_>, Vec<_>) = direct.into_iter().partition(is_tcp);
        [tcp, others, relayed]
            .into_iter()
            .find(|addresses| !addresses.is_empty())
            .unwrap_or_default()
    }

    /// Whether the outcome of a dial is waited for.
    pub(crate) fn is_under_way(&self, peer: PeerId) -> bool {
        self.0.get(&peer).is_some_and(|tried| tried.pending > 0)
    }

    /// It is being dialled with these.
    pub(crate) fn begun(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, now: Instant) {
        let tried = self.0.entry(peer).or_insert(Tried {
            addresses: Vec::new(),
            pending: 0,
            reasons: Vec::new(),
            last: now,
        });
        tried.addresses.extend(addresses);
        tried.pending += 1;
        tried.last = now;
    }

    /// A dial came to nothing. Whether it was the last one.
    pub(crate) fn failed(&mut self, peer: PeerId, reason: &str) -> bool {
        let Some(tried) = self.0.get_mut(&peer) else {
            return true;
        };
        tried.pending = tried.pending.saturating_sub(1);
        tried.reasons.push(reason.to_owned());
        tried.pending == 0
    }

    /// Why all of it came to nothing.
    pub(crate) fn reasons(&self, peer: PeerId) -> Option<String> {
        Some(self.0.get(&peer)?.reasons.join("; "))
    }

    /// It is connected, or given up.
    pub(crate) fn over(&mut self, peer: PeerId) {
        self.0.remove(&peer);
    }

    /// Who has been dialled for so long that other addresses should be tried too.
    pub(crate) fn slow(&self, now: Instant) -> Vec<PeerId> {
        let slow = self
            .0
            .iter()
            .filter(|(_, tried)| now.duration_since(tried.last) >= TCP_HEAD_START);
        slow.map(|(peer, _)| *peer).collect()
    }
}

/// Why a dial came to nothing: each address with what went wrong there, and nothing twice.
pub(crate) fn in_words(error: &DialError) -> String {
    let DialError::Transport(tried) = error else {
        return error.to_string();
    };
    let tried = tried.iter().map(|(address, error)| {
        let place: Multiaddr = address
            .iter()
            .filter(|part| !matches!(part, Protocol::P2p(_)))
            .collect();
        let mut cause: &dyn Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        format!("{place}: {}", innermost(&cause.to_string()))
    });
    tried.collect::<Vec<String>>().join("; ")
}

/// Of `outer: inner: inner`, which transports wrap around each other, the last part.
fn innermost(text: &str) -> &str {
    text.rsplit(": ").find(|part| !part.is_empty()).unwrap_or(text)
}

fn is_tcp(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::Tcp(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn tcp_has_a_head_start_and_nothing_is_tried_twice() {
        let (tcp, quic) = (
            address("/ip4/192.0.2.1/tcp/1"),
            address("/ip4/192.0.2.1/udp/1/quic-v1"),
        );
        let known = vec![quic.clone(), tcp.clone()];
        let (ann, now) = (PeerId::random(), Instant::now());
        let mut dialling = Dialling::default();
        assert_eq!(dialling.next(ann, known.clone()), std::slice::from_ref(&tcp));
        dialling.begun(ann, vec![tcp.clone()], now);
        assert!(dialling.slow(now).is_empty());
        assert_eq!(dialling.slow(now + TCP_HEAD_START), [ann]);
        assert_eq!(dialling.next(ann, known.clone()), std::slice::from_ref(&quic));
        dialling.begun(ann, vec![quic], now + TCP_HEAD_START);
        assert!(dialling.next(ann, known.clone()).is_empty());
        // What has become known since.
        let new = address("/ip4/192.0.2.9/tcp/1");
        assert_eq!(
            dialling.next(ann, [known.clone(), vec![new.clone()]].concat()),
            [new]
        );
        assert!(!dialling.failed(ann, "refused") && dialling.is_under_way(ann));
        assert!(dialling.failed(ann, "silent") && !dialling.is_under_way(ann));
        assert_eq!(dialling.reasons(ann).unwrap(), "refused; silent");
        dialling.over(ann);
        assert_eq!(dialling.next(ann, known), [tcp]);
        assert!(dialling.slow(now + TCP_HEAD_START * 2).is_empty());
    }

    #[test]
    fn what_went_wrong_is_said_once_for_each_address() {
        use libp2p::TransportError;
        use std::io;
        let inner = io::Error::from_raw_os_error(111);
        let wrapped = io::Error::other(io::Error::other(inner));
        let place = address("/ip4/192.0.2.1/tcp/1").with(Protocol::P2p(PeerId::random()));
        let error = DialError::Transport(vec![(place, TransportError::Other(wrapped))]);
        assert_eq!(
            in_words(&error),
            "/ip4/192.0.2.1/tcp/1: Connection refused (os error 111)"
        );
    }

    #[test]
    fn another_member_is_the_last_resort() {
        let through = address(&format!(
            "/ip4/192.0.2.2/tcp/1/p2p/{}/p2p-circuit",
            PeerId::random()
        ));
        let quic = address("/ip4/192.0.2.1/udp/1/quic-v1");
        let known = vec![through.clone(), quic.clone()];
        let (ann, mut dialling) = (PeerId::random(), Dialling::default());
        assert_eq!(dialling.next(ann, known.clone()), std::slice::from_ref(&quic));
        dialling.begun(ann, vec![quic], Instant::now());
        assert_eq!(dialling.next(ann, known), [through]);
    }

    #[test]
    fn quic_alone_needs_no_head_start() {
        let quic = address("/ip4/192.0.2.1/udp/1/quic-v1");
        let dialling = Dialling::default();
        assert_eq!(dialling.next(PeerId::random(), vec![quic.clone()]), [quic]);
    }
}
