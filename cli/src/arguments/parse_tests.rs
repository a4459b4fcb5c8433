use std::path::PathBuf;

use tvix_node::command::{Argument, Building, Evaluation, Expression, Reading};
use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::control::Destination;
use tvix_node_protocol::envelope::{NodeKey, NodeSecret};
use tvix_node_protocol::roster::{Founder, Role};
use tvix_node_protocol::ticket::Ticket;

use super::super::{Command, Invitees, nix_flags};
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
        "--max-call-depth",
        "20000",
        "--show-trace",
        "--no-eval-cache",
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
            reading: Reading::Impure,
            max_call_depth: Some(20_000),
            show_trace: true,
            no_eval_cache: true,
        }
    );
}

#[test]
fn every_option_of_a_build_is_understood() {
    let line = [
        "-kKj4",
        "--cores",
        "2",
        "--timeout",
        "60",
        "--max-silent-time",
        "0",
        "--max-build-log-size",
        "1M",
        "--max-build-disk-size",
        "2G",
        "--max-build-processes",
        "1K",
    ];
    let (_, building) = build(&line).unwrap();
    assert!(building.keep_going && building.keep_failed);
    assert_eq!((building.jobs, building.cores), (Some(4), 2));
    let limits = building.limits;
    assert_eq!(
        (limits.time, limits.silence, limits.log, limits.disk),
        (Some(60), None, Some(1 << 20), Some(2 << 30))
    );
    assert_eq!(limits.processes, Some(1024));
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
        "--keep-failed",
        "--show-trace",
        "--eval-system",
        "--no-eval-cache",
        "--pure-eval",
        "--restrict-eval",
        "--max-call-depth",
        "--extra-substituters",
        "--extra-trusted-public-keys",
    ];
    let eval_takes = [
        "--strict",
        "--xml",
        "--json",
        "--raw",
        "--show-trace",
        "--eval-system",
        "--no-eval-cache",
        "--pure-eval",
        "--restrict-eval",
        "--max-call-depth",
    ];
    for command in ["build", "instantiate", "run", "shell", "eval"] {
        for flag in nix_flags::all() {
            let taken: &[&str] = if command == "eval" { &eval_takes } else { &taken };
            if taken.contains(&flag.as_str()) || (command, flag.as_str()) == ("build", "--check") {
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
        (&["--option", "substituters", ""], "--extra-substituters"),
        (&["--option"], "no nix.conf"),
        (&["--no-sandbox"], "every build runs in a sandbox"),
        (&["--substituters=https://x"], "'--substituters' is not supported"),
        (&["-kQ"], "'-Q' is not supported"),
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

fn command(line: &[&str]) -> Command {
    match parsed(line) {
        Ok(Parsed::Invocation(invocation, _)) => invocation.command,
        Ok(Parsed::Help(text)) => panic!("{text}"),
        Err(error) => panic!("{error}"),
    }
}

fn ticket() -> String {
    Ticket {
        swarm: SwarmId([1; 32]),
        inviter: NodeKey([2; 32]),
        addresses: vec!["/ip4/192.0.2.1/tcp/4001".to_owned()],
        not_after: 1,
        secret: [3; 16],
        founder: None,
    }
    .to_text()
    .unwrap()
}

#[test]
fn an_invitation_gives_what_it_says_and_by_default_not_the_right_to_invite() {
    let invite = |line: &[&str]| {
        let line: Vec<&str> = std::iter::once("invite").chain(line.iter().copied()).collect();
        match command(&line) {
            Command::Invite { invite } => (invite.roles().to_string(), invite.expires, invite.lasts),
            other => panic!("{other:?}"),
        }
    };
    let (day, year) = (24 * 3600, 365 * 24 * 3600);
    assert_eq!(invite(&[]), ("request, build, store".to_owned(), day, year));
    assert_eq!(
        invite(&[
            "--role",
            "invite",
            "--role",
            "build,store",
            "--expires",
            "1h",
            "--lasts",
            "30d"
        ]),
        ("build, store, invite".to_owned(), 3600, 30 * day)
    );
    let error = |line: &[&str]| parsed(line).expect_err(&line.join(" ")).to_string();
    let unknown = error(&["invite", "--role", "king"]);
    for fragment in ["king", "request", "build", "store", "invite"] {
        assert!(unknown.contains(fragment), "{unknown}");
    }
    assert!(error(&["invite", "--expires", "7"]).contains("7d"));
    assert!(error(&["invite", "--lasts", "0d"]).contains("longer"));
    assert!(error(&["invite", "--name", "a\tb"]).contains("cannot be a name"));
    assert!(error(&["renew"]).contains("MEMBER"));
}

#[test]
fn a_ticket_is_read_however_it_was_broken_and_refused_where_it_is_torn() {
    let with_input = |line: &[&str], input: &str| {
        let line: Vec<&str> = std::iter::once("join").chain(line.iter().copied()).collect();
        match command(&line) {
            Command::Join { join } => join.ticket(input.as_bytes()),
            other => panic!("{other:?}"),
        }
    };
    let join = |line: &[&str]| with_input(line, "");
    let ticket = ticket();
    let (head, tail) = ticket.split_at(40);
    assert_eq!(join(&[&ticket]).unwrap(), ticket);
    assert_eq!(join(&[&format!(" {head}\n  {tail}\n")]).unwrap(), ticket);
    assert_eq!(join(&[head, tail]).unwrap(), ticket);
    assert_eq!(with_input(&["-"], &format!("{head}\n{tail}\n")).unwrap(), ticket);
    let endless = with_input(&["-"], &" ".repeat(100_000)).unwrap_err().to_string();
    assert!(endless.contains("not a ticket"), "{endless}");
    let refused = |text: &str| join(&[text]).unwrap_err().to_string();
    assert!(refused(&ticket[..ticket.len() - 1]).contains("torn"));
    assert!(refused("hello").contains("not a ticket"));
    assert!(refused(&ticket.replace("ticket-1-", "ticket-3-")).contains("version 3"));
    assert!(parsed(&["join"]).unwrap_err().to_string().contains("TICKET"));
}

#[test]
fn outputs_go_to_a_member_or_a_folder() {
    let to = |line: &[&str]| match command(line) {
        Command::Build { links, .. } => links.to,
        other => panic!("{other:?}"),
    };
    assert_eq!(to(&["build"]), None);
    assert_eq!(
        to(&["build", "--to", "bob"]),
        Some(Destination::Member("bob".to_owned()))
    );
    assert_eq!(
        to(&["build", "--to", "file:///srv/cache"]),
        Some(Destination::Folder("/srv/cache".to_owned()))
    );
    assert!(refused(&["--to", "./cache"]).contains("file:///FOLDER"));
    assert!(refused(&["--to", "s3://bucket"]).contains("'s3'"));
    assert!(refused(&["--to", "bob", "-o", "x"]).contains("cannot be used with"));
    // The result must be here to be run.
    assert!(
        parsed(&["run", "--to", "bob"])
            .unwrap_err()
            .to_string()
            .contains("no option '--to'")
    );
}

#[test]
fn a_node_is_told_where_to_listen() {
    let listening = |line: &[&str]| match command(line) {
        Command::Up { up } => up.listening(),
        other => panic!("{other:?}"),
    };
    assert_eq!(listening(&["up"]).unwrap(), None);
    assert_eq!(listening(&["up", "--listen", "none"]).unwrap(), Some(Vec::new()));
    assert_eq!(
        listening(&["up", "--listen", "127.0.0.1:0"]).unwrap(),
        Some(vec!["127.0.0.1:0".parse().unwrap()])
    );
    let both = listening(&["up", "--listen", "none", "--listen", "127.0.0.1:0"]);
    assert!(both.unwrap_err().to_string().contains("nowhere"));
    let error = parsed(&["up", "--listen", "tower:1"]).unwrap_err().to_string();
    assert!(error.contains("IP address"), "{error}");
}

#[test]
fn roles_and_commands_of_the_team_are_explained() {
    let help = |line: &[&str]| match parsed(line) {
        Ok(Parsed::Help(text)) => text,
        other => panic!("{other:?}"),
    };
    let text = help(&["invite", "--help"]);
    for role in Role::ALL {
        assert!(text.contains(&format!("- {role}:")), "{role}: {text}");
    }
    let text = help(&["--help"]);
    for name in [
        "invite", "join", "members", "peers", "record", "revoke", "renew", "leave",
    ] {
        assert!(text.contains(&format!("\n  {name} ")), "{name}: {text}");
    }
}

#[test]
fn what_a_node_allows_each_build_is_read() {
    let up = |line: &[&str]| match command(&[&["up"], line].concat()) {
        Command::Up { up } => up,
        other => panic!("{other:?}"),
    };
    let said = |limit: Option<super::super::numbers::Limit>| limit.unwrap_or_default().0;
    let none = up(&[]);
    assert_eq!(
        (said(none.max_build_memory), said(none.max_build_processes)),
        (None, None)
    );
    let some = up(&["--max-build-memory", "2K", "--max-build-processes", "1K"]);
    assert_eq!(
        (said(some.max_build_memory), said(some.max_build_processes)),
        (Some(2048), Some(1024))
    );
    // As for a build.
    let unlimited = up(&["--max-build-memory", "0", "--max-build-processes", "0"]);
    assert_eq!(
        (
            said(unlimited.max_build_memory),
            said(unlimited.max_build_processes)
        ),
        (None, None)
    );
    for wrong in ["-1", "many"] {
        assert!(
            refused(&["up", &format!("--max-build-processes={wrong}")]).contains("--max-build-processes")
        );
    }
}

#[test]
fn what_builds_may_reach_is_read_or_refused_by_name() {
    let up = |line: &[&str]| match command(&[&["up"], line].concat()) {
        Command::Up { up } => up,
        other => panic!("{other:?}"),
    };
    let none = up(&[]);
    assert!(none.allow_address.is_empty() && !none.allow_address_for_others);
    assert_eq!(none.network_way(), None);
    let some = up(&[
        "--allow-address",
        "10.0.0.0/8:80",
        "--allow-address",
        "fd00::1",
        "--network-of-fixed-outputs",
        "proxy",
    ]);
    let shown: Vec<String> = some.allow_address.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["10.0.0.0/8:80", "fd00::1/128"]);
    assert_eq!(some.network_way(), Some(tvix_node::config::NetworkWay::Proxy));
    for (flag, value) in [
        ("--allow-address", "10.0.0.0/40"),
        ("--allow-address", "mirror.example.org"),
        ("--network-of-fixed-outputs", "bridge"),
    ] {
        let error = parsed(&["up", flag, value]).unwrap_err().to_string();
        assert!(error.contains(flag) && error.contains(value), "{error}");
    }
}

#[test]
fn founders_are_named_with_their_keys_and_what_cannot_be_a_team_is_wrong_usage() {
    let invite = |line: &[&str]| match command(&[&["invite"], line].concat()) {
        Command::Invite { invite } => invite,
        other => panic!("{other:?}"),
    };
    let invitees = |line: &[&str]| invite(line).invitees().map_err(|error| error.to_string());
    let founder = |seed: u8, name: &str| Founder {
        key: NodeSecret::from_bytes(&[seed; 32]).key(),
        name: name.to_owned(),
    };
    let said = |founder: &Founder| format!("{}={}", founder.name, founder.key);
    let [bob, carol] = [founder(1, "bob"), founder(2, "carol = c")];
    let (of_bob, of_carol) = (said(&bob), said(&carol));
    let three = ["--new-team", "--founder", &of_bob, "--founder", &of_carol];
    assert_eq!(invitees(&[]), Ok(Invitees::Anybody));
    assert_eq!(
        invitees(&three),
        Ok(Invitees::Founders(vec![bob.clone(), carol.clone()], 2))
    );
    let all = invitees(&[&three[..], &["--threshold", "3"]].concat());
    assert_eq!(all, Ok(Invitees::Founders(vec![bob.clone(), carol], 3)));
    assert_eq!(
        invitees(&["--founder", "bob"]),
        Ok(Invitees::Founder("bob".to_owned()))
    );
    // What the founders cannot agree on.
    let refused = |line: &[&str]| invitees(line).expect_err(&line.join(" "));
    assert!(refused(&[&three[..], &["--threshold", "4"]].concat()).contains("1 to 3"));
    assert!(refused(&[&three[..], &["--threshold", "0"]].concat()).contains("1 to 3"));
    assert!(refused(&["--founder", &of_bob]).contains("--threshold 1"));
    assert!(refused(&["--name", "bob", "--founder", &of_bob, "--threshold", "1"]).contains("called 'bob'"));
    let again = said(&Founder {
        name: "rob".to_owned(),
        ..bob
    });
    assert!(refused(&["--founder", &of_bob, "--founder", &again]).contains("same key"));
    let nobodys = format!("dan={}", "ff".repeat(32));
    assert!(refused(&["--founder", &of_bob, "--founder", &nobodys]).contains("'dan'"));
    // What is to be founded, and what is there.
    assert!(refused(&["--new-team", "--founder", "bob"]).contains("--founder bob=KEY"));
    assert!(refused(&["--founder", "bob", "--threshold", "1"]).contains("--founder bob=KEY"));
    assert!(refused(&["--founder", "bob", "--founder", &of_carol]).contains("one name alone"));
    let error = |line: &[&str]| {
        let line = [&["invite"], line].concat();
        parsed(&line).expect_err(&line.join(" ")).to_string()
    };
    assert!(error(&["--founder", "bob=1234"]).contains("founder-key"));
    assert!(error(&["--founder", &of_bob.replace("bob", "")]).contains("cannot be a name"));
    assert!(error(&["--threshold", "2"]).contains("--founder"));
    assert!(error(&["--threshold", "many", "--founder", &of_bob]).contains("many"));
    for more in [["--role", "build"], ["--lasts", "1d"]] {
        assert!(error(&[&three[..], &more].concat()).contains("cannot be used with"));
    }
}
