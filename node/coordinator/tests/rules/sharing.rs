use tvix_node_coordinator::{Action, Derivation, FailureKind, SessionOptions};
use tvix_node_protocol::build::BuildLimits;
use tvix_node_protocol::control::{EventKind, Outcome};

use crate::desk::{Desk, derivation, drv, options};

fn with_cores(cores: u32) -> SessionOptions {
    SessionOptions { cores, ..options() }
}

fn with_time(seconds: u64) -> SessionOptions {
    SessionOptions {
        limits: BuildLimits {
            time: Some(seconds),
            ..BuildLimits::NONE
        },
        ..options()
    }
}

fn with_processes(processes: Option<u64>) -> SessionOptions {
    SessionOptions {
        limits: BuildLimits {
            processes,
            ..BuildLimits::NONE
        },
        ..options()
    }
}

fn told_placed(desk: &Desk, session: u64) -> bool {
    desk.was_told(session, |event| matches!(event, EventKind::Placed { .. }))
}

#[test]
fn two_sessions_that_want_the_same_derivation_share_one_build() {
    let mut desk = Desk::new(4);
    for session in [1, 2] {
        desk.command(session, options(), &[derivation("a", &[])]);
    }
    assert_eq!(desk.started, ["a"]);
    assert!(told_placed(&desk, 1) && told_placed(&desk, 2));
    let sessions = desk.coordinator.watchers(desk.build("a").build);
    assert_eq!(sessions.len(), 2, "both see its log");
    desk.finish("a");
    for session in [1, 2] {
        assert_eq!(desk.outcome(session), Some(Outcome::Success));
        assert!(desk.was_told(session, |event| matches!(
            event,
            EventKind::Ended { built: 1, .. }
        )));
    }
}

/// Two recipes for a source (another mirror) make two derivations of everything made from it, and one set of paths.
#[test]
fn derivations_of_the_same_outputs_are_one_piece_of_work() {
    let renamed = |word: &str, path: &str, inputs: &[&str]| Derivation {
        path: drv(path),
        ..derivation(word, inputs)
    };
    let mut desk = Desk::new(4);
    let told = [
        derivation("source", &[]),
        renamed("source", "source-mirror", &[]),
        derivation("a", &["source"]),
        renamed("a", "a-mirror", &["source-mirror"]),
        derivation("b", &["a", "a-mirror"]),
    ];
    desk.command(1, options(), &told);
    for word in ["source", "a", "b"] {
        assert_eq!(desk.started, [word]);
        desk.started.clear();
        desk.finish(word);
    }
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

#[test]
fn a_shared_build_goes_on_for_the_other_session_when_one_is_interrupted() {
    let mut desk = Desk::new(4);
    for session in [1, 2] {
        desk.command(session, options(), &[derivation("a", &[])]);
    }
    desk.interrupt(1);
    assert_eq!(desk.outcome(1), Some(Outcome::Interrupted));
    assert!(desk.cancelled.is_empty());
    desk.finish("a");
    assert_eq!(desk.outcome(2), Some(Outcome::Success));
    let after = desk
        .told
        .iter()
        .skip_while(|(session, event)| *session != 1 || !matches!(event, EventKind::Ended { .. }));
    assert!(
        after.skip(1).all(|(session, _)| *session == 2),
        "who has ended hears nothing more"
    );
}

#[test]
fn a_failure_counts_for_all_who_shared_the_build_and_not_for_who_comes_later() {
    let mut desk = Desk::new(1);
    for session in [1, 2] {
        let keep_going = SessionOptions {
            keep_going: true,
            ..options()
        };
        desk.open(session, keep_going);
        desk.instantiate(session, &[derivation("a", &[])]);
        desk.target(session, 0, "a");
    }
    desk.end_evaluation(1);
    desk.fail("a", FailureKind::Builder);
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    assert_eq!(desk.started, ["a"], "the second session has seen it fail");
    // The second session is still open and remembers; the third one has seen nothing.
    desk.command(3, options(), &[derivation("a", &[])]);
    assert_eq!(desk.started, ["a", "a"]);
    desk.finish("a");
    assert_eq!(desk.outcome(3), Some(Outcome::Success));
}

#[test]
fn different_cores_keep_builds_apart_and_what_is_present_then_is_not_built_again() {
    let mut desk = Desk::new(4);
    desk.command(1, with_cores(2), &[derivation("a", &[])]);
    desk.command(2, with_cores(8), &[derivation("a", &[])]);
    assert_eq!(desk.started, ["a"], "never two at once");
    assert!(!told_placed(&desk, 2));
    desk.finish("a");
    assert_eq!(desk.outcome(2), Some(Outcome::Success));
    assert_eq!(desk.started, ["a"]);
}

#[test]
fn a_failure_with_other_cores_does_not_count() {
    let mut desk = Desk::new(4);
    desk.command(1, with_cores(2), &[derivation("a", &[])]);
    desk.command(2, with_cores(8), &[derivation("a", &[])]);
    desk.fail("a", FailureKind::Builder);
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    assert_eq!(desk.outcome(2), None);
    desk.finish("a");
    assert_eq!(desk.outcome(2), Some(Outcome::Success));
    assert_eq!(desk.started, ["a", "a"]);
}

#[test]
fn a_build_with_other_cores_is_cancelled_with_its_own_session() {
    let mut desk = Desk::new(4);
    desk.command(1, with_cores(2), &[derivation("a", &[])]);
    desk.command(2, with_cores(8), &[derivation("a", &[])]);
    let first = desk.build("a").build;
    desk.interrupt(1);
    assert_eq!(desk.cancelled, [first]);
    assert_eq!(desk.started.len(), 1, "not before the first one is over");
    desk.bury();
    assert_eq!(desk.started.len(), 2);
    desk.finish("a");
    assert_eq!(desk.outcome(2), Some(Outcome::Success));
}

#[test]
fn a_shared_build_has_the_widest_limits() {
    let mut desk = Desk::new(1);
    desk.command(1, options(), &[derivation("busy", &[])]);
    desk.command(2, with_time(10), &[derivation("a", &[])]);
    desk.command(3, with_time(60), &[derivation("a", &[])]);
    desk.finish("busy");
    let limits = desk.actions.iter().find_map(|action| match action {
        Action::BuildHere { limits, .. } => Some(*limits),
        _ => None,
    });
    assert_eq!(limits.and_then(|limits| limits.time), Some(60));
}

#[test]
fn going_past_a_limit_fails_only_those_who_would_not_have_allowed_it() {
    let mut desk = Desk::new(1);
    desk.command(1, with_time(10), &[derivation("a", &[])]);
    desk.command(2, with_time(60), &[derivation("a", &[])]);
    desk.fail("a", FailureKind::Limit);
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    assert_eq!(desk.outcome(2), None);
    desk.finish("a");
    assert_eq!(desk.outcome(2), Some(Outcome::Success));
}

/// Where nothing is said of processes there is a limit all the same.
#[test]
fn a_limit_on_processes_is_compared_with_that_of_who_says_nothing() {
    let mut desk = Desk::new(1);
    desk.command(1, with_processes(Some(50)), &[derivation("a", &[])]);
    desk.command(2, with_processes(None), &[derivation("a", &[])]);
    desk.command(3, with_processes(Some(20_000)), &[derivation("a", &[])]);
    desk.fail("a", FailureKind::Limit);
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    assert_eq!((desk.outcome(2), desk.outcome(3)), (None, None));
    let limits = desk.actions.iter().rev().find_map(|action| match action {
        Action::BuildHere { limits, .. } => Some(*limits),
        _ => None,
    });
    assert_eq!(limits.and_then(|limits| limits.processes), Some(20_000));
    desk.finish("a");
    assert_eq!(desk.outcome(3), Some(Outcome::Success));
}

#[test]
fn a_path_that_one_session_builds_serves_as_input_of_another() {
    let mut desk = Desk::new(1);
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.command(2, options(), &[derivation("a", &[]), derivation("b", &["a"])]);
    desk.finish("a");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
    assert_eq!(desk.words(), ["b"]);
}
