use super::super::testing::{drv, event, finished, logged, placed, started};
use super::*;

const LIVE: Detail = Detail {
    beginnings: false,
    logs: false,
};
const RAW: Detail = Detail {
    beginnings: true,
    logs: true,
};

fn texts(event: &Event, detail: Detail) -> Vec<String> {
    lines(&State::default(), event, detail)
        .iter()
        .map(Line::text)
        .collect()
}

fn failed(demanded: bool) -> Event {
    event(EventKind::BuildFailed {
        derivation: drv("hello-2.10"),
        node: "this node".to_owned(),
        error: "the builder failed with exit code 2".to_owned(),
        log_tail: vec![
            "gcc: no such file".to_owned(),
            "make: *** \x1b[31m[all]\x1b[0m".to_owned(),
        ],
        demanded,
    })
}

fn ended(outcome: Outcome, built: u64, present: u64, failed: u64) -> State {
    ended_with(PresenceTiming::default(), outcome, built, present, failed)
}

fn ended_with(presence: PresenceTiming, outcome: Outcome, built: u64, present: u64, failed: u64) -> State {
    let mut state = State::default();
    let fetched = 0;
    state.step(
        &event(EventKind::Ended {
            outcome,
            built,
            fetched,
            present,
            failed,
            presence,
        }),
        0,
    );
    state
}

#[test]
fn the_summary_says_that_answers_were_waited_for_where_it_could_be_noticed() {
    let texts = |presence| {
        let state = ended_with(presence, Outcome::Success, 1, 0, 0);
        let lines = summary(&state, 5_000);
        lines.iter().skip(1).map(Line::text).collect::<Vec<_>>()
    };
    let quick = PresenceTiming {
        in_time: 3,
        waited: 2,
        without: 0,
        longest: NOTICED - 1,
    };
    assert!(texts(quick).is_empty());
    let noticed = PresenceTiming {
        longest: NOTICED,
        ..quick
    };
    assert_eq!(
        texts(noticed),
        ["Up to 1.0s were waited to learn who has a path, for 2 of 5 paths."]
    );
    let slow = PresenceTiming {
        without: 1,
        longest: 1_500,
        ..quick
    };
    assert_eq!(
        texts(slow),
        [
            "Up to 1.5s were waited to learn who has a path, for 2 of 6 paths.",
            "Of 1 of 6 paths a member that does not answer did not say whether it has them: they count as being nowhere \
             ('tvix-node doctor' looks at every member).",
        ]
    );
}

#[test]
fn a_failed_build_has_its_name_its_last_lines_and_the_way_to_all_of_them() {
    let drv = drv("hello-2.10");
    let expected = [
        "error: the build of hello-2.10 failed: the builder failed with exit code 2".to_owned(),
        "       The last 2 lines of its log:".to_owned(),
        "       > gcc: no such file".to_owned(),
        "       > make: *** [all]".to_owned(),
        format!("       All of it: tvix-node log {drv}"),
    ];
    assert_eq!(texts(&failed(true), LIVE), expected);
    assert_eq!(texts(&failed(true), RAW), expected);
}

#[test]
fn an_error_of_several_lines_keeps_them() {
    let failed = event(EventKind::BuildFailed {
        derivation: drv("hello-2.10"),
        node: "this node".to_owned(),
        error: "hash mismatch:\n  specified: a\n  got:       b".to_owned(),
        log_tail: Vec::new(),
        demanded: true,
    });
    let lines = texts(&failed, LIVE);
    let expected = [
        "error: the build of hello-2.10 failed: hash mismatch:",
        "         specified: a",
        "         got:       b",
    ];
    assert_eq!(lines, expected, "nothing was begun, so there is no log");
    let mut begun = State::default();
    begun.step(&started("hello-2.10", "this node"), 0);
    let lines: Vec<String> = super::lines(&begun, &failed, LIVE)
        .iter()
        .map(Line::text)
        .collect();
    assert_eq!(lines[..3], expected);
    assert_eq!(lines[3], "       Its log is empty.");
    let mut spoken = State::default();
    spoken.step(&started("hello-2.10", "this node"), 0);
    let line = EventKind::Log {
        derivation: drv("hello-2.10"),
        line: "tick".to_owned(),
    };
    spoken.step(&event(line), 0);
    let told: Vec<String> = super::lines(&spoken, &failed, LIVE)
        .iter()
        .map(Line::text)
        .collect();
    assert_eq!(told[..3], expected);
    assert!(told[3].starts_with("       All of it: tvix-node log"), "{told:?}");
    // It may turn out only later that it is needed.
    begun.step(&self::failed(false), 1);
    let late = super::lines(&begun, &failed, LIVE);
    assert_eq!(late.iter().map(Line::text).collect::<Vec<_>>(), lines);
}

#[test]
fn a_failure_that_nobody_needs_is_no_error() {
    assert!(texts(&failed(false), LIVE).is_empty());
    assert_eq!(
        texts(&failed(false), RAW),
        ["hello-2.10 failed, and nothing is known to need it yet"]
    );
}

#[test]
fn off_a_terminal_every_step_has_a_line() {
    assert_eq!(texts(&started("a", "this node"), RAW), ["building a"]);
    assert_eq!(texts(&started("a", "tower"), RAW), ["building a on tower"]);
    assert_eq!(texts(&logged("a", "checking\tx"), RAW), ["a> checking x"]);
    assert_eq!(texts(&finished("a", 1_234), RAW), ["built a in 1.2s"]);
    for step in [started("a", "x"), logged("a", "x"), placed("a", BuildKind::Ifd)] {
        assert!(texts(&step, LIVE).is_empty(), "the live lines show it");
    }
}

#[test]
fn who_builds_and_who_sends_what_to_whom_is_named() {
    let (path, other) = (drv("gcc"), "bob".to_owned());
    let fetched = event(EventKind::FetchStarted {
        path: path.clone(),
        from: other.clone(),
    });
    let pushing = event(EventKind::PushStarted {
        path: path.clone(),
        to: other.clone(),
    });
    let pushed = event(EventKind::Pushed {
        path: path.clone(),
        to: other.clone(),
    });
    let not_pushed = event(EventKind::PushFailed {
        path: path.clone(),
        to: other.clone(),
        error: "it is full".to_owned(),
    });
    let not_fetched = event(EventKind::FetchFailed {
        path,
        error: "bob went away".to_owned(),
        unfinished: Vec::new(),
    });
    let mut built = finished("hello", 1_234);
    if let EventKind::BuildFinished { node, .. } = &mut built.kind {
        node.clone_from(&other);
    }
    assert_eq!(texts(&started("hello", "bob"), RAW), ["building hello on bob"]);
    assert_eq!(texts(&fetched, RAW), ["fetching gcc from bob"]);
    assert_eq!(texts(&pushing, RAW), ["pushing gcc to bob"]);
    for detail in [RAW, LIVE] {
        assert_eq!(texts(&built, detail), ["built hello in 1.2s on bob"]);
        assert_eq!(texts(&pushed, detail), ["pushed gcc to bob"]);
        assert_eq!(
            texts(&not_pushed, detail),
            ["warning: gcc could not be pushed to bob: it is full"]
        );
        assert_eq!(
            texts(&not_fetched, detail),
            ["warning: gcc could not be fetched: bob went away"]
        );
    }
    assert!(texts(&fetched, LIVE).is_empty() && texts(&pushing, LIVE).is_empty());
}

#[test]
fn messages_keep_their_lines_and_level() {
    let text = "first\nsecond".to_owned();
    let message = |level: &str| EventKind::Message {
        level: level.to_owned(),
        text: text.clone(),
    };
    assert_eq!(
        texts(&event(message("warning")), LIVE),
        ["warning: first", "second"]
    );
    assert_eq!(texts(&event(message("info")), LIVE), ["first", "second"]);
    let trace = evaluation_message(MessageKind::Trace, "x");
    assert_eq!(trace[0].text(), "trace: x");
}

#[test]
fn errors_of_an_evaluation_are_shown_as_they_are() {
    let text = "error:\n       … while calling f\n\n       error: no x\n       at /a.nix:1:1:";
    let shown: Vec<String> = evaluation_error(text).iter().map(Line::text).collect();
    assert_eq!(shown.join("\n"), text);
}

#[test]
fn the_summary_says_how_it_ended_and_is_quiet_where_nothing_was_done() {
    let texts = |state: &State| summary(state, 67_000).iter().map(Line::text).collect::<Vec<_>>();
    assert!(texts(&ended(Outcome::Success, 0, 5, 0)).is_empty());
    assert_eq!(
        texts(&ended(Outcome::Success, 3, 5, 0)),
        ["done after 1m07s: 3 built, 5 present"]
    );
    assert_eq!(
        texts(&ended(Outcome::BuildFailed, 3, 0, 1)),
        ["failed after 1m07s: 3 built, 1 failed"]
    );
    assert_eq!(
        texts(&ended(Outcome::Interrupted, 0, 0, 0)),
        ["interrupted after 1m07s"]
    );
    assert!(texts(&State::default()).is_empty(), "no session, no summary");
}

#[test]
fn a_dry_run_lists_what_would_be_done() {
    let mut state = State::default();
    state.step(&event(EventKind::WouldBuild { derivation: drv("a") }), 0);
    state.step(&event(EventKind::WouldBuild { derivation: drv("b") }), 0);
    state.step(&event(EventKind::WouldFetch { path: drv("c") }), 0);
    let shown: Vec<String> = summary(&state, 0).iter().map(Line::text).collect();
    assert_eq!(
        shown,
        [
            "2 derivations would be built:".to_owned(),
            format!("  {}", drv("b")),
            format!("  {}", drv("a")),
            "1 path would be fetched:".to_owned(),
            format!("  {}", drv("c")),
        ]
    );
}

#[test]
fn a_target_that_cannot_be_had_names_the_build_that_failed() {
    let mut state = State::default();
    for (target, name) in [(0, "hello-2.10"), (1, "env"), (2, "other"), (3, "top")] {
        let (name, derivation) = (name.to_owned(), drv(name));
        state.step(
            &event(EventKind::TargetNamed {
                target,
                name,
                derivation,
            }),
            0,
        );
    }
    state.step(&failed(true), 0);
    for (name, because) in [("env", "hello-2.10"), ("top", "env")] {
        let (derivation, because) = (drv(name), drv(because));
        state.step(&event(EventKind::DependencyFailed { derivation, because }), 0);
    }
    let shown = |target: u64, name: &str| {
        let (name, error) = (name.to_owned(), "a long story".to_owned());
        let told = event(EventKind::TargetFailed { target, name, error });
        lines(&state, &told, LIVE)
            .iter()
            .map(Line::text)
            .collect::<Vec<_>>()
    };
    assert!(shown(0, "hello").is_empty(), "its own build has been told of");
    assert_eq!(shown(1, "env"), ["error: env cannot be had: hello-2.10 failed"]);
    assert_eq!(shown(3, "top"), ["error: top cannot be had: hello-2.10 failed"]);
    assert_eq!(shown(2, "other"), ["error: other cannot be had: a long story"]);
    let error = format!("{} could not be built: a long story", drv("hello-2.10"));
    let told = event(EventKind::TargetFailed {
        target: 2,
        name: "other".to_owned(),
        error,
    });
    let told: Vec<String> = lines(&state, &told, LIVE).iter().map(Line::text).collect();
    assert_eq!(told, ["error: other cannot be had: hello-2.10 failed"]);
}
