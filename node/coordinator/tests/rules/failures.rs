use tvix_node_coordinator::{Event, FailureKind, SessionId, limits};
use tvix_node_protocol::control::{EventKind, Outcome};

use crate::desk::{Desk, derivation, drv, keep_going, options, path};

/// `left` and `right` are read by `target`; `other` by nobody.
fn fork() -> Vec<tvix_node_coordinator::Derivation> {
    vec![
        derivation("left", &[]),
        derivation("right", &[]),
        derivation("target", &["left", "right"]),
    ]
}

#[test]
fn the_first_failure_stops_the_command() {
    let mut desk = Desk::new(2);
    desk.command(1, options(), &fork());
    let right = desk.build("right").build;
    desk.fail("left", FailureKind::Builder);
    assert_eq!(desk.cancelled, [right], "nobody else wants it");
    assert_eq!(desk.outcome(1), None, "it ends when nothing of it runs any more");
    desk.bury();
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::BuildFailed { derivation, demanded: true, node, log_tail, .. }
        if *derivation == drv("left") && node == "home" && log_tail == &["last words"])
    ));
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::TargetFailed { error, .. } if error.contains("left"))
    ));
    assert!(desk.was_told(1, |event| matches!(event, EventKind::Ended { failed: 1, .. })));
}

#[test]
fn after_a_failure_nothing_new_is_started_for_the_session() {
    let mut desk = Desk::new(1);
    desk.command(1, options(), &fork());
    desk.fail("left", FailureKind::Builder);
    assert_eq!(desk.started.len(), 1);
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
}

#[test]
fn a_session_that_keeps_going_builds_everything_that_does_not_depend_on_the_failure() {
    let mut desk = Desk::new(2);
    let mut all = fork();
    all.push(derivation("top", &["target"]));
    all.push(derivation("apart", &["right"]));
    desk.open(1, keep_going());
    desk.instantiate(1, &all);
    desk.target(1, 0, "top");
    desk.target(1, 1, "apart");
    desk.end_evaluation(1);
    desk.fail("left", FailureKind::Builder);
    for blocked in ["target", "top"] {
        assert!(desk.was_told(
            1,
            |event| matches!(event, EventKind::DependencyFailed { derivation, because }
            if *derivation == drv(blocked) && *because == drv("left"))
        ));
    }
    desk.finish("right");
    assert_eq!(desk.outcome(1), None);
    desk.finish("apart");
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    assert!(desk.was_told(1, |event| matches!(
        event,
        EventKind::TargetDone { target: 1, .. }
    )));
    assert!(desk.was_told(1, |event| matches!(
        event,
        EventKind::TargetFailed { target: 0, .. }
    )));
}

#[test]
fn a_session_that_keeps_going_builds_what_else_a_failed_target_needs() {
    let mut desk = Desk::new(1);
    desk.command(1, keep_going(), &fork());
    desk.fail("left", FailureKind::Builder);
    assert_eq!(desk.outcome(1), None);
    desk.finish("right");
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
}

#[test]
fn a_target_named_after_its_input_failed_fails_at_once() {
    let mut desk = Desk::new(1);
    desk.open(1, keep_going());
    desk.instantiate(1, &fork());
    desk.target(1, 0, "left");
    desk.fail("left", FailureKind::Builder);
    desk.target(1, 1, "target");
    desk.target(1, 2, "target");
    for target in [0, 1, 2] {
        assert!(desk.was_told(
            1,
            |event| matches!(event, EventKind::TargetFailed { target: other, .. }
            if *other == target)
        ));
    }
}

#[test]
fn a_failed_import_is_reported_to_the_evaluation_which_may_explain_itself() {
    let mut desk = Desk::new(1);
    desk.open(1, options());
    desk.instantiate(1, &[derivation("a", &[])]);
    desk.import(1, 7, "a");
    desk.fail("a", FailureKind::Builder);
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::ImportFailed { import: 7, error }
        if error.contains("a.drv") && error.contains("exit code 1"))
    ));
    assert_eq!(desk.outcome(1), None, "the evaluation has to say where it was");
    let (name, error) = ("a".to_owned(), "cannot import".to_owned());
    desk.send(Event::TargetFailed {
        session: SessionId(1),
        target: 0,
        name,
        error,
    });
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
}

#[test]
fn an_evaluation_that_does_not_explain_itself_does_not_keep_the_session_open() {
    let mut desk = Desk::new(1);
    desk.open(1, options());
    desk.instantiate(1, &[derivation("a", &[])]);
    desk.import(1, 0, "a");
    desk.fail("a", FailureKind::Builder);
    desk.wait(limits::END_PATIENCE.as_millis() as u64);
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
}

#[test]
fn a_failed_import_leaves_other_targets_alone_where_the_session_keeps_going() {
    let mut desk = Desk::new(2);
    desk.open(1, keep_going());
    desk.instantiate(1, &[derivation("import", &[]), derivation("target", &[])]);
    desk.import(1, 0, "import");
    desk.fail("import", FailureKind::Builder);
    let (name, error) = ("x".to_owned(), "cannot import".to_owned());
    desk.send(Event::TargetFailed {
        session: SessionId(1),
        target: 0,
        name,
        error,
    });
    desk.target(1, 1, "target");
    desk.end_evaluation(1);
    desk.finish("target");
    assert!(desk.was_told(1, |event| matches!(
        event,
        EventKind::TargetDone { target: 1, .. }
    )));
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
}

#[test]
fn a_target_that_does_not_evaluate_stops_the_command_as_failed_evaluation() {
    let mut desk = Desk::new(1);
    desk.open(1, options());
    desk.instantiate(1, &[derivation("a", &[])]);
    desk.target(1, 0, "a");
    let (name, error) = ("b".to_owned(), "undefined variable".to_owned());
    desk.send(Event::TargetFailed {
        session: SessionId(1),
        target: 1,
        name,
        error,
    });
    desk.bury();
    assert_eq!(desk.outcome(1), Some(Outcome::EvaluationFailed));
}

#[test]
fn with_keep_going_the_other_targets_are_built_and_the_evaluation_counts_as_failed() {
    let mut desk = Desk::new(1);
    desk.open(1, keep_going());
    desk.instantiate(1, &[derivation("a", &[])]);
    desk.target(1, 0, "a");
    let (name, error) = ("b".to_owned(), "undefined variable".to_owned());
    desk.send(Event::TargetFailed {
        session: SessionId(1),
        target: 1,
        name,
        error,
    });
    desk.end_evaluation(1);
    desk.finish("a");
    assert_eq!(desk.outcome(1), Some(Outcome::EvaluationFailed));
}

#[test]
fn trouble_of_this_node_is_not_the_derivations_fault_but_has_an_end() {
    let mut desk = Desk::new(1);
    desk.command(1, options(), &[derivation("a", &[])]);
    for _ in 1..limits::TRIES_HERE {
        desk.fail("a", FailureKind::Transient);
        assert_eq!(desk.outcome(1), None);
        assert!(
            desk.reason(1, "a")
                .contains("tried before: home: the machine has trouble")
        );
    }
    desk.fail("a", FailureKind::Transient);
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    assert_eq!(desk.started.len(), usize::from(limits::TRIES_HERE));
}

#[test]
fn a_refusal_of_the_only_builder_is_reported_in_its_words() {
    let mut desk = Desk::new(1);
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.fail("a", FailureKind::Refused);
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::BuildFailed { error, .. } if error == "no, thank you")
    ));
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
}

#[test]
fn an_input_that_nobody_has_and_nothing_makes_is_named() {
    let mut desk = Desk::new(1);
    let mut a = derivation("a", &[]);
    a.sources = vec![path("lost-source")];
    desk.command(1, options(), &[a]);
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::BuildFailed { error, .. } if error.contains("lost-source"))
    ));
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    assert!(desk.started.is_empty());
}

#[test]
fn the_log_that_comes_with_a_failure_is_cut_to_its_last_lines() {
    let mut desk = Desk::new(1);
    desk.command(1, options(), &[derivation("a", &[])]);
    let build = desk.build("a").build;
    let log_tail: Vec<String> = (0..100).map(|line| line.to_string()).collect();
    let (kind, error) = (FailureKind::Builder, "exit code 1".to_owned());
    let failure = tvix_node_coordinator::BuildFailure {
        kind,
        error,
        log_tail: log_tail.clone(),
    };
    desk.send(Event::BuildFailed { build, failure });
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::BuildFailed { log_tail: told, .. }
        if *told == log_tail[100 - limits::LOG_TAIL..])
    ));
}
