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
    for flag in ["--check", "--repair", "--fallback", "--no-such-flag"] {
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
