//! Which connections have fallen silent.
//!
//! A machine that loses its network, or a program that is stopped, closes nothing: over TCP, and through another member, the
//! connection just stays. libp2p's ping alone does not tell either: it keeps the first failure to itself, and the next one, on a
//! link that is dead, is that of a stream that cannot be opened, not of a ping. So what counts here is not what failed but when
//! the last answer came.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libp2p::swarm::ConnectionId;

use crate::limits::{PING_INTERVAL, PING_TIME, SILENCE_STEP};

/// How long nothing has come over each connection of a member. Bounded by the connections there may be.
#[derive(Debug)]
pub(crate) struct Silence {
    since: HashMap<ConnectionId, Duration>,
    /// When this was looked at last.
    last: Instant,
}

impl Silence {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            since: HashMap::new(),
            last: now,
        }
    }

    /// There is a connection, which will be asked for signs of life.
    pub(crate) fn begun(&mut self, connection: ConnectionId) {
        self.since.insert(connection, Duration::ZERO);
    }

    /// There was a sign of life.
    pub(crate) fn heard(&mut self, connection: ConnectionId) {
        if let Some(since) = self.since.get_mut(&connection) {
            *since = Duration::ZERO;
        }
    }

    /// It is closed, or the other end is not asked for signs of life any more.
    pub(crate) fn over(&mut self, connection: ConnectionId) {
        self.since.remove(&connection);
    }

    /// The connections that are watched.
    #[cfg(test)]
    pub(crate) fn watched(&self) -> impl Iterator<Item = &ConnectionId> {
        self.since.keys()
    }

    /// Time has passed. Those over which nothing has come for too long, which are not watched any more.
    ///
    /// Time in which this node could not have heard anything, because its machine slept or had far too much to do, does not
    /// count: no more than [`SILENCE_STEP`] between two looks does.
    pub(crate) fn pass(&mut self, now: Instant) -> Vec<ConnectionId> {
        let passed = now.duration_since(self.last).min(SILENCE_STEP);
        self.last = now;
        let too_long = |_: &ConnectionId, since: &mut Duration| {
            *since += passed;
            *since >= PING_INTERVAL + PING_TIME
        };
        self.since
            .extract_if(too_long)
            .map(|(connection, _)| connection)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn connection(number: usize) -> ConnectionId {
        ConnectionId::new_unchecked(number)
    }

    /// Looks every second for so long; those that fell silent, each with the second.
    fn watch(silence: &mut Silence, now: &mut Instant, seconds: u64) -> Vec<(u64, ConnectionId)> {
        let mut silent = vec![];
        for second in 1..=seconds {
            *now += SECOND;
            silent.extend(silence.pass(*now).into_iter().map(|id| (second, id)));
        }
        silent
    }

    #[test]
    fn what_brings_nothing_is_found_once_and_what_does_is_not() {
        let mut now = Instant::now();
        let mut silence = Silence::new(now);
        for number in 1..=3 {
            silence.begun(connection(number));
        }
        silence.over(connection(3));
        let bound = (PING_INTERVAL + PING_TIME).as_secs();
        assert!((30..=60).contains(&bound), "after a builder was given up");
        assert_eq!(watch(&mut silence, &mut now, bound - 1), []);
        silence.heard(connection(2));
        silence.heard(connection(3));
        assert_eq!(watch(&mut silence, &mut now, bound - 1), [(1, connection(1))]);
        assert_eq!(watch(&mut silence, &mut now, 9), [(1, connection(2))]);
        assert!(silence.since.is_empty());
    }

    #[test]
    fn a_machine_that_slept_asks_again_before_it_closes_anything() {
        let mut now = Instant::now();
        let mut silence = Silence::new(now);
        silence.begun(connection(1));
        assert_eq!(watch(&mut silence, &mut now, PING_INTERVAL.as_secs()), []);
        now += Duration::from_secs(3600);
        assert_eq!(silence.pass(now), []);
        let time = (PING_TIME - SILENCE_STEP).as_secs();
        assert_eq!(watch(&mut silence, &mut now, time - 1), []);
        silence.heard(connection(1));
        assert_eq!(watch(&mut silence, &mut now, time), []);
    }
}
