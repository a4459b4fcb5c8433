//! What nobody in the team can or may do.

use super::nodes::{Node, team, text};

#[test]
fn a_build_that_no_machine_of_the_team_can_do_says_what_there_is() {
    let [alice, _bob] = team([("alice", 0), ("bob", 2)]);
    alice.machine.expression(
        r#"{
          foreign = build "foreign" { system = "riscv64-linux"; } "write $out x";
          special = build "special" { requiredSystemFeatures = [ "quantum" ]; } "write $out x";
        }"#,
    );
    let build = alice.build("foreign", &["-A", "special", "-k"]);
    assert_eq!(build.finished.status, 1);
    for (name, wanted) in [("foreign", "riscv64-linux"), ("special", "with quantum")] {
        let failed = build
            .of_kind("build-failed")
            .find(|event| text(&event["derivation"]).contains(name));
        let error = text(&failed.expect("it failed")["error"]);
        let system = std::env::consts::ARCH;
        for part in [
            wanted,
            "no builder builds for",
            "this node: 0 slots",
            "bob: 2 slots",
            system,
        ] {
            assert!(error.contains(part), "no '{part}' in: {error}");
        }
    }
}

#[test]
fn who_may_not_build_is_not_asked() {
    let alice = Node::up("alice", 0);
    let bob = Node::up("bob", 2);
    bob.join(&alice.ticket(&["--role", "request", "--role", "store"]))
        .ok();
    alice.meet("bob");
    alice
        .machine
        .expression(r#"{ thing = build "thing" { } "write $out x"; }"#);
    let build = alice.build("thing", &[]);
    assert_eq!(build.finished.status, 1);
    assert!(build.of_kind("placed").next().is_none(), "{}", build.messages());
    let said = build.messages();
    assert!(
        said.contains("bob: builds nothing") && said.contains("role 'build'"),
        "{said}"
    );
}

#[test]
fn who_may_not_ask_is_told_so() {
    let alice = Node::up("alice", 2);
    let bob = Node::up("bob", 0);
    bob.join(&alice.ticket(&["--role", "build", "--role", "store"]))
        .ok();
    bob.meet("alice");
    bob.machine
        .expression(r#"{ thing = build "thing" { } "write $out x"; }"#);
    let build = bob.build("thing", &[]);
    assert_eq!(build.finished.status, 1);
    let said = build.messages();
    assert!(
        said.contains("no builder builds for") && said.contains("role 'request'"),
        "{said}"
    );
}

#[test]
fn a_port_that_is_taken_is_named() {
    let alice = Node::up("alice", 0);
    let mut bob = Node::up("bob", 0);
    bob.join(&alice.ticket(&[])).ok();
    bob.down();
    let members = alice.json(&["members"]);
    let listening = text(&members["listening"][0]);
    let port = listening.split('/').nth(4).expect("a port").to_owned();
    let place = format!("127.0.0.1:{port}");
    let up = bob.machine.run(&["up", "--listen", &place]);
    up.failed(1, &["cannot listen on", &port]);
    // Its home is as good as before.
    bob.start(&["--listen", "127.0.0.1:0", "--slots", "0"]);
    bob.meet("alice");
    bob.machine.run(&["up"]).failed(1, &["in use by process"]);
}
