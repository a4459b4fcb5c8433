//! Outputs go where the user wants them, and not by way of the user's machine.

use std::fs;

use super::nodes::{Build, Node, team, text};
use crate::harness::{release, sandbox_works, skipped};

const THING: &str = r#"rec {
    part = build "part" { } "write $out part";
    thing = build "thing" { inherit part; } "mkdir $out\ncopy $part $out/part\nlink $part $out/link";
}"#;

fn pushes(build: &Build) -> Vec<String> {
    let pushed = build.of_kind("pushed");
    pushed.map(|event| text(&event["to"])).collect()
}

#[test]
fn a_builder_pushes_to_the_desired_store_itself() {
    if !sandbox_works("a_builder_pushes_to_the_desired_store_itself") {
        return;
    }
    let [alice, bob, carol] = team([("alice", 0), ("bob", 1), ("carol", 0)]);
    alice.machine.expression(THING);
    let build = alice.build("thing", &["--to", "carol"]);
    let path = build.path();
    assert_eq!(build.count("built"), 2, "{}", build.messages());
    assert!(carol.has(&path), "it is not there");
    let content = fs::read_to_string(carol.machine.physical(&path).join("part"));
    assert_eq!(content.expect("the output"), "part\n");
    // What it refers to is there too.
    let info = carol.json(&["store", "info", &path]);
    for reference in info["references"].as_array().expect("a list") {
        assert!(carol.has(&text(reference)), "{reference}");
    }
    // Alice sent what the build reads, and no byte of what it made passed her.
    assert!(alice.content_sent("bob") > 0);
    assert_eq!(alice.content_received("bob"), 0);
    assert_eq!(alice.content_received("carol"), 0);
    assert_eq!(alice.content_sent("carol"), 0);
    assert!(carol.content_received("bob") > 0);
    assert!(!alice.has(&path));

    // It is there now.
    let again = alice.build("thing", &["--to", "carol"]);
    assert_eq!((again.path(), again.count("built")), (path, 0));
    assert!(pushes(&again).is_empty(), "{}", again.messages());
    drop(bob);
}

/// What is built on the way stays where it was built, and what is built from it goes there.
#[test]
fn work_goes_to_who_has_its_inputs() {
    if !sandbox_works("work_goes_to_who_has_its_inputs") {
        return;
    }
    let [alice, _bob, _carol, dave] = team([("alice", 0), ("bob", 1), ("carol", 1), ("dave", 0)]);
    // Large enough that moving it costs more than anything else.
    alice.machine.expression(
        r#"let
          file = builtins.path { name = "file"; path = ./file; };
          first = build "first" { inherit file; } "copy $file $out";
        in { second = build "second" { inherit first; } "link $first $out"; }"#,
    );
    fs::write(alice.machine.folder().join("file"), vec![7; 32 << 20]).expect("a file");
    let build = alice.build("second", &["--to", "dave"]);
    assert_eq!(build.count("built"), 2, "{}", build.messages());
    let placed: Vec<_> = build.of_kind("placed").collect();
    let reason = text(&placed[1]["reason"]);
    if reason.contains("cheapest by its link") {
        let slow = "the machine is too busy to ask in time who has what";
        skipped("work_goes_to_who_has_its_inputs", slow);
    } else {
        assert_eq!(placed[0]["node"], placed[1]["node"], "{placed:?}");
        assert!(reason.contains("has all 33 MB of the inputs"), "{reason}");
    }
    for name in ["bob", "carol", "dave"] {
        assert_eq!(alice.content_received(name), 0);
    }
    assert!(dave.has(&build.path()));
}

#[test]
fn what_is_elsewhere_is_pushed_and_not_built() {
    if !sandbox_works("what_is_elsewhere_is_pushed_and_not_built") {
        return;
    }
    let [alice, bob, carol] = team([("alice", 0), ("bob", 1), ("carol", 0)]);
    alice.machine.expression(THING);
    // Here.
    let path = alice.build("part", &[]).path();
    let build = alice.build("part", &["--to", "carol"]);
    assert_eq!(
        (build.path(), build.count("built")),
        (path.clone(), 0),
        "{}",
        build.messages()
    );
    assert_eq!(pushes(&build), ["carol"], "{}", build.messages());
    assert!(carol.has(&path));
    // At a peer alone.
    bob.machine.expression(THING);
    let path = bob.build("thing", &[]).path();
    let build = alice.build("thing", &["--to", "carol"]);
    assert_eq!(
        (build.path(), build.count("built")),
        (path.clone(), 0),
        "{}",
        build.messages()
    );
    assert!(carol.has(&path));
}

#[test]
fn a_desired_store_that_is_no_member_or_may_not_be_one_is_refused() {
    let alice = Node::up("alice", 1);
    let carol = Node::up("carol", 0);
    alice.machine.expression(THING);
    alice
        .build("thing", &["--to", "carol"])
        .finished
        .failed(2, &["no team", "join"]);
    carol
        .join(&alice.ticket(&["--role", "request", "--role", "build"]))
        .ok();
    alice.meet("carol");
    alice
        .build("thing", &["--to", "carol"])
        .finished
        .failed(2, &["carol", "role 'store'", "members"]);
    alice
        .build("thing", &["--to", "dave"])
        .finished
        .failed(2, &["'dave'", "alice", "carol"]);
}

#[test]
fn a_desired_store_that_cannot_be_reached_is_named() {
    if !sandbox_works("a_desired_store_that_cannot_be_reached_is_named") {
        return;
    }
    let [alice, bob, mut carol] = team([("alice", 0), ("bob", 1), ("carol", 0)]);
    alice.machine.expression(THING);
    carol.down();
    let build = alice.build("part", &["--to", "carol"]);
    assert_eq!(build.finished.status, 1, "{}", build.messages());
    let failed = build.of_kind("push-failed").last().expect("a push failed");
    assert_eq!(failed["to"], "carol", "{failed}");
    let said = build.messages();
    assert!(said.contains("carol") && said.contains("reach"), "{said}");
    // What was built is not lost: without the wish for another store it is there.
    let build = alice.build("part", &[]);
    assert_eq!(build.count("built"), 0);
    drop(bob);
}

/// The store is there when the build begins, and gone when it ends.
#[test]
fn a_desired_store_that_comes_back_gets_what_was_built() {
    if !sandbox_works("a_desired_store_that_comes_back_gets_what_was_built") {
        return;
    }
    let [alice, _bob, mut carol] = team([("alice", 0), ("bob", 1), ("carol", 0)]);
    alice
        .machine
        .expression(r#"{ slow = build "slow" { } "echo mark-of-the-store\nwait\nwrite $out x"; }"#);
    let mut running = alice.start_build("slow", &["--to", "carol"]);
    running.until(r#""line":"waiting""#);
    carol.kill();
    release("mark-of-the-store");
    let build = super::nodes::finished(running.finish());
    assert_eq!(build.finished.status, 1, "{}", build.messages());
    carol.start(&["--listen", "127.0.0.1:0", "--slots", "0"]);
    alice.meet("carol");
    let build = alice.build("slow", &["--to", "carol"]);
    assert_eq!(build.count("built"), 0, "{}", build.messages());
    assert!(carol.has(&build.path()));
}

#[test]
fn a_folder_that_the_builder_knows_is_written_by_the_builder() {
    if !sandbox_works("a_folder_that_the_builder_knows_is_written_by_the_builder") {
        return;
    }
    let [alice, bob] = team([("alice", 0), ("bob", 1)]);
    alice.machine.expression(THING);
    let cache = alice.machine.folder().join("cache");
    fs::create_dir(&cache).expect("a folder");
    fs::write(cache.join("nix-cache-info"), "StoreDir: /nix/store\n").expect("a file");
    let to = format!("file://{}", cache.display());
    let build = alice.build("thing", &["--to", &to]);
    assert_eq!(build.count("built"), 2, "{}", build.messages());
    assert_eq!(alice.content_received("bob"), 0);
    assert!(is_in(&cache, &build.path()));
    drop(bob);
}

#[test]
fn a_folder_that_the_builder_does_not_know_is_written_here() {
    if !sandbox_works("a_folder_that_the_builder_does_not_know_is_written_here") {
        return;
    }
    let [alice, bob] = team([("alice", 0), ("bob", 1)]);
    alice.machine.expression(THING);
    // Without its marker it is no cache that the builder would write to for somebody else.
    let cache = alice.machine.folder().join("cache");
    fs::create_dir(&cache).expect("a folder");
    let to = format!("file://{}", cache.display());
    let build = alice.build("thing", &["--to", &to]);
    assert_eq!(build.count("built"), 2, "{}", build.messages());
    assert!(alice.content_received("bob") > 0);
    assert_eq!(pushes(&build).len(), 1, "{}", build.messages());
    assert!(is_in(&cache, &build.path()));
    let again = alice.build("thing", &["--to", &to]);
    assert_eq!(
        (again.count("built"), pushes(&again).len()),
        (0, 0),
        "{}",
        again.messages()
    );
    drop(bob);
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    if !sandbox_works("a_folder_that_is_not_there_is_named") {
        return;
    }
    let [alice, bob] = team([("alice", 0), ("bob", 1)]);
    alice.machine.expression(THING);
    let cache = alice.machine.folder().join("nowhere");
    let to = format!("file://{}", cache.display());
    let build = alice.build("part", &["--to", &to]);
    assert_eq!(build.finished.status, 1);
    let said = build.messages();
    assert!(said.contains("nowhere"), "{said}");
    drop(bob);
}

/// Whether a binary cache has a path.
fn is_in(cache: &std::path::Path, path: &str) -> bool {
    let hash = &path.trim_start_matches("/nix/store/")[..32];
    cache.join(format!("{hash}.narinfo")).is_file()
}
