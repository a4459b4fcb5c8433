//! What a user sees of work that others do.

use std::fs;

use tvix_node_protocol::build::BuildRecord;
use tvix_node_protocol::envelope::Envelope;

use super::nodes::{Build, Node, finished, team, text};
use crate::harness::{release, sandbox_works};

#[test]
fn a_far_build_is_seen_live_and_known_afterwards() {
    if !sandbox_works("a_far_build_is_seen_live_and_known_afterwards") {
        return;
    }
    let [alice, bob] = team([("alice", 0), ("bob", 1)]);
    alice.machine.expression(
        r#"{ seen = build "seen" { } "echo mark-of-sight\nwait\necho and on it goes\nwrite $out x"; }"#,
    );
    let mut running = alice.start_build("seen", &[]);
    let placed = running.until(r#""event":"placed""#);
    assert!(
        placed.contains(r#""node":"bob""#) && placed.contains("bob: "),
        "{placed}"
    );
    let started = running.until(r#""event":"build-started""#);
    assert!(started.contains(r#""node":"bob""#), "{started}");
    // It cannot end before this test lets it, so what is read now is live.
    running.until(r#""line":"waiting""#);
    let status = alice.json(&["status"]);
    let builds = status["builds"].as_array().expect("a list");
    assert_eq!(builds.len(), 1, "{status}");
    assert_eq!(builds[0]["node"], "bob", "{status}");
    assert_eq!(builds[0]["lastLine"], "waiting", "{status}");
    let shown = alice.machine.run(&["status"]);
    assert!(shown.ok().contains("on bob"), "{}", shown.stdout);
    assert!(shown.ok().contains("slots    0 of 0 in use"), "{}", shown.stdout);
    // The builder's user sees it too, and for whom it is.
    let there = bob.machine.run(&["status"]);
    assert!(there.ok().contains("slots    1 of 1 in use"), "{}", there.stdout);
    assert!(
        there.ok().contains("seen") && there.ok().contains("alice"),
        "{}",
        there.stdout
    );
    release("mark-of-sight");
    let built = finished(running.finish());
    let path = built.path();

    let log = alice.machine.run(&["log", &path]);
    assert_eq!(log.ok(), "mark-of-sight\nwaiting\nand on it goes");

    let why = alice.machine.run(&["why", &path]);
    let reason = text(&serde_json::from_str::<serde_json::Value>(&placed).expect("an event")["reason"]);
    for part in ["bob", &bob.key(), &reason] {
        assert!(why.ok().contains(part), "no '{part}' in:\n{}", why.stdout);
    }
    let there = bob.machine.run(&["why", &path]);
    assert!(there.ok().contains("alice asked for it"), "{}", there.stdout);

    let records = alice.json(&["record", &path]);
    assert_eq!(records.as_array().map(Vec::len), Some(1), "{records}");
    let record = &records[0];
    assert_eq!(record["signer"], bob.key().as_str());
    assert_eq!(record["signerName"], "bob");
    assert_eq!(record["accepted"], true);
    let hex = text(&record["envelope"]);
    let bytes: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("two digits"))
        .collect();
    let envelope = Envelope::from_bytes(&bytes, bytes.len()).expect("an envelope");
    let signed: BuildRecord = envelope.open().expect("the signature holds");
    assert_eq!(signed.builder.to_string(), bob.key());
    assert_eq!(signed.outputs["out"].path.to_absolute_path(), path);
}

#[test]
fn a_far_build_that_fails_shows_its_log() {
    if !sandbox_works("a_far_build_that_fails_shows_its_log") {
        return;
    }
    let [alice, _bob] = team([("alice", 0), ("bob", 1)]);
    alice
        .machine
        .expression(r#"{ bad = build "bad" { } "echo what went wrong\nfail 7"; }"#);
    let failed = alice.build("bad", &[]);
    assert_eq!(failed.finished.status, 1, "{}", failed.messages());
    let event = failed.of_kind("build-failed").next().expect("it failed");
    assert_eq!(event["node"], "bob", "{event}");
    assert!(text(&event["error"]).contains("exit code 7"), "{event}");
    assert_eq!(event["logTail"][0], "what went wrong", "{event}");
    let derivation = format!("/nix/store/{}", text(&event["derivation"]));
    let log = alice.machine.run(&["log", &derivation]);
    assert_eq!(log.ok(), "what went wrong");
}

#[test]
fn the_folder_of_a_far_build_that_fails_is_brought_home_when_asked_for() {
    if !sandbox_works("the_folder_of_a_far_build_that_fails_is_brought_home_when_asked_for") {
        return;
    }
    let [alice, bob] = team([("alice", 0), ("bob", 1)]);
    let kept = |node: &Node| match std::fs::read_dir(node.machine.home().join("scratch-kept")) {
        Ok(entries) => entries.count(),
        Err(_) => 0,
    };
    alice.machine.expression(
        r#"{ bad = build "bad" { } "mkdir sub\nwrite sub/evidence something\nlink /etc/passwd way\nfail 7"; }"#,
    );
    let failed = alice.build("bad", &[]);
    assert_eq!(failed.finished.status, 1, "{}", failed.messages());
    assert_eq!((kept(&alice), kept(&bob)), (0, 0));
    let failed = alice.build("bad", &["-K"]);
    let event = failed.of_kind("build-failed").next().expect("it failed");
    let error = text(&event["error"]);
    let place = error.split("exit code 7; its folder is kept as '").nth(1);
    let place = std::path::PathBuf::from(place.unwrap_or_else(|| panic!("{error}")).trim_end_matches('\''));
    assert_eq!((kept(&alice), kept(&bob)), (1, 0));
    assert_eq!(
        place
            .parent()
            .expect("a folder")
            .canonicalize()
            .expect("it is there"),
        alice
            .machine
            .home()
            .join("scratch-kept")
            .canonicalize()
            .expect("it is there")
    );
    let evidence = std::fs::read_to_string(place.join("sub/evidence")).expect("what the build wrote");
    assert_eq!(evidence.trim(), "something");
    let way = std::fs::read_link(place.join("way")).expect("a link");
    assert_eq!(way, std::path::Path::new("/etc/passwd"));
}

/// What was seen of a package before is a reason, and is kept.
#[test]
fn a_second_build_of_a_package_is_placed_by_what_was_seen_of_the_first() {
    if !sandbox_works("a_second_build_of_a_package_is_placed_by_what_was_seen_of_the_first") {
        return;
    }
    let [mut alice, _bob, _carol] = team([("alice", 0), ("bob", 1), ("carol", 1)]);
    alice.machine.expression(
        r#"{
          first = build "package-1" { input = ./input; } "write $out 1";
          second = build "package-2" { input = ./input; } "write $out 2";
          third = build "package-3" { input = ./input; } "write $out 3";
        }"#,
    );
    // Large enough that moving it decides, whatever else the machine does.
    let input = fs::File::create(alice.machine.folder().join("input")).expect("a file");
    input.set_len(64 << 20).expect("64 MiB");
    let first = alice.build("first", &[]);
    let builder = |build: &Build| text(&build.of_kind("placed").last().expect("it is placed")["node"]);
    let second = alice.build("second", &[]);
    // Both could build it, and one of them has the inputs and has been seen at it.
    assert_eq!(builder(&second), builder(&first));
    let placed = second.of_kind("placed").last().expect("it is placed");
    let reason = text(&placed["reason"]);
    assert!(
        reason.contains("built it before in") && reason.contains("of the inputs"),
        "{reason}"
    );
    let why = alice.machine.run(&["why", &second.path()]);
    assert!(why.ok().contains(&reason), "no '{reason}' in:\n{}", why.stdout);
    // Nor is it forgotten when the node goes down.
    alice.down();
    alice.start(&["--listen", "127.0.0.1:0", "--slots", "0"]);
    alice.meet("bob");
    alice.meet("carol");
    let third = alice.build("third", &[]);
    assert_eq!(builder(&third), builder(&first));
    let placed = third.of_kind("placed").last().expect("it is placed");
    let reason = text(&placed["reason"]);
    assert!(reason.contains("built it before in"), "{reason}");
}
