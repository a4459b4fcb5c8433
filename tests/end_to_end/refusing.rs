//! Bad input: a clear message, the right status, nothing left.

use crate::harness::Machine;

#[test]
fn a_missing_file_is_named() {
    let machine = Machine::new();
    machine
        .run(&["build", "-f", "./nowhere.nix"])
        .failed(2, &["nowhere.nix"]);
    machine.run(&["build"]).failed(2, &["default.nix"]);
}

#[test]
fn the_nearest_attributes_are_offered() {
    let machine = Machine::new();
    machine.write("default.nix", "{ hello = 1; help = 2; world = 3; }");
    machine
        .run(&["build", "-A", "helo"])
        .failed(3, &["helo", "hello"]);
}

#[test]
fn a_name_that_is_not_set_says_how_to_set_it() {
    let machine = Machine::new();
    machine
        .run(&["build", "-f", "<nixpkgs>", "-A", "hello"])
        .failed(3, &["nixpkgs", "NIX_PATH", "-I"]);
}

#[test]
fn a_flake_reference_says_what_to_do_instead() {
    let machine = Machine::new();
    machine
        .run(&["build", "nixpkgs#hello"])
        .failed(2, &["nixpkgs#hello", "flake", "-f"]);
}

#[test]
fn a_syntax_error_shows_file_line_column_and_source() {
    let machine = Machine::new();
    machine.write("default.nix", "{\n  a = 1;\n  b = 2 }\n");
    machine
        .run(&["build", "-A", "a"])
        .failed(3, &["default.nix:3:9", "b = 2 }", "syntax error"]);
}

#[test]
fn flags_of_nix_build_that_are_not_there_are_refused_by_name() {
    let machine = Machine::new();
    machine.write("default.nix", "{ }");
    for flag in ["--repair", "--fallback", "--no-such-flag"] {
        machine.run(&["build", flag]).failed(2, &[flag]);
    }
}

#[test]
fn a_home_of_a_newer_version_is_left_alone() {
    let machine = Machine::new();
    std::fs::create_dir(machine.home()).expect("a folder");
    std::fs::write(machine.home().join("version"), "99\n").expect("a file");
    machine.run(&["eval", "-E", "1"]);
    machine.run(&["status"]);
    machine.write(
        "default.nix",
        "derivation { name = \"x\"; system = \"y\"; builder = \"/z\"; }",
    );
    let finished = machine.run(&["instantiate"]);
    assert!(
        finished.status != 0 && finished.stderr.contains("99"),
        "{}",
        finished.stderr
    );
    let names: Vec<_> = std::fs::read_dir(machine.home())
        .expect("the home")
        .map(|e| e.expect("an entry").file_name())
        .collect();
    assert_eq!(names, ["version"]);
}

#[test]
fn a_store_path_that_is_not_there_is_named() {
    let machine = Machine::new();
    let path = "/nix/store/00000000000000000000000000000000-nothing";
    for arguments in [["store", "info", path].as_slice(), &["why", path], &["log", path]] {
        let finished = machine.run(arguments);
        assert_ne!(finished.status, 0);
        assert!(finished.stderr.contains("nothing"), "{}", finished.stderr);
    }
    let finished = machine.run(&["store", "info", "/tmp/x"]);
    finished.failed(2, &["/tmp/x"]);
}

#[test]
fn a_builtin_that_is_not_there_fails_by_name_and_place() {
    let machine = Machine::new();
    machine.write("default.nix", "{\n  a = builtins.getFlake \"x\";\n}\n");
    machine
        .run(&["eval", "-A", "a"])
        .failed(3, &["getFlake", "default.nix:2:"]);
}

#[test]
fn what_cannot_be_a_ticket_or_a_role_or_a_time_is_told_so() {
    let machine = Machine::new();
    let cases: [(&[&str], &[&str]); 7] = [
        (&["join", "hello"], &["not a ticket", "invite"]),
        (&["join", "tvix-node-ticket-1-mzxw6ytboi"], &["torn"]),
        (&["join", "tvix-node-ticket-9-mzxw6ytboi"], &["version 9"]),
        (
            &["invite", "--role", "king"],
            &["king", "request", "build", "store", "invite"],
        ),
        (&["invite", "--expires", "7"], &["'7'", "7d"]),
        (&["renew", "bob", "--lasts", "soon"], &["'soon'", "7d"]),
        (&["up", "--listen", "tower:4001"], &["tower:4001", "IP address"]),
    ];
    for (arguments, fragments) in cases {
        machine.run(arguments).failed(2, fragments);
    }
    assert!(!machine.home().exists(), "nothing was begun");
}

#[test]
fn a_desired_store_of_another_kind_is_refused_with_those_there_are() {
    let machine = Machine::new();
    machine.write("default.nix", "{ }");
    for (store, fragment) in [
        ("./cache", "relative folder"),
        ("/srv/cache", "file:///srv/cache"),
        ("s3://bucket", "'s3'"),
        ("file://cache", "absolute"),
    ] {
        machine
            .run(&["build", "--to", store])
            .failed(2, &["--to", store, fragment]);
    }
    assert!(!machine.home().exists(), "nothing was begun");
}

#[test]
fn a_node_without_a_team_says_so() {
    let machine = Machine::new();
    machine.run(&["peers"]).failed(1, &["no node is up"]);
    let cases: [&[&str]; 5] = [
        &["members"],
        &["peers"],
        &["revoke", "bob"],
        &["renew", "bob"],
        &["leave"],
    ];
    for arguments in cases {
        machine.run(arguments).failed(1, &["no team"]);
    }
}
