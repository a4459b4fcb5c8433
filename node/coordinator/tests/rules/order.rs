use tvix_node_coordinator::{SessionOptions, limits};
use tvix_node_protocol::control::Outcome;

use crate::desk::{Desk, derivation, options, path};

#[test]
fn what_an_evaluation_waits_for_goes_before_what_a_target_needs() {
    let mut desk = Desk::new(1);
    desk.open(1, options());
    desk.instantiate(1, &[derivation("busy", &[])]);
    desk.target(1, 0, "busy");
    desk.instantiate(1, &[derivation("target", &[]), derivation("import", &[])]);
    desk.target(1, 1, "target");
    desk.import(1, 0, "import");
    desk.finish("busy");
    assert_eq!(desk.words(), ["import"]);
    desk.finish("import");
    assert_eq!(desk.words(), ["target"]);
}

#[test]
fn an_import_of_one_session_goes_before_targets_of_another() {
    let mut desk = Desk::new(1);
    desk.command(1, options(), &[derivation("busy", &[])]);
    desk.command(2, options(), &[derivation("target", &[])]);
    desk.open(3, options());
    desk.instantiate(3, &[derivation("import", &[])]);
    desk.import(3, 0, "import");
    desk.finish("busy");
    assert_eq!(desk.words(), ["import"]);
}

#[test]
fn an_import_hurries_everything_it_needs() {
    let mut desk = Desk::new(1);
    desk.open(1, options());
    desk.instantiate(1, &[derivation("busy", &[])]);
    desk.target(1, 0, "busy");
    let more = [
        derivation("target", &[]),
        derivation("deep", &[]),
        derivation("import", &["deep"]),
    ];
    desk.instantiate(1, &more);
    desk.target(1, 1, "target");
    desk.target(1, 2, "import");
    desk.import(1, 0, "import");
    for word in ["busy", "deep", "import", "target"] {
        desk.finish(word);
    }
}

#[test]
fn what_is_farthest_from_the_target_goes_first() {
    let mut desk = Desk::new(1);
    desk.hold_answers = true;
    let all = [
        derivation("shallow", &[]),
        derivation("deep", &[]),
        derivation("middle", &["deep"]),
        derivation("upper", &["middle"]),
        derivation("target", &["shallow", "upper"]),
    ];
    desk.command(1, options(), &all);
    desk.answer_all();
    assert_eq!(desk.words(), ["deep"], "it has the longest way to go");
    desk.finish("deep");
    assert_eq!(desk.words(), ["middle"]);
    for word in ["middle", "shallow", "upper", "target"] {
        desk.finish(word);
    }
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

#[test]
fn the_way_to_the_target_is_worked_out_again_when_a_longer_one_turns_up() {
    let mut desk = Desk::new(0);
    desk.open(1, options());
    // Of many derivations that look alike, one turns out later to be at the bottom of a long chain.
    let words: Vec<String> = (0..200).map(|number| format!("leaf{number}")).collect();
    let mut all: Vec<_> = words.iter().map(|word| derivation(word, &[])).collect();
    let mut below = "leaf150".to_owned();
    for number in 0..100 {
        let word = format!("link{number}");
        all.push(derivation(&word, &[&below]));
        below = word;
    }
    desk.instantiate(1, &all);
    for (number, word) in words.iter().enumerate() {
        desk.target(1, number as u64, word);
    }
    desk.target(1, 1_000, &below);
    let systems = vec!["x86_64-linux".into()];
    let own = tvix_node_coordinator::OwnBuilder {
        slots: 1,
        systems,
        features: vec![],
    };
    desk.send(tvix_node_coordinator::Event::OwnBuilder(own));
    assert_eq!(desk.words(), ["leaf150"]);
}

#[test]
fn equally_far_derivations_go_in_the_order_of_their_arrival() {
    let mut desk = Desk::new(1);
    desk.hold_answers = true;
    let all = [
        derivation("first", &[]),
        derivation("second", &[]),
        derivation("third", &[]),
        derivation("target", &["third", "second", "first"]),
    ];
    desk.command(1, options(), &all);
    desk.answer_all();
    for word in ["first", "second", "third", "target"] {
        desk.finish(word);
    }
}

#[test]
fn a_small_command_does_not_wait_for_a_large_one() {
    let mut desk = Desk::new(2);
    let words: Vec<String> = (0..50).map(|number| format!("large{number}")).collect();
    let mut large: Vec<_> = words.iter().map(|word| derivation(word, &[])).collect();
    let inputs: Vec<&str> = words.iter().map(String::as_str).collect();
    large.push(derivation("large", &inputs));
    desk.command(1, options(), &large);
    desk.command(2, options(), &[derivation("small", &[])]);
    let first = desk.running[0].word.clone();
    desk.finish(&first);
    assert!(desk.words().contains(&"small"), "{:?}", desk.words());
}

#[test]
fn a_session_builds_no_more_here_than_it_may() {
    let mut desk = Desk::new(4);
    let jobs = SessionOptions {
        jobs: Some(1),
        ..options()
    };
    desk.command(
        1,
        jobs,
        &[
            derivation("a", &[]),
            derivation("b", &[]),
            derivation("c", &["a", "b"]),
        ],
    );
    assert_eq!(desk.running.len(), 1);
    desk.command(2, options(), &[derivation("d", &[])]);
    assert_eq!(desk.running.len(), 2, "others may use the other slots");
}

#[test]
fn a_sessions_own_speculation_does_not_use_up_its_share() {
    let mut desk = Desk::new(4);
    desk.open(
        1,
        SessionOptions {
            jobs: Some(1),
            ..options()
        },
    );
    desk.instantiate(1, &[derivation("guess", &[]), derivation("wanted", &[])]);
    let guess = desk.build("guess").build;
    desk.target(1, 0, "wanted");
    desk.wait(limits::PREEMPT_AFTER.as_millis() as u64);
    assert_eq!(desk.cancelled, [guess]);
    desk.bury();
    assert_eq!(desk.words(), ["wanted"]);
}

#[test]
fn no_more_is_built_at_once_than_there_are_slots() {
    let mut desk = Desk::new(3);
    let words: Vec<String> = (0..10).map(|number| format!("p{number}")).collect();
    let inputs: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut all: Vec<_> = words.iter().map(|word| derivation(word, &[])).collect();
    all.push(derivation("all", &inputs));
    desk.command(1, options(), &all);
    for built in 0..11 {
        assert_eq!(
            desk.running.len(),
            if built < 8 { 3 } else { (10 - built).max(1) },
            "{built}"
        );
        let word = desk.running[0].word.clone();
        desk.finish(&word);
    }
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
    assert!(desk.own.contains(&path("all")));
}
