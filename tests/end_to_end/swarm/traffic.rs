//! What a node sends to whom where its owner limits it.

use std::fs;

use super::nodes::{team, text, until};
use crate::harness::sandbox_works;

#[test]
fn on_a_metered_connection_others_get_nothing_but_what_own_builds_need() {
    if !sandbox_works("on_a_metered_connection_others_get_nothing_but_what_own_builds_need") {
        return;
    }
    let [alice, mut bob] = team([("alice", 1), ("bob", 1)]);
    for node in [&alice, &bob] {
        node.machine.expression(
            r#"{
              one = build "one" { } "write $out 1";
              two = build "two" { } "write $out 2";
              three = build "three" { input = ./input; } "write $out 3";
            }"#,
        );
        let input = fs::File::create(node.machine.folder().join("input")).expect("a file");
        input.set_len(1 << 20).expect("1 MiB");
    }
    bob.build("one", &[]);
    bob.build("two", &[]);
    let fetched = alice.build("one", &[]);
    assert_eq!((fetched.count("built"), fetched.count("fetched")), (0, 1));

    bob.machine.run(&["traffic", "--metered", "yes"]).ok();
    let built = alice.build("two", &[]);
    assert_eq!((built.count("built"), built.count("fetched")), (1, 0));
    until("bob withholds its slots", || {
        let shared = bob.json(&["share"]);
        text(&shared["withheld"]).contains("metered").then_some(())
    });

    // It outlives the node. Whoever works for it gets what that needs.
    bob.down();
    bob.start(&["--listen", "127.0.0.1:0", "--slots", "0"]);
    bob.meet("alice");
    let asked = bob.build("three", &[]);
    assert_eq!(asked.count("built"), 1);
    assert!(bob.content_sent("alice") >= 1 << 20);
}

#[test]
fn limits_of_traffic_are_set_shown_and_checked() {
    let [alice] = team([("alice", 0)]);
    let shown = alice.machine.run(&["traffic"]);
    assert!(shown.ok().contains("as fast as the link is"));
    let set = alice
        .machine
        .run(&["traffic", "--upload", "2M", "--download", "1M"]);
    assert!(set.ok().contains("2 MiB/s") && set.ok().contains("1 MiB/s"));
    let lifted = alice.machine.run(&["traffic", "--download", "none"]);
    assert!(lifted.ok().contains("2 MiB/s") && !lifted.ok().contains("1 MiB/s"));
    let refused = alice.machine.run(&["traffic", "--upload", "1K"]);
    assert_eq!(refused.status, 2);
    assert!(
        refused.stderr.contains("with less than 256K a second"),
        "{}",
        refused.stderr
    );
    assert!(alice.machine.run(&["traffic"]).ok().contains("2 MiB/s"));
}
