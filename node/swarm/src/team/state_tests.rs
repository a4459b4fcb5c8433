use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::JoinRefusal;
use tvix_node_protocol::roster::Roles;
use tvix_node_protocol::ticket::Ticket;

use super::*;
use crate::clock::Clock;

fn secret(seed: u8) -> NodeSecret {
    NodeSecret::from_bytes(&[seed; 32])
}

fn key(seed: u8) -> NodeKey {
    secret(seed).key()
}

/// A founder's node, and a clock that only the test moves.
struct Inviter {
    home: tempfile::TempDir,
    time: Arc<AtomicU64>,
    state: TeamState,
}

fn open(home: &Path, swarm: SwarmId, time: &Arc<AtomicU64>) -> TeamState {
    let time = Arc::clone(time);
    let clock = Clock::new(move || time.load(Ordering::Relaxed));
    let team = Team::open(home, swarm).unwrap();
    TeamState::new(team, secret(1), clock, BTreeMap::new()).unwrap()
}

impl Inviter {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let me = Founder {
            key: key(1),
            name: "ann".to_owned(),
        };
        let team = Team::found(home.path(), "team", me, vec![], 1).unwrap();
        let time = Arc::new(AtomicU64::new(1000));
        let state = open(home.path(), team.swarm(), &time);
        Self { home, time, state }
    }

    fn at(&self, time: u64) {
        self.time.store(time, Ordering::Relaxed);
        self.state.refresh();
    }

    fn restart(self) -> Self {
        let (swarm, Self { home, time, state }) = (self.state.swarm(), self);
        drop(state);
        let state = open(home.path(), swarm, &time);
        Self { home, time, state }
    }

    fn redeem(&self, ticket: &Ticket, seed: u8) -> Result<(), (JoinRefusal, String)> {
        self.state.redeem(ticket.swarm, &ticket.secret, key(seed), "bob")
    }

    fn end_of(&self, seed: u8) -> Option<u64> {
        self.state.members().get(key(seed))?.not_after
    }
}

#[test]
fn a_ticket_gives_one_membership_that_begins_once() {
    let ann = Inviter::new();
    let ticket = ann.state.invite(Roles::all(), 5000, 8, vec![]).unwrap();
    ann.redeem(&ticket, 2).unwrap();
    ann.at(1005);
    ann.redeem(&ticket, 2).unwrap();
    assert_eq!(ann.end_of(2), Some(1008), "the answer was lost");
    let ann = ann.restart();
    ann.at(1009);
    let (reason, message) = ann.redeem(&ticket, 2).unwrap_err();
    assert_eq!(reason, JoinRefusal::Used);
    assert!(message.contains("ask for a new one"), "{message}");
    assert_eq!(ann.end_of(2), None);
    // A new ticket is another one.
    let ticket = ann.state.invite(Roles::all(), 5000, 8, vec![]).unwrap();
    ann.redeem(&ticket, 2).unwrap();
    assert_eq!(ann.end_of(2), Some(1017));
}

#[test]
fn a_ticket_that_was_marked_as_used_before_the_node_ended_gives_what_is_left_of_it() {
    let ann = Inviter::new();
    let ticket = ann.state.invite(Roles::all(), 5000, 100, vec![]).unwrap();
    let mut invitations =
        crate::invitations::Invitations::open(&ann.home.path().join(ticket.swarm.to_string()), ticket.swarm)
            .unwrap();
    invitations
        .redeem(ticket.swarm, &ticket.secret, key(2), 1000)
        .unwrap();
    let ann = ann.restart();
    ann.at(1050);
    ann.redeem(&ticket, 2).unwrap();
    assert_eq!(ann.end_of(2), Some(1100));
}

#[test]
fn a_ticket_does_not_bring_back_what_a_later_statement_ended() {
    let ann = Inviter::new();
    let ticket = ann.state.invite(Roles::all(), 5000, 1000, vec![]).unwrap();
    ann.redeem(&ticket, 2).unwrap();
    ann.at(1010);
    ann.state.renew(key(2), Roles::all(), 5).unwrap();
    ann.at(1020);
    assert_eq!(ann.redeem(&ticket, 2).unwrap_err().0, JoinRefusal::Used);
    assert_eq!(ann.end_of(2), None);
}
