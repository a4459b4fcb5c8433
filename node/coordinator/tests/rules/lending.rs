//! Slots that build for others, and builders that have too much to do.

use std::time::Duration;

use tvix_node_coordinator::{Event, FailureKind, PeerOffer, limits};
use tvix_node_protocol::control::{EventKind, Outcome};

use crate::desk::{Desk, derivation, node, offer, options};

#[test]
fn a_lent_slot_is_not_free_and_is_waited_for() {
    let mut desk = Desk::new(1);
    desk.send(Event::SlotsLent { count: 1 });
    desk.command(1, options(), &[derivation("a", &[])]);
    assert!(desk.running.is_empty(), "the one slot builds for somebody else");
    // However long that takes: the node can build it, only not now.
    desk.wait(u64::try_from(limits::NO_BUILDER_PATIENCE.as_millis()).unwrap() * 3);
    assert_eq!(desk.outcome(1), None);
    desk.send(Event::SlotsLent { count: 0 });
    assert_eq!(desk.build("a").node, None);
    desk.finish("a");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
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
