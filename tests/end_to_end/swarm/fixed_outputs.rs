//! Fixed outputs, whose builds reach the network, built by others: where their owners let it.

use std::io::{Read as _, Write as _};
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

/// A server on the loopback interface that answers every request with this.
fn mirror(content: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 1024];
            // A client that goes away in the middle is no fault.
            drop(stream.read(&mut request));
            drop(write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{content}",
                content.len()
            ));
        }
    });
    port
}

#[test]
fn a_mirror_that_the_owner_names_is_not_for_others_unless_he_says_so() {
    if !sandbox_works("a_mirror_that_the_owner_names_is_not_for_others_unless_he_says_so") {
        return;
    }
    let [alice, mut bob] = team([("alice", 0), ("bob", 1)]);
    bob.machine.run(&["share", "on", "--fixed-outputs"]).ok();
    let (port, other_port) = (mirror("of a mirror"), mirror("of a mirror"));
    let expression = format!(
        r#"builtins.mapAttrs (name: port: derivation {{
          inherit name; system = "builtin"; builder = "builtin:fetchurl"; url = "http://127.0.0.1:${{toString port}}/x";
          outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = builtins.hashString "sha256" "of a mirror";
        }}) {{ one = {port}; two = {port}; other = {other_port}; }}"#
    );
    alice.machine.expression(&expression);
    bob.machine.expression(&expression);
    let up = ["--listen", "127.0.0.1:0", "--slots", "1"];
    let config = bob.machine.home().join("config.toml");
    let wrong = [
        (
            "allowed-addresses = [\"10.0.0.0/99\"]",
            "'10.0.0.0/99' is not an address",
        ),
        ("network-of-fixed-outputs = \"bridge\"", "`bridge`"),
    ];
    bob.down();
    for (line, named) in wrong {
        std::fs::write(&config, line).expect("a file");
        bob.machine
            .run(&["up"])
            .failed(1, &["config.toml", "line 1", named]);
    }
    bob.machine
        .run(&["up", "--allow-address", "mirror.example.org"])
        .failed(2, &["--allow-address", "'mirror.example.org' is not an address"]);
    std::fs::write(&config, format!("allowed-addresses = [\"127.0.0.1:{port}\"]")).expect("a file");
    bob.start(&up);
    alice.meet("bob");
    let denied = |build: &super::nodes::Build| {
        assert_eq!(build.finished.status, 1, "{}", build.messages());
        let wanted = "denied to builds: the address is loopback";
        assert!(
            build.finished.stderr.contains(wanted),
            "{}",
            build.finished.stderr
        );
    };
    bob.build("one", &[]).path();
    denied(&bob.build("other", &[]));
    denied(&alice.build("two", &[]));
    // A flag is used instead of the file.
    bob.down();
    let named = format!("127.0.0.1:{other_port}");
    bob.start(
        &[
            &up[..],
            &["--allow-address", &named, "--allow-address-for-others"],
        ]
        .concat(),
    );
    alice.meet("bob");
    until("alice hears what bob offers", || {
        alice.peer("bob").filter(|peer| peer["fixedOutputs"] == true)
    });
    let built = alice.build("other", &[]);
    assert_eq!(
        built.of_kind("placed").next().expect("it is placed")["node"],
        "bob"
    );
    built.path();
    denied(&alice.build("two", &[]));
    let found = bob.machine.run(&["doctor"]).stdout;
    assert!(
        found.contains(&format!("{named}, those of other members too").replace(':', "/32:")),
        "{found}"
    );
}
