use tvix_node_coordinator::{Action, Event, PathPresence, limits};
use tvix_node_protocol::control::{EventKind, Outcome, PresenceTiming};

use crate::desk::{Desk, derivation, drv, options, path};

#[test]
fn what_is_present_is_not_built_nor_is_anything_only_it_needs() {
    let mut desk = Desk::new(4);
    desk.own.insert(path("b"));
    desk.command(
        1,
        options(),
        &[
            derivation("a", &[]),
            derivation("b", &["a"]),
            derivation("c", &["b"]),
        ],
    );
    assert_eq!(desk.words(), ["c"]);
    desk.finish("c");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
    assert!(!desk.started.contains(&"b".to_owned()));
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::Present { derivation } if *derivation == drv("b"))
    ));
    assert!(desk.was_told(1, |event| matches!(
        event,
        EventKind::Ended {
            built: 1,
            present: 1,
            failed: 0,
            ..
        }
    )));
}

#[test]
fn nothing_is_built_before_it_is_known_whether_it_is_present() {
    let mut desk = Desk::new(1);
    desk.hold_answers = true;
    desk.command(1, options(), &[derivation("a", &[])]);
    assert!(desk.running.is_empty());
    desk.answer_all();
    assert_eq!(desk.words(), ["a"]);
}

#[test]
fn presence_is_asked_as_soon_as_a_derivation_is_instantiated_outputs_and_sources_in_one_question() {
    let mut desk = Desk::new(1);
    desk.hold_answers = true;
    desk.open(1, options());
    let mut a = derivation("a", &[]);
    a.sources = vec![path("source")];
    desk.instantiate(1, &[a, derivation("b", &["a"])]);
    let (_, asked) = &desk.questions[0];
    assert_eq!(desk.questions.len(), 1);
    for word in ["a", "b", "source"] {
        assert_eq!(
            asked.iter().filter(|other| **other == path(word)).count(),
            1,
            "{word}"
        );
    }
}

#[test]
fn questions_are_batched_and_what_is_demanded_goes_first() {
    let mut desk = Desk::new(1);
    desk.hold_answers = true;
    desk.open(1, options());
    let words: Vec<String> = (0..5 * limits::PRESENCE_BATCH)
        .map(|number| format!("p{number}"))
        .collect();
    let all: Vec<_> = words.iter().map(|word| derivation(word, &[])).collect();
    desk.instantiate(1, &all);
    assert_eq!(
        desk.questions.len(),
        limits::QUESTIONS / 2,
        "half of the questions are kept for what is demanded"
    );
    assert!(
        desk.questions
            .iter()
            .all(|(_, paths)| paths.len() == limits::PRESENCE_BATCH)
    );
    let last = words.last().unwrap();
    desk.target(1, 0, last);
    let (_, urgent) = desk.questions.last().unwrap();
    assert_eq!(desk.questions.len(), limits::QUESTIONS / 2 + 1);
    assert_eq!(urgent[0], path(last));
}

#[test]
fn answers_may_come_in_parts() {
    let mut desk = Desk::new(2);
    desk.hold_answers = true;
    desk.command(
        1,
        options(),
        &[
            derivation("a", &[]),
            derivation("b", &[]),
            derivation("c", &["a", "b"]),
        ],
    );
    let (question, paths) = desk.questions.remove(0);
    for path in paths {
        desk.answer(question, &[path]);
    }
    assert_eq!(desk.words(), ["a", "b"]);
}

#[test]
fn a_question_that_is_not_answered_is_put_again_and_then_done_without() {
    let mut desk = Desk::new(1);
    desk.hold_answers = true;
    desk.command(1, options(), &[derivation("a", &[])]);
    for asked in 1..=usize::from(limits::PRESENCE_TRIES) {
        assert_eq!(desk.questions.len(), asked);
        assert!(desk.running.is_empty());
        desk.wait(limits::PRESENCE_PATIENCE.as_millis() as u64);
    }
    assert_eq!(desk.words(), ["a"]);
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::Message { level, .. } if level == "warning")
    ));
}

#[test]
fn an_answer_that_comes_too_late_still_spares_the_build() {
    let mut desk = Desk::new(1);
    desk.hold_answers = true;
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.wait(limits::PRESENCE_PATIENCE.as_millis() as u64 * u64::from(limits::PRESENCE_TRIES));
    let build = desk.build("a").build;
    desk.own.insert(path("a"));
    let (question, paths) = desk.questions.remove(0);
    desk.answer(question, &paths);
    assert_eq!(desk.cancelled, [build]);
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

#[test]
fn a_target_that_a_peer_has_is_fetched_and_not_built() {
    let mut desk = Desk::new(1);
    desk.peer_has(1, "a");
    desk.command(1, options(), &[derivation("a", &[])]);
    assert!(desk.running.is_empty());
    assert_eq!(desk.outcome(1), None, "it is not here yet");
    desk.arrive("a");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
    assert!(desk.was_told(1, |event| matches!(
        event,
        EventKind::Ended {
            fetched: 1,
            built: 0,
            ..
        }
    )));
}

#[test]
fn paths_stay_in_the_store_until_no_session_needs_them() {
    let mut desk = Desk::new(1);
    desk.own.insert(path("a"));
    desk.open(1, options());
    desk.open(2, options());
    for session in [1, 2] {
        desk.instantiate(session, &[derivation("a", &[])]);
        desk.target(session, 0, "a");
    }
    desk.end_evaluation(1);
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
    let released = |desk: &Desk| {
        desk.actions
            .iter()
            .any(|action| matches!(action, Action::Release { .. }))
    };
    assert!(!released(&desk), "the other session has it too");
    desk.end_evaluation(2);
    assert!(released(&desk));
}

#[test]
fn a_path_that_is_reported_when_nobody_needs_it_any_more_is_released() {
    let mut desk = Desk::new(1);
    desk.own.insert(path("a"));
    desk.hold_answers = true;
    desk.open(1, options());
    desk.instantiate(1, &[derivation("a", &[])]);
    let (question, _) = desk.questions.remove(0);
    desk.interrupt(1);
    let there = PathPresence {
        path: path("a"),
        own: true,
        desired: false,
        sources: vec![],
        unheard: false,
        nar_size: None,
    };
    desk.send(Event::Presence {
        question,
        paths: vec![there],
    });
    assert_eq!(
        desk.actions,
        [Action::Release {
            paths: vec![path("a")]
        }]
    );
}

#[test]
fn of_several_outputs_only_those_that_are_wanted_decide() {
    let mut desk = Desk::new(1);
    let mut a = derivation("a", &[]);
    a.outputs.insert("doc".into(), path("a-doc"));
    desk.own.insert(path("a"));
    desk.command(1, options(), &[a.clone()]);
    assert_eq!(desk.outcome(1), Some(Outcome::Success), "nobody wants the manual");
    assert!(desk.started.is_empty());

    let mut reader = derivation("b", &["a"]);
    reader.inputs[0].outputs.push("doc".into());
    desk.command(2, options(), &[a, reader]);
    assert_eq!(desk.words(), ["a"], "now somebody does");
}

/// What a session was told at its end of the answers about presence: in time, waited for, done without, the longest wait.
fn timing(desk: &Desk, session: u64) -> (u64, u64, u64, u64) {
    let ended = desk.told.iter().rev().find_map(|(other, event)| match event {
        EventKind::Ended { presence, .. } if *other == session => Some(*presence),
        _ => None,
    });
    let PresenceTiming {
        in_time,
        waited,
        without,
        longest,
    } = ended.expect("the session has ended");
    (in_time, waited, without, longest)
}

#[test]
fn an_answer_is_in_time_where_it_comes_before_a_target_is_known_to_need_it() {
    let mut desk = Desk::new(4);
    desk.own.insert(path("here"));
    desk.peer_has(1, "there");
    let all = [
        derivation("here", &[]),
        derivation("there", &[]),
        derivation("a", &["here", "there"]),
        derivation("b", &["a"]),
    ];
    desk.open(1, options());
    desk.instantiate(1, &all);
    desk.now = 500;
    desk.target(1, 0, "b");
    desk.end_evaluation(1);
    desk.arrive("there");
    desk.finish("a");
    desk.finish("b");
    // What the own store has needs nobody's answer.
    assert_eq!(timing(&desk, 1), (3, 0, 0, 0));
}

#[test]
fn an_answer_that_a_free_slot_waits_for_is_late() {
    let mut desk = Desk::new(4);
    desk.hold_answers = true;
    desk.command(1, options(), &[derivation("a", &[]), derivation("b", &["a"])]);
    desk.now = 300;
    desk.answer_all();
    desk.finish("a");
    desk.finish("b");
    // It was asked for what 'b' needs, too, while it was waited for the answer of 'b'.
    assert_eq!(timing(&desk, 1), (1, 1, 0, 300));
}

#[test]
fn an_answer_that_comes_while_all_slots_are_taken_is_in_time() {
    let mut desk = Desk::new(1);
    desk.command(1, options(), &[derivation("first", &[])]);
    assert_eq!(desk.words(), ["first"]);
    desk.hold_answers = true;
    desk.command(2, options(), &[derivation("second", &[])]);
    desk.now = 300;
    desk.answer_all();
    desk.finish("first");
    desk.finish("second");
    assert_eq!(timing(&desk, 2), (1, 0, 0, 0));
}

#[test]
fn a_path_that_could_have_been_fetched_was_waited_for_whether_or_not_there_was_a_slot() {
    let mut desk = Desk::new(1);
    desk.command(1, options(), &[derivation("first", &[])]);
    desk.peer_has(1, "second");
    desk.hold_answers = true;
    desk.command(2, options(), &[derivation("second", &[])]);
    desk.now = 300;
    desk.answer_all();
    desk.arrive("second");
    assert_eq!(timing(&desk, 2), (0, 1, 0, 300));
}

#[test]
fn no_more_answers_are_late_than_there_were_slots_for() {
    let mut desk = Desk::new(2);
    desk.hold_answers = true;
    desk.open(1, options());
    let words: Vec<String> = (0..10).map(|number| format!("p{number}")).collect();
    let all: Vec<_> = words.iter().map(|word| derivation(word, &[])).collect();
    desk.instantiate(1, &all);
    for (number, word) in (0..).zip(&words) {
        desk.target(1, number, word);
    }
    desk.end_evaluation(1);
    desk.now = 20;
    desk.answer_all();
    for word in &words {
        desk.finish(word);
    }
    assert_eq!(timing(&desk, 1), (8, 2, 0, 20));
}

#[test]
fn what_nobody_answers_and_what_a_silent_member_may_have_is_done_without() {
    let mut desk = Desk::new(1);
    desk.hold_answers = true;
    desk.command(1, options(), &[derivation("a", &[])]);
    let patience = limits::PRESENCE_PATIENCE.as_millis() as u64 * u64::from(limits::PRESENCE_TRIES);
    desk.wait(patience);
    desk.finish("a");
    assert_eq!(timing(&desk, 1), (0, 0, 1, patience));

    let mut desk = Desk::new(1);
    desk.unheard = true;
    desk.peer_has(1, "there");
    desk.open(1, options());
    desk.instantiate(1, &[derivation("there", &[]), derivation("a", &["there"])]);
    desk.target(1, 0, "a");
    desk.end_evaluation(1);
    desk.arrive("there");
    desk.finish("a");
    assert_eq!(timing(&desk, 1), (1, 0, 1, 0));
}

#[test]
fn two_commands_that_want_the_same_waited_for_it_each_from_when_it_needed_it() {
    let mut desk = Desk::new(2);
    desk.hold_answers = true;
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.wait(200);
    desk.command(2, options(), &[derivation("a", &[])]);
    desk.wait(100);
    desk.answer_all();
    desk.finish("a");
    assert_eq!(timing(&desk, 1), (0, 1, 0, 300));
    assert_eq!(timing(&desk, 2), (0, 1, 0, 100));

    // Its slot was free only before the second one came.
    let checking = |count| Event::SlotsLent { count, giving_way: 0 };
    let mut desk = Desk::new(1);
    desk.hold_answers = true;
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.wait(100);
    desk.send(checking(1));
    desk.command(2, options(), &[derivation("a", &[])]);
    desk.wait(100);
    desk.answer_all();
    desk.send(checking(0));
    desk.finish("a");
    assert_eq!(timing(&desk, 1), (0, 1, 0, 200));
    assert_eq!(timing(&desk, 2), (1, 0, 0, 0));
}

#[test]
fn a_command_that_has_left_leaves_its_wait_to_nobody() {
    let mut desk = Desk::new(1);
    desk.hold_answers = true;
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.wait(200);
    desk.command(2, options(), &[derivation("a", &[])]);
    desk.interrupt(1);
    desk.wait(50);
    // It has the place of the one that has left.
    desk.command(3, options(), &[derivation("a", &[])]);
    desk.wait(50);
    desk.answer_all();
    desk.finish("a");
    assert_eq!(timing(&desk, 2), (0, 1, 0, 100));
    assert_eq!(timing(&desk, 3), (0, 1, 0, 50));
}
