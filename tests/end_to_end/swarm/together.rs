//! Nodes that have builders of their own and want the same at the same time.

use rustix::process::Signal;

use super::nodes::{Node, finished, team, text, until};
use crate::harness::{Running, processes_with, release, sandbox_works};

/// A build that waits until what is marked is released.
fn expression(node: &Node, mark: &str) {
    node.machine.expression(&format!(
        r#"{{ one = build "one" {{ }} "echo {mark}\nwait\necho let go\nwrite $out x"; }}"#
    ));
}

/// Begins a build, and gives the node that it is placed on, as its command was told, and why.
fn placed(node: &Node) -> (Running, String, String) {
    let mut running = node.start_build("one", &[]);
    let line = running.until(r#""event":"placed""#);
    let event: serde_json::Value = serde_json::from_str(&line).expect("an event");
    let at = match text(&event["node"]) {
        here if here == "this node" => node.name.to_owned(),
        other => other,
    };
    (running, at, text(&event["reason"]))
}

/// As [`placed`], until it takes part in the build at `at`: who does not hear in time that it is under way begins another one.
fn takes_part(node: &Node, at: &str) -> Running {
    until(&format!("{} takes part", node.name), || {
        let (running, place, reason) = placed(node);
        if place == at {
            assert!(
                at == node.name || reason == format!("{at}: builds it already"),
                "{reason}"
            );
            return Some(running);
        }
        running.signal(Signal::INT);
        assert_eq!(running.finish().status, 130);
        None
    })
}

#[test]
fn what_one_builds_at_home_others_take_part_in() {
    if !sandbox_works("what_one_builds_at_home_others_take_part_in") {
        return;
    }
    let nodes = team([("alice", 1), ("bob", 1), ("carol", 1)]);
    let [alice, bob, carol] = &nodes;
    for node in &nodes {
        expression(node, "mark-of-home");
    }
    let (mut first, at, _) = placed(alice);
    first.until(r#""line":"waiting""#);
    let mut others = [bob, carol].map(|node| takes_part(node, &at));
    for other in &mut others {
        // Also what was written before they came.
        other.until(r#""line":"mark-of-home""#);
        other.until(r#""line":"waiting""#);
    }
    let running = || {
        let builds = processes_with("mark-of-home");
        (builds.len() == 1).then_some(())
    };
    // What somebody begun beside it, and took back, may take a moment to end.
    until("there is one build", running);
    first.signal(Signal::INT);
    assert_eq!(first.finish().status, 130);
    until("it goes on", running);
    release("mark-of-home");
    for (other, node) in others.into_iter().zip([bob, carol]) {
        let built = finished(other.finish());
        assert_eq!(built.count("built"), 1, "{}", built.messages());
        let log = node.machine.run(&["log", &built.path()]);
        assert_eq!(log.ok(), "mark-of-home\nwaiting\nlet go");
    }
}

#[test]
fn nobody_hears_of_a_build_that_is_private() {
    if !sandbox_works("nobody_hears_of_a_build_that_is_private") {
        return;
    }
    let [alice, bob] = team([("alice", 1), ("bob", 1)]);
    for node in [&alice, &bob] {
        expression(node, "mark-of-secret");
    }
    let mut private = alice.start_build("one", &["--private"]);
    private.until(r#""line":"waiting""#);
    let (other, at, reason) = placed(&bob);
    assert_eq!(at, "bob", "{reason}");
    until("there are two builds", || {
        (processes_with("mark-of-secret").len() == 2).then_some(())
    });
    release("mark-of-secret");
    for run in [private, other] {
        assert_eq!(finished(run.finish()).count("built"), 1);
    }
}

/// Not a matter of members, but of a node that does not answer.
#[test]
fn a_command_ends_when_it_is_interrupted_though_its_node_does_not_answer() {
    if !sandbox_works("a_command_ends_when_it_is_interrupted_though_its_node_does_not_answer") {
        return;
    }
    let node = Node::up("alone", 1);
    expression(&node, "mark-of-frozen");
    let mut running = node.start_build("one", &[]);
    running.until(r#""line":"waiting""#);
    node.signal(Signal::STOP);
    running.signal(Signal::INT);
    assert_eq!(running.finish().status, 130);
    node.signal(Signal::CONT);
    until("the build is over", || {
        processes_with("mark-of-frozen").is_empty().then_some(())
    });
}

#[test]
fn what_is_built_on_other_terms_is_not_joined() {
    if !sandbox_works("what_is_built_on_other_terms_is_not_joined") {
        return;
    }
    let [alice, bob] = team([("alice", 1), ("bob", 1)]);
    for node in [&alice, &bob] {
        expression(node, "mark-of-terms");
    }
    let mut first = alice.start_build("one", &["--cores", "1"]);
    first.until(r#""line":"waiting""#);
    let mut other = bob.start_build("one", &["--cores", "2"]);
    other.until(r#""line":"waiting""#);
    assert_eq!(processes_with("mark-of-terms").len(), 2);
    release("mark-of-terms");
    for run in [first, other] {
        let built = finished(run.finish());
        assert_eq!(built.count("built"), 1);
        assert!(
            !built.messages().contains("builds it already"),
            "{}",
            built.messages()
        );
    }
}
