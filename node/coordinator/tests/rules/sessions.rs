use tvix_node_coordinator::{Action, Event, FailureKind, SessionId, limits};
use tvix_node_protocol::control::{EventKind, Outcome};

use crate::desk::{Desk, derivation, options, path};

#[test]
fn a_session_ends_when_its_evaluation_has_and_its_targets_are_there() {
    let mut desk = Desk::new(1);
    desk.open(1, options());
    desk.instantiate(1, &[derivation("a", &[])]);
    desk.target(1, 0, "a");
    desk.finish("a");
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::TargetDone { target: 0, outputs, .. }
        if outputs["out"] == path("a"))
    ));
    assert_eq!(desk.outcome(1), None, "more may come");
    desk.end_evaluation(1);
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
    assert!(desk.coordinator.is_idle());
}

#[test]
fn a_session_without_targets_ends_with_its_evaluation() {
    let mut desk = Desk::new(1);
    desk.open(1, options());
    desk.end_evaluation(1);
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

#[test]
fn an_interrupted_session_leaves_nothing_running() {
    let mut desk = Desk::new(2);
    desk.open(1, options());
    desk.instantiate(1, &[derivation("a", &[]), derivation("b", &[])]);
    desk.target(1, 0, "a");
    desk.interrupt(1);
    assert_eq!(desk.cancelled.len(), 2);
    assert_eq!(desk.outcome(1), None, "its builds are not over yet");
    desk.bury();
    assert_eq!(desk.outcome(1), Some(Outcome::Interrupted));
    assert!(desk.coordinator.is_idle());
    assert_eq!(desk.coordinator.deadline(), None);
}

#[test]
fn an_interruption_does_not_wait_for_ever_for_a_build_that_does_not_die() {
    let mut desk = Desk::new(1);
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.interrupt(1);
    desk.wait(limits::END_PATIENCE.as_millis() as u64);
    assert_eq!(desk.outcome(1), Some(Outcome::Interrupted));
    // The slot is taken all the same until it is over.
    desk.command(2, options(), &[derivation("b", &[])]);
    assert_eq!(desk.started, ["a"]);
    desk.bury();
    assert_eq!(desk.words(), ["b"]);
}

#[test]
fn a_derivation_whose_cancelled_build_is_not_over_is_not_started_again_before() {
    let mut desk = Desk::new(2);
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.interrupt(1);
    desk.command(2, options(), &[derivation("a", &[])]);
    assert_eq!(desk.started, ["a"]);
    desk.bury();
    assert_eq!(desk.started, ["a", "a"]);
    desk.finish("a");
    assert_eq!(desk.outcome(2), Some(Outcome::Success));
}

#[test]
fn a_cancelled_build_that_succeeds_all_the_same_is_welcome() {
    let mut desk = Desk::new(2);
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.interrupt(1);
    desk.command(2, options(), &[derivation("a", &[])]);
    desk.finish("a");
    assert_eq!(desk.outcome(1), Some(Outcome::Interrupted));
    assert_eq!(desk.outcome(2), Some(Outcome::Success));
}

#[test]
fn events_of_a_session_that_has_ended_are_harmless() {
    let mut desk = Desk::new(1);
    desk.open(1, options());
    desk.interrupt(1);
    desk.instantiate(1, &[derivation("a", &[])]);
    desk.target(1, 0, "a");
    desk.interrupt(1);
    desk.end_evaluation(1);
    assert!(desk.actions.is_empty() && desk.running.is_empty() && desk.refusals.is_empty());
}

#[test]
fn reports_about_things_that_are_over_are_harmless() {
    let mut desk = Desk::new(1);
    desk.command(1, options(), &[derivation("a", &[])]);
    let build = desk.build("a").build;
    desk.finish("a");
    desk.send(Event::BuildStarted { build });
    desk.send(Event::Heartbeat { build });
    desk.fail_build(build, FailureKind::Builder);
    let (fetch, push) = (
        tvix_node_coordinator::FetchId(77),
        tvix_node_coordinator::PushId(78),
    );
    desk.send(Event::FetchFinished { fetch });
    desk.send(Event::FetchFailed {
        fetch,
        error: String::new(),
    });
    desk.send(Event::PushFinished { push });
    assert!(desk.actions.is_empty());
}

#[test]
fn an_import_is_answered_when_its_outputs_are_in_the_own_store() {
    let mut desk = Desk::new(1);
    desk.own.insert(path("there"));
    desk.cache_has("cached");
    desk.open(1, options());
    desk.instantiate(
        1,
        &[
            derivation("there", &[]),
            derivation("cached", &[]),
            derivation("built", &[]),
        ],
    );
    for (number, word) in ["there", "cached", "built"].iter().enumerate() {
        desk.import(1, number as u64, word);
    }
    let done = |desk: &Desk, number: u64| {
        desk.was_told(
            1,
            |event| matches!(event, EventKind::ImportDone { import } if *import == number),
        )
    };
    assert!(done(&desk, 0) && !done(&desk, 1) && !done(&desk, 2));
    desk.arrive("cached");
    assert!(done(&desk, 1) && !done(&desk, 2));
    desk.finish("built");
    assert!(done(&desk, 2));
    assert_eq!(desk.outcome(1), None, "the evaluation goes on");
}

#[test]
fn a_path_that_an_evaluation_needs_is_fetched_or_built_or_said_to_be_nowhere() {
    let mut desk = Desk::new(1);
    desk.cache_has("cached");
    desk.open(1, options());
    desk.instantiate(1, &[derivation("built", &[])]);
    for (import, word) in ["cached", "built", "nowhere"].iter().enumerate() {
        let (session, import) = (SessionId(1), import as u64);
        desk.send(Event::EnsureRequested {
            session,
            import,
            path: path(word),
        });
    }
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::ImportFailed { import: 2, error } if error.contains("nowhere"))
    ));
    desk.arrive("cached");
    desk.finish("built");
    for number in [0, 1] {
        assert!(desk.was_told(
            1,
            |event| matches!(event, EventKind::ImportDone { import } if *import == number)
        ));
    }
}

#[test]
fn the_status_says_what_waits_and_what_runs() {
    let mut desk = Desk::new(1);
    desk.command(1, options(), &[derivation("a", &[]), derivation("b", &["a"])]);
    let status = desk.coordinator.session(SessionId(1)).unwrap();
    assert_eq!((status.derivations, status.waiting), (2, 2));
    let builds: Vec<_> = desk.coordinator.builds().collect();
    assert_eq!(builds.len(), 1);
    assert_eq!(builds[0].sessions, [SessionId(1)]);
    assert!(builds[0].node.is_none() && builds[0].reason.starts_with("this node: "));
    assert!(desk.coordinator.session(SessionId(2)).is_none());
}

#[test]
fn time_that_goes_back_does_not_confuse_it() {
    let mut desk = Desk::new(1);
    desk.now = 50_000;
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.now = 10;
    desk.send(Event::Tick);
    desk.finish("a");
    assert!(desk.was_told(1, |event| matches!(
        event,
        EventKind::BuildFinished { duration: 0, .. }
    )));
}

#[test]
fn everything_is_forgotten_with_the_last_session() {
    let mut desk = Desk::new(1);
    for round in 0..3 {
        desk.command(round, options(), &[derivation("a", &[]), derivation("b", &["a"])]);
        if round == 0 {
            desk.finish("a");
            desk.finish("b");
        }
        assert_eq!(desk.outcome(round), Some(Outcome::Success));
        let released = desk.actions.iter().find_map(|action| match action {
            Action::Release { paths } => Some(paths.len()),
            _ => None,
        });
        assert_eq!(released, Some(2));
        assert!(desk.coordinator.is_idle());
    }
}
