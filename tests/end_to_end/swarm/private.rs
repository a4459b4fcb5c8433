//! What stays on one node.

use super::nodes::{Node, team, text, until};
use crate::harness::sandbox_works;

const PACKAGES: &str = r#"rec {
    plain = build "plain" { } "write $out plain";
    secret-key = build "secret-key" { } "write $out secret";
    uses-it = build "uses-it" { key = secret-key; } "copy $key $out";
}"#;

/// Whether a node gets a path from others instead of building it.
fn gets(node: &Node, attribute: &str) -> bool {
    let build = node.build(attribute, &[]);
    build.paths();
    build.count("built") == 0
}

fn is_private(node: &Node, path: &str) -> bool {
    let shown = node.machine.run(&["store", "info", path]);
    let private = shown.ok().contains("private      no member");
    assert_eq!(node.json(&["store", "info", path])["private"], private);
    private
}

#[test]
fn what_is_private_and_what_is_built_from_it_stays_here_over_a_restart() {
    if !sandbox_works("what_is_private_and_what_is_built_from_it_stays_here_over_a_restart") {
        return;
    }
    let [mut alice, bob, carol] = team([("alice", 1), ("bob", 1), ("carol", 1)]);
    for node in [&alice, &carol] {
        node.machine.expression(PACKAGES);
    }
    alice.machine.run(&["private", "add", "*-key"]).ok();
    let built = alice.build("uses-it", &[]);
    let user = built.path();
    // Nobody else was asked, although others had slots.
    for placed in built.of_kind("placed") {
        assert_eq!(placed["node"], "this node", "{placed}");
    }
    let plain = alice.build("plain", &["-j", "1"]).path();
    let key = alice
        .machine
        .run(&["eval", "-A", "secret-key.outPath", "--raw"])
        .ok()
        .to_owned();
    assert!(is_private(&alice, &key) && is_private(&alice, &user) && !is_private(&alice, &plain));
    alice.down();
    alice.start(&["--listen", "127.0.0.1:0", "--slots", "0"]);
    alice.meet("carol");
    carol.meet("alice");
    assert!(gets(&carol, "plain"));
    // Not from alice: carol, or bob for her, has to build it.
    assert!(!gets(&carol, "uses-it"));
    let explained = alice.machine.run(&["private"]);
    for part in ["*-key", &user] {
        assert!(
            explained.ok().contains(part),
            "no '{part}' in:\n{}",
            explained.stdout
        );
    }
    alice
        .machine
        .run(&["private", "remove", "other"])
        .failed(1, &["'other' is not among what is private"]);
    alice
        .machine
        .run(&["private", "add", "a b"])
        .failed(2, &["no store path has"]);
    drop(bob);
}

#[test]
fn a_private_build_hides_all_that_it_brings_until_it_is_shown_again() {
    if !sandbox_works("a_private_build_hides_all_that_it_brings_until_it_is_shown_again") {
        return;
    }
    let [alice, carol] = team([("alice", 1), ("carol", 1)]);
    for node in [&alice, &carol] {
        node.machine.expression(PACKAGES);
    }
    // Before, so that the tool is no secret.
    let shared = alice.build("secret-key", &[]).path();
    let build = alice.build("plain", &["--private"]);
    let (path, derivation) = (
        build.path(),
        text(&build.of_kind("build-finished").next().expect("it is built")["derivation"]),
    );
    let derivation = format!("/nix/store/{derivation}");
    assert!(is_private(&alice, &path) && is_private(&alice, &derivation));
    assert!(!gets(&carol, "plain"), "carol has to build it herself");
    // Hidden afterwards: what was announced is taken back.
    until("carol finds it", || {
        let explained = carol.machine.run(&["trust", "explain", &shared]);
        explained
            .ok()
            .contains("what alice shows is believed")
            .then_some(())
    });
    alice.machine.run(&["private", "add", &shared]).ok();
    until("carol does not find it any more", || {
        let explained = carol.machine.run(&["trust", "explain", &shared]);
        explained
            .ok()
            .contains("nobody who can be asked has it")
            .then_some(())
    });
    alice.machine.run(&["private", "remove", &shared]).ok();
    until("carol finds it again", || {
        let explained = carol.machine.run(&["trust", "explain", &shared]);
        explained
            .ok()
            .contains("what alice shows is believed")
            .then_some(())
    });
    let both = alice
        .machine
        .run(&["build", "-A", "plain", "--private", "--to", "carol"]);
    both.failed(2, &["--private"]);
}
