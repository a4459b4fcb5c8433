use std::path::PathBuf;

use tvix_node::command::{Argument, Building, Evaluation, Expression};

use super::super::{Command, nix_flags};
use super::*;

fn parsed(line: &[&str]) -> Result<Parsed, UsageError> {
    let arguments: Vec<OsString> = std::iter::once("tvix-node")
        .chain(line.iter().copied())
        .map(OsString::from)
        .collect();
    parse(&arguments)
}

fn build(line: &[&str]) -> Result<(Evaluation, Building), UsageError> {
    let line: Vec<&str> = std::iter::once("build").chain(line.iter().copied()).collect();
    match parsed(&line)? {
        Parsed::Invocation(invocation, matches) => match invocation.command {
            Command::Build {
                evaluation, building, ..
            } => Ok((evaluation.to_evaluation(&matches)?, building.to_building())),
            other => panic!("{other:?}"),
        },
        Parsed::Help(text) => panic!("{text}"),
    }
}

fn refused(line: &[&str]) -> String {
    build(line).expect_err(&line.join(" ")).to_string()
}

#[test]
fn the_definition_of_the_command_line_is_sound() {
    Invocation::command().debug_assert();
}

#[test]
fn nothing_means_default_nix_without_limits() {
    let (evaluation, building) = build(&[]).unwrap();
    assert_eq!(evaluation, Evaluation::default());
    assert_eq!(
        building,
        Building {
            out_link: None,
            ..Building::default()
        }
    );
}

#[test]
fn every_option_of_an_evaluation_is_understood() {
    let line = [
        "-f",
        "<nixpkgs>",
        "-A",
        "hello",
        "--attr",
        "a.b",
        "-I",
        "nixpkgs=/x",
        "--include",
        "/y",
        "--arg",
        "x",
        "-1",
        "--argstr",
        "s",
        "--text",
        "--eval-system",
        "i686-linux",
        "--show-trace",
    ];
    let (evaluation, _) = build(&line).unwrap();
    assert_eq!(
        evaluation,
        Evaluation {
            expression: Expression::File("<nixpkgs>".to_owned()),
            attributes: vec!["hello".to_owned(), "a.b".to_owned()],
            search_path: vec!["nixpkgs=/x".to_owned(), "/y".to_owned()],
            arguments: vec![
                ("x".to_owned(), Argument::Expression("-1".to_owned())),
                ("s".to_owned(), Argument::Text("--text".to_owned())),
            ],
            system: Some("i686-linux".to_owned()),
            show_trace: true,
        }
    );
}

#[test]
fn every_option_of_a_build_is_understood() {
    let line = [
        "-kj4",
        "--cores",
        "2",
        "--timeout",
        "60",
        "--max-silent-time",
        "0",
        "--max-build-log-size",
        "1M",
    ];
    let (_, building) = build(&line).unwrap();
    assert!(building.keep_going);
    assert_eq!((building.jobs, building.cores), (Some(4), 2));
    let limits = building.limits;
    assert_eq!(
        (limits.time, limits.silence, limits.log),
        (Some(60), None, Some(1 << 20))
    );
}

#[test]
fn the_last_argument_of_a_name_counts() {
    let line = [
        "--argstr", "x", "1", "--arg", "y", "2", "--arg", "x", "3", "--argstr", "y", "4",
    ];
    let (evaluation, _) = build(&line).unwrap();
    assert_eq!(
        evaluation.arguments,
        [
            ("x".to_owned(), Argument::Expression("3".to_owned())),
            ("y".to_owned(), Argument::Text("4".to_owned())),
        ]
    );
}

#[test]
fn a_file_may_be_named_as_for_nix_build() {
    let file = |line: &[&str]| build(line).unwrap().0.expression;
    assert_eq!(file(&["./x.nix"]), Expression::File("./x.nix".to_owned()));
    assert_eq!(file(&["-A", "hello", "."]), Expression::File(".".to_owned()));
    assert_eq!(file(&["-E", "-1"]), Expression::Text("-1".to_owned()));
}

#[test]
fn one_expression_is_evaluated() {
    assert!(refused(&["a.nix", "b.nix"]).contains("'b.nix' would be a second expression"));
    assert!(refused(&["-f", "a.nix", "b.nix"]).contains("'b.nix' would be a second expression"));
    assert!(refused(&["-E", "1", "b.nix"]).contains("'b.nix' would be a second expression"));
    assert!(refused(&["-E", "1", "-f", "b.nix"]).contains("cannot be used with"));
}

#[test]
fn what_is_no_file_is_told_so() {
    assert!(refused(&["nixpkgs#hello"]).contains("flake"));
    assert!(refused(&["-f", ".#hello"]).contains("-f . -A hello"));
    assert!(refused(&["-"]).contains("standard input"));
    assert!(
        refused(&["/nix/store/63sb9rkl0xr649vyriibhav510k5nq6d-hello-2.10.drv"]).contains("is a derivation")
    );
}

#[test]
fn no_flag_of_nix_is_ignored() {
    // What each command does take.
    let taken = [
        "--cores",
        "--max-jobs",
        "--timeout",
        "--max-silent-time",
        "--max-build-log-size",
        "--keep-going",
        "--show-trace",
        "--eval-system",
    ];
    let eval_takes = [
        "--strict",
        "--xml",
        "--json",
        "--raw",
        "--show-trace",
        "--eval-system",
    ];
    for command in ["build", "instantiate", "run", "shell", "eval"] {
        for flag in nix_flags::all() {
            let taken: &[&str] = if command == "eval" { &eval_takes } else { &taken };
            if taken.contains(&flag.as_str()) {
                continue;
            }
            let error = parsed(&[command, "-A", "x", &flag, "value"])
                .expect_err(&flag)
                .to_string();
            assert!(error.contains(&format!("'{flag}")), "{command} {flag}: {error}");
            assert!(
                error.contains(&format!("'tvix-node {command}'")),
                "{command} {flag}: {error}"
            );
        }
    }
}

#[test]
fn what_can_be_done_instead_is_said() {
    let cases: [(&[&str], &str); 9] = [
        (&["--pure"], "'tvix-node shell'"),
        (&["--option", "sandbox", "false"], "'--option sandbox'"),
        (&["--option", "cores", "4"], "use --cores"),
        (
            &["--option", "substituters", ""],
            "binary caches are not there yet",
        ),
        (&["--option"], "no nix.conf"),
        (&["--no-sandbox"], "every build runs in a sandbox"),
        (&["--substituters=https://x"], "'--substituters' is not supported"),
        (&["-kK"], "'-K' is not supported"),
        (&["--eval"], "use 'tvix-node eval'"),
    ];
    for (line, expected) in cases {
        let error = refused(line);
        assert!(error.contains(expected), "{line:?}: {error}");
    }
}

#[test]
fn unknown_flags_and_commands_are_refused_with_the_nearest_name() {
    assert!(refused(&["--keep-goin"]).contains("--keep-going"));
    assert!(parsed(&["biuld"]).unwrap_err().to_string().contains("build"));
    assert!(parsed(&[]).unwrap_err().to_string().contains("Commands:"));
    assert!(refused(&["-j", "many"]).contains("many"));
    assert!(refused(&["-o"]).contains("--out-link"));
}

#[test]
fn help_is_no_error() {
    for line in [vec!["--help"], vec!["build", "--help"], vec!["--version"]] {
        assert!(matches!(parsed(&line), Ok(Parsed::Help(_))), "{line:?}");
    }
}

#[test]
fn what_stands_behind_two_dashes_is_not_ours() {
    let Ok(Parsed::Invocation(invocation, _)) = parsed(&["run", "-A", "hello", "--", "--pure", "-g", "x"])
    else {
        panic!("not understood");
    };
    let Command::Run { arguments, .. } = invocation.command else {
        panic!("another command")
    };
    assert_eq!(arguments, ["--pure", "-g", "x"]);
}

#[test]
fn links_are_named_or_not_made() {
    let link = |line: &[&str]| match parsed(line) {
        Ok(Parsed::Invocation(invocation, _)) => match invocation.command {
            Command::Build { links, .. } => (!links.no_out_link).then_some(links.out_link),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    assert_eq!(link(&["build"]), Some(PathBuf::from("result")));
    assert_eq!(link(&["build", "-o", "x"]), Some(PathBuf::from("x")));
    assert_eq!(link(&["build", "--no-link"]), None);
    assert!(refused(&["--no-out-link", "-o", "x"]).contains("cannot be used with"));
}
