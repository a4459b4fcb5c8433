//! On which terms a node builds for others.

use super::nodes::{finished, team, text, until};
use crate::harness::{processes_with, release, sandbox_works};

#[test]
fn the_owner_s_word_ends_a_build_for_another_who_learns_why_and_gets_it_later() {
    if !sandbox_works("the_owner_s_word_ends_a_build_for_another_who_learns_why_and_gets_it_later") {
        return;
    }
    let [alice, mut bob] = team([("alice", 0), ("bob", 1)]);
    alice
        .machine
        .expression(r#"{ one = build "one" { } "echo mark-of-lending\nwait\nwrite $out x"; }"#);
    let mut running = alice.start_build("one", &["-k"]);
    running.until(r#""line":"waiting""#);
    let shown = bob.machine.run(&["share", "off"]);
    assert!(shown.ok().contains("share    off"), "{}", shown.stdout);
    let told = running.until("has to wait");
    assert!(told.contains("its owner does not share it"), "{told}");
    until("the build is stopped", || {
        processes_with("mark-of-lending").is_empty().then_some(())
    });
    let peer = until("alice hears of it", || {
        alice.peer("bob").filter(|peer| peer["withheld"].is_string())
    });
    assert_eq!(peer["withheld"], "its owner does not share it");
    bob.machine.run(&["share", "on"]).ok();
    running.until(r#""line":"waiting""#);
    release("mark-of-lending");
    assert_eq!(finished(running.finish()).count("built"), 1);

    // It survives a restart, and who asks is told at the end.
    bob.machine
        .run(&["share", "off", "--max-load", "1.5", "--quiet", "22:00-07:00"])
        .ok();
    bob.down();
    bob.start(&["--listen", "127.0.0.1:0", "--slots", "1"]);
    let shown = bob.machine.run(&["share"]);
    for part in ["share    off", "at most 1.50 cores", "22:00-07:00"] {
        assert!(shown.ok().contains(part), "no '{part}' in:\n{}", shown.stdout);
    }
    alice.meet("bob");
    alice
        .machine
        .expression(r#"{ two = build "two" { } "write $out x"; }"#);
    let refused = alice.build("two", &[]);
    assert_eq!(refused.finished.status, 1, "{}", refused.messages());
    let failed = refused.of_kind("build-failed").next().expect("it failed");
    assert!(
        text(&failed["error"]).contains("because its owner does not share it"),
        "{failed}"
    );
    bob.machine
        .run(&["share", "on", "--quiet", "25:00-7:00"])
        .failed(2, &["no time of the day"]);
    bob.machine.run(&["share", "--mains-only"]).failed(2, &[]);
}

/// The owner of a machine does not wait for what he lends.
#[test]
fn an_own_build_does_not_wait_for_a_slot_that_is_lent() {
    if !sandbox_works("an_own_build_does_not_wait_for_a_slot_that_is_lent") {
        return;
    }
    let [alice, bob] = team([("alice", 0), ("bob", 1)]);
    alice
        .machine
        .expression(r#"{ far = build "far" { } "echo mark-of-the-guest\nwait\nwrite $out x"; }"#);
    let mut far = alice.start_build("far", &[]);
    far.until(r#""line":"waiting""#);
    bob.machine
        .expression(r#"{ own = build "own" { } "echo mark-of-the-owner\nwait\nwrite $out x"; }"#);
    let mut own = bob.start_build("own", &[]);
    own.until(r#""line":"waiting""#);
    let status = bob.machine.run(&["status"]);
    assert!(
        status
            .ok()
            .contains("slots    1 of 1 in use, and 1 build beside them gives way"),
        "{}",
        status.stdout
    );
    assert!(!processes_with("mark-of-the-guest").is_empty(), "it goes on");
    release("mark-of-the-owner");
    assert_eq!(finished(own.finish()).count("built"), 1);
    release("mark-of-the-guest");
    assert_eq!(finished(far.finish()).count("built"), 1);
}

/// Something else keeps the machine busy: what is built for others is stopped, and its requester sees why.
#[test]
fn a_load_that_rises_ends_a_build_for_another_who_learns_why() {
    let name = "a_load_that_rises_ends_a_build_for_another_who_learns_why";
    if !sandbox_works(name) {
        return;
    }
    let [alice, bob] = team([("alice", 0), ("bob", 1)]);
    alice
        .machine
        .expression(r#"{ one = build "one" { } "echo mark-of-load\nwait\nwrite $out x"; }"#);
    let mut running = alice.start_build("one", &["-k"]);
    running.until(r#""line":"waiting""#);
    // A program that is none of the node's keeps a core busy.
    let work = Busy::begin();
    bob.machine.run(&["share", "on", "--max-load", "0.01"]).ok();
    let told = running.until("has to wait");
    assert!(told.contains("its owner's work keeps"), "{told}");
    until("the build is stopped", || {
        processes_with("mark-of-load").is_empty().then_some(())
    });
    drop(work);
    bob.machine.run(&["share", "on"]).ok();
    running.until(r#""line":"waiting""#);
    release("mark-of-load");
    assert_eq!(finished(running.finish()).count("built"), 1);
}

/// A process that computes until this is dropped.
struct Busy(std::process::Child);

impl Busy {
    fn begin() -> Self {
        let mut shell = std::process::Command::new("/bin/sh");
        Self(
            shell
                .args(["-c", "while :; do :; done"])
                .spawn()
                .expect("a shell"),
        )
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}
