//! One node asks, another builds, a third fetches.

use std::collections::BTreeMap;

use super::nodes::{Build, Node, team, text, until};
use crate::harness::{processes_with, release, sandbox_works};

/// Every output that was built, with its NAR hash on a node.
fn hashes(node: &Node, build: &Build) -> BTreeMap<String, String> {
    let outputs = build
        .of_kind("build-finished")
        .flat_map(|event| event["outputs"].as_object().expect("outputs").values());
    let hashes = outputs.map(|output| {
        let path = format!("/nix/store/{}", text(output));
        let info = node.json(&["store", "info", &path]);
        let hash = text(&info["narHash"]);
        (path, hash)
    });
    hashes.collect()
}

#[test]
fn what_a_peer_builds_is_what_would_be_built_here() {
    if !sandbox_works("what_a_peer_builds_is_what_would_be_built_here") {
        return;
    }
    let [alice, bob, carol] = team([("alice", 0), ("bob", 2), ("carol", 0)]);
    let alone = Node::up("alone", 2);
    for node in [&alice, &carol, &alone] {
        node.offline_example();
    }
    let far = alice.build("all", &[]);
    let here = alone.build("all", &[]);
    assert_eq!(far.path(), here.path());
    assert_eq!(
        (far.count("built"), far.count("failed")),
        (6, 0),
        "{}",
        far.messages()
    );
    for event in far.of_kind("build-started") {
        assert_eq!(event["node"], "bob", "{event}");
    }
    let expected = hashes(&alone, &far);
    // Two outputs of `letter`, one of each of the others.
    assert_eq!(expected.len(), 7, "{:#?}", far.events);
    assert_eq!(hashes(&alice, &far), expected);

    // The third one knows nothing of all this but the expression.
    let third = carol.build("all", &[]);
    assert_eq!(third.path(), far.path());
    assert_eq!(third.count("built"), 0, "{}", third.messages());
    assert!(third.of_kind("placed").next().is_none(), "{}", third.messages());
    assert!(third.count("fetched") > 0);
    let closure = [far.path()];
    for path in closure {
        let info = carol.json(&["store", "info", &path]);
        assert_eq!(text(&info["narHash"]), expected[&path]);
    }
    drop(bob);
}

#[test]
fn a_second_request_for_the_same_work_is_answered_from_what_is_there() {
    if !sandbox_works("a_second_request_for_the_same_work_is_answered_from_what_is_there") {
        return;
    }
    let [alice, bob] = team([("alice", 0), ("bob", 1)]);
    alice
        .machine
        .expression(r#"{ one = build "one" { } "write $out 1"; }"#);
    bob.machine
        .expression(r#"{ one = build "one" { } "write $out 1"; }"#);
    let first = bob.build("one", &[]);
    assert_eq!(first.count("built"), 1);
    let second = alice.build("one", &[]);
    assert_eq!((second.count("built"), second.count("fetched")), (0, 1));
    assert_eq!(first.path(), second.path());
}

/// Neither waits for the other, although both are the same tree.
#[test]
fn outputs_of_equal_content_come_from_a_peer_together() {
    if !sandbox_works("outputs_of_equal_content_come_from_a_peer_together") {
        return;
    }
    let [alice, _bob] = team([("alice", 0), ("bob", 1)]);
    alice.machine.expression(
        r#"rec {
          twins = build "twins" { outputs = [ "out" "doc" ]; } "write $out same\nwrite $doc same";
          copy = build "copy" { inherit twins; } "copy $twins $out";
        }"#,
    );
    let build = alice.build("copy", &[]);
    assert_eq!(
        (build.count("built"), build.count("failed")),
        (2, 0),
        "{}",
        build.messages()
    );
}

#[test]
fn many_small_builds_are_shared_by_all_who_have_room() {
    if !sandbox_works("many_small_builds_are_shared_by_all_who_have_room") {
        return;
    }
    let [alice, _bob, _carol] = team([("alice", 1), ("bob", 1), ("carol", 1)]);
    // Each holds its slot until all three are taken.
    alice.machine.expression(
        r#"let one = number: build "one-${number}" { } "echo mark-of-many\nwait\nwrite $out ${number}";
        in { all = build "all" { a = one "a"; b = one "b"; c = one "c"; } "write $out done"; }"#,
    );
    let mut running = alice.start_build("all", &[]);
    let (mut builders, mut waiting) = (Vec::new(), 0);
    while waiting < 3 {
        let line = running.until("");
        waiting += usize::from(line.contains(r#""line":"waiting""#));
        if line.contains("build-started") {
            let event: serde_json::Value = serde_json::from_str(&line).expect("an event");
            builders.push(text(&event["node"]));
        }
    }
    builders.sort();
    assert_eq!(builders, ["bob", "carol", "this node"]);
    release("mark-of-many");
    let built = super::nodes::finished(running.finish());
    assert_eq!(built.count("built"), 4);
}

/// Two members want the same from one builder; the one who asked first cancels.
#[test]
fn two_members_share_one_build_and_who_asked_first_may_leave() {
    if !sandbox_works("two_members_share_one_build_and_who_asked_first_may_leave") {
        return;
    }
    let [alice, _bob, carol] = team([("alice", 0), ("bob", 2), ("carol", 0)]);
    for node in [&alice, &carol] {
        node.machine
            .expression(r#"{ one = build "one" { } "echo mark-of-all\nwait\necho let go\nwrite $out x"; }"#);
    }
    let mut first = alice.start_build("one", &[]);
    first.until(r#""line":"waiting""#);
    let mut second = carol.start_build("one", &[]);
    // Carol sees what was written before she asked.
    second.until(r#""line":"mark-of-all""#);
    second.until(r#""line":"waiting""#);
    assert_eq!(processes_with("mark-of-all").len(), 1, "two builds of one thing");
    first.signal(rustix::process::Signal::INT);
    assert_eq!(first.finish().status, 130);
    until("alice's build is over", || {
        let builds = alice.json(&["status"])["builds"].as_array().map(Vec::len);
        (builds == Some(0)).then_some(())
    });
    assert_eq!(processes_with("mark-of-all").len(), 1, "carol's build goes on");
    release("mark-of-all");
    let built = super::nodes::finished(second.finish());
    let path = built.path();
    assert_eq!(built.count("built"), 1, "{}", built.messages());
    let log = carol.machine.run(&["log", &path]);
    assert_eq!(log.ok(), "mark-of-all\nwaiting\nlet go");
    // The record is made out to her.
    let records = carol.json(&["record", &path]);
    assert_eq!(records.as_array().map(Vec::len), Some(1), "{records}");
}

#[test]
fn who_asks_for_what_the_builder_s_owner_builds_waits_for_that() {
    if !sandbox_works("who_asks_for_what_the_builder_s_owner_builds_waits_for_that") {
        return;
    }
    let [alice, bob] = team([("alice", 0), ("bob", 2)]);
    for node in [&alice, &bob] {
        node.machine.expression(
            r#"{ one = build "one" { } "echo mark-of-owner\nwait\necho let go\nwrite $out x"; }"#,
        );
    }
    let mut owner = bob.start_build("one", &[]);
    owner.until(r#""line":"waiting""#);
    let mut other = alice.start_build("one", &[]);
    other.until(r#""line":"mark-of-owner""#);
    other.until(r#""line":"waiting""#);
    assert_eq!(
        processes_with("mark-of-owner").len(),
        1,
        "two builds of one thing"
    );
    // The owner leaves, and the other one still waits.
    owner.signal(rustix::process::Signal::INT);
    assert_eq!(owner.finish().status, 130);
    assert_eq!(
        processes_with("mark-of-owner").len(),
        1,
        "the other's build goes on"
    );
    release("mark-of-owner");
    let built = super::nodes::finished(other.finish());
    assert_eq!(built.count("built"), 1, "{}", built.messages());
    let log = alice.machine.run(&["log", &built.path()]);
    assert_eq!(log.ok(), "mark-of-owner\nwaiting\nlet go");
}

#[test]
fn the_owner_of_a_builder_joins_what_it_builds_for_another() {
    if !sandbox_works("the_owner_of_a_builder_joins_what_it_builds_for_another") {
        return;
    }
    let [alice, bob] = team([("alice", 0), ("bob", 2)]);
    for node in [&alice, &bob] {
        node.machine.expression(
            r#"{
              one = build "one" { } "echo mark-of-both\nwait\nwrite $out x";
              bad = build "bad" { } "echo mark-of-bad\nwait\necho no way\nfail 3";
            }"#,
        );
    }
    let mut other = alice.start_build("one", &[]);
    other.until(r#""line":"waiting""#);
    let mut owner = bob.start_build("one", &[]);
    owner.until(r#""line":"mark-of-both""#);
    owner.until(r#""line":"waiting""#);
    assert_eq!(processes_with("mark-of-both").len(), 1, "two builds of one thing");
    // Who asked first leaves, and the owner still waits.
    other.signal(rustix::process::Signal::INT);
    assert_eq!(other.finish().status, 130);
    until("alice's build is over", || {
        let builds = alice.json(&["status"])["builds"].as_array().map(Vec::len);
        (builds == Some(0)).then_some(())
    });
    assert_eq!(
        processes_with("mark-of-both").len(),
        1,
        "the owner's build goes on"
    );
    release("mark-of-both");
    let built = super::nodes::finished(owner.finish());
    assert_eq!(built.count("built"), 1, "{}", built.messages());
    // A failure is the failure of both.
    let mut other = alice.start_build("bad", &[]);
    other.until(r#""line":"waiting""#);
    let mut owner = bob.start_build("bad", &[]);
    owner.until(r#""line":"waiting""#);
    release("mark-of-bad");
    for run in [owner.finish(), other.finish()] {
        assert_eq!(run.status, 1, "{}", run.stderr);
        assert!(run.stderr.contains("exit code 3"), "{}", run.stderr);
    }
}
