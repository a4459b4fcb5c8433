//! What is damaged here is whole at others.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::nodes::{Node, team};
use crate::harness::sandbox_works;

fn harm(node: &Node, path: &str) {
    let file = node.machine.physical(path);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("it is ours");
    fs::write(&file, "nothing").expect("it is writable now");
}

#[test]
fn damaged_paths_are_repaired_from_members_who_have_them() {
    if !sandbox_works("damaged_paths_are_repaired_from_members_who_have_them") {
        return;
    }
    let [ann, bob] = team([("ann", 0), ("bob", 1)]);
    let expression =
        r#"{ thing = build "thing" { } "write $out thing"; alone = build "alone" { } "write $out alone"; }"#;
    for node in [&ann, &bob] {
        node.machine.expression(expression);
    }
    let thing = ann.build("thing", &[]).path();
    assert_eq!(bob.build("thing", &[]).path(), thing);
    let alone = bob.build("alone", &[]).path();
    assert!(!ann.has(&alone));
    for path in [&thing, &alone] {
        harm(&bob, path);
    }
    let verify = |more: &[&str]| bob.machine.run(&[&["store", "verify"], more].concat());
    let found = verify(&[]);
    assert_eq!(found.status, 1);
    assert!(found.stdout.ends_with(" 2 damaged\n"), "{}", found.stdout);

    let repaired = verify(&["--repair"]);
    repaired.failed(1, &["-alone was not repaired", "no member of the team"]);
    assert!(fs::read(bob.machine.physical(&alone)).expect("it is left") == b"nothing");
    assert!(
        repaired
            .stdout
            .contains("-thing is whole again, with content from ann"),
        "{}",
        repaired.stdout
    );
    assert_eq!(verify(&[&thing]).status, 0);
    assert_eq!(
        fs::read(bob.machine.physical(&thing)).expect("it is whole"),
        b"thing\n"
    );
    assert!(bob.content_received("ann") > 0);
}
