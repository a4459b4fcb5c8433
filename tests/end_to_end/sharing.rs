//! Commands that share a node.

use crate::harness::{Machine, processes_with, release, sandbox_works};

#[test]
fn two_commands_share_one_build() {
    if !sandbox_works("two_commands_share_one_build") {
        return;
    }
    let machine = Machine::new();
    machine.expression(r#"{ shared = build "shared" { } "echo mark-of-sharing\nwait\nwrite $out x"; }"#);
    let mut first = machine.start(&[
        "build",
        "-A",
        "shared",
        "--no-out-link",
        "--log-format",
        "internal-json",
    ]);
    first.until(r#""line":"waiting""#);
    let mut second = machine.start(&[
        "build",
        "-A",
        "shared",
        "--no-out-link",
        "--log-format",
        "internal-json",
    ]);
    second.until("target-named");
    assert_eq!(processes_with("mark-of-sharing").len(), 1);
    release("mark-of-sharing");
    let (first, second) = (first.finish(), second.finish());
    assert_eq!(first.ok(), second.ok());
    assert!(first.stderr.contains(r#""built":1"#), "{}", first.stderr);
}

#[test]
fn a_node_shows_what_it_does_and_goes_down() {
    if !sandbox_works("a_node_shows_what_it_does_and_goes_down") {
        return;
    }
    let machine = Machine::new();
    machine.expression(r#"{ slow = build "slow" { } "echo mark-of-status\nwait\nwrite $out x"; }"#);
    let mut running = machine.start(&["build", "-A", "slow", "--no-out-link"]);
    running.until("waiting");
    let status = machine.run(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(status.ok()).expect("JSON");
    assert!(
        status["builds"][0]["derivation"]
            .as_str()
            .is_some_and(|path| path.ends_with("-slow.drv")),
        "{status}"
    );
    assert_eq!(status["sessions"].as_array().map(Vec::len), Some(1), "{status}");
    // Its log can be read meanwhile, though it says little.
    let slow = machine.run(&["eval", "--raw", "-A", "slow.drvPath"]);
    let log = machine.run(&["log", slow.ok()]);
    assert!(log.ok().contains("waiting"), "{}", log.stdout);
    release("mark-of-status");
    running.finish().ok();
    machine.run(&["down"]).ok();
    let status = machine.run(&["status"]);
    assert!(
        status.stdout.contains("no node") || status.stderr.contains("no node"),
        "{}{}",
        status.stdout,
        status.stderr
    );
}
