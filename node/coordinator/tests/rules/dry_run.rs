use tvix_node_coordinator::SessionOptions;
use tvix_node_protocol::control::{EventKind, Outcome, SessionMode};

use crate::desk::{Desk, derivation, drv, options, path};

fn dry_run() -> SessionOptions {
    SessionOptions {
        mode: SessionMode::DryRun,
        ..options()
    }
}

#[test]
fn a_dry_run_says_what_would_be_built_and_fetched_and_does_neither() {
    let mut desk = Desk::new(4);
    desk.own.insert(path("here"));
    desk.cache_has("cached");
    let all = [
        derivation("needless", &[]),
        derivation("cached", &["needless"]),
        derivation("here", &["needless"]),
        derivation("missing", &[]),
        derivation("target", &["cached", "here", "missing"]),
    ];
    desk.command(1, dry_run(), &all);
    assert!(desk.running.is_empty() && desk.fetches.is_empty());
    let built = |word: &str| {
        desk.was_told(
            1,
            |event| matches!(event, EventKind::WouldBuild { derivation } if *derivation == drv(word)),
        )
    };
    assert!(built("target") && built("missing"));
    assert!(!built("needless") && !built("cached") && !built("here"));
    let fetched = desk
        .told
        .iter()
        .filter(|(_, event)| matches!(event, EventKind::WouldFetch { .. }));
    assert_eq!(fetched.count(), 1);
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::WouldFetch { path: told } if *told == path("cached"))
    ));
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

#[test]
fn a_dry_run_waits_until_it_is_known_where_everything_is() {
    let mut desk = Desk::new(1);
    desk.hold_answers = true;
    desk.command(1, dry_run(), &[derivation("a", &[]), derivation("b", &["a"])]);
    assert_eq!(desk.outcome(1), None);
    desk.answer_all();
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}

#[test]
fn a_dry_run_builds_what_an_evaluation_imports() {
    let mut desk = Desk::new(1);
    desk.open(1, dry_run());
    desk.instantiate(
        1,
        &[
            derivation("tool", &[]),
            derivation("import", &["tool"]),
            derivation("target", &["tool"]),
        ],
    );
    desk.target(1, 0, "target");
    assert!(desk.running.is_empty());
    desk.import(1, 0, "import");
    desk.finish("tool");
    desk.finish("import");
    desk.end_evaluation(1);
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
    assert!(!desk.started.contains(&"target".to_owned()));
}

#[test]
fn a_session_that_builds_beside_a_dry_run_is_not_disturbed() {
    let mut desk = Desk::new(1);
    desk.command(1, options(), &[derivation("a", &[])]);
    desk.command(2, dry_run(), &[derivation("a", &[])]);
    assert_eq!(desk.outcome(2), Some(Outcome::Success));
    desk.finish("a");
    assert_eq!(desk.outcome(1), Some(Outcome::Success));
}
