use tvix_node_coordinator::{Action, FailureKind};
use tvix_node_protocol::control::{EventKind, Outcome};

use crate::desk::{Desk, derivation, drv, node, offer, options, path};

#[test]
fn a_derivation_is_built_before_anybody_is_known_to_need_it_if_there_is_room() {
    let mut desk = Desk::new(1);
    desk.open(1, options());
    desk.instantiate(1, &[derivation("a", &[])]);
    assert!(!desk.build("a").demanded);
    assert_eq!(
        desk.reason(1, "a"),
        "this node: a free slot that nothing demanded wants"
    );
}

#[test]
fn speculation_starts_only_in_slots_that_nothing_demanded_wants() {
    let mut desk = Desk::new(1);
    desk.open(1, options());
    desk.instantiate(1, &[derivation("busy", &[])]);
    desk.target(1, 0, "busy");
    desk.instantiate(1, &[derivation("guess", &[]), derivation("wanted", &[])]);
    desk.target(1, 1, "wanted");
    desk.finish("busy");
    assert_eq!(desk.words(), ["wanted"]);
    desk.finish("wanted");
    assert_eq!(desk.words(), ["guess"], "nothing demanded wants the slot now");
}

#[test]
fn nobody_elses_machine_works_on_a_guess() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 4));
    desk.open(1, options());
    desk.instantiate(1, &[derivation("a", &[])]);
    assert!(desk.running.is_empty());
    desk.target(1, 0, "a");
    assert_eq!(desk.build("a").node, Some(node(1)));
}

#[test]
fn speculation_fetches_nothing_but_the_inputs_of_a_build_that_starts() {
    let mut desk = Desk::new(1);
    desk.cache_has("input");
    desk.cache_has("whole");
    desk.open(1, options());
    desk.instantiate(1, &[derivation("whole", &[]), derivation("input", &[])]);
    assert!(desk.fetches.is_empty());
    desk.instantiate(1, &[derivation("a", &["input"])]);
    assert_eq!(
        desk.fetches
            .iter()
            .map(|(_, path)| path.clone())
            .collect::<Vec<_>>(),
        [path("input")]
    );
    assert!(desk.running.is_empty(), "it waits for its input");
    desk.arrive("input");
    assert_eq!(desk.words(), ["a"]);
}

#[test]
fn speculation_is_cancelled_when_the_evaluation_ends_without_it() {
    let mut desk = Desk::new(2);
    desk.open(1, options());
    desk.instantiate(1, &[derivation("needless", &[]), derivation("a", &[])]);
    desk.target(1, 0, "a");
    let needless = desk.build("needless").build;
    desk.end_evaluation(1);
    assert_eq!(desk.cancelled, [needless]);
    assert!(desk.was_told(1, |event| matches!(event,
        EventKind::Cancelled { derivation, reason } if *derivation == drv("needless") && reason.contains("ended"))));
    desk.finish("a");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

/// While nobody knows whether the target is to be had, nobody knows either whether its inputs are needed.
#[test]
fn what_runs_already_goes_on_until_it_is_known_what_is_needed() {
    let mut desk = Desk::new(2);
    desk.open(1, options());
    desk.instantiate(1, &[derivation("input", &[]), derivation("needless", &[])]);
    let needless = desk.build("needless").build;
    desk.hold_answers = true;
    let target = derivation("target", &["input"]);
    desk.instantiate(1, &[derivation("unbegun", &[]), target]);
    desk.target(1, 0, "target");
    desk.end_evaluation(1);
    assert!(desk.cancelled.is_empty());
    desk.answer_all();
    assert_eq!(desk.cancelled, [needless]);
    desk.finish("input");
    desk.finish("target");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
    assert_eq!(desk.started, ["input", "needless", "target"]);
}

#[test]
fn speculation_is_cancelled_when_what_would_read_it_turns_out_to_be_present() {
    let mut desk = Desk::new(1);
    desk.own.insert(path("target"));
    desk.open(1, options());
    desk.instantiate(1, &[derivation("input", &[])]);
    let input = desk.build("input").build;
    desk.instantiate(1, &[derivation("middle", &["input"])]);
    assert!(desk.cancelled.is_empty());
    desk.instantiate(1, &[derivation("target", &["middle"])]);
    assert_eq!(desk.cancelled, [input]);
}

#[test]
fn cancelled_speculation_is_taken_up_again_when_something_new_would_read_it() {
    let mut desk = Desk::new(1);
    desk.own.insert(path("target"));
    desk.open(1, options());
    desk.instantiate(1, &[derivation("input", &[]), derivation("target", &["input"])]);
    assert!(desk.running.is_empty());
    desk.instantiate(1, &[derivation("other", &["input"])]);
    assert_eq!(desk.words(), ["input"]);
}

#[test]
fn a_failure_of_speculative_work_does_not_end_the_command() {
    let mut desk = Desk::new(1);
    desk.open(1, options());
    desk.instantiate(1, &[derivation("broken", &[]), derivation("a", &[])]);
    desk.fail("broken", FailureKind::Builder);
    assert!(desk.was_told(1, |event| matches!(
        event,
        EventKind::BuildFailed { demanded: false, .. }
    )));
    desk.target(1, 0, "a");
    desk.end_evaluation(1);
    desk.finish("a");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

#[test]
fn a_speculative_failure_counts_once_it_is_demanded_and_is_not_built_again() {
    let mut desk = Desk::new(1);
    desk.open(1, options());
    desk.instantiate(1, &[derivation("broken", &[])]);
    desk.fail("broken", FailureKind::Builder);
    desk.instantiate(1, &[derivation("a", &["broken"])]);
    assert_eq!(desk.outcome(1), None);
    desk.target(1, 0, "a");
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::BuildFailed { demanded: true, log_tail, .. }
        if log_tail == &["last words"])
    ));
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    assert_eq!(desk.started, ["broken"]);
}

#[test]
fn a_speculative_build_that_becomes_demanded_goes_on() {
    let mut desk = Desk::new(1);
    desk.open(1, options());
    desk.instantiate(1, &[derivation("a", &[])]);
    desk.target(1, 0, "a");
    desk.end_evaluation(1);
    assert!(desk.cancelled.is_empty());
    desk.finish("a");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
    assert_eq!(desk.started, ["a"]);
}

#[test]
fn long_speculation_gives_way_to_demanded_work_and_short_speculation_is_let_finish() {
    let mut desk = Desk::new(1);
    desk.open(1, options());
    desk.instantiate(1, &[derivation("guess", &[]), derivation("wanted", &[])]);
    let guess = desk.build("guess").build;
    desk.target(1, 0, "wanted");
    desk.wait(1900);
    assert!(desk.cancelled.is_empty(), "it may be done any moment");
    desk.wait(200);
    assert_eq!(desk.cancelled, [guess]);
    assert_eq!(desk.started, ["guess"], "the slot is free when the build is over");
    desk.bury();
    assert_eq!(desk.words(), ["wanted"]);
    desk.finish("wanted");
    assert_eq!(desk.words(), ["guess"], "it is not lost, only later");
}

#[test]
fn speculation_that_only_waits_for_its_inputs_gives_way_at_once() {
    let mut desk = Desk::new(1);
    desk.cache_has("input");
    desk.open(1, options());
    desk.instantiate(1, &[derivation("input", &[]), derivation("guess", &["input"])]);
    assert_eq!(desk.fetches.len(), 1);
    desk.instantiate(1, &[derivation("wanted", &[])]);
    desk.target(1, 0, "wanted");
    assert_eq!(desk.words(), ["wanted"]);
    assert!(desk.fetches.is_empty(), "nothing that starts needs it");
    assert!(
        desk.actions
            .iter()
            .any(|action| matches!(action, Action::CancelFetch { .. }))
    );
}

#[test]
fn a_session_that_only_instantiates_builds_nothing_and_asks_nothing() {
    let mut desk = Desk::new(1);
    let mode = tvix_node_protocol::control::SessionMode::Instantiate;
    desk.open(1, tvix_node_coordinator::SessionOptions { mode, ..options() });
    desk.hold_answers = true;
    desk.instantiate(1, &[derivation("a", &[]), derivation("b", &["a"])]);
    desk.target(1, 0, "b");
    desk.end_evaluation(1);
    assert!(desk.questions.is_empty() && desk.running.is_empty());
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}
