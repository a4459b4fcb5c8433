//! Fixed outputs, whose builds reach the network, built by others: where their owners let it.

use std::net::TcpListener;

use super::nodes::{finished, team, text, until};
use crate::harness::{processes_with, release, sandbox_works};

/// A file with this content, by how it is made.
const HELLO: &str = r#"
  hello = name: attributes: build name ({
    outputHashMode = "flat"; outputHashAlgo = "sha256";
    outputHash = "a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447"; # "hello world\n"
  } // attributes);
"#;

#[test]
fn fixed_outputs_go_to_members_that_offer_them_and_to_nobody_else() {
    if !sandbox_works("fixed_outputs_go_to_members_that_offer_them_and_to_nobody_else") {
        return;
    }
    let [alice, mut bob] = team([("alice", 0), ("bob", 1)]);
    alice.machine.expression(&format!(
        r#"let {HELLO} in {{
          one = hello "one" {{ }} "write $out hello world";
          slow = hello "slow" {{ }} "echo mark-of-a-fixed-output\nwait\nwrite $out hello world";
        }}"#
    ));
    let offers = |alice: &super::nodes::Node, whether: bool| {
        until("alice hears what bob offers", || {
            alice.peer("bob").filter(|peer| peer["fixedOutputs"] == whether)
        });
    };
    offers(&alice, false);
    let shown = bob.machine.run(&["share"]);
    assert!(
        shown
            .ok()
            .contains("fixed outputs of others, which need it, are not built"),
        "{}",
        shown.stdout
    );
    let refused = alice.build("one", &[]);
    assert_eq!(refused.finished.status, 1, "{}", refused.messages());
    assert!(
        refused.of_kind("placed").next().is_none(),
        "{}",
        refused.messages()
    );
    let error = text(&refused.of_kind("build-failed").next().expect("it failed")["error"]);
    for part in [
        "no builder builds fixed outputs for",
        "bob: 1 slots",
        "'tvix-node share on --fixed-outputs'",
    ] {
        assert!(error.contains(part), "no '{part}' in: {error}");
    }

    bob.machine.run(&["share", "--fixed-outputs"]).failed(2, &[]);
    let shown = bob.machine.run(&["share", "on", "--fixed-outputs"]);
    assert!(
        shown.ok().contains("fixed outputs of others are built"),
        "{}",
        shown.stdout
    );
    offers(&alice, true);
    let built = alice.build("one", &[]);
    let content = std::fs::read_to_string(alice.machine.physical(&built.path()));
    assert_eq!(content.expect("it is here"), "hello world\n");
    assert_eq!(
        built.of_kind("placed").next().expect("it is placed")["node"],
        "bob"
    );

    // It survives a restart.
    bob.down();
    bob.start(&["--listen", "127.0.0.1:0", "--slots", "1"]);
    assert_eq!(bob.json(&["share"])["terms"]["fixedOutputs"], true);
    alice.meet("bob");
    offers(&alice, true);
    // The owner's word ends what is under way.
    let mut running = alice.start_build("slow", &["--max-silent-time", "600"]);
    running.until(r#""line":"waiting""#);
    bob.machine.run(&["share", "on"]).ok();
    let failed = finished(running.finish());
    assert_eq!(failed.finished.status, 1, "{}", failed.messages());
    assert!(
        failed
            .messages()
            .contains("does not build fixed outputs for others"),
        "{}",
        failed.messages()
    );
    until("the build is stopped", || {
        processes_with("mark-of-a-fixed-output").is_empty().then_some(())
    });
    release("mark-of-a-fixed-output");
}

#[test]
fn a_fixed_output_of_another_reaches_nothing_of_the_builder_s_machine() {
    let [alice, bob] = team([("alice", 0), ("bob", 1)]);
    bob.machine.run(&["share", "on", "--fixed-outputs"]).ok();
    until("alice hears what bob offers", || {
        alice.peer("bob").filter(|peer| peer["fixedOutputs"] == true)
    });
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    alice.machine.expression(&format!(
        r#"builtins.mapAttrs (name: host: derivation {{
          inherit name; system = "builtin"; builder = "builtin:fetchurl"; url = "http://${{host}}:{port}/x";
          outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = builtins.hashString "sha256" name;
        }}) {{ loopback = "127.0.0.1"; named = "localhost"; metadata = "169.254.169.254"; private = "10.0.0.1"; }}"#
    ));
    for (attribute, class) in [
        ("loopback", "loopback"),
        ("named", "loopback"),
        ("metadata", "link-local"),
        ("private", "private"),
    ] {
        let failed = alice.build(attribute, &[]);
        assert_eq!(failed.finished.status, 1, "{}", failed.messages());
        let wanted = format!("denied to builds: the address is {class}");
        assert!(
            failed.finished.stderr.contains(&wanted),
            "no '{wanted}' in:\n{}",
            failed.finished.stderr
        );
    }
    assert!(listener.accept().is_err(), "nobody has connected");
}
