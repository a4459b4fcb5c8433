use super::super::testing::{drv, event, finished, instantiated, logged, placed, started};
use super::*;
use tvix_node_protocol::control::EventKind;

const SIZE: Size = Size {
    columns: 60,
    rows: 24,
};

fn state() -> State {
    State::new(true)
}

fn texts(state: &State, now: u64, size: Size) -> Vec<String> {
    frame(state, now, size).iter().map(Line::text).collect()
}

#[test]
fn what_evaluates_waits_and_builds_is_shown_with_its_age() {
    let mut state = state();
    state.step(&instantiated(&["hello-2.10", "musl", "make", "zlib"]), 10);
    state.step(&placed("musl", BuildKind::Regular), 1_000);
    state.step(&started("musl", super::super::THIS_NODE), 1_000);
    state.step(&logged("musl", "checking \x1b[1mfor gcc\x1b[0m..."), 1_500);
    state.step(&placed("make", BuildKind::Ifd), 60_000);
    state.step(&started("make", "tower"), 60_000);
    assert_eq!(
        texts(&state, 68_500, SIZE),
        [
            "evaluating 4 derivations, waits for 1 import",
            "building   musl  1m07s  checking for gcc...",
            "importing  make     8s  on tower",
            "1m08s      2 waiting",
        ]
    );
    state.step(&finished("make", 9_000), 69_000);
    state.step(&event(EventKind::EvaluationEnded), 69_000);
    assert_eq!(
        texts(&state, 70_000, SIZE),
        [
            "building   musl  1m09s  checking for gcc...",
            "1m10s      1 built, 2 waiting",
        ]
    );
}

#[test]
fn fetches_say_from_where() {
    let mut state = state();
    let (path, from) = (drv("gcc"), "tower".to_owned());
    state.step(
        &event(EventKind::FetchStarted {
            path: path.clone(),
            from: from.clone(),
        }),
        0,
    );
    assert_eq!(texts(&state, 2_000, SIZE)[1], "fetching   gcc     2s  from tower");
    state.step(&event(EventKind::FetchFinished { path, from, bytes: 5 }), 0);
    assert_eq!(
        texts(&state, 2_000, SIZE).last().map(String::as_str),
        Some("2s         1 fetched")
    );
}

#[test]
fn pushes_say_where_to() {
    let mut state = state();
    let (path, to) = (drv("hello"), "carol".to_owned());
    let started = event(EventKind::PushStarted {
        path: path.clone(),
        to: to.clone(),
    });
    state.step(&started, 0);
    assert_eq!(texts(&state, 2_000, SIZE)[1], "pushing    hello     2s  to carol");
    let error = "the connection broke".to_owned();
    state.step(
        &event(EventKind::PushFailed {
            path: path.clone(),
            to: to.clone(),
            error,
        }),
        2_000,
    );
    assert_eq!(texts(&state, 2_000, SIZE).len(), 2, "{:?}", state.running);
    state.step(&started, 2_000);
    state.step(&event(EventKind::Pushed { path, to }), 3_000);
    assert_eq!(
        texts(&state, 3_000, SIZE),
        ["evaluating 0 derivations", "3s         1 pushed"]
    );
}

#[test]
fn a_fetch_that_failed_or_began_anew_leaves_no_second_line() {
    let mut state = state();
    let fetch = |name: &str, from: &str| {
        event(EventKind::FetchStarted {
            path: drv(name),
            from: from.to_owned(),
        })
    };
    for (name, from) in [("gcc", "bob"), ("glibc", "bob"), ("gcc", "carol")] {
        state.step(&fetch(name, from), 0);
    }
    let shown = texts(&state, 0, SIZE);
    assert_eq!(
        shown[1..3],
        [
            "fetching   glibc     0s  from bob",
            "fetching   gcc       0s  from carol"
        ]
    );
    state.step(
        &event(EventKind::FetchFailed {
            path: drv("gcc"),
            error: "nobody is left".to_owned(),
            unfinished: vec![drv("glibc")],
        }),
        0,
    );
    assert!(state.running.is_empty(), "{:?}", state.running);
}

#[test]
fn the_frame_fits_into_every_terminal() {
    let mut state = state();
    for number in 0..50 {
        let name = format!("package-with-a-name-{number}");
        state.step(&started(&name, "this node"), 0);
        state.step(&logged(&name, &"日本".repeat(100)), 0);
    }
    for rows in 0..30 {
        for columns in [0, 1, 5, 20, 80, 300] {
            let lines = frame(&state, 1_000, Size { columns, rows });
            assert!(
                lines.len() <= rows.saturating_sub(1).min(MOST_LINES),
                "{rows} rows"
            );
            assert!(
                lines.iter().all(|line| line.width() < columns.max(1)),
                "{columns} columns"
            );
        }
    }
    let lines = texts(&state, 1_000, SIZE);
    assert_eq!(lines.len(), MOST_LINES);
    assert_eq!(lines[MOST_LINES - 2], "… and 37 more");
}

#[test]
fn what_is_cancelled_or_cannot_be_built_is_no_longer_shown() {
    let mut state = state();
    state.step(&instantiated(&["a", "b", "c"]), 0);
    state.step(&started("a", "this node"), 0);
    let reason = "nobody needs it".to_owned();
    state.step(
        &event(EventKind::Cancelled {
            derivation: drv("a"),
            reason,
        }),
        0,
    );
    state.step(
        &event(EventKind::DependencyFailed {
            derivation: drv("b"),
            because: drv("x"),
        }),
        0,
    );
    state.step(&event(EventKind::Present { derivation: drv("c") }), 0);
    state.step(&event(EventKind::EvaluationEnded), 0);
    assert_eq!(texts(&state, 0, SIZE), ["0s         1 present"]);
}

#[test]
fn where_nothing_is_going_to_be_built_nothing_waits() {
    let mut state = State::default();
    state.step(&instantiated(&["a"]), 0);
    assert_eq!(
        texts(&state, 3_000, SIZE),
        ["evaluating 1 derivation", "3s         "]
    );
}
