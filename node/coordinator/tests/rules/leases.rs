use std::collections::{BTreeMap, BTreeSet};

use tvix_node_coordinator::{Action, Delivery, Event, FailureKind, limits};
use tvix_node_protocol::control::{EventKind, Outcome};

use crate::desk::{Desk, derivation, keep_going, node, offer, options};

/// A command whose only derivation is being built by the peer 1, and another peer.
fn two_peers() -> Desk {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 1));
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.peer(2, offer("c", 1));
    assert_eq!(desk.build("a").node, Some(node(1)));
    desk
}

fn builders(desk: &Desk) -> Vec<Option<tvix_node_protocol::envelope::NodeKey>> {
    desk.running.iter().map(|started| started.node).collect()
}

#[test]
fn a_builder_that_gives_signs_of_life_is_left_to_work() {
    let mut desk = two_peers();
    let build = desk.build("a").build;
    desk.send(Event::BuildStarted { build });
    let mut renewed = 0;
    for _ in 0..120 {
        desk.wait(1_000);
        renewed += desk
            .actions
            .iter()
            .filter(|action| matches!(action, Action::RenewLease { .. }))
            .count();
        desk.send(Event::Heartbeat { build });
    }
    assert_eq!(builders(&desk), [Some(node(1))]);
    let every = limits::LEASE_RENEWAL.as_secs() as usize;
    assert!(
        renewed >= 120 / every - 1,
        "it is told that it is still wanted: {renewed}"
    );
    assert!(
        limits::LEASE_RENEWAL * 3 < limits::LEASE,
        "a few messages may be lost"
    );
}

#[test]
fn beside_a_silent_builder_a_second_one_starts_after_two_seconds() {
    let mut desk = two_peers();
    desk.wait(1_900);
    assert_eq!(builders(&desk), [Some(node(1))]);
    desk.wait(200);
    assert_eq!(builders(&desk), [Some(node(1)), Some(node(2))]);
    assert_eq!(desk.reason(1, "a"), "c: b has been silent for 2 s");
    desk.wait(10_000);
    assert_eq!(desk.started.len(), 2, "two are enough");
}

#[test]
fn whichever_builder_is_done_first_wins_and_the_other_is_cancelled() {
    for winner in [0, 1] {
        let mut desk = two_peers();
        desk.wait(2_000);
        let builds: Vec<_> = desk.running.iter().map(|started| started.build).collect();
        desk.finish_as(builds[winner], "a", Delivery::OwnStore);
        assert_eq!(desk.cancelled, [builds[1 - winner]]);
        assert_eq!(desk.outcome(1), Some(Outcome::Success));
        assert!(desk.was_told(1, |event| matches!(event, EventKind::Ended { built: 1, .. })));
    }
}

#[test]
fn a_second_builder_that_has_not_started_is_dropped_when_the_first_one_speaks() {
    let mut desk = Desk::new(1);
    desk.command(1, options(), &[derivation("busy", &[])]);
    desk.peer(1, offer("b", 1));
    desk.peer_has(1, "input");
    desk.command(
        2,
        options(),
        &[derivation("input", &[]), derivation("a", &["input"])],
    );
    let first = desk.build("a");
    assert_eq!(first.node, Some(node(1)));
    desk.finish("busy");
    // Nobody says whether he has begun it.
    let hedged = (limits::HEDGE_AFTER + limits::WEIGH_PATIENCE).as_millis() as u64;
    desk.wait(hedged);
    assert_eq!(
        desk.fetches.len(),
        1,
        "the second one is this node, which fetches the input first"
    );
    desk.send(Event::Heartbeat { build: first.build });
    assert!(desk.fetches.is_empty());
    desk.wait(hedged);
    assert_eq!(desk.fetches.len(), 1, "silent again, hedged again");
}

#[test]
fn a_builder_that_is_silent_for_too_long_is_given_up_and_its_late_result_is_taken() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 1));
    desk.command(1, options(), &[derivation("a", &[])]);
    let first = desk.build("a").build;
    desk.wait(29_900);
    desk.peer(2, offer("c", 1));
    desk.wait(200);
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::Message { text, .. } if text.contains("silent for 30 s"))
    ));
    assert!(
        desk.cancelled.is_empty(),
        "it may be done, and only unable to say so"
    );
    let second = desk
        .running
        .iter()
        .find(|started| started.node == Some(node(2)))
        .unwrap()
        .build;
    desk.finish_as(first, "a", Delivery::OwnStore);
    assert_eq!(desk.cancelled, [second]);
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

#[test]
fn a_builder_whose_connection_is_gone_is_replaced_at_once() {
    let mut desk = two_peers();
    desk.send(Event::PeerGone { node: node(1) });
    assert_eq!(
        builders(&desk),
        [Some(node(1)), Some(node(2))],
        "the desk keeps the first one in its books"
    );
    assert!(
        desk.reason(1, "a")
            .contains("tried before: b: the connection to b is gone")
    );
}

#[test]
fn the_only_builder_is_waited_for_when_its_connection_is_gone() {
    for said in [false, true] {
        let mut desk = Desk::new(0);
        desk.peer(1, offer("b", 1));
        desk.command(1, options(), &[derivation("a", &[])]);
        if said {
            let build = desk.build("a").build;
            desk.fail_build(build, FailureKind::Gone);
            desk.wait(1_000);
            assert_eq!(desk.started.len(), 1, "it is not asked again at once");
        }
        desk.running.clear();
        desk.send(Event::PeerGone { node: node(1) });
        desk.wait(limits::NO_BUILDER_PATIENCE.as_millis() as u64 - 1);
        assert_eq!(desk.outcome(1), None, "it may be back");
        assert!(desk.running.is_empty());
        desk.peer(1, offer("b", 1));
        assert_eq!(desk.build("a").node, Some(node(1)));
        assert!(
            desk.reason(1, "a").contains("tried before: b: "),
            "{}",
            desk.reason(1, "a")
        );
        desk.finish("a");
        assert_eq!(desk.outcome(1), Some(Outcome::Success));
    }
}

#[test]
fn the_only_builder_is_not_waited_for_longer_than_for_any_other() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 1));
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.send(Event::PeerGone { node: node(1) });
    desk.wait(limits::NO_BUILDER_PATIENCE.as_millis() as u64);
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    assert!(
        desk.was_told(1, |event| matches!(event, EventKind::BuildFailed { error, .. }
        if error.contains("no builder builds for") && error.contains("the connection to b is gone")))
    );
}

#[test]
fn what_its_only_builder_did_not_come_back_for_has_failed_once() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 1));
    desk.command(1, keep_going(), &[derivation("a", &[])]);
    desk.send(Event::PeerGone { node: node(1) });
    desk.wait(limits::NO_BUILDER_PATIENCE.as_millis() as u64);
    let failed = |event: &EventKind| matches!(event, EventKind::BuildFailed { .. });
    assert_eq!(desk.told.iter().filter(|(_, event)| failed(event)).count(), 1);
    assert!(desk.was_told(1, |event| matches!(event, EventKind::Ended { failed: 1, .. })));
}

#[test]
fn builders_that_are_gone_together_are_one_loss() {
    let mut desk = two_peers();
    desk.wait(2_100);
    assert_eq!(builders(&desk), [Some(node(1)), Some(node(2))]);
    desk.running.clear();
    for peer in [1, 2] {
        desk.send(Event::PeerGone { node: node(peer) });
    }
    for peer in [3, 4] {
        assert_eq!(desk.outcome(1), None);
        desk.wait(100);
        desk.peer(peer, offer("d", 1));
        assert_eq!(desk.build("a").node, Some(node(peer)));
        desk.running.clear();
        desk.wait(100);
        desk.send(Event::PeerGone { node: node(peer) });
    }
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
}

#[test]
fn who_was_put_out_is_not_waited_for() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 1));
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.send(Event::Team {
        names: BTreeMap::new(),
        builders: BTreeSet::new(),
    });
    desk.send(Event::PeerGone { node: node(1) });
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
}

#[test]
fn a_builder_that_was_lost_gets_it_again_only_where_nobody_else_has_room() {
    let mut desk = two_peers();
    desk.running.clear();
    desk.send(Event::PeerGone { node: node(1) });
    assert_eq!(desk.build("a").node, Some(node(2)));
    desk.peer(1, offer("b", 1));
    desk.peer(3, offer("d", 1));
    desk.running.clear();
    desk.send(Event::PeerGone { node: node(2) });
    assert_eq!(desk.build("a").node, Some(node(3)), "b was lost over it before");
}

#[test]
fn the_only_builder_gets_what_kills_it_a_few_times_only() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 1));
    desk.command(1, options(), &[derivation("a", &[])]);
    let mut lost = 0;
    while desk.outcome(1).is_none() {
        assert_eq!(desk.build("a").node, Some(node(1)));
        desk.running.clear();
        desk.send(Event::PeerGone { node: node(1) });
        lost += 1;
        desk.peer(1, offer("b", 1));
    }
    assert_eq!(lost, limits::BUILDERS_LOST);
}

#[test]
fn a_derivation_that_kills_its_builders_is_not_tried_for_ever() {
    let mut desk = Desk::new(0);
    for peer in 1..=10 {
        desk.peer(peer, offer(&format!("peer{peer}"), 1));
    }
    desk.command(1, options(), &[derivation("a", &[])]);
    let mut lost = 0;
    while desk.outcome(1).is_none() {
        let builder = desk.build("a").node.unwrap();
        desk.running.clear();
        desk.send(Event::PeerGone { node: builder });
        lost += 1;
    }
    assert_eq!(lost, limits::BUILDERS_LOST);
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    assert!(
        desk.was_told(1, |event| matches!(event, EventKind::BuildFailed { error, .. }
        if error.contains("peer1") && error.contains("peer2") && error.contains("peer3")))
    );
}

#[test]
fn after_enough_builders_were_lost_it_is_built_here() {
    let mut desk = Desk::new(1);
    desk.command(1, options(), &[derivation("busy", &[])]);
    for peer in 1..=10 {
        desk.peer(peer, offer(&format!("peer{peer}"), 1));
    }
    desk.command(2, options(), &[derivation("a", &[])]);
    for _ in 0..limits::BUILDERS_LOST {
        let build = desk.build("a");
        assert!(build.node.is_some());
        desk.fail_build(build.build, FailureKind::Transient);
    }
    assert_eq!(desk.words(), ["busy"]);
    desk.finish("busy");
    assert_eq!(desk.build("a").node, None);
    desk.finish("a");
    assert_eq!(desk.outcome(2), Some(Outcome::Success));
}

#[test]
fn a_refusal_is_no_loss_and_the_builder_does_not_get_the_derivation_again() {
    let mut desk = Desk::new(0);
    for peer in 1..=5 {
        desk.peer(peer, offer(&format!("peer{peer}"), 1));
    }
    desk.command(1, options(), &[derivation("a", &[])]);
    let mut asked = vec![];
    for _ in 0..5 {
        let build = desk.build("a");
        asked.push(build.node.unwrap());
        desk.fail_build(build.build, FailureKind::Refused);
    }
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked.len(), 5, "each was asked once");
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
}

#[test]
fn a_builder_that_has_refused_something_is_left_alone_for_a_while() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 2));
    desk.peer(2, offer("c", 1));
    desk.command(1, options(), &[derivation("a", &[])]);
    let first = desk.build("a");
    desk.fail_build(first.build, FailureKind::Refused);
    let refusing = first.node.unwrap();
    desk.command(2, options(), &[derivation("b", &[])]);
    assert!(
        desk.words().iter().all(|word| *word == "a"),
        "the other one is busy"
    );
    desk.wait(1_000);
    let build = desk.build("a").build;
    desk.send(Event::Heartbeat { build });
    desk.wait(limits::REFUSAL_PAUSE.as_millis() as u64 - 1_000);
    assert_eq!(desk.build("b").node, Some(refusing));
}

#[test]
fn a_result_that_is_not_the_derivations_is_no_result() {
    let mut desk = two_peers();
    let first = desk.build("a").build;
    desk.finish_as(first, "forged", Delivery::AtBuilder);
    assert_eq!(desk.build("a").node, Some(node(2)));
    assert!(desk.reason(1, "a").contains("b: the result's output 'out' is"));
}

#[test]
fn what_a_builder_says_it_built_and_does_not_give_is_built_by_another() {
    let mut desk = two_peers();
    let first = desk.build("a").build;
    desk.finish_as(first, "a", Delivery::AtBuilder);
    let (fetch, _) = desk.fetches.remove(0);
    desk.send(Event::FetchFailed {
        fetch,
        error: "it has no such thing".into(),
    });
    assert_eq!(desk.build("a").node, Some(node(2)));
    assert!(desk.reason(1, "a").contains("b: it said that it had built it"));
}

#[test]
fn a_builder_whose_outputs_break_off_is_asked_again_and_one_whose_outputs_are_wrong_is_not() {
    for (kind, again) in [(FailureKind::Gone, true), (FailureKind::Transient, false)] {
        let mut desk = Desk::new(0);
        desk.peer(1, offer("b", 1));
        desk.command(1, options(), &[derivation("a", &[])]);
        let build = desk.build("a").build;
        desk.send(Event::BuildStarted { build });
        desk.send(Event::BuildDone { build });
        desk.fail_build(build, kind);
        desk.wait(limits::GONE_PAUSE.as_millis() as u64);
        if !again {
            assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
            continue;
        }
        assert_eq!(desk.build("a").node, Some(node(1)), "nobody else could build it");
        desk.finish("a");
        assert_eq!(desk.outcome(1), Some(Outcome::Success));
    }
}

#[test]
fn a_builder_that_broke_off_again_and_again_is_not_asked_for_that_any_more() {
    let mut desk = two_peers();
    let first = desk.build("a").build;
    desk.fail_build(first, FailureKind::Transient);
    let second = desk.build("a");
    assert_eq!(second.node, Some(node(2)));
    let second = second.build;
    desk.fail_build(second, FailureKind::Gone);
    // The one that is gone may be back; the one that is there and broke off is left alone.
    desk.wait(limits::GONE_PAUSE.as_millis() as u64);
    assert_eq!(desk.build("a").node, Some(node(2)));
}
