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
