//! Slots that build for others, and builders that have too much to do.

use std::time::Duration;

use tvix_node_coordinator::{Event, FailureKind, PeerOffer, limits};
use tvix_node_protocol::control::{EventKind, Outcome};

use crate::desk::{Desk, derivation, node, offer, options};

/// So many slots build for others.
fn lent(count: u32) -> Event {
    Event::SlotsLent {
        count,
        giving_way: count,
    }
}

#[test]
fn what_is_demanded_does_not_wait_for_a_lent_slot() {
    let mut desk = Desk::new(1);
    desk.send(lent(1));
    desk.command(1, options(), &[derivation("a", &[]), derivation("b", &["a"])]);
    assert_eq!(desk.build("a").node, None);
    assert_eq!(
        desk.reason(1, "a"),
        "this node: the only builder that can build it"
    );
    desk.finish("a");
    desk.finish("b");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

#[test]
fn it_takes_no_more_than_the_slots_that_there_are() {
    let mut desk = Desk::new(2);
    desk.send(lent(2));
    desk.command(
        1,
        options(),
        &[
            derivation("a", &[]),
            derivation("b", &[]),
            derivation("c", &[]),
            derivation("all", &["a", "b", "c"]),
        ],
    );
    assert_eq!(desk.running.len(), 2);
}

#[test]
fn of_equal_places_a_free_slot_is_taken_before_a_lent_one() {
    let mut desk = Desk::new(1);
    desk.send(lent(1));
    desk.peer(1, offer("b", 1));
    desk.command(1, options(), &[derivation("a", &[])]);
    assert_eq!(desk.build("a").node, Some(node(1)));
    desk.command(2, options(), &[derivation("c", &[])]);
    assert_eq!(desk.build("c").node, None);
    assert_eq!(
        desk.reason(2, "c"),
        "this node: what it builds for others gives way"
    );
}

#[test]
fn what_is_demanded_waits_for_a_slot_that_checks() {
    let mut desk = Desk::new(1);
    let slots = |count| Event::SlotsLent { count, giving_way: 0 };
    desk.send(slots(1));
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.wait(u64::try_from(limits::NO_BUILDER_PATIENCE.as_millis()).expect("it fits") * 3);
    assert!(desk.running.is_empty());
    // However long that takes: the node can build it, only not now.
    assert_eq!(desk.outcome(1), None);
    desk.send(slots(0));
    assert_eq!(desk.build("a").node, None);
}

#[test]
fn a_guess_waits_for_a_slot_that_is_lent() {
    let mut desk = Desk::new(1);
    desk.send(lent(1));
    desk.open(1, options());
    desk.instantiate(1, &[derivation("a", &[])]);
    assert!(desk.running.is_empty(), "the one slot builds for somebody else");
    desk.send(lent(0));
    assert_eq!(desk.build("a").node, None);
}

#[test]
fn a_busy_builder_is_asked_again_later_and_not_blamed() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 2));
    desk.command(1, options(), &[derivation("a", &[])]);
    for _ in 0..u32::from(limits::TRIES) * 2 {
        assert_eq!(desk.build("a").node, Some(node(1)));
        desk.fail("a", FailureKind::Busy);
        assert!(desk.running.is_empty(), "it is left alone for a moment");
        assert_eq!(desk.outcome(1), None);
        let pause = limits::REFUSAL_PAUSE + Duration::from_millis(1);
        desk.wait(u64::try_from(pause.as_millis()).unwrap());
    }
    desk.finish("a");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

#[test]
fn another_builder_takes_what_a_busy_one_cannot() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 4));
    desk.command(1, options(), &[derivation("a", &[])]);
    assert_eq!(desk.build("a").node, Some(node(1)));
    desk.peer(2, offer("c", 1));
    desk.fail("a", FailureKind::Busy);
    assert_eq!(desk.build("a").node, Some(node(2)));
}

#[test]
fn why_a_builder_puts_something_off_is_told_once() {
    let mut desk = Desk::new(0);
    desk.peer(1, offer("b", 2));
    desk.command(1, options(), &[derivation("a", &[])]);
    let pause = u64::try_from(limits::REFUSAL_PAUSE.as_millis()).expect("it fits") + 1;
    for _ in 0..3 {
        desk.fail("a", FailureKind::Busy);
        desk.wait(pause);
    }
    let said = desk.told.iter().filter(|(_, event)| match event {
        EventKind::Message { text, .. } => text.contains("has to wait: b: it has too much to do"),
        _ => false,
    });
    assert_eq!(said.count(), 1);
}

#[test]
fn what_a_builder_does_not_lend_is_neither_asked_for_nor_left_unexplained() {
    let mut desk = Desk::new(0);
    let why = Some("its owner has set quiet hours".to_owned());
    desk.peer(
        1,
        PeerOffer {
            withheld: why,
            ..offer("b", 2)
        },
    );
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.wait(u64::try_from(limits::NO_BUILDER_PATIENCE.as_millis()).expect("it fits") * 2);
    assert!(desk.started.is_empty());
    assert_eq!(desk.outcome(1), Some(Outcome::BuildFailed));
    assert!(desk.was_told(1, |event| match event {
        EventKind::BuildFailed { error, .. } =>
            error.contains("b: builds nothing for this node now, because its owner"),
        _ => false,
    }));
}
