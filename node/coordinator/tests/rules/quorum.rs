//! What several builders have to agree on.

use tvix_node_coordinator::{Delivery, Derivation, FailureKind, Quorum, limits};
use tvix_node_protocol::control::{EventKind, Outcome};
use tvix_node_protocol::envelope::NodeKey;

use crate::desk::{Desk, Started, derivation, node, offer, options};

fn agreed(word: &str, inputs: &[&str], needed: u32, here: bool, of: &[u8]) -> Derivation {
    let of = of.iter().map(|number| node(*number)).collect();
    Derivation {
        quorum: Some(Quorum { needed, here, of }),
        ..derivation(word, inputs)
    }
}

fn builders(desk: &Desk, word: &str) -> Vec<Option<NodeKey>> {
    let building = desk.running.iter().filter(|started| started.word == word);
    let mut nodes: Vec<_> = building.map(|started| started.node).collect();
    nodes.sort();
    nodes
}

fn at(desk: &Desk, word: &str, number: u8) -> Started {
    let found = desk
        .running
        .iter()
        .find(|started| started.word == word && started.node == Some(node(number)));
    found.expect("it is built there").clone()
}

fn peers(desk: &mut Desk, numbers: &[u8]) {
    for number in numbers {
        desk.peer(*number, offer(&format!("peer{number}"), 4));
    }
}

fn patience(desk: &mut Desk) {
    desk.wait(u64::try_from(limits::NO_BUILDER_PATIENCE.as_millis()).expect("it fits") * 2);
}

#[test]
fn as_many_of_the_named_builders_as_are_needed_build_it_at_once_and_nobody_else() {
    let mut desk = Desk::new(4);
    peers(&mut desk, &[1, 2, 3, 4]);
    desk.command(1, options(), &[agreed("a", &[], 2, false, &[2, 3, 4])]);
    let first = builders(&desk, "a");
    assert_eq!(first, [Some(node(2)), Some(node(3))]);
    desk.finish_as(at(&desk, "a", 2).build, "a", Delivery::Vote);
    assert_eq!(
        builders(&desk, "a"),
        [Some(node(3))],
        "one vote is not enough, and two are asked"
    );
    assert_eq!(desk.outcome(1), None);
    desk.finish_as(at(&desk, "a", 3).build, "a", Delivery::OwnStore);
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
    assert_eq!(desk.started, ["a", "a"]);
    assert!(
        desk.reason(1, "a")
            .contains("one of the 2 builders that have to agree")
    );
}

#[test]
fn two_sessions_share_the_builds_of_a_quorum_and_do_not_make_it_smaller() {
    let mut desk = Desk::new(0);
    peers(&mut desk, &[1, 2]);
    for session in [1, 2] {
        desk.command(session, options(), &[agreed("a", &[], 2, false, &[1, 2])]);
    }
    assert_eq!(builders(&desk, "a"), [Some(node(1)), Some(node(2))]);
    desk.finish_as(at(&desk, "a", 1).build, "a", Delivery::Vote);
    desk.interrupt(1);
    assert_eq!(desk.outcome(2), None);
    desk.finish_as(at(&desk, "a", 2).build, "a", Delivery::OwnStore);
    assert_eq!(desk.outcome(2), Some(Outcome::Success));
}

#[test]
fn this_node_is_one_of_them_where_it_is_named() {
    let mut desk = Desk::new(1);
    peers(&mut desk, &[1]);
    desk.command(1, options(), &[agreed("a", &[], 2, true, &[1])]);
    assert_eq!(builders(&desk, "a"), [None, Some(node(1))]);
    let here = desk.running.iter().find(|started| started.node.is_none());
    let here = here.expect("it is built here").build;
    desk.finish_as(here, "a", Delivery::Vote);
    assert_eq!(builders(&desk, "a"), [Some(node(1))]);
}

#[test]
fn what_only_this_node_may_build_is_asked_of_nobody() {
    let mut desk = Desk::new(1);
    peers(&mut desk, &[1, 2]);
    desk.command(1, options(), &[agreed("a", &[], 1, true, &[])]);
    assert_eq!(builders(&desk, "a"), [None]);
    desk.finish("a");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

#[test]
fn builders_that_differ_fail_it_for_good() {
    let mut desk = Desk::new(0);
    peers(&mut desk, &[1, 2, 3]);
    desk.command(1, options(), &[agreed("a", &[], 2, false, &[1, 2, 3])]);
    desk.finish_as(at(&desk, "a", 1).build, "a", Delivery::Vote);
    desk.fail("a", FailureKind::Disagreed);
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    assert!(desk.running.is_empty(), "a third one would not make it true");
}

#[test]
fn a_builder_that_is_lost_is_replaced_by_another_named_one() {
    let mut desk = Desk::new(0);
    peers(&mut desk, &[1, 2, 3]);
    desk.command(1, options(), &[agreed("a", &[], 2, false, &[1, 2, 3])]);
    desk.finish_as(at(&desk, "a", 1).build, "a", Delivery::Vote);
    desk.fail("a", FailureKind::Transient);
    assert_eq!(builders(&desk, "a"), [Some(node(3))]);
}

#[test]
fn too_few_builders_are_an_outcome_of_their_own() {
    let mut desk = Desk::new(4);
    peers(&mut desk, &[1, 4]);
    desk.command(1, options(), &[agreed("a", &[], 2, false, &[1, 2])]);
    desk.finish_as(at(&desk, "a", 1).build, "a", Delivery::Vote);
    patience(&mut desk);
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    let told = |event: &EventKind| match event {
        EventKind::BuildFailed { error, .. } => {
            error.contains("too few builders: 2 of ") && error.contains("so far peer1 agree")
        }
        _ => false,
    };
    assert!(desk.was_told(1, told), "{:?}", desk.told);
    assert_eq!(desk.started, ["a"], "nobody who is not named was asked");
}

#[test]
fn a_builder_that_shows_up_late_is_waited_for_a_while() {
    let mut desk = Desk::new(0);
    peers(&mut desk, &[1]);
    desk.command(1, options(), &[agreed("a", &[], 2, false, &[1, 2])]);
    desk.finish_as(at(&desk, "a", 1).build, "a", Delivery::Vote);
    desk.wait(1000);
    peers(&mut desk, &[2]);
    assert_eq!(builders(&desk, "a"), [Some(node(2))]);
}

#[test]
fn votes_that_do_not_suffice_lead_to_another_builder_and_then_to_an_end() {
    let mut desk = Desk::new(0);
    peers(&mut desk, &[1, 2, 3]);
    desk.command(1, options(), &[agreed("a", &[], 2, false, &[1, 2, 3])]);
    // They used different inputs, say: their records cannot be compared.
    for number in [1, 2] {
        desk.finish_as(at(&desk, "a", number).build, "a", Delivery::Vote);
    }
    assert_eq!(builders(&desk, "a"), [Some(node(3))]);
    desk.finish_as(at(&desk, "a", 3).build, "a", Delivery::Vote);
    patience(&mut desk);
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
}

#[test]
fn what_needs_a_quorum_does_not_hold_up_what_does_not() {
    let mut desk = Desk::new(0);
    peers(&mut desk, &[1]);
    let derivations = [
        agreed("a", &[], 2, false, &[1, 2]),
        derivation("b", &[]),
        derivation("all", &["a", "b"]),
    ];
    desk.command(1, options(), &derivations);
    assert_eq!(desk.words(), ["a", "b"]);
    desk.finish_as(at(&desk, "a", 1).build, "a", Delivery::Vote);
    desk.finish("b");
    peers(&mut desk, &[2]);
    desk.finish("a");
    // Who has the inputs is asked, and nobody answers.
    desk.wait(u64::try_from(limits::WEIGH_PATIENCE.as_millis()).unwrap() + 1);
    desk.finish("all");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}
