//! What is under way when a machine, a program or a user's patience breaks off.

use std::fs;
use std::time::Instant;

use rustix::process::Signal;

use super::nodes::{Node, all_meet, finished, team, text, until};
use crate::harness::{processes_with, release, sandbox_works, skipped};

fn slow(marker: &str) -> String {
    format!(r#"{{ slow = build "slow" {{ }} "echo {marker}\nwait\nwrite $out x"; }}"#)
}

/// Waits until nothing is left of a build on the node that was doing it.
#[track_caller]
fn nothing_is_left(node: &Node, marker: &str) {
    until("its processes are gone", || {
        processes_with(marker).is_empty().then_some(())
    });
    until("its folder is gone", || node.scratch().is_empty().then_some(()));
    let slots = || {
        let status = node.machine.run(&["status"]);
        status.ok().contains("slots    0 of").then_some(())
    };
    until("its slot is free", slots);
}

#[test]
fn a_build_whose_builder_is_killed_is_placed_elsewhere() {
    if !sandbox_works("a_build_whose_builder_is_killed_is_placed_elsewhere") {
        return;
    }
    let [alice, bob, carol] = team([("alice", 0), ("bob", 1), ("carol", 1)]);
    let mut others = [bob, carol];
    alice.machine.expression(&slow("mark-of-elsewhere"));
    let mut running = alice.start_build("slow", &[]);
    let started = running.until("build-started");
    let first = text(&serde_json::from_str::<serde_json::Value>(&started).expect("an event")["node"]);
    running.until(r#""line":"waiting""#);
    let victim = others.iter_mut().find(|node| node.name == first);
    victim.expect("one of the two").kill();
    let killed = Instant::now();
    let placed = running.until(r#""event":"placed""#);
    eprintln!("placed again after {:?}", killed.elapsed());
    assert!(placed.contains(&format!("tried before: {first}")), "{placed}");
    let started = running.until("build-started");
    let second = text(&serde_json::from_str::<serde_json::Value>(&started).expect("an event")["node"]);
    assert_ne!(first, second);
    running.until(r#""line":"waiting""#);
    // What the killed node was building died with it.
    until("only one builds", || {
        (processes_with("mark-of-elsewhere").len() <= 2).then_some(())
    });
    release("mark-of-elsewhere");
    let build = finished(running.finish());
    assert_eq!(
        (build.paths().len(), build.count("built"), build.count("failed")),
        (1, 1, 0)
    );
}

#[test]
fn a_build_whose_only_builder_is_killed_is_done_here() {
    if !sandbox_works("a_build_whose_only_builder_is_killed_is_done_here") {
        return;
    }
    let [alice, mut bob] = team([("alice", 1), ("bob", 1)]);
    alice.machine.expression(
        r#"{ here = build "here" { } "echo mark-of-here\nwait\nwrite $out x";
             there = build "there" { } "echo mark-of-there\nwait\nwrite $out x"; }"#,
    );
    // The first one takes the slot here, so the second one goes away.
    let mut first = alice.start_build("here", &[]);
    first.until(r#""line":"waiting""#);
    let mut second = alice.start_build("there", &[]);
    second.until(r#""line":"waiting""#);
    bob.kill();
    second.until("is placed again");
    release("mark-of-here");
    let first = finished(first.finish());
    assert_eq!(first.count("built"), 1);
    let started = second.until("build-started");
    assert!(started.contains(r#""node":"this node""#), "{started}");
    second.until(r#""line":"waiting""#);
    release("mark-of-there");
    let second = finished(second.finish());
    assert_eq!((second.paths().len(), second.count("failed")), (1, 0));
}

/// A laptop that is closed and opened again, and nobody else there who builds.
#[test]
fn the_only_builder_is_waited_for_and_gets_the_build_again() {
    if !sandbox_works("the_only_builder_is_waited_for_and_gets_the_build_again") {
        return;
    }
    let [alice, mut bob] = team([("alice", 0), ("bob", 1)]);
    alice.machine.expression(&slow("mark-of-patience"));
    let mut running = alice.start_build("slow", &[]);
    running.until(r#""line":"waiting""#);
    alice.notes(&bob);
    bob.kill();
    running.until("waits for a builder to turn up: bob: ");
    bob.start(&["--listen", "127.0.0.1:0", "--slots", "1"]);
    let placed = running.until(r#""event":"placed""#);
    assert!(placed.contains("tried before: bob: "), "{placed}");
    running.until(r#""line":"waiting""#);
    release("mark-of-patience");
    let build = finished(running.finish());
    assert_eq!((build.count("built"), build.count("failed")), (1, 0));
}

#[test]
fn ctrl_c_stops_the_far_build_and_leaves_nothing_there() {
    if !sandbox_works("ctrl_c_stops_the_far_build_and_leaves_nothing_there") {
        return;
    }
    let [alice, bob] = team([("alice", 0), ("bob", 1)]);
    alice.machine.expression(&slow("mark-of-ctrl-c"));
    let mut running = alice.start_build("slow", &[]);
    running.until(r#""line":"waiting""#);
    assert!(!processes_with("mark-of-ctrl-c").is_empty() && !bob.scratch().is_empty());
    running.signal(Signal::INT);
    let interrupted = Instant::now();
    assert_eq!(running.finish().status, 130);
    nothing_is_left(&bob, "mark-of-ctrl-c");
    eprintln!("nothing is left after {:?}", interrupted.elapsed());
    // The team knows that the slot is free, and it can be used.
    until("the slot is free for others", || {
        alice.peer("bob").filter(|bob| bob["free"] == 1)
    });
    alice
        .machine
        .expression(r#"{ quick = build "quick" { } "write $out x"; }"#);
    assert_eq!(alice.build("quick", &[]).count("built"), 1);
}

#[test]
fn a_requester_that_is_killed_stops_its_far_build() {
    if !sandbox_works("a_requester_that_is_killed_stops_its_far_build") {
        return;
    }
    let [mut alice, bob] = team([("alice", 0), ("bob", 1)]);
    alice.machine.expression(&slow("mark-of-the-requester"));
    let mut running = alice.start_build("slow", &[]);
    running.until(r#""line":"waiting""#);
    alice.notes(&bob);
    alice.kill();
    let killed = Instant::now();
    nothing_is_left(&bob, "mark-of-the-requester");
    eprintln!("nothing is left after {:?}", killed.elapsed());
    assert_eq!(running.finish().status, 1);
    // Both can go on.
    alice.start(&["--listen", "127.0.0.1:0", "--slots", "0"]);
    alice.meet("bob");
    alice
        .machine
        .expression(r#"{ quick = build "quick" { } "write $out x"; }"#);
    assert_eq!(alice.build("quick", &[]).count("built"), 1);
}

/// The link was gone for a moment: the build goes on where it is, and its log comes from the beginning.
#[test]
fn a_build_goes_on_when_the_connection_to_its_builder_breaks() {
    let name = "a_build_goes_on_when_the_connection_to_its_builder_breaks";
    if !sandbox_works(name) {
        return;
    }
    let [alice, bob] = team([("alice", 0), ("bob", 1)]);
    alice.machine.expression(&slow("mark-of-the-link"));
    let mut running = alice.start_build("slow", &[]);
    running.until(r#""line":"waiting""#);
    let building = processes_with("mark-of-the-link");
    if !bob.break_connections() {
        skipped(name, "no process may be given another's sockets here");
        return;
    }
    until("alice has asked bob again", || {
        alice.log().contains("a far build is gone on with").then_some(())
    });
    assert_eq!(processes_with("mark-of-the-link"), building, "it was begun anew");
    release("mark-of-the-link");
    let build = finished(running.finish());
    assert_eq!((build.count("built"), build.count("failed")), (1, 0));
    assert_eq!(build.of_kind("placed").count(), 1, "{}", build.messages());
    let said = build.of_kind("log").map(|event| text(&event["line"]));
    assert_eq!(said.collect::<Vec<_>>(), ["mark-of-the-link", "waiting"]);
    let log = alice.machine.run(&["log", &build.path()]);
    assert_eq!(log.ok(), "mark-of-the-link\nwaiting");
    nothing_is_left(&bob, "mark-of-the-link");
}

/// A builder that says nothing, though its connection stands: another one starts beside it, and what is done
/// first counts.
#[test]
fn beside_a_silent_builder_another_one_starts() {
    if !sandbox_works("beside_a_silent_builder_another_one_starts") {
        return;
    }
    let [alice, bob, carol] = team([("alice", 0), ("bob", 1), ("carol", 1)]);
    alice.machine.expression(&slow("mark-of-silence"));
    let mut running = alice.start_build("slow", &[]);
    let started = running.until("build-started");
    let first = text(&serde_json::from_str::<serde_json::Value>(&started).expect("an event")["node"]);
    running.until(r#""line":"waiting""#);
    let silent = if first == "bob" { &bob } else { &carol };
    silent.signal(Signal::STOP);
    let placed = running.until(r#""event":"placed""#);
    assert!(placed.contains(&format!("{first} has been silent")), "{placed}");
    running.until("build-started");
    running.until(r#""line":"waiting""#);
    // Both wait for the word; only one can tell that it has had it.
    release("mark-of-silence");
    let build = finished(running.finish());
    assert_eq!((build.paths().len(), build.count("failed")), (1, 0));
    silent.signal(Signal::CONT);
    nothing_is_left(silent, "mark-of-silence");
}

/// Megabytes of the file whose transfer is broken off.
const MEGABYTES: usize = 48;

/// `big`: a path with one large file whose content cannot be compressed or guessed.
fn big(node: &Node) {
    node.machine.expression(
        r#"let file = builtins.path { name = "file"; path = ./big; };
        in { big = build "big" { inherit file; } "mkdir $out\ncopy $file $out/file"; }"#,
    );
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut content = Vec::with_capacity(MEGABYTES << 20);
    while content.len() < MEGABYTES << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    fs::write(node.machine.folder().join("big"), content).expect("a file");
}

#[track_caller]
fn same_content(one: &Node, other: &Node, path: &str) {
    let read = |node: &Node| fs::read(node.machine.physical(path).join("file")).expect("the file");
    assert!(read(one) == read(other), "{} differs", one.name);
}

/// Carol fetches `big`; bob, who has it, stands still in the middle. Gives carol and what she runs.
fn in_the_middle(alice: &Node, bob: &Node) -> (Node, crate::harness::Running) {
    for _ in 0..10 {
        let carol = Node::up("carol", 0);
        carol.join(&alice.ticket(&[])).ok();
        carol.meet("bob");
        carol.meet("alice");
        big(&carol);
        let mut running = carol.start_build("big", &[]);
        let started = running.until("fetch-started");
        bob.signal(Signal::STOP);
        let path = serde_json::from_str::<serde_json::Value>(&started).expect("an event");
        let path = format!("/nix/store/{}", text(&path["path"]));
        if !carol.machine.physical(&path).exists() {
            return (carol, running);
        }
        // It was faster than this test. Once more, with somebody who does not have it yet.
        bob.signal(Signal::CONT);
        running.finish();
        carol.machine.run(&["leave"]).ok();
    }
    panic!("the fetch was always over before it could be broken off");
}

#[test]
fn a_fetch_whose_provider_is_killed_gets_the_rest_from_another() {
    if !sandbox_works("a_fetch_whose_provider_is_killed_gets_the_rest_from_another") {
        return;
    }
    let [alice, mut bob] = team([("alice", 0), ("bob", 1)]);
    big(&alice);
    let path = alice.build("big", &[]).path();
    let (carol, running) = in_the_middle(&alice, &bob);
    bob.kill();
    let build = finished(running.finish());
    assert_eq!(
        (build.path(), build.count("built")),
        (path.clone(), 0),
        "{}",
        build.messages()
    );
    same_content(&carol, &alice, &path);
}

#[test]
fn a_fetch_whose_only_provider_is_killed_goes_on_when_it_is_back() {
    if !sandbox_works("a_fetch_whose_only_provider_is_killed_goes_on_when_it_is_back") {
        return;
    }
    let [alice, mut bob] = team([("alice", 0), ("bob", 1)]);
    big(&bob);
    let path = bob.build("big", &[]).path();
    let (carol, running) = in_the_middle(&alice, &bob);
    bob.kill();
    // Whatever became of this one: nobody else has it, and nobody can build it.
    running.finish();
    bob.start(&["--listen", "127.0.0.1:0", "--slots", "1"]);
    let nodes = [carol, bob];
    all_meet(&nodes);
    let [carol, bob] = nodes;
    let build = carol.build("big", &[]);
    assert_eq!(
        (build.path(), build.count("built")),
        (path.clone(), 0),
        "{}",
        build.messages()
    );
    same_content(&carol, &bob, &path);
}
