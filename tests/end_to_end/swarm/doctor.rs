//! Whether a node and its team are well.

use serde_json::Value;

use super::nodes::{Node, team, text, until};
use crate::harness::sandbox_works;

fn finding(findings: &Value, about: &str) -> Option<Value> {
    let mut all = findings.as_array().expect("a list").iter();
    all.find(|finding| finding["about"] == about).cloned()
}

#[test]
fn a_node_that_is_well_says_so_and_one_that_lost_its_team_says_what_to_do() {
    if !sandbox_works("a_node_that_is_well_says_so_and_one_that_lost_its_team_says_what_to_do") {
        return;
    }
    let [alice, mut bob] = team([("alice", 1), ("bob", 1)]);
    let found = alice.machine.run(&["doctor"]);
    for part in [
        "good     sandbox",
        "connected with 1 of 1 other members",
        "peer bob",
        "only nodes on this machine",
    ] {
        assert!(found.stdout.contains(part), "no '{part}' in:\n{}", found.stdout);
    }
    let found: Value = serde_json::from_str(&alice.machine.run(&["doctor", "--json"]).stdout).expect("JSON");
    for about in ["sandbox", "clock", "roster", "team", "peer bob"] {
        assert_eq!(finding(&found, about).expect(about)["state"], "good", "{found}");
    }
    assert!(finding(&found, "disk").is_some(), "{found}");
    let groups = finding(&found, "control groups").expect("it is said");
    assert!(
        text(&groups["found"]).contains("where a build has a limit on memory"),
        "{groups}"
    );
    let landlock = finding(&found, "landlock").expect("it is said");
    assert!(text(&landlock["found"]).contains("namespaces"), "{landlock}");
    bob.down();
    until("alice sees that bob is gone", || {
        alice.peer("bob").is_none().then_some(())
    });
    let lonely = alice.machine.run(&["doctor", "--json"]);
    assert_eq!(lonely.status, 1, "{}", lonely.stdout);
    let found: Value = serde_json::from_str(&lonely.stdout).expect("JSON");
    let alone = finding(&found, "team").expect("it is said");
    assert_eq!(alone["state"], "bad", "{alone}");
    assert!(
        text(&alone["advice"]).contains("whether another member is up"),
        "{alone}"
    );
}

#[test]
fn a_node_without_a_team_is_well_too() {
    let node = Node::up("alone", 0);
    let found = node.machine.run(&["doctor"]);
    assert!(found.stdout.contains("in no team"), "{}", found.stdout);
    assert!(found.stdout.contains("builds nothing"), "{}", found.stdout);
}
