//! Building again what is there, to compare.

use std::collections::BTreeMap;

use tvix_node_coordinator::{
    Action, BuildFailure, CheckOutcome, Event, FailureKind, SessionId, SessionOptions,
};
use tvix_node_protocol::control::{EventKind, Outcome, OutputDifference, SessionMode};

use crate::desk::{Desk, derivation, drv, keep_going, options, path};

fn check() -> SessionOptions {
    SessionOptions {
        mode: SessionMode::Check,
        ..options()
    }
}

/// The derivations of checks that the last event led to.
fn begun(desk: &Desk) -> Vec<String> {
    let begun = desk.actions.iter().filter_map(|action| match action {
        Action::Check { derivation, .. } => Some(derivation.name().to_owned()),
        _ => None,
    });
    begun.collect()
}

fn same() -> CheckOutcome {
    CheckOutcome::Built {
        duration: 5,
        differences: BTreeMap::new(),
    }
}

fn different() -> CheckOutcome {
    let difference = OutputDifference {
        path: path("a"),
        kept: None,
        places: vec!["\"time\" differs from byte 0 on (4 bytes)".to_owned()],
        more: false,
    };
    CheckOutcome::Built {
        duration: 5,
        differences: BTreeMap::from([("out".to_owned(), difference)]),
    }
}

fn failed() -> CheckOutcome {
    CheckOutcome::Failed(BuildFailure {
        kind: FailureKind::Builder,
        error: "exit code 1".to_owned(),
        log_tail: vec![],
    })
}

fn answer(desk: &mut Desk, word: &str, outcome: CheckOutcome) {
    desk.send(Event::Checked {
        session: SessionId(1),
        derivation: drv(word),
        outcome,
    });
}

#[test]
fn what_is_there_is_built_again_and_nothing_else() {
    let mut desk = Desk::new(2);
    desk.own.extend([path("tool"), path("a")]);
    desk.open(1, check());
    desk.instantiate(1, &[derivation("tool", &[]), derivation("a", &["tool"])]);
    desk.target(1, 0, "a");
    assert_eq!(begun(&desk), ["a.drv"]);
    desk.end_evaluation(1);
    assert_eq!((desk.started.len(), desk.outcome(1)), (0, None));
    answer(&mut desk, "a", same());
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
    assert!(desk.was_told(1, |event| matches!(event, EventKind::TargetDone { .. })));
}

#[test]
fn what_is_not_there_cannot_be_checked() {
    let mut desk = Desk::new(2);
    // Elsewhere does not count: it is compared with what is here.
    desk.cache_has("a");
    desk.command(1, check(), &[derivation("tool", &[]), derivation("a", &["tool"])]);
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    assert!(desk.started.is_empty() && desk.fetches.is_empty());
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::TargetFailed { error, .. } if error.contains("nothing to compare"))
    ));
}

#[test]
fn what_it_reads_is_brought_or_built_first() {
    let mut desk = Desk::new(2);
    desk.own.insert(path("a"));
    desk.cache_has("cached");
    let all = [
        derivation("cached", &[]),
        derivation("built", &[]),
        derivation("a", &["cached", "built"]),
    ];
    desk.command(1, check(), &all);
    assert_eq!(desk.words(), ["built"]);
    desk.finish("built");
    assert!(begun(&desk).is_empty());
    desk.arrive("cached");
    answer(&mut desk, "a", same());
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

#[test]
fn a_difference_or_a_failure_fails_the_command() {
    for (outcome, told) in [(different(), "not the same"), (failed(), "exit code 1")] {
        let mut desk = Desk::new(2);
        desk.own.insert(path("a"));
        desk.command(1, check(), &[derivation("a", &[])]);
        answer(&mut desk, "a", outcome);
        assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
        assert!(desk.was_told(
            1,
            |event| matches!(event, EventKind::TargetFailed { error, .. } if error.contains(told))
        ));
    }
}

#[test]
fn an_input_that_cannot_be_built_fails_the_check() {
    let mut desk = Desk::new(2);
    desk.own.insert(path("a"));
    desk.command(1, check(), &[derivation("tool", &[]), derivation("a", &["tool"])]);
    desk.fail("tool", FailureKind::Builder);
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    assert!(begun(&desk).is_empty());
}

#[test]
fn a_command_that_stops_takes_its_checks_along() {
    let mut desk = Desk::new(2);
    desk.own.extend([path("a"), path("b")]);
    desk.open(1, check());
    desk.instantiate(1, &[derivation("a", &[]), derivation("b", &[])]);
    desk.target(1, 0, "a");
    desk.target(1, 1, "b");
    desk.end_evaluation(1);
    answer(&mut desk, "a", different());
    let cancelled = Action::CancelChecks {
        session: SessionId(1),
    };
    assert!(desk.actions.contains(&cancelled));
    assert_eq!(desk.outcome(1), None, "the other check still runs");
    answer(&mut desk, "b", failed());
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
}

#[test]
fn a_command_that_keeps_going_checks_all_and_no_more_at_once_than_it_may() {
    let mut desk = Desk::new(4);
    desk.own.extend([path("a"), path("b")]);
    let one_at_a_time = SessionOptions {
        mode: SessionMode::Check,
        jobs: Some(1),
        ..keep_going()
    };
    desk.open(1, one_at_a_time);
    desk.instantiate(1, &[derivation("a", &[]), derivation("b", &[])]);
    desk.target(1, 0, "a");
    assert_eq!(begun(&desk), ["a.drv"]);
    desk.target(1, 1, "b");
    // The same derivation again is not built twice at once.
    desk.target(1, 2, "a");
    assert!(begun(&desk).is_empty());
    desk.end_evaluation(1);
    answer(&mut desk, "a", different());
    assert_eq!(begun(&desk), ["b.drv"]);
    answer(&mut desk, "b", same());
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    let failed = desk
        .told
        .iter()
        .filter(|(_, event)| matches!(event, EventKind::TargetFailed { .. }));
    assert_eq!(failed.count(), 2);
}

#[test]
fn a_node_that_may_build_nothing_says_so() {
    for (slots, jobs) in [(0, None), (2, Some(0))] {
        let mut desk = Desk::new(slots);
        desk.own.insert(path("a"));
        desk.command(1, SessionOptions { jobs, ..check() }, &[derivation("a", &[])]);
        assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    }
}
