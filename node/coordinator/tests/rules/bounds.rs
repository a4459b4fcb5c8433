//! What goes past a bound of what the coordinator holds.

use tvix_node_coordinator::limits::{self, Bounds};
use tvix_node_coordinator::{
    BuiltPath, Delivery, Derivation, Event, FailureKind, PeerOffer, Refusal, SessionId,
};
use tvix_node_protocol::control::Outcome;

use crate::desk::{Desk, derivation, drv, offer, options, path, to_folder};

fn bounds() -> Bounds {
    Bounds {
        derivations: 3,
        targets: 3,
        imports: 3,
        given_up: 1,
    }
}

/// What the session 1 is refused for, which may have three of everything, where another one goes on.
fn refused(act: impl Fn(&mut Desk, u64)) -> Refusal {
    let mut desk = Desk::bounded(8, bounds());
    desk.open(1, options());
    desk.open(2, options());
    for number in 0..3 {
        act(&mut desk, number);
    }
    assert!(desk.refusals.is_empty(), "{:?}", desk.refusals);
    act(&mut desk, 3);
    let (session, refusal) = desk.refusals.remove(0);
    assert_eq!(session, SessionId(1));
    assert!(desk.refusals.is_empty());
    desk.instantiate(2, &[derivation("other", &[])]);
    desk.target(2, 0, "other");
    desk.end_evaluation(2);
    desk.bury();
    assert_eq!(desk.outcome(1), Some(Outcome::EvaluationFailed));
    desk.finish("other");
    assert_eq!(desk.outcome(2), Some(Outcome::Success));
    refusal
}

#[test]
fn a_session_has_so_many_derivations_targets_and_imports_and_the_next_one_ends_it() {
    let too_many = |what| Refusal::TooMany { what, limit: 3 };
    let refusal = refused(|desk, number| desk.instantiate(1, &[derivation(&format!("d{number}"), &[])]));
    assert_eq!(refusal, too_many("derivations"));
    let refusal = refused(|desk, number| {
        desk.instantiate(1, &[derivation("a", &[])]);
        desk.target(1, number, "a");
    });
    assert_eq!(refusal, too_many("targets"));
    let refusal = refused(|desk, number| {
        desk.instantiate(1, &[derivation("a", &[])]);
        desk.import(1, number, "a");
    });
    assert_eq!(refusal, too_many("imports"));
    let of_all = Bounds::default();
    assert_eq!(
        (
            of_all.derivations,
            of_all.targets,
            of_all.imports,
            of_all.given_up
        ),
        (
            limits::DERIVATIONS,
            limits::TARGETS,
            limits::IMPORTS,
            limits::GIVEN_UP
        )
    );
}

#[test]
fn of_so_many_builds_that_were_given_up_a_late_result_is_taken_and_older_ones_are_forgotten() {
    let mut desk = Desk::bounded(0, bounds());
    desk.peer(1, offer("b", 2));
    desk.open(1, options());
    desk.instantiate(1, &[derivation("one", &[]), derivation("two", &[])]);
    desk.target(1, 0, "one");
    desk.target(1, 1, "two");
    desk.end_evaluation(1);
    let [one, two] = ["one", "two"].map(|word| desk.build(word).build);
    assert!(one < two);
    desk.wait(limits::GIVE_UP_AFTER.as_millis() as u64 - 100);
    desk.peer(2, offer("c", 2));
    desk.wait(200);
    for (build, word) in [(one, "one"), (two, "two")] {
        let path = path(word);
        let outputs = [("out".into(), BuiltPath { path, nar_size: 100 })].into();
        desk.send(Event::BuildFinished {
            build,
            outputs,
            delivery: Delivery::AtBuilder,
        });
    }
    let fetched: Vec<_> = desk.fetches.iter().map(|(_, path)| path.clone()).collect();
    assert_eq!(fetched, [path("two")], "the older one is not known any more");
    desk.running
        .retain(|started| ![one, two].contains(&started.build));
    assert_eq!(desk.words(), ["one"], "which goes on elsewhere");
    desk.finish("one");
    desk.arrive("two");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

/// A session with so many targets, each of one derivation without inputs.
fn wide(desk: &mut Desk, options: tvix_node_coordinator::SessionOptions, count: usize) {
    let words: Vec<String> = (0..count).map(|number| format!("w{number}")).collect();
    let derivations: Vec<Derivation> = words.iter().map(|word| derivation(word, &[])).collect();
    desk.open(1, options);
    desk.instantiate(1, &derivations);
    for (number, word) in (0..).zip(&words) {
        desk.target(1, number, word);
    }
    desk.end_evaluation(1);
}

#[test]
fn so_many_pushes_are_under_way_at_once_and_the_next_one_begins_when_one_is_over() {
    let mut desk = Desk::new(1);
    let count = limits::PUSHES + 2;
    for number in 0..count {
        desk.own.insert(path(&format!("w{number}")));
    }
    wide(&mut desk, to_folder(), count);
    for left in (0..count).rev() {
        assert_eq!(desk.pushes.len(), limits::PUSHES.min(left + 1));
        let (push, path) = desk.pushes.remove(0);
        desk.desired.insert(path);
        desk.send(Event::PushFinished { push });
    }
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

#[test]
fn so_many_nodes_are_asked_before_one_derivation_is_placed() {
    let mut desk = Desk::new(1);
    desk.hold_makers = true;
    for number in 1..=limits::ASKED_BEFORE_PLACING + 2 {
        desk.peer(u8::try_from(number).unwrap(), offer("b", 2));
    }
    wide(&mut desk, options(), 1);
    assert_eq!(desk.weighed.len(), limits::ASKED_BEFORE_PLACING);
}

#[test]
fn so_many_derivations_wait_at_once_to_learn_who_has_their_inputs() {
    let mut desk = Desk::new(1);
    desk.hold_makers = true;
    desk.peer(1, offer("b", 200));
    desk.peer(2, offer("c", 200));
    wide(&mut desk, options(), limits::WEIGHING + 2);
    // Both peers are asked about each.
    assert_eq!(desk.weighed.len(), 2 * limits::WEIGHING);
    let none = Event::InputsWeighed {
        derivation: drv("w0"),
        total: 0,
        there: vec![],
        makers: vec![],
        promised: false,
        made: false,
    };
    desk.send(none);
    assert_eq!(
        desk.weighed.len(),
        2 * (limits::WEIGHING + 1),
        "one has its answer"
    );
}

/// Whether something is built that waits behind so many derivations which the only free builder has refused.
fn is_seen_behind(refused: usize) -> bool {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 1));
    // For this one they wait.
    let full = offer("c", 1);
    desk.peer(
        2,
        PeerOffer {
            slots_free: 0,
            ..full
        },
    );
    desk.open(1, options());
    let words: Vec<String> = (0..=refused).map(|number| format!("d{number}")).collect();
    let derivations: Vec<Derivation> = words.iter().map(|word| derivation(word, &[])).collect();
    desk.instantiate(1, &derivations);
    for (number, word) in (0..).zip(&words) {
        desk.target(1, number, word);
    }
    desk.end_evaluation(1);
    for number in 0..refused {
        let build = desk.build(&format!("d{number}")).build;
        desk.fail_build(build, FailureKind::Refused);
        desk.wait(limits::REFUSAL_PAUSE.as_millis() as u64);
    }
    desk.words() == [format!("d{refused}")]
}

#[test]
fn so_many_of_a_line_are_looked_at_and_no_more() {
    assert!(is_seen_behind(limits::LOOKED_AT - 1));
    assert!(!is_seen_behind(limits::LOOKED_AT));
}
