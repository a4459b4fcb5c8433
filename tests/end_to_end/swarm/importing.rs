//! Import from derivation on a peer.

use super::nodes::{finished, team};
use crate::harness::{release, sandbox_works};

/// While one target waits for an import that is built far away, another one is evaluated and built.
#[test]
fn an_import_is_built_on_a_peer_while_other_targets_go_on() {
    if !sandbox_works("an_import_is_built_on_a_peer_while_other_targets_go_on") {
        return;
    }
    let [alice, _bob] = team([("alice", 0), ("bob", 2)]);
    alice.machine.expression(
        r#"{
          waits = build "waits" { value = toString (import (build "gate.nix" { } "echo gate-far-away\nwait\nwrite $out true")); } "write $out x";
          other = build "other" { } "write $out y";
        }"#,
    );
    let mut running = alice.start_build("waits", &["-A", "other"]);
    let (mut waiting, mut other) = (false, false);
    while !(waiting && other) {
        let line = running.until("");
        if line.contains(r#""event":"placed""#) && line.contains("gate.nix") {
            assert!(
                line.contains(r#""kind":"ifd""#) && line.contains(r#""node":"bob""#),
                "{line}"
            );
        }
        waiting |= line.contains(r#""line":"waiting""#);
        other |= line.contains("target-done") && line.contains(r#""name":"other""#);
        assert!(!line.contains("evaluation-ended"), "nothing waited: {line}");
    }
    release("gate-far-away");
    let built = finished(running.finish());
    assert_eq!(built.paths().len(), 2);
    assert_eq!(built.count("built"), 3);
}

#[test]
fn a_far_import_that_fails_is_an_evaluation_that_fails() {
    if !sandbox_works("a_far_import_that_fails_is_an_evaluation_that_fails") {
        return;
    }
    let [alice, _bob] = team([("alice", 0), ("bob", 1)]);
    alice
        .machine
        .expression(r#"{ value = import (build "broken.nix" { } "echo no good\nfail 4"); }"#);
    alice
        .machine
        .run(&["eval", "-A", "value"])
        .failed(1, &["broken.nix", "exit code 4", "no good"]);
}
