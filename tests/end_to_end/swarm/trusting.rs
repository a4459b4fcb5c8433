//! Whom a node believes, by the rules that its owner has set.

use super::nodes::{Build, Node, team, text, until};
use crate::harness::sandbox_works;

/// `same` comes out the same everywhere, `random` never does.
const PACKAGES: &str = r#"{
    same = build "same" { } "write $out same";
    random = build "random" { } "copy /proc/sys/kernel/random/uuid $out";
}"#;

fn builders(build: &Build) -> Vec<String> {
    let started = build.of_kind("build-started");
    let mut nodes: Vec<String> = started.map(|event| text(&event["node"])).collect();
    nodes.sort();
    nodes
}

fn signers(node: &Node, path: &str) -> Vec<String> {
    let records = node.json(&["record", path]);
    let all = records.as_array().expect("a list").iter();
    let mut signers: Vec<String> = all.map(|record| text(&record["signerName"])).collect();
    signers.sort();
    signers
}

/// The output of the derivation that failed.
fn failed_output(node: &Node, attribute: &str) -> String {
    let printed = node
        .machine
        .run(&["eval", "-A", &format!("{attribute}.outPath"), "--raw"]);
    printed.ok().to_owned()
}

#[test]
fn two_builders_that_agree_are_believed_and_two_that_differ_are_not() {
    if !sandbox_works("two_builders_that_agree_are_believed_and_two_that_differ_are_not") {
        return;
    }
    let [mut alice, bob, carol] = team([("alice", 0), ("bob", 1), ("carol", 1)]);
    alice.machine.expression(PACKAGES);
    let set = ["trust", "set", "quorum", "2", "--of", "bob,carol", "--paths", "*"];
    let shown = alice.machine.run(&set);
    assert!(shown.ok().contains("quorum 2 of bob, carol"), "{}", shown.stdout);
    // It is written down.
    alice.down();
    alice.start(&["--listen", "127.0.0.1:0", "--slots", "0"]);
    alice.meet("bob");
    alice.meet("carol");
    let shown = alice.machine.run(&["trust"]);
    assert!(shown.ok().contains("quorum 2 of bob, carol"), "{}", shown.stdout);

    let agreed = alice.build("same", &[]);
    let path = agreed.path();
    assert_eq!(builders(&agreed), ["bob", "carol"], "{}", agreed.messages());
    assert_eq!(agreed.count("built"), 1, "{}", agreed.messages());
    assert_eq!(signers(&alice, &path), ["bob", "carol"]);
    let explained = alice.machine.run(&["trust", "explain", &path]);
    for part in ["quorum 2 of bob, carol", "agreed: ", "it is in the store"] {
        assert!(
            explained.ok().contains(part),
            "no '{part}' in:\n{}",
            explained.stdout
        );
    }

    let differing = alice.build("random", &[]);
    assert_eq!(differing.finished.status, 1, "{}", differing.messages());
    let failed = differing.of_kind("build-failed").next().expect("it failed");
    let error = text(&failed["error"]);
    assert!(
        error.contains("disagreed") && error.contains("bob") && error.contains("carol"),
        "{error}"
    );
    let path = failed_output(&alice, "random");
    assert!(!alice.has(&path), "it is accepted all the same");
    assert_eq!(signers(&alice, &path), ["bob", "carol"], "both records are kept");
    let explained = alice.machine.run(&["trust", "explain", &path]);
    for part in ["disagreed: ", "it is not in the store", "is not believed"] {
        assert!(
            explained.ok().contains(part),
            "no '{part}' in:\n{}",
            explained.stdout
        );
    }
    drop((bob, carol));
}

#[test]
fn what_one_builder_has_is_not_enough_for_a_quorum_of_two() {
    if !sandbox_works("what_one_builder_has_is_not_enough_for_a_quorum_of_two") {
        return;
    }
    let [alice, bob, mut carol] = team([("alice", 0), ("bob", 1), ("carol", 1)]);
    for node in [&alice, &bob] {
        node.machine.expression(PACKAGES);
    }
    let built = bob.build("same", &[]);
    alice
        .machine
        .run(&["trust", "set", "quorum 2", "--of", "bob", "--of", "carol"])
        .ok();
    carol.down();
    // Bob shows it with his record, and answers a request from there.
    let build = alice.build("same", &[]);
    assert_eq!(build.finished.status, 1, "{}", build.messages());
    let said = build.messages();
    assert!(said.contains("too few builders: 2 of bob, carol"), "{said}");
    assert!(said.contains("so far bob agree"), "{said}");
    assert!(!alice.has(&built.path()));
    let explained = alice.machine.run(&["trust", "explain", &built.path()]);
    assert!(explained.ok().contains("too few: "), "{}", explained.stdout);
    // Without the rule it is believed at once.
    alice.machine.run(&["trust", "unset"]).ok();
    assert_eq!(alice.build("same", &[]).path(), built.path());
}

#[test]
fn what_only_this_node_may_build_is_not_taken_from_others() {
    if !sandbox_works("what_only_this_node_may_build_is_not_taken_from_others") {
        return;
    }
    let [alice, bob] = team([("alice", 1), ("bob", 2)]);
    for node in [&alice, &bob] {
        node.machine.expression(PACKAGES);
    }
    let theirs = bob.build("same", &[]);
    alice
        .machine
        .run(&["trust", "set", "self", "--paths", "sa?e"])
        .ok();
    let own = alice.build("same", &[]);
    assert_eq!(own.path(), theirs.path());
    assert_eq!(
        (builders(&own), own.count("fetched")),
        (vec!["this node".to_owned()], 0)
    );
    assert_eq!(signers(&alice, &own.path()), ["alice"]);
    let bad = alice.machine.run(&["trust", "set", "quorum 3", "--of", "bob"]);
    bad.failed(2, &["'quorum 3' cannot be had of 1"]);
    let nobody = alice
        .machine
        .run(&["trust", "set", "self", "--builder", "mallory"]);
    nobody.failed(1, &["no member of the team is called 'mallory'"]);
    alice
        .machine
        .run(&["trust", "set", "everybody"])
        .failed(2, &["'everybody' is nothing"]);
}

/// Bob has the roles `build` and `store`.
#[test]
fn what_was_made_of_a_path_that_only_this_node_may_build_is_not_taken_on_a_word() {
    if !sandbox_works("what_was_made_of_a_path_that_only_this_node_may_build_is_not_taken_on_a_word") {
        return;
    }
    let [alice, bob] = team([("alice", 1), ("bob", 2)]);
    for node in [&alice, &bob] {
        node.machine.expression(
            r#"rec {
                base = build "base" { } "copy /proc/sys/kernel/random/uuid $out";
                top = build "top" { inherit base; } "copy $base $out";
                next = build "next" { inherit top; } "copy $top $out";
            }"#,
        );
    }
    let theirs = bob.build("next", &[]).path();
    alice
        .machine
        .run(&["trust", "set", "self", "--paths", "base"])
        .ok();
    // By the record of what was made of it; what was made of that is known to a command that works on it.
    let top = bob.build("top", &[]).path();
    let explained = alice.machine.run(&["trust", "explain", &top]);
    assert!(
        explained.ok().contains("takes only what it built itself"),
        "{}",
        explained.stdout
    );
    let own = alice.build("next", &[]);
    assert_eq!(own.path(), theirs);
    assert_eq!(
        (own.count("built"), own.count("fetched")),
        (3, 0),
        "{}",
        own.messages()
    );
}

#[test]
fn what_was_made_of_a_path_on_which_builders_agree_is_had_from_who_built_it() {
    if !sandbox_works("what_was_made_of_a_path_on_which_builders_agree_is_had_from_who_built_it") {
        return;
    }
    let [alice, dave, _bob, _carol] = team([("alice", 0), ("dave", 0), ("bob", 1), ("carol", 1)]);
    let set = [
        "trust",
        "set",
        "quorum",
        "2",
        "--of",
        "bob,carol",
        "--paths",
        "base",
    ];
    for node in [&alice, &dave] {
        node.machine.expression(
            r#"rec {
                base = build "base" { } "write $out same";
                top = build "top" { inherit base; } "copy $base $out";
                next = build "next" { inherit top; } "copy $top $out";
            }"#,
        );
        node.machine.run(&set).ok();
    }
    // Neither builds anything, nor has any of it.
    let build = alice.build("next", &[]);
    let path = build.path();
    assert_eq!(
        builders(&build).len(),
        4,
        "two build 'base': {}",
        build.messages()
    );
    let fetch = dave.build("next", &[]);
    assert_eq!(fetch.path(), path);
    assert_eq!(
        (fetch.count("built"), fetch.count("fetched")),
        (0, 1),
        "{}",
        fetch.messages()
    );
}

#[test]
fn a_builder_whose_work_comes_out_differently_here_is_believed_no_more() {
    if !sandbox_works("a_builder_whose_work_comes_out_differently_here_is_believed_no_more") {
        return;
    }
    let [alice, _bob] = team([("alice", 1), ("bob", 1)]);
    alice.machine.expression(PACKAGES);
    alice.machine.run(&["trust", "set", "sample", "100%"]).ok();
    // With -j 0 bob builds, and alice compares afterwards.
    let same = alice.build("same", &["-j", "0"]);
    assert_eq!(builders(&same), ["bob"]);
    until("the sample is compared", || {
        (signers(&alice, &same.path()) == ["alice", "bob"]).then_some(())
    });
    assert!(!alice.machine.run(&["trust"]).ok().contains("bob"));

    let random = alice.build("random", &["-j", "0"]);
    let path = random.path();
    let because = until("bob is distrusted", || {
        let shown = alice.machine.run(&["trust"]);
        let mut lines = shown.ok().lines();
        lines.find(|line| line.contains("bob")).map(str::to_owned)
    });
    assert!(
        because.contains("self") && because.contains("came out differently here"),
        "{because}"
    );
    assert_eq!(signers(&alice, &path), ["alice", "bob"], "both records are kept");
    assert!(
        alice.log().contains("bob is not to be trusted"),
        "{}",
        alice.log()
    );
    // He is asked for nothing any more.
    alice
        .machine
        .expression(r#"{ next = build "next" { } "write $out x"; }"#);
    let next = alice.build("next", &[]);
    assert_eq!(builders(&next), ["this node"]);
}
