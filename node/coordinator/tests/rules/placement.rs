use std::collections::BTreeMap;

use tvix_node_coordinator::{
    Config, Delivery, Derivation, Event, PeerOffer, SessionOptions, limits, placement::Link,
};
use tvix_node_protocol::control::{EventKind, Outcome};

use crate::desk::{Desk, derivation, drv, node, offer, options, path};

/// Tells the coordinator who has how much of 330 MB of inputs.
fn weigh(desk: &mut Desk, word: &str, there: &[(Option<u8>, u64)]) {
    let there = there
        .iter()
        .map(|(peer, mb)| (peer.map(node), mb * 1_000_000))
        .collect();
    desk.send(Event::InputsWeighed {
        derivation: drv(word),
        total: 330_000_000,
        there,
        makers: vec![],
        promised: false,
        made: false,
    });
}

fn slow(name: &str, slots: u32) -> PeerOffer {
    PeerOffer {
        link: Link {
            round_trip: Some(20),
            bandwidth: Some(10 << 20),
        },
        ..offer(name, slots)
    }
}

/// A derivation with an input, so that it matters who has it.
fn with_input(desk: &mut Desk) {
    desk.own.insert(path("input"));
    desk.command(
        1,
        options(),
        &[derivation("input", &[]), derivation("a", &["input"])],
    );
}

#[test]
fn the_builder_that_has_the_inputs_is_preferred_and_the_reason_says_so() {
    let mut desk = Desk::new(0);
    desk.peer(1, slow("b", 4));
    desk.peer(2, slow("c", 4));
    desk.peer(3, slow("d", 3));
    with_input(&mut desk);
    assert_eq!(desk.weighed, [node(1), node(2), node(3)]);
    assert!(desk.running.is_empty(), "it waits to learn who has the inputs");
    weigh(&mut desk, "a", &[(Some(1), 0), (Some(2), 100), (Some(3), 312)]);
    assert_eq!(desk.build("a").node, Some(node(3)));
    assert_eq!(
        desk.reason(1, "a"),
        "d: has 312 MB of 330 MB of the inputs, 10 MB/s, 20 ms away, 3 free slots"
    );
}

#[test]
fn this_node_counts_like_any_other() {
    let mut desk = Desk::new(1);
    desk.peer(1, slow("b", 4));
    desk.own.insert(path("input"));
    desk.hold_answers = true;
    desk.command(
        1,
        options(),
        &[derivation("input", &[]), derivation("a", &["input"])],
    );
    desk.answer_all();
    weigh(&mut desk, "a", &[(None, 330), (Some(1), 0)]);
    assert_eq!(desk.build("a").node, None);
    assert_eq!(
        desk.reason(1, "a"),
        "this node: has all 330 MB of the inputs, 1 free slot"
    );
}

#[test]
fn a_peer_that_has_the_inputs_is_preferred_to_this_node_that_has_not() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 4));
    desk.peer_has(1, "input");
    desk.command(
        1,
        options(),
        &[derivation("input", &[]), derivation("a", &["input"])],
    );
    assert_eq!(desk.build("a").node, Some(node(1)));
}

#[test]
fn where_nobody_says_who_has_the_inputs_it_is_placed_without() {
    let mut desk = Desk::new(0);
    desk.peer(1, slow("b", 4));
    desk.peer(2, offer("c", 4));
    with_input(&mut desk);
    desk.wait(limits::WEIGH_PATIENCE.as_millis() as u64);
    assert_eq!(desk.build("a").node, Some(node(2)), "the better link");
    assert!(
        desk.reason(1, "a")
            .starts_with("c: cheapest by its link and load")
    );
}

#[test]
fn the_only_builder_with_room_is_chosen_without_asking() {
    let mut desk = Desk::new(1);
    desk.command(1, options(), &[derivation("busy", &[])]);
    desk.peer(1, offer("b", 1));
    desk.own.insert(path("input"));
    desk.command(
        2,
        options(),
        &[derivation("input", &[]), derivation("a", &["input"])],
    );
    assert_eq!(desk.build("a").node, Some(node(1)));
    assert_eq!(desk.reason(2, "a"), "b: the only builder that has free slots");
}

#[test]
fn a_peer_gets_no_more_than_it_has_slots_until_it_says_otherwise() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 2));
    let words: Vec<String> = (0..5).map(|number| format!("p{number}")).collect();
    desk.open(1, options());
    for (number, word) in words.iter().enumerate() {
        desk.instantiate(1, &[derivation(word, &[])]);
        desk.target(1, number as u64, word);
    }
    assert_eq!(desk.running.len(), 2);
    desk.peer(
        1,
        PeerOffer {
            slots_free: 2,
            ..offer("b", 2)
        },
    );
    assert_eq!(
        desk.running.len(),
        2,
        "both requests were on their way when it said so"
    );
    desk.peer(
        1,
        PeerOffer {
            slots_free: 3,
            ..offer("b", 4)
        },
    );
    assert_eq!(desk.running.len(), 3);
}

#[test]
fn only_builders_for_the_system_with_the_features_are_asked() {
    let mut desk = Desk::new(4);
    let mut arm = derivation("arm", &[]);
    arm.system = "aarch64-linux".into();
    let mut machine = derivation("vm", &[]);
    machine.required_features = vec!["kvm".into()];
    let systems = vec!["aarch64-linux".into()];
    desk.peer(
        1,
        PeerOffer {
            systems,
            ..offer("b", 1)
        },
    );
    desk.peer(
        2,
        PeerOffer {
            features: vec!["kvm".into()],
            ..offer("c", 1)
        },
    );
    desk.command(1, options(), &[arm]);
    desk.command(2, options(), &[machine]);
    assert_eq!(desk.build("arm").node, Some(node(1)));
    assert_eq!(desk.build("vm").node, Some(node(2)));
    assert_eq!(desk.reason(2, "vm"), "c: the only builder that can build it");
}

#[test]
fn a_derivation_for_the_system_builtin_is_built_anywhere() {
    let mut desk = Desk::new(1);
    let mut fetched = derivation("fetched", &[]);
    fetched.system = "builtin".into();
    desk.command(1, options(), &[fetched]);
    assert_eq!(desk.words(), ["fetched"]);
}

#[test]
fn fixed_outputs_are_only_sent_to_who_offers_to_build_them() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 1));
    desk.peer(
        2,
        PeerOffer {
            fixed_outputs: true,
            ..offer("c", 1)
        },
    );
    let mut source = derivation("source", &[]);
    source.fixed_output = true;
    desk.command(1, options(), &[source.clone()]);
    assert_eq!(desk.build("source").node, Some(node(2)));

    // Where nobody does, that is the reason.
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 1));
    desk.command(1, options(), &[source]);
    desk.wait(u64::try_from(limits::NO_BUILDER_PATIENCE.as_millis()).expect("it fits") * 2);
    assert!(desk.started.is_empty());
    assert!(desk.was_told(1, |event| match event {
        EventKind::BuildFailed { error, .. } =>
            error.contains("no builder builds fixed outputs for")
                && error.contains("b: 1 slots")
                && error.contains("share on --fixed-outputs"),
        _ => false,
    }));
}

#[test]
fn what_is_not_worth_moving_stays_here_even_if_it_has_to_wait() {
    let mut desk = Desk::new(1);
    desk.peer(1, offer("b", 4));
    desk.open(1, options());
    let mut trivial = [derivation("one", &[]), derivation("two", &[])];
    for (number, derivation) in trivial.iter_mut().enumerate() {
        derivation.prefer_local = true;
        desk.instantiate(1, std::slice::from_ref(derivation));
        desk.target(1, number as u64, if number == 0 { "one" } else { "two" });
    }
    assert_eq!(desk.words(), ["one"]);
    assert!(desk.reason(1, "one").starts_with("this node: "));
    desk.finish("one");
    assert_eq!(desk.build("two").node, None);
}

#[test]
fn a_session_without_jobs_builds_only_on_peers() {
    let mut desk = Desk::new(4);
    desk.peer(1, offer("b", 4));
    let mut trivial = derivation("a", &[]);
    trivial.prefer_local = true;
    desk.command(
        1,
        SessionOptions {
            jobs: Some(0),
            ..options()
        },
        &[trivial],
    );
    assert_eq!(desk.build("a").node, Some(node(1)));
}

#[test]
fn what_nobody_can_build_fails_after_a_while_and_says_what_it_needs() {
    let mut desk = Desk::new(1);
    desk.peer(1, offer("b", 4));
    let mut arm = derivation("arm", &[]);
    arm.system = "aarch64-linux".into();
    arm.required_features = vec!["kvm".into()];
    desk.command(1, options(), &[arm]);
    let patience = limits::NO_BUILDER_PATIENCE.as_millis() as u64;
    desk.wait(patience - 1);
    assert_eq!(desk.outcome(1), None, "somebody may turn up");
    desk.wait(1);
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    assert!(
        desk.was_told(1, |event| matches!(event, EventKind::BuildFailed { error, .. }
        if error.contains("aarch64-linux with kvm") && error.contains("home: 1 slots, x86_64-linux")))
    );
}

#[test]
fn what_nobody_could_ever_build_fails_at_once() {
    let team = |builders: &[u8]| Event::Team {
        names: BTreeMap::new(),
        builders: builders.iter().map(|number| node(*number)).collect(),
    };
    let arm = || Derivation {
        system: "aarch64-linux".into(),
        ..derivation("arm", &[])
    };
    let patience = limits::NO_BUILDER_PATIENCE.as_millis() as u64;

    // Alone.
    let mut desk = Desk::new(1);
    desk.send(team(&[]));
    desk.command(1, options(), &[arm()]);
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));

    // Without its own builder.
    let mut desk = Desk::new(1);
    desk.send(team(&[]));
    let elsewhere = SessionOptions {
        jobs: Some(0),
        ..options()
    };
    desk.command(1, elsewhere, &[derivation("a", &[])]);
    assert!(
        desk.was_told(1, |event| matches!(event, EventKind::BuildFailed { error, .. }
        if error.ends_with("; home is not used, because of '--jobs 0'")))
    );

    // With all that there are.
    let mut desk = Desk::new(1);
    desk.send(team(&[1]));
    desk.peer(1, offer("b", 1));
    desk.command(1, options(), &[arm()]);
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));

    // One is not connected, or has its slots for itself at the moment.
    let withheld = PeerOffer {
        withheld: Some("its owner is at work".into()),
        ..offer("b", 1)
    };
    for first in [None, Some(withheld)] {
        let mut desk = Desk::new(1);
        desk.send(team(&[1]));
        if let Some(first) = first {
            desk.peer(1, first);
        }
        desk.command(1, options(), &[arm()]);
        desk.wait(patience - 1);
        assert_eq!(desk.outcome(1), None, "it may be able to");
        desk.peer(1, offer("b", 1));
        assert_eq!(
            desk.outcome(1),
            Some(Outcome::BuildFailed),
            "it is there, and cannot"
        );
    }

    // This node has not said yet what it can do.
    let mut desk = Desk::unready();
    desk.send(team(&[]));
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.wait(patience - 1);
    assert_eq!(desk.outcome(1), None);
    desk.offer_own(1);
    assert_eq!(desk.words(), ["a"]);
}

#[test]
fn a_builder_that_turns_up_in_time_gets_what_nobody_could_build() {
    let mut desk = Desk::new(0);
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.wait(5_000);
    desk.peer(1, offer("b", 1));
    assert_eq!(desk.words(), ["a"]);
    let build = desk.build("a").build;
    for _ in 0..10 {
        desk.send(Event::Heartbeat { build });
        desk.wait(1_500);
    }
    assert_eq!(desk.outcome(1), None);
}

#[test]
fn another_cost_model_may_be_plugged_in() {
    let mut desk = Desk::new(0);
    let cost =
        |_: &_, candidate: &tvix_node_coordinator::placement::Candidate| u64::from(candidate.slots_free);
    desk.coordinator = tvix_node_coordinator::Coordinator::new(Config {
        cost,
        ..Config::new("home")
    });
    desk.peer(1, offer("b", 4));
    desk.peer(2, offer("c", 1));
    desk.command(1, options(), &[derivation("a", &[])]);
    assert_eq!(desk.build("a").node, Some(node(2)));
}

#[test]
fn peers_beyond_the_limit_are_not_taken_note_of() {
    let mut desk = Desk::new(0);
    for number in 0..=limits::PEERS {
        let mut key = node(0);
        key.0[..8].copy_from_slice(&(number as u64).to_be_bytes());
        let slots = u32::from(number == limits::PEERS);
        desk.send(Event::Peer {
            node: key,
            offer: offer("x", slots),
        });
    }
    desk.command(1, options(), &[derivation("a", &[])]);
    assert!(desk.running.is_empty());
}

/// Alice's slot is busy, and `a-2` is with the peer `b`, who built `a-1` within so many milliseconds.
fn at_a_peer(took: u64) -> Desk {
    at_a_peer_with(took, |desk| {
        desk.own.insert(path("input"));
    })
}

fn at_a_peer_with(took: u64, input: impl FnOnce(&mut Desk)) -> Desk {
    let mut desk = Desk::new(1);
    desk.peer(1, offer("b", 1));
    desk.command(
        1,
        SessionOptions {
            jobs: Some(0),
            ..options()
        },
        &[derivation("a-1", &[])],
    );
    let first = desk.build("a-1");
    desk.send(Event::BuildStarted { build: first.build });
    beat(&mut desk, "a-1", took);
    desk.finish_as(first.build, "a-1", Delivery::OwnStore);
    desk.peer(
        1,
        PeerOffer {
            slots_free: 0,
            ..offer("b", 1)
        },
    );
    desk.command(2, options(), &[derivation("busy", &[])]);
    assert_eq!(desk.build("busy").node, None);
    desk.peer(1, offer("b", 1));
    input(&mut desk);
    desk.command(
        3,
        options(),
        &[derivation("input", &[]), derivation("a-2", &["input"])],
    );
    assert_eq!(desk.build("a-2").node, Some(node(1)));
    let build = desk.build("a-2").build;
    desk.send(Event::BuildStarted { build });
    desk
}

/// Lets time pass in which the peer is heard of.
fn beat(desk: &mut Desk, word: &str, millis: u64) {
    let build = desk.build(word).build;
    let end = desk.now + millis;
    while desk.now < end {
        desk.wait((end - desk.now).min(1000));
        desk.send(Event::Heartbeat { build });
    }
}

#[test]
fn a_short_build_that_a_peer_is_late_with_is_raced_in_a_slot_that_nothing_wants() {
    let mut desk = at_a_peer(800);
    beat(&mut desk, "a-2", 1500);
    desk.finish("busy");
    assert_eq!(desk.words(), ["a-2"], "it is not late yet");
    let far = desk.build("a-2").build;
    beat(&mut desk, "a-2", 200);
    assert_eq!(desk.words(), ["a-2", "a-2"]);
    assert_eq!(
        desk.reason(3, "a-2"),
        "this node: b takes longer than this package usually does"
    );
    let here = desk
        .running
        .iter()
        .find(|started| started.node.is_none())
        .expect("here, too")
        .build;
    // Whoever is first; the other one is stopped.
    desk.finish_as(here, "a-2", Delivery::OwnStore);
    assert_eq!(desk.cancelled, [far]);
    assert_eq!(desk.outcome(3), Some(Outcome::Success));
}

#[test]
fn what_had_to_wait_for_a_slot_there_is_not_late_when_it_begins() {
    let mut desk = at_a_peer(800);
    desk.finish_as(desk.build("a-2").build, "a-2", Delivery::OwnStore);
    desk.command(4, options(), &[derivation("a-3", &[])]);
    let build = desk.build("a-3").build;
    beat(&mut desk, "a-3", 10_000);
    desk.send(Event::BuildStarted { build });
    desk.finish("busy");
    assert_eq!(desk.words(), ["a-3"]);
    beat(&mut desk, "a-3", 1_700);
    assert_eq!(desk.words(), ["a-3", "a-3"]);
}

#[test]
fn what_is_late_waits_for_a_slot_and_is_raced_once() {
    let mut desk = at_a_peer(100);
    beat(&mut desk, "a-2", 5000);
    assert_eq!(desk.words(), ["a-2", "busy"], "no slot is free");
    desk.finish("busy");
    assert_eq!(desk.words(), ["a-2", "a-2"]);
    let far = desk
        .running
        .iter()
        .find(|started| started.node.is_some())
        .expect("far")
        .build;
    beat(&mut desk, "a-2", 5000);
    assert_eq!(desk.words(), ["a-2", "a-2"]);
    desk.finish_as(far, "a-2", Delivery::OwnStore);
    assert_eq!(desk.outcome(3), Some(Outcome::Success));
    desk.bury();
}

#[test]
fn a_long_build_is_not_raced() {
    let mut desk = at_a_peer(limits::RACED + 1);
    desk.finish("busy");
    beat(&mut desk, "a-2", limits::RACED * 3);
    assert_eq!(desk.words(), ["a-2"]);
}

#[test]
fn what_lacks_an_input_here_is_not_raced() {
    let mut desk = at_a_peer_with(100, |desk| desk.peer_has(1, "input"));
    desk.finish("busy");
    beat(&mut desk, "a-2", 5000);
    assert_eq!(desk.words(), ["a-2"]);
}

#[test]
fn what_is_not_to_be_built_here_is_not_raced() {
    let mut desk = at_a_peer(100);
    desk.finish("a-2");
    desk.finish("busy");
    let elsewhere = SessionOptions {
        jobs: Some(0),
        ..options()
    };
    desk.peer(1, offer("b", 1));
    desk.command(4, elsewhere, &[derivation("a-3", &[])]);
    beat(&mut desk, "a-3", 5000);
    assert_eq!(desk.words(), ["a-3"]);
}

#[test]
fn how_long_a_build_takes_does_not_count_the_way_of_its_outputs() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 1));
    desk.command(1, options(), &[derivation("a-1", &[])]);
    let build = desk.build("a-1").build;
    desk.send(Event::BuildStarted { build });
    beat(&mut desk, "a-1", 700);
    desk.send(Event::BuildDone { build });
    beat(&mut desk, "a-1", 20_000);
    desk.finish_as(build, "a-1", Delivery::OwnStore);
    let seen: Vec<u64> = desk.coordinator.durations().1.map(|seen| seen.took).collect();
    assert_eq!(seen, [700]);
}

#[test]
fn what_a_peer_has_built_in_time_is_waited_for_and_not_raced() {
    let mut desk = at_a_peer(800);
    beat(&mut desk, "a-2", 700);
    let build = desk.build("a-2").build;
    desk.send(Event::BuildDone { build });
    desk.finish("busy");
    beat(&mut desk, "a-2", 10_000);
    assert_eq!(desk.words(), ["a-2"]);
}
