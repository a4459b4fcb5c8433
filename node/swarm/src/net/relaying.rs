//! For which members this node passes connections on, and how many it passes on at the moment.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use libp2p::swarm::ConnectionId;
use tokio::sync::watch;
use tvix_node_protocol::envelope::NodeKey;

use super::handler::Over;
use crate::core::lock;
use crate::limits::{RELAY_CIRCUITS, RELAY_CIRCUITS_PER_PEER, RELAY_RESERVATION_TIME, RELAY_RESERVATIONS};

/// A member that lets itself be reached through this node.
#[derive(Debug)]
struct Reservation {
    /// The connection that others are passed on over.
    over: Over,
    until: Instant,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.over.held.store(false, Ordering::Relaxed);
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Relaying {
    allowed: watch::Sender<bool>,
    reservations: Mutex<BTreeMap<NodeKey, Reservation>>,
    /// Connections that are passed on, by who began them.
    circuits: Mutex<BTreeMap<NodeKey, usize>>,
}

/// A connection is passed on as long as this is held.
#[derive(Debug)]
pub(crate) struct Circuit {
    relaying: Arc<Relaying>,
    source: NodeKey,
}

impl Relaying {
    /// `allowed`: whether the owner lets anything be passed on.
    pub(crate) fn new(allowed: bool) -> Self {
        Self {
            allowed: watch::channel(allowed).0,
            reservations: Mutex::default(),
            circuits: Mutex::default(),
        }
    }

    /// From now on the owner does, or does not, let anything be passed on. Reservations stay: he may change his mind, and
    /// those who have one cannot be told.
    pub(crate) fn allow(&self, allowed: bool) {
        self.allowed.send_replace(allowed);
    }

    pub(crate) fn allowed(&self) -> watch::Receiver<bool> {
        self.allowed.subscribe()
    }

    /// Lets a member be reached over one of its connections. Whether there is room for it.
    pub(crate) fn reserve(&self, member: NodeKey, over: Over, now: Instant) -> bool {
        let mut reservations = lock(&self.reservations);
        reservations.retain(|_, reservation| reservation.until > now);
        if reservations.len() >= RELAY_RESERVATIONS && !reservations.contains_key(&member) {
            return false;
        }
        // The old one first: it may be over the same connection.
        reservations.remove(&member);
        over.held.store(true, Ordering::Relaxed);
        let until = now + RELAY_RESERVATION_TIME;
        reservations.insert(member, Reservation { over, until });
        true
    }

    /// Over which connection a member is reached, if it wants that.
    pub(crate) fn over(&self, member: NodeKey, now: Instant) -> Option<ConnectionId> {
        let reservations = lock(&self.reservations);
        let reservation = reservations.get(&member)?;
        (reservation.until > now).then_some(reservation.over.connection)
    }

    /// Forgets what is over.
    pub(crate) fn tidy(&self, now: Instant) {
        lock(&self.reservations).retain(|_, reservation| reservation.until > now);
    }

    /// A place for one more connection that this member begins.
    pub(crate) fn begin(self: &Arc<Self>, source: NodeKey) -> Option<Circuit> {
        let mut circuits = lock(&self.circuits);
        let all: usize = circuits.values().sum();
        let own = circuits.entry(source).or_default();
        if all >= RELAY_CIRCUITS || *own >= RELAY_CIRCUITS_PER_PEER {
            return None;
        }
        *own += 1;
        let relaying = Arc::clone(self);
        Some(Circuit { relaying, source })
    }
}

impl Drop for Circuit {
    fn drop(&mut self) {
        let mut circuits = lock(&self.relaying.circuits);
        if let Some(count) = circuits.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                circuits.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(number: usize) -> Over {
        Over::new(ConnectionId::new_unchecked(number), false, false)
    }

    fn member(number: usize) -> NodeKey {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&(number as u64).to_le_bytes());
        NodeKey(key)
    }

    #[test]
    fn a_member_is_reached_over_its_connection_for_a_while_which_stays_open_meanwhile() {
        let (relaying, now) = (Relaying::new(true), Instant::now());
        let (first, second) = (over(1), over(2));
        assert!(relaying.reserve(member(1), first.clone(), now));
        assert_eq!(relaying.over(member(1), now), Some(first.connection));
        assert!(first.held.load(Ordering::Relaxed));
        assert!(relaying.over(member(2), now).is_none());
        assert!(relaying.reserve(member(1), second.clone(), now));
        assert!(!first.held.load(Ordering::Relaxed) && second.held.load(Ordering::Relaxed));
        assert!(relaying.reserve(member(1), second.clone(), now), "renewed");
        assert!(second.held.load(Ordering::Relaxed));
        let later = now + RELAY_RESERVATION_TIME;
        assert!(relaying.over(member(1), later).is_none());
        relaying.tidy(later);
        assert!(!second.held.load(Ordering::Relaxed));
    }

    #[test]
    fn reservations_have_a_bound() {
        let (relaying, now) = (Relaying::new(true), Instant::now());
        for number in 0..RELAY_RESERVATIONS {
            assert!(relaying.reserve(member(number), over(number), now));
        }
        assert!(!relaying.reserve(member(RELAY_RESERVATIONS), over(0), now));
        assert!(relaying.reserve(member(0), over(0), now), "it has one");
        let later = now + RELAY_RESERVATION_TIME;
        assert!(relaying.reserve(member(RELAY_RESERVATIONS), over(0), later));
    }

    #[test]
    fn nobody_has_all_that_is_passed_on() {
        let relaying = Arc::new(Relaying::new(true));
        let mut circuits: Vec<Circuit> = (0..RELAY_CIRCUITS_PER_PEER)
            .map(|_| relaying.begin(member(0)).unwrap())
            .collect();
        assert!(relaying.begin(member(0)).is_none());
        let rest = RELAY_CIRCUITS - RELAY_CIRCUITS_PER_PEER;
        circuits.extend((0..rest).map(|number| relaying.begin(member(1 + number)).unwrap()));
        assert!(relaying.begin(member(RELAY_CIRCUITS)).is_none());
        circuits.pop();
        assert!(relaying.begin(member(RELAY_CIRCUITS)).is_some());
        circuits.clear();
        assert_eq!(lock(&relaying.circuits).values().sum::<usize>(), 0);
    }
}
