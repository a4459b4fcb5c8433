use tvix_node_coordinator::{Action, Event, FailureKind, PeerOffer, Source, Urgency, limits};
use tvix_node_protocol::control::{EventKind, Outcome};

use crate::desk::{Desk, derivation, node, offer, options, path};

#[test]
fn inputs_are_brought_here_before_a_build_starts_here() {
    let mut desk = Desk::new(1);
    desk.cache_has("one");
    desk.cache_has("two");
    let all = [
        derivation("one", &[]),
        derivation("two", &[]),
        derivation("a", &["one", "two"]),
    ];
    desk.command(1, options(), &all);
    assert_eq!(desk.fetches.len(), 2);
    desk.arrive("one");
    assert!(desk.running.is_empty());
    desk.arrive("two");
    assert_eq!(desk.words(), ["a"]);
}

#[test]
fn inputs_are_fetched_once_for_all_who_need_them() {
    let mut desk = Desk::new(2);
    desk.cache_has("input");
    let all = [
        derivation("input", &[]),
        derivation("a", &["input"]),
        derivation("b", &["input"]),
    ];
    desk.open(1, options());
    desk.instantiate(1, &all);
    desk.target(1, 0, "a");
    desk.target(1, 1, "b");
    desk.target(1, 2, "input");
    assert_eq!(desk.fetches.len(), 1);
    desk.arrive("input");
    assert_eq!(desk.words(), ["a", "b"]);
}

#[test]
fn nothing_is_brought_here_for_a_build_elsewhere() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 1));
    desk.cache_has("input");
    desk.command(
        1,
        options(),
        &[derivation("input", &[]), derivation("a", &["input"])],
    );
    assert_eq!(desk.build("a").node, Some(node(1)));
    assert!(desk.fetches.is_empty());
}

#[test]
fn what_an_evaluation_waits_for_is_fetched_as_an_import() {
    let mut desk = Desk::new(1);
    desk.cache_has("a");
    desk.open(1, options());
    desk.instantiate(1, &[derivation("a", &[])]);
    desk.import(1, 0, "a");
    assert!(desk.actions.iter().any(|action| matches!(
        action,
        Action::Fetch {
            urgency: Urgency::Import,
            ..
        }
    )));
}

#[test]
fn a_fetch_that_becomes_more_urgent_is_hurried_and_one_that_becomes_less_so_is_not_held_up() {
    let mut desk = Desk::new(1);
    desk.cache_has("a");
    desk.open(1, options());
    desk.instantiate(1, &[derivation("a", &[])]);
    desk.target(1, 0, "a");
    assert_eq!(desk.fetches.len(), 1);
    assert_eq!(desk.hurried, []);
    desk.open(2, options());
    desk.instantiate(2, &[derivation("a", &[])]);
    desk.import(2, 0, "a");
    assert_eq!(desk.hurried, [(Urgency::Import, false)]);
    desk.open(3, options());
    desk.instantiate(3, &[derivation("a", &[]), derivation("b", &["a"])]);
    desk.target(3, 1, "b");
    let all = [(Urgency::Import, false), (Urgency::Import, true)];
    assert_eq!(desk.hurried, all);
    desk.interrupt(2);
    assert_eq!(desk.hurried, all);
    assert_eq!(desk.fetches.len(), 1, "it is one and the same");
}

#[test]
fn what_a_build_waits_for_is_fetched_as_such() {
    let mut desk = Desk::new(1);
    desk.cache_has("input");
    desk.cache_has("b");
    desk.command(
        1,
        options(),
        &[
            derivation("input", &[]),
            derivation("a", &["input"]),
            derivation("b", &[]),
        ],
    );
    desk.target(1, 1, "a");
    desk.awaited.sort();
    assert_eq!(
        desk.awaited,
        [("b".to_owned(), false), ("input".to_owned(), true)]
    );
}

#[test]
fn a_fetch_is_told_of_and_counted_path_by_path() {
    let mut desk = Desk::new(1);
    desk.cache_has("a");
    desk.command(1, options(), &[derivation("a", &[])]);
    let (fetch, _) = desk.fetches[0];
    let from = Source::Cache("https://cache.example".into());
    let library = path("library");
    desk.own.insert(library.clone());
    desk.send(Event::FetchStarted {
        fetch,
        path: library.clone(),
        from: from.clone(),
    });
    desk.send(Event::FetchArrived {
        fetch,
        path: library.clone(),
        from,
        bytes: 70,
    });
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::FetchStarted { from, .. } if from == "https://cache.example")
    ));
    desk.arrive("a");
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::FetchFinished { path, bytes: 70, .. } if *path == library)
    ));
    assert!(desk.was_told(1, |event| matches!(event, EventKind::Ended { fetched: 2, .. })));
}

#[test]
fn a_fetch_that_fails_is_tried_from_others_and_built_in_the_end() {
    let mut desk = Desk::new(1);
    desk.cache_has("a");
    desk.command(1, options(), &[derivation("a", &[])]);
    for _ in 0..limits::FETCH_TRIES {
        let (fetch, _) = desk.fetches.remove(0);
        assert!(desk.running.is_empty());
        desk.send(Event::FetchFailed {
            fetch,
            error: "404".into(),
        });
    }
    assert_eq!(
        desk.words(),
        ["a"],
        "who says that they have it has had their chance"
    );
    desk.finish("a");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::FetchFailed { error, .. } if error == "404")
    ));
}

#[test]
fn what_has_no_room_is_not_built_instead() {
    let mut desk = Desk::new(1);
    desk.cache_has("a");
    desk.command(1, options(), &[derivation("a", &[])]);
    let (fetch, _) = desk.fetches.remove(0);
    desk.send(Event::NoRoom {
        fetch,
        error: "the disk is full".into(),
    });
    assert!(!desk.words().contains(&"a"), "{:?}", desk.words());
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::TargetFailed { error, .. } if error == "the disk is full")
    ));
}

#[test]
fn an_input_that_cannot_be_fetched_is_built_before_the_build_that_waits_for_it() {
    let mut desk = Desk::new(1);
    desk.cache_has("input");
    desk.command(
        1,
        options(),
        &[derivation("input", &[]), derivation("a", &["input"])],
    );
    desk.elsewhere.clear();
    let (fetch, _) = desk.fetches.remove(0);
    desk.send(Event::FetchFailed {
        fetch,
        error: "404".into(),
    });
    assert_eq!(desk.words(), ["input"]);
    desk.finish("input");
    assert_eq!(desk.words(), ["a"]);
}

#[test]
fn a_fetch_that_failed_says_what_it_leaves_unfinished() {
    let mut desk = Desk::new(1);
    desk.cache_has("a");
    desk.command(1, options(), &[derivation("a", &[])]);
    let (fetch, _) = desk.fetches.remove(0);
    let from = || Source::Peer(node(1));
    desk.own.insert(path("arrived"));
    for word in ["arrived", "begun", "a"] {
        desk.send(Event::FetchStarted {
            fetch,
            path: path(word),
            from: from(),
        });
    }
    desk.send(Event::FetchArrived {
        fetch,
        path: path("arrived"),
        from: from(),
        bytes: 1,
    });
    desk.send(Event::FetchFailed {
        fetch,
        error: "gone".into(),
    });
    let mut left = vec![path("a"), path("begun")];
    left.sort();
    assert!(desk.was_told(1, |event| matches!(
        event,
        EventKind::FetchFailed { path: failed, unfinished, .. } if *failed == path("a") && *unfinished == left
    )));
}

#[test]
fn a_fetch_that_nobody_wants_any_more_is_cancelled() {
    let mut desk = Desk::new(1);
    desk.cache_has("a");
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.interrupt(1);
    assert!(desk.fetches.is_empty());
    assert_eq!(desk.outcome(1), Some(Outcome::Interrupted));
}

#[test]
fn a_fetch_goes_on_for_another_session() {
    let mut desk = Desk::new(1);
    desk.cache_has("a");
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.command(2, options(), &[derivation("a", &[])]);
    desk.interrupt(1);
    desk.arrive("a");
    assert_eq!(desk.outcome(2), Some(Outcome::Success));
}

#[test]
fn what_only_a_peer_had_that_is_gone_is_looked_for_again_and_then_built() {
    let mut desk = Desk::new(1);
    desk.peer(1, offer("b", 0));
    desk.peer_has(1, "a");
    desk.command(1, options(), &[derivation("a", &[])]);
    assert!(desk.running.is_empty());
    desk.elsewhere.clear();
    desk.send(Event::PeerGone { node: node(1) });
    assert_eq!(desk.words(), ["a"]);
}

#[test]
fn what_a_peer_that_is_gone_had_is_not_built_if_nothing_needs_it_any_more() {
    let mut desk = Desk::new(1);
    desk.peer(1, offer("b", 0));
    desk.peer_has(1, "input");
    desk.open(1, options());
    desk.instantiate(1, &[derivation("input", &[]), derivation("a", &["input"])]);
    desk.target(1, 0, "a");
    desk.arrive("input");
    desk.finish("a");
    desk.elsewhere.clear();
    desk.send(Event::PeerGone { node: node(1) });
    assert!(desk.running.is_empty());
}

#[test]
fn only_so_many_fetches_run_at_once() {
    let mut desk = Desk::new(1);
    let words: Vec<String> = (0..2 * limits::FETCHES)
        .map(|number| format!("p{number}"))
        .collect();
    desk.open(1, options());
    for (number, word) in words.iter().enumerate() {
        desk.cache_has(word);
        desk.instantiate(1, &[derivation(word, &[])]);
        desk.target(1, number as u64, word);
    }
    assert_eq!(desk.fetches.len(), limits::FETCHES);
    desk.arrive("p0");
    assert_eq!(desk.fetches.len(), limits::FETCHES);
}

#[test]
fn a_builder_that_never_takes_inputs_that_are_here_is_asked_three_times() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 1));
    desk.own.insert(path("input"));
    desk.command(
        1,
        options(),
        &[derivation("input", &[]), derivation("a", &["input"])],
    );
    for tried in 1..=limits::UNTAKEN_TRIES {
        assert_eq!(desk.outcome(1), None);
        let build = desk.build("a").build;
        desk.send(Event::InputsMissing {
            build,
            paths: vec![path("input")],
        });
        desk.fail_build(build, FailureKind::Busy);
        if tried < limits::UNTAKEN_TRIES {
            assert_eq!(
                desk.words(),
                Vec::<String>::new(),
                "it is left alone for a moment"
            );
            desk.wait(limits::REFUSAL_PAUSE.as_millis() as u64);
        }
    }
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));

    // Another one is asked instead.
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 1));
    let full = PeerOffer {
        slots_free: 0,
        ..offer("c", 1)
    };
    desk.peer(2, full);
    desk.own.insert(path("input"));
    desk.command(
        1,
        options(),
        &[derivation("input", &[]), derivation("a", &["input"])],
    );
    for _ in 0..limits::UNTAKEN_TRIES {
        // Nobody says whether the other one is at it.
        desk.wait(limits::WEIGH_PATIENCE.as_millis() as u64);
        let build = desk.build("a").build;
        desk.send(Event::InputsMissing {
            build,
            paths: vec![path("input")],
        });
        desk.fail_build(build, FailureKind::Busy);
        desk.wait(limits::REFUSAL_PAUSE.as_millis() as u64);
    }
    desk.peer(2, offer("c", 1));
    assert_eq!(desk.build("a").node, Some(node(2)));
}

#[test]
fn inputs_that_a_builder_cannot_get_are_looked_for_anew_and_are_not_its_fault() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 1));
    desk.peer_has(2, "input");
    desk.command(
        1,
        options(),
        &[derivation("input", &[]), derivation("a", &["input"])],
    );
    let build = desk.build("a").build;
    desk.elsewhere.clear();
    desk.send(Event::InputsMissing {
        build,
        paths: vec![path("input")],
    });
    desk.fail_build(build, FailureKind::Transient);
    assert_eq!(desk.build("input").node, Some(node(1)), "nobody has it after all");
    let input = desk.build("input").build;
    desk.finish_as(input, "input", tvix_node_coordinator::Delivery::AtBuilder);
    assert_eq!(desk.build("a").node, Some(node(1)), "it is asked again");
}
