//! What others build, or have built, while this node is about to.

use tvix_node_coordinator::{
    Action, Delivery, Derivation, Event, FailureKind, PeerOffer, Quorum, Source, limits,
};
use tvix_node_protocol::control::Outcome;
use tvix_node_protocol::envelope::NodeKey;

use crate::desk::{Desk, derivation, drv, node, offer, options, path};

/// A builder whose slots are all taken.
fn full(name: &str, slots: u32) -> PeerOffer {
    PeerOffer {
        slots_free: 0,
        ..offer(name, slots)
    }
}

/// The answer of those who were asked before a derivation is placed.
fn answer(desk: &mut Desk, word: &str, makers: &[u8], made: bool) {
    desk.send(Event::InputsWeighed {
        derivation: drv(word),
        total: 0,
        there: vec![],
        makers: makers.iter().map(|maker| Some(node(*maker))).collect(),
        promised: false,
        made,
    });
}

/// This node, with so many slots, wants `a`, and has asked who builds it.
fn about_to_place(slots: u32, peers: &[(u8, PeerOffer)]) -> Desk {
    let mut desk = Desk::new(slots);
    desk.hold_makers = true;
    for (number, offer) in peers {
        desk.peer(*number, offer.clone());
    }
    desk.command(1, options(), &[derivation("a", &[])]);
    assert!(desk.running.is_empty(), "it waits to learn who builds it");
    desk
}

#[test]
fn what_another_node_builds_already_is_had_from_there() {
    let mut desk = about_to_place(4, &[(1, full("b", 1)), (2, offer("c", 4))]);
    assert_eq!(desk.weighed, [node(1), node(2)], "also who has no free slot");
    answer(&mut desk, "a", &[1], false);
    assert_eq!(desk.build("a").node, Some(node(1)));
    assert_eq!(desk.reason(1, "a"), "b: builds it already");
    desk.finish_as(desk.build("a").build, "a", Delivery::OwnStore);
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
    assert_eq!(desk.started, ["a"]);
}

#[test]
fn nobody_is_asked_where_there_is_no_choice() {
    let mut desk = Desk::new(1);
    desk.hold_makers = true;
    desk.command(1, options(), &[derivation("a", &[])]);
    assert_eq!(desk.build("a").node, None, "there is nobody else");
    let mut desk = Desk::new(0);
    desk.hold_makers = true;
    desk.peer(1, offer("b", 1));
    desk.command(1, options(), &[derivation("a", &[])]);
    assert_eq!(desk.build("a").node, Some(node(1)), "it goes there in any case");
}

#[test]
fn a_build_that_is_joined_takes_no_slot_and_gives_none() {
    let mut desk = about_to_place(1, &[(1, full("b", 1))]);
    answer(&mut desk, "a", &[1], false);
    desk.finish_as(desk.build("a").build, "a", Delivery::OwnStore);
    // Were one free there, one of these would be placed on it.
    desk.command(2, options(), &[derivation("long", &[])]);
    answer(&mut desk, "long", &[], false);
    assert_eq!(desk.build("long").node, None);
    desk.command(3, options(), &[derivation("next", &[])]);
    assert_eq!(desk.words(), ["long"]);

    let mut desk = about_to_place(1, &[(1, offer("b", 1))]);
    answer(&mut desk, "a", &[1], false);
    desk.command(2, options(), &[derivation("long", &[])]);
    answer(&mut desk, "long", &[], false);
    desk.command(3, options(), &[derivation("next", &[])]);
    answer(&mut desk, "next", &[], false);
    let ways: Vec<_> = desk.running.iter().map(|started| started.node).collect();
    assert_eq!(
        ways.len(),
        3,
        "what is joined leaves the slot there for another build"
    );
}

#[test]
fn a_builder_is_not_believed_to_build_just_anything() {
    let mut desk = Desk::new(0);
    desk.hold_makers = true;
    desk.peer(1, full("b", 1));
    desk.peer(2, offer("c", 200));
    let words: Vec<String> = (0..=limits::JOINED)
        .map(|number| format!("claimed-{number}"))
        .collect();
    let mut wanted: Vec<Derivation> = words.iter().map(|word| derivation(word, &[])).collect();
    let inputs: Vec<&str> = words.iter().map(String::as_str).collect();
    wanted.push(derivation("all", &inputs));
    desk.command(1, options(), &wanted);
    for word in &words {
        answer(&mut desk, word, &[1], false);
    }
    let joined = words.iter().filter(|word| desk.build(word).node == Some(node(1)));
    assert_eq!(joined.count(), limits::JOINED);
}

/// A build that had to wait where it was joined, and is short.
#[test]
fn what_is_joined_is_late_when_it_has_run_too_long_and_not_when_it_has_waited() {
    let mut desk = Desk::new(1);
    desk.command(1, options(), &[derivation("a-1", &[])]);
    let build = desk.build("a-1").build;
    desk.send(Event::BuildStarted { build });
    desk.now += 100;
    desk.finish("a-1");
    desk.hold_makers = true;
    desk.peer(1, full("b", 1));
    desk.command(2, options(), &[derivation("a-2", &[])]);
    answer(&mut desk, "a-2", &[1], false);
    let build = desk.build("a-2").build;
    let pass = |desk: &mut Desk| {
        for _ in 0..5 {
            desk.wait(1_000);
            desk.send(Event::Heartbeat { build });
        }
    };
    pass(&mut desk);
    assert_eq!(desk.words(), ["a-2"], "it waits for a slot there");
    desk.send(Event::BuildStarted { build });
    pass(&mut desk);
    assert_eq!(desk.words(), ["a-2", "a-2"], "now it is raced");
}

#[test]
fn who_is_said_to_build_it_and_cannot_is_not_asked() {
    let mut other = full("b", 1);
    other.systems = vec!["riscv64-linux".into()];
    let mut desk = about_to_place(1, &[(1, other), (2, full("c", 1))]);
    assert_eq!(desk.weighed, [node(2)]);
    answer(&mut desk, "a", &[1, 7], false);
    assert_eq!(desk.build("a").node, None);
}

#[test]
fn a_builder_that_refused_it_is_not_joined_again() {
    let mut desk = about_to_place(1, &[(1, full("b", 1))]);
    answer(&mut desk, "a", &[1], false);
    desk.fail("a", FailureKind::Refused);
    assert_eq!(desk.build("a").node, None, "there is nobody else to ask");
    assert!(desk.reason(1, "a").contains("tried before: b: no, thank you"));
}

#[test]
fn a_build_that_ended_without_a_result_is_begun_here_unless_another_one_has_begun_it() {
    let mut desk = about_to_place(1, &[(1, full("b", 1)), (2, full("c", 1))]);
    answer(&mut desk, "a", &[1], false);
    desk.fail("a", FailureKind::Busy);
    answer(&mut desk, "a", &[2], false);
    assert_eq!(desk.build("a").node, Some(node(2)));
    desk.fail("a", FailureKind::Busy);
    answer(&mut desk, "a", &[], false);
    assert_eq!(desk.build("a").node, None);
}

#[test]
fn what_was_made_meanwhile_is_looked_for_anew_and_not_built() {
    let mut desk = about_to_place(1, &[(1, full("b", 1))]);
    desk.peer_has(1, "a");
    answer(&mut desk, "a", &[], true);
    assert!(desk.running.is_empty());
    desk.arrive("a");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
    assert!(desk.started.is_empty());
}

#[test]
fn what_is_said_to_be_made_and_is_not_believed_is_built_and_looked_for_once() {
    let mut desk = about_to_place(1, &[(1, full("b", 1))]);
    desk.hold_answers = true;
    answer(&mut desk, "a", &[], true);
    assert_eq!(desk.questions.len(), 1);
    assert!(desk.running.is_empty(), "it waits for the answer");
    desk.wait(limits::WEIGHTS_KEPT.as_millis() as u64);
    desk.answer_all();
    // What was learned is out of date by now.
    assert!(desk.running.is_empty());
    answer(&mut desk, "a", &[], true);
    assert!(desk.questions.is_empty());
    assert_eq!(desk.build("a").node, None);
}

#[test]
fn what_was_learned_is_learned_anew_after_a_while() {
    let mut desk = about_to_place(1, &[(1, full("b", 1))]);
    desk.offer_own(0);
    answer(&mut desk, "a", &[], false);
    assert!(desk.running.is_empty(), "the slot is gone meanwhile");
    desk.weighed.clear();
    desk.wait(limits::WEIGHTS_KEPT.as_millis() as u64);
    desk.offer_own(1);
    assert_eq!(desk.weighed, [node(1)]);
    answer(&mut desk, "a", &[1], false);
    assert_eq!(desk.build("a").node, Some(node(1)));
}

#[test]
fn builds_that_several_have_to_do_each_for_himself_are_not_joined() {
    let quorum = Quorum {
        needed: 1,
        here: true,
        of: vec![node(1)],
    };
    let agreed = Derivation {
        quorum: Some(quorum),
        ..derivation("a", &[])
    };
    let mut desk = Desk::new(1);
    desk.hold_makers = true;
    desk.peer(1, full("b", 1));
    desk.command(1, options(), &[agreed]);
    assert_eq!(desk.build("a").node, None);
    assert!(desk.weighed.is_empty());
}

#[test]
fn what_is_not_worth_the_way_is_not_asked_for() {
    let local = Derivation {
        prefer_local: true,
        ..derivation("a", &[])
    };
    let mut desk = Desk::new(1);
    desk.hold_makers = true;
    desk.peer(1, offer("b", 1));
    desk.command(1, options(), &[local]);
    assert_eq!(desk.build("a").node, None);
    assert!(desk.weighed.is_empty());
}

#[test]
fn whoever_asks_is_told_of_a_build_until_it_is_over() {
    let mut desk = Desk::new(1);
    desk.peer_has(1, "input");
    desk.command(
        1,
        options(),
        &[derivation("input", &[]), derivation("a", &["input"])],
    );
    let announced: Vec<_> = desk.announced.values().cloned().collect();
    assert_eq!(
        announced,
        [("a".to_owned(), None)],
        "from when its inputs are brought"
    );
    desk.arrive("input");
    assert_eq!(desk.announced.len(), 1);
    desk.finish("a");
    assert!(desk.announced.is_empty());

    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 1));
    desk.command(1, options(), &[derivation("a", &[])]);
    let announced: Vec<_> = desk.announced.values().cloned().collect();
    assert_eq!(
        announced,
        [("a".to_owned(), Some(node(1)))],
        "who asks is told where"
    );
    desk.interrupt(1);
    assert!(desk.announced.is_empty());
}

#[test]
fn nobody_is_told_of_a_build_that_is_being_stopped() {
    let mut desk = Desk::new(1);
    desk.command(1, options(), &[derivation("a", &[])]);
    assert_eq!(desk.announced.len(), 1);
    desk.interrupt(1);
    assert_eq!(desk.words(), ["a"], "it is not over yet");
    assert!(desk.announced.is_empty());
    desk.bury();
}

#[test]
fn whoever_asks_is_told_of_a_guess() {
    let mut desk = Desk::new(1);
    desk.open(1, options());
    desk.instantiate(1, &[derivation("a", &[])]);
    assert_eq!(desk.words(), ["a"]);
    assert_eq!(desk.announced.len(), 1);
}

#[test]
fn what_another_node_builds_is_no_guess_until_it_is_demanded() {
    let mut desk = Desk::new(1);
    desk.hold_makers = true;
    desk.peer(1, full("b", 1));
    desk.open(1, options());
    desk.instantiate(1, &[derivation("a", &[]), derivation("c", &[])]);
    assert!(desk.running.is_empty(), "one slot, one question");
    answer(&mut desk, "a", &[1], false);
    answer(&mut desk, "c", &[], false);
    assert_eq!(desk.words(), ["c"], "the slot is for something else");
    assert_eq!(desk.build("c").node, None);
    desk.target(1, 0, "a");
    assert_eq!(desk.build("a").node, Some(node(1)), "now it is asked for");
}

#[test]
fn nobody_is_told_of_a_fixed_output_that_is_made_here() {
    let fixed = Derivation {
        fixed_output: true,
        ..derivation("a", &[])
    };
    let mut desk = Desk::new(1);
    desk.command(1, options(), std::slice::from_ref(&fixed));
    assert_eq!(desk.build("a").node, None);
    assert!(desk.announced.is_empty());
    desk.finish("a");

    // Elsewhere it is shared by all who ask for it.
    let mut desk = Desk::new(0);
    let lends = PeerOffer {
        fixed_outputs: true,
        ..offer("b", 1)
    };
    desk.peer(1, lends);
    desk.command(1, options(), &[fixed]);
    assert_eq!(desk.announced.len(), 1);
}

#[test]
fn what_can_be_had_by_then_is_not_looked_for() {
    let mut desk = about_to_place(1, &[(1, full("b", 1))]);
    desk.elsewhere.insert(path("a"), vec![Source::Peer(node(1))]);
    answer(&mut desk, "a", &[1], true);
    assert!(
        desk.started.is_empty(),
        "what is there goes before what is being made"
    );
    desk.arrive("a");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

/// This node has one slot, builds `busy` in it, and wants `a`, which another has asked it to build.
fn asked_by_another(promised: bool, makers: Vec<Option<NodeKey>>) -> Desk {
    let mut desk = Desk::new(1);
    desk.command(1, options(), &[derivation("busy", &[])]);
    desk.hold_makers = true;
    desk.peer(1, offer("b", 2));
    desk.command(2, options(), &[derivation("a", &[])]);
    assert_eq!(
        desk.weighed,
        [node(1)],
        "the other one has room, and is asked first"
    );
    desk.send(Event::InputsWeighed {
        derivation: drv("a"),
        total: 0,
        there: vec![],
        makers,
        promised,
        made: false,
    });
    desk
}

fn joins(desk: &Desk) -> bool {
    desk.actions
        .iter()
        .any(|action| matches!(action, Action::BuildHere { joins: true, .. }))
}

#[test]
fn what_this_node_builds_for_another_is_joined_without_a_slot() {
    let mut desk = asked_by_another(false, vec![None]);
    assert!(joins(&desk));
    assert_eq!(desk.words(), ["a", "busy"]);
    assert_eq!(desk.reason(2, "a"), "this node: builds it already, for another");
    desk.finish("a");
    desk.finish("busy");
    assert_eq!(desk.coordinator.free_slots(), 1);
    for session in [1, 2] {
        assert_eq!(desk.outcome(session), Some(Outcome::Success));
    }
}

#[test]
fn what_could_not_be_joined_here_is_built_as_anything_else() {
    let mut desk = asked_by_another(false, vec![None]);
    desk.fail("a", FailureKind::Busy);
    assert_eq!(desk.words(), ["busy"]);
    desk.send(Event::InputsWeighed {
        derivation: drv("a"),
        total: 0,
        there: vec![],
        makers: vec![None],
        promised: true,
        made: false,
    });
    assert_eq!(desk.build("a").node, Some(node(1)));
}

#[test]
fn what_this_node_is_about_to_build_for_another_is_placed_nowhere_else() {
    let mut desk = asked_by_another(true, vec![]);
    assert_eq!(desk.words(), ["busy"], "it waits for a slot here");
    // It is looked at anew: who had asked for it may have taken that back.
    desk.weighed.clear();
    desk.wait(limits::HELD.as_millis() as u64);
    assert_eq!(desk.weighed, [node(1)]);
    answer(&mut desk, "a", &[], false);
    assert_eq!(desk.build("a").node, Some(node(1)));

    let mut desk = asked_by_another(true, vec![]);
    desk.finish("busy");
    assert_eq!(desk.build("a").node, None);
    assert!(!joins(&desk), "it has a slot, and the other one joins");
}

#[test]
fn beside_a_silent_builder_another_one_s_build_is_joined() {
    let mut desk = about_to_place(0, &[(1, offer("b", 1)), (2, offer("c", 1))]);
    answer(&mut desk, "a", &[1], false);
    desk.weighed.clear();
    desk.wait(limits::HEDGE_AFTER.as_millis() as u64);
    assert_eq!(
        desk.weighed,
        [node(2), node(1)],
        "who may have begun it meanwhile"
    );
    // Whatever else happens meanwhile, it is waited for.
    desk.send(Event::Tick);
    desk.peer(2, offer("c", 1));
    assert_eq!(desk.started.len(), 1);
    // By the word of others the silent one is still at it.
    answer(&mut desk, "a", &[1, 2], false);
    assert_eq!(desk.reason(1, "a"), "c: builds it already");
    let builders: Vec<_> = desk.running.iter().map(|started| started.node).collect();
    assert_eq!(builders, [Some(node(1)), Some(node(2))]);
    desk.wait(limits::HEDGE_AFTER.as_millis() as u64 * 3);
    assert_eq!(desk.started.len(), 2, "two are enough");
}

#[test]
fn how_long_a_joined_build_ran_says_nothing_of_how_long_such_builds_take() {
    let mut desk = about_to_place(0, &[(1, offer("b", 1)), (2, offer("c", 1))]);
    answer(&mut desk, "a", &[1], false);
    let build = desk.build("a").build;
    desk.send(Event::BuildStarted { build });
    desk.now += 10;
    desk.finish("a");
    assert_eq!(desk.coordinator.durations().1.count(), 0);
}
