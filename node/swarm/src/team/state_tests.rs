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
        Self::with(&[], 1)
    }

    /// One that founded the team together with others.
    fn with(others: &[(u8, &str)], threshold: u16) -> Self {
        let home = tempfile::tempdir().unwrap();
        let founder = |(seed, name): &(u8, &str)| Founder {
            key: key(*seed),
            name: (*name).to_owned(),
        };
        let others = others.iter().map(founder).collect();
        let team = Team::found(home.path(), "team", founder(&(1, "ann")), others, threshold).unwrap();
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
fn who_leaves_is_a_member_for_itself_until_the_others_have_been_told() {
    let ann = Inviter::new();
    joined(&ann.state, 3, "carol", 1000);
    let home = tempfile::tempdir().unwrap();
    let carol = of_member(&ann, 3, home.path());
    carol.bid_farewell().unwrap();
    // As anybody does from time to time, and whoever brings statements.
    carol.refresh();
    assert!(carol.members().contains(key(3)));
    carol.depart();
    assert!(!carol.members().contains(key(3)));
}

#[test]
fn who_cannot_write_down_that_it_leaves_stays() {
    let ann = Inviter::new();
    joined(&ann.state, 3, "carol", 1000);
    let home = tempfile::tempdir().unwrap();
    let carol = of_member(&ann, 3, home.path());
    std::fs::remove_dir_all(home.path()).unwrap();
    carol.bid_farewell().unwrap_err();
    carol.refresh();
    assert!(carol.members().contains(key(3)));
    assert!(!carol.with_roster(|roster| roster.is_revoked(key(3))));
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

/// A member's view of the team of a founder (1), by whose roster it goes.
fn of_member(ann: &Inviter, seed: u8, home: &Path) -> TeamState {
    let genesis = ann.state.genesis().clone();
    let mut roster = Roster::new(genesis).unwrap();
    roster.merge_all(ann.state.welcome(key(seed)));
    let time = Arc::clone(&ann.time);
    let clock = Clock::new(move || time.load(Ordering::Relaxed));
    let team = Team::create(home, roster).unwrap();
    TeamState::new(team, secret(seed), clock, BTreeMap::new()).unwrap()
}

fn joined(inviter: &TeamState, seed: u8, name: &str, lasts: u64) {
    let ticket = inviter.invite(Roles::all(), 5000, lasts, vec![]).unwrap();
    inviter
        .redeem(ticket.swarm, &ticket.secret, key(seed), name)
        .unwrap();
}

#[test]
fn a_renewal_that_would_not_count_is_refused_and_says_whom_to_ask() {
    let ann = Inviter::new();
    joined(&ann.state, 3, "carol", 1000);
    joined(&ann.state, 4, "dave", 100);
    let home = tempfile::tempdir().unwrap();
    let carol = of_member(&ann, 3, home.path());
    let before = carol.digest();
    // Ann's word about Dave counts before Carol's.
    let error = carol.renew(key(4), Roles::all(), 9000).unwrap_err();
    assert!(matches!(error, StateError::OthersWord { not_after: 1100, .. }));
    assert!(error.to_string().ends_with("ask ann"), "{error}");
    assert_eq!(carol.digest(), before, "nothing is kept");
    // When it has ended, Carol's does.
    ann.at(1101);
    carol.refresh();
    carol.renew(key(4), Roles::all(), 9000).unwrap();
    assert_eq!(carol.members().get(key(4)).unwrap().not_after, Some(10_101));
}

#[test]
fn nobody_keeps_in_those_by_whom_it_came_in_nor_itself_nor_a_founder() {
    let ann = Inviter::new();
    joined(&ann.state, 3, "carol", 1000);
    let home = tempfile::tempdir().unwrap();
    let carol = of_member(&ann, 3, home.path());
    joined(&carol, 4, "dave", 500);
    ann.state
        .merge(carol.with_roster(|roster| {
            roster
                .statements()
                .map(|(_, envelope)| envelope.clone())
                .collect()
        }))
        .unwrap();
    let home = tempfile::tempdir().unwrap();
    let dave = of_member(&ann, 4, home.path());
    let before = dave.digest();
    let error = dave.renew(key(3), Roles::all(), 9000).unwrap_err();
    assert!(matches!(error, StateError::OthersWord { .. }), "{error}");
    let error = dave.renew(key(4), Roles::all(), 9000).unwrap_err().to_string();
    assert!(error.contains("ask carol"), "{error}");
    let error = dave.renew(key(1), Roles::all(), 9000).unwrap_err().to_string();
    assert!(error.contains("ann is a founder"), "{error}");
    assert_eq!(dave.digest(), before);
    // Who is out is not renewed.
    ann.state.revoke(key(3)).unwrap();
    let error = ann.state.renew(key(3), Roles::all(), 9000).unwrap_err();
    assert!(matches!(error, StateError::Out(name) if name == "carol"));
}

#[test]
fn a_founder_takes_its_place_by_its_key_alone_and_by_its_ticket_nobody_else_comes_in() {
    let ann = Inviter::with(&[(4, "dan"), (5, "eve")], 2);
    let ticket = ann.state.invite_founder(key(4), 5000, vec![]).unwrap();
    assert_eq!(ticket.founder, Some(key(4)));
    let (reason, _) = ann.redeem(&ticket, 2).unwrap_err();
    assert_eq!(reason, JoinRefusal::UnknownTicket);
    assert_eq!(ann.end_of(2), None);
    // As often as it has to, since it is a member as long as it is not out.
    let before = ann.state.digest();
    ann.redeem(&ticket, 4).unwrap();
    ann.redeem(&ticket, 4).unwrap();
    assert_eq!(
        ann.state.digest(),
        before,
        "nothing is said of who was there from the beginning"
    );
    assert_eq!(ann.state.members().get(key(4)).unwrap().name, "dan");
    let foreign = Ticket {
        swarm: SwarmId([7; 32]),
        ..ticket.clone()
    };
    assert_eq!(ann.redeem(&foreign, 4).unwrap_err().0, JoinRefusal::OtherSwarm);
    // Who is not a founder, or no longer, has no place to take.
    let error = ann.state.invite_founder(key(2), 5000, vec![]).unwrap_err();
    assert!(matches!(error, StateError::NoFounder(_)), "{error}");
    let home = tempfile::tempdir().unwrap();
    let eve = of_member(&ann, 5, home.path());
    eve.revoke(key(4)).unwrap();
    ann.redeem(&ticket, 4).unwrap();
    ann.state.revoke(key(4)).unwrap();
    ann.state.merge(eve.welcome(key(1))).unwrap();
    assert_eq!(ann.redeem(&ticket, 4).unwrap_err().0, JoinRefusal::NotAMember);
    let error = ann.state.invite_founder(key(4), 5000, vec![]).unwrap_err();
    assert!(error.to_string().starts_with("dan is no founder"), "{error}");
}

#[test]
fn what_a_founder_has_said_of_another_is_kept_said_once_and_counts_with_the_next() {
    let ann = Inviter::with(&[(4, "dan"), (5, "eve")], 2);
    let home = tempfile::tempdir().unwrap();
    let eve = of_member(&ann, 5, home.path());
    let said = |state: &TeamState| -> Vec<String> {
        let by = state.put_out_by(key(4)).into_iter();
        by.map(|founder| founder.name).collect()
    };
    ann.state.revoke(key(4)).unwrap();
    let before = ann.state.digest();
    // A second statement would not always take the place of the first.
    for _ in 0..16 {
        ann.state.revoke(key(4)).unwrap();
    }
    assert_eq!(ann.state.digest(), before, "it is said once");
    let ann = ann.restart();
    assert!(ann.state.members().contains(key(4)), "one is not enough");
    assert_eq!(said(&ann.state), ["ann"]);
    assert!(said(&eve).is_empty());
    eve.merge(ann.state.welcome(key(5))).unwrap();
    assert_eq!(said(&eve), ["ann"]);
    assert!(eve.members().contains(key(4)));
    eve.revoke(key(4)).unwrap();
    assert!(!eve.members().contains(key(4)));
    // Nor does it take more than one of them to put out anybody else.
    joined(&eve, 6, "fay", 1000);
    eve.revoke(key(6)).unwrap();
    assert!(!eve.members().contains(key(6)));
}
