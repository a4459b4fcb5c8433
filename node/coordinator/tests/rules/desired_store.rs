use tvix_node_coordinator::{Delivery, Event, SessionOptions, limits};
use tvix_node_protocol::build::DesiredStore;
use tvix_node_protocol::control::{EventKind, Outcome};

use crate::desk::{Desk, derivation, node, offer, options, path, to_folder};

fn push_done(desk: &mut Desk, word: &str) {
    let found = desk.pushes.iter().position(|(_, pushed)| *pushed == path(word));
    let (push, _) = desk.pushes.remove(found.expect("it is being pushed"));
    desk.desired.insert(path(word));
    desk.send(Event::PushFinished { push });
}

#[test]
fn a_target_that_the_desired_store_has_is_done() {
    let mut desk = Desk::new(1);
    desk.desired.insert(path("b"));
    desk.command(1, to_folder(), &[derivation("a", &[]), derivation("b", &["a"])]);
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
    assert!(desk.was_told(1, |event| matches!(event, EventKind::Ended { present: 1, .. })));
    assert!(desk.started.iter().all(|word| word == "a"), "at most guessed at");
}

#[test]
fn a_target_that_is_here_is_pushed_and_not_built() {
    let mut desk = Desk::new(1);
    desk.own.insert(path("a"));
    desk.command(1, to_folder(), &[derivation("a", &[])]);
    assert!(desk.running.is_empty());
    assert_eq!(desk.outcome(1), None);
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::PushStarted { to, .. } if to == "file:///srv/cache")
    ));
    push_done(&mut desk, "a");
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::Pushed { to, .. } if to == "file:///srv/cache")
    ));
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

#[test]
fn a_target_that_is_elsewhere_is_fetched_and_pushed_and_not_built() {
    let mut desk = Desk::new(1);
    desk.cache_has("a");
    desk.command(1, to_folder(), &[derivation("a", &[])]);
    assert!(desk.pushes.is_empty());
    desk.arrive("a");
    assert!(desk.started.is_empty());
    push_done(&mut desk, "a");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

#[test]
fn a_target_that_is_built_here_is_pushed_and_its_inputs_are_not() {
    let mut desk = Desk::new(1);
    desk.command(
        1,
        to_folder(),
        &[derivation("input", &[]), derivation("a", &["input"])],
    );
    desk.finish("input");
    assert!(
        desk.pushes.is_empty(),
        "the store takes what it needs of the closure with the target"
    );
    desk.finish("a");
    push_done(&mut desk, "a");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

#[test]
fn the_desired_store_is_asked_before_anything_is_demanded() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 1));
    desk.hold_answers = true;
    desk.command(1, to_folder(), &[derivation("a", &[])]);
    assert!(desk.running.is_empty());
    desk.answer_all();
    assert_eq!(desk.words(), ["a"]);
}

#[test]
fn a_builder_that_pushed_counts_once_the_store_has_confirmed_it() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 1));
    desk.command(1, to_folder(), &[derivation("a", &[])]);
    let build = desk.build("a").build;
    desk.hold_answers = true;
    desk.finish_as(build, "a", Delivery::DesiredStore);
    assert_eq!(desk.outcome(1), None, "so it says");
    desk.desired.insert(path("a"));
    desk.answer_all();
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
    assert!(
        desk.fetches.is_empty() && desk.pushes.is_empty(),
        "no byte of it came through here"
    );
}

#[test]
fn a_builder_that_only_says_that_it_pushed_is_not_asked_again() {
    let mut desk = Desk::new(1);
    desk.peer(1, offer("b", 1));
    desk.command(
        1,
        tvix_node_coordinator::SessionOptions {
            jobs: Some(0),
            ..to_folder()
        },
        &[derivation("a", &[])],
    );
    let build = desk.build("a").build;
    desk.peer(2, offer("c", 1));
    desk.finish_as(build, "a", Delivery::DesiredStore);
    assert_eq!(desk.build("a").node, Some(crate::desk::node(2)));
    assert!(desk.reason(1, "a").contains("b: it said that it had built it"));
}

#[test]
fn what_a_builder_did_not_push_is_fetched_from_it_and_pushed() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 1));
    desk.command(1, to_folder(), &[derivation("a", &[])]);
    let build = desk.build("a").build;
    desk.finish_as(build, "a", Delivery::AtBuilder);
    desk.arrive("a");
    push_done(&mut desk, "a");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

#[test]
fn a_push_that_fails_for_now_is_tried_again_and_one_that_is_refused_is_not() {
    for transient in [true, false] {
        let mut desk = Desk::new(1);
        desk.own.insert(path("a"));
        desk.command(1, to_folder(), &[derivation("a", &[])]);
        let tries = if transient { limits::PUSH_TRIES } else { 1 };
        for _ in 0..tries {
            assert_eq!(desk.outcome(1), None);
            let (push, _) = desk.pushes.remove(0);
            desk.send(Event::PushFailed {
                push,
                error: "no such folder".into(),
                transient,
            });
        }
        assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
        assert!(
            desk.was_told(1, |event| matches!(event, EventKind::PushFailed { to, error, .. }
            if to == "file:///srv/cache" && error == "no such folder"))
        );
        assert!(
            desk.was_told(1, |event| matches!(event, EventKind::TargetFailed { error, .. }
            if error.contains("file:///srv/cache") && error.contains("no such folder")))
        );
    }
}

#[test]
fn a_push_that_nobody_wants_any_more_is_cancelled() {
    let mut desk = Desk::new(1);
    desk.own.insert(path("a"));
    desk.command(1, to_folder(), &[derivation("a", &[])]);
    assert_eq!(desk.pushes.len(), 1);
    desk.interrupt(1);
    assert!(desk.pushes.is_empty());
}

#[test]
fn an_import_needs_its_outputs_here_whatever_the_desired_store_has() {
    let mut desk = Desk::new(1);
    desk.desired.insert(path("a"));
    desk.open(1, to_folder());
    desk.instantiate(1, &[derivation("a", &[])]);
    desk.import(1, 0, "a");
    desk.finish("a");
    assert!(desk.was_told(1, |event| matches!(event, EventKind::ImportDone { import: 0 })));
}

#[test]
fn two_sessions_may_want_the_same_target_in_different_places() {
    let mut desk = Desk::new(1);
    desk.command(1, crate::desk::options(), &[derivation("a", &[])]);
    desk.command(2, to_folder(), &[derivation("a", &[])]);
    desk.finish("a");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
    assert_eq!(desk.outcome(2), None);
    push_done(&mut desk, "a");
    assert_eq!(desk.outcome(2), Some(Outcome::Success));
}

#[test]
fn what_only_leads_to_something_for_another_store_stays_with_its_builder() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 2));
    let graph = [
        derivation("input", &[]),
        derivation("shared", &[]),
        derivation("a", &["input", "shared"]),
    ];
    desk.command(1, to_folder(), &graph);
    assert!(!desk.build("input").bring);
    let input = desk.build("input").build;
    desk.finish_as(input, "input", Delivery::AtBuilder);
    // What does not reach the store is brought here.
    desk.finish("shared");
    assert!(desk.build("a").bring);
    desk.finish("a");
    push_done(&mut desk, "a");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 2));
    desk.command(2, options(), &graph);
    assert!(desk.build("input").bring && desk.build("shared").bring);
}

#[test]
fn a_desired_store_that_is_not_connected_has_its_name() {
    let mut desk = Desk::new(0);
    let names = [(node(7), "carol".to_owned())].into();
    desk.send(Event::Team {
        names,
        builders: [].into(),
    });
    desk.own.insert(path("a"));
    let to_carol = SessionOptions {
        to: Some(DesiredStore::Node(node(7))),
        ..options()
    };
    desk.command(1, to_carol, &[derivation("a", &[])]);
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::PushStarted { to, .. } if to == "carol")
    ));
}
