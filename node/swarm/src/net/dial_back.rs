//! Members that asked to be dialled, and what came of it.

use std::collections::HashMap;
use std::time::Instant;

use libp2p::PeerId;
use libp2p::swarm::ConnectionId;
use tokio::sync::oneshot;
use tvix_node_protocol::messages::ListenPort;

use crate::limits::{DIAL_BACK_TIME, DIAL_BACKS};

/// Asked for by one member.
#[derive(Debug)]
struct Asked {
    pending: HashMap<ConnectionId, ListenPort>,
    reached: Vec<ListenPort>,
    since: Instant,
    reply: oneshot::Sender<Vec<ListenPort>>,
}

/// Dials that are made because the dialled one asked for them. Bounded by [`DIAL_BACKS`].
#[derive(Debug, Default)]
pub(crate) struct DialBacks(HashMap<PeerId, Asked>);

impl DialBacks {
    /// Whether there is room for one more, and none for this member already.
    pub(crate) fn may_begin(&self, peer: PeerId) -> bool {
        self.0.len() < DIAL_BACKS && !self.0.contains_key(&peer)
    }

    /// These dials have begun.
    pub(crate) fn begun(
        &mut self,
        peer: PeerId,
        pending: HashMap<ConnectionId, ListenPort>,
        reply: oneshot::Sender<Vec<ListenPort>>,
        now: Instant,
    ) {
        let asked = Asked {
            pending,
            reached: Vec::new(),
            since: now,
            reply,
        };
        self.0.insert(peer, asked);
        self.finish(peer);
    }

    /// A dial has an outcome. False: it was made for another reason.
    pub(crate) fn over(&mut self, peer: PeerId, connection: ConnectionId, reached: bool) -> bool {
        let Some(asked) = self.0.get_mut(&peer) else {
            return false;
        };
        let Some(port) = asked.pending.remove(&connection) else {
            return false;
        };
        if reached {
            asked.reached.push(port);
        }
        self.finish(peer);
        true
    }

    /// Says what has come of dials that take too long. A connection that comes of one later is like any other.
    pub(crate) fn tick(&mut self, now: Instant) {
        let late: Vec<PeerId> = self
            .0
            .iter()
            .filter(|(_, asked)| now.duration_since(asked.since) >= DIAL_BACK_TIME)
            .map(|(peer, _)| *peer)
            .collect();
        for peer in late {
            if let Some(asked) = self.0.get_mut(&peer) {
                asked.pending.clear();
            }
            self.finish(peer);
        }
    }

    fn finish(&mut self, peer: PeerId) {
        if self.0.get(&peer).is_some_and(|asked| asked.pending.is_empty())
            && let Some(asked) = self.0.remove(&peer)
        {
            // Who asked may be gone.
            asked.reply.send(asked.reached).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(dials: &mut DialBacks, peer: PeerId, now: Instant) -> oneshot::Receiver<Vec<ListenPort>> {
        let (reply, answer) = oneshot::channel();
        let pending = [(1, ListenPort::Tcp(1)), (2, ListenPort::Quic(2))];
        let pending = pending.map(|(id, port)| (ConnectionId::new_unchecked(id), port));
        dials.begun(peer, pending.into(), reply, now);
        answer
    }

    #[test]
    fn all_dials_have_an_outcome_or_time_is_up() {
        let (now, peer, mut dials) = (Instant::now(), PeerId::random(), DialBacks::default());
        let [one, two, other] = [1, 2, 3].map(ConnectionId::new_unchecked);
        let mut answer = begin(&mut dials, peer, now);
        assert!(!dials.may_begin(peer), "one at a time");
        assert!(!dials.over(peer, other, true) && !dials.over(PeerId::random(), one, true));
        assert!(dials.over(peer, one, true));
        assert!(answer.try_recv().is_err());
        assert!(dials.over(peer, two, false));
        assert_eq!(answer.try_recv().unwrap(), [ListenPort::Tcp(1)]);
        let mut answer = begin(&mut dials, peer, now);
        dials.over(peer, two, true);
        dials.tick(now + DIAL_BACK_TIME);
        assert_eq!(answer.try_recv().unwrap(), [ListenPort::Quic(2)]);
        assert!(dials.may_begin(peer) && !dials.over(peer, one, true));
    }

    #[test]
    fn there_are_so_many_at_once() {
        let mut dials = DialBacks::default();
        let answers = (0..DIAL_BACKS).map(|_| begin(&mut dials, PeerId::random(), Instant::now()));
        let answers: Vec<_> = answers.collect();
        assert!(!dials.may_begin(PeerId::random()));
        drop(answers);
    }

    #[test]
    fn who_asks_for_nothing_is_answered_at_once() {
        let (mut dials, (reply, mut answer)) = (DialBacks::default(), oneshot::channel());
        dials.begun(PeerId::random(), HashMap::new(), reply, Instant::now());
        assert!(answer.try_recv().unwrap().is_empty());
    }
}
