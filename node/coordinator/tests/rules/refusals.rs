use tvix_node_coordinator::{Derivation, Refusal, SessionId, limits};
use tvix_node_protocol::control::{EventKind, Outcome};

use crate::desk::{Desk, derivation, drv, options, path};

/// What a session is refused for, and that it ends by it.
fn refused(act: impl FnOnce(&mut Desk)) -> Refusal {
    let mut desk = Desk::new(1);
    desk.open(1, options());
    act(&mut desk);
    desk.bury();
    assert_eq!(desk.refusals.len(), 1, "{:?}", desk.refusals);
    assert_eq!(desk.outcome(1), Some(Outcome::EvaluationFailed));
    let (session, refusal) = desk.refusals.remove(0);
    assert_eq!(session, SessionId(1));
    let text = refusal.to_string();
    assert!(desk.was_told(
        1,
        |event| matches!(event, EventKind::Message { level, text: told }
        if level == "error" && *told == text)
    ));
    refusal
}

#[test]
fn an_input_that_was_not_instantiated_before() {
    let refusal = refused(|desk| desk.instantiate(1, &[derivation("b", &["a"])]));
    assert_eq!(
        refusal,
        Refusal::UnknownInput {
            derivation: drv("b"),
            input: drv("a")
        }
    );
}

#[test]
fn an_input_that_only_another_session_has_instantiated() {
    let mut desk = Desk::new(1);
    desk.open(1, options());
    desk.open(2, options());
    desk.instantiate(1, &[derivation("a", &[])]);
    desk.instantiate(2, &[derivation("b", &["a"])]);
    assert_eq!(desk.outcome(2), Some(Outcome::EvaluationFailed));
    assert_eq!(desk.outcome(1), None);
}

#[test]
fn a_target_or_import_that_was_not_instantiated() {
    assert_eq!(
        refused(|desk| desk.target(1, 0, "a")),
        Refusal::UnknownDerivation(drv("a"))
    );
    assert_eq!(
        refused(|desk| desk.import(1, 0, "a")),
        Refusal::UnknownDerivation(drv("a"))
    );
}

#[test]
fn an_output_that_a_derivation_does_not_have() {
    let wanted = Refusal::UnknownOutput {
        derivation: drv("a"),
        output: "man".into(),
    };
    let refusal = refused(|desk| {
        let mut b = derivation("b", &["a"]);
        b.inputs[0].outputs = vec!["man".into()];
        desk.instantiate(1, &[derivation("a", &[]), b]);
    });
    assert_eq!(refusal, wanted);
}

#[test]
fn two_makers_of_one_path() {
    let refusal = refused(|desk| {
        let mut other = Derivation {
            path: drv("b"),
            ..derivation("a", &[])
        };
        other.outputs.insert("dev".into(), path("b-dev"));
        desk.instantiate(1, &[derivation("a", &[]), other]);
    });
    let wanted = Refusal::OutputConflict {
        path: path("a"),
        first: drv("a"),
        second: drv("b"),
    };
    assert_eq!(refusal, wanted);
}

#[test]
fn a_derivation_without_outputs_or_with_too_many() {
    let mut none = derivation("a", &[]);
    none.outputs.clear();
    assert_eq!(
        refused(|desk| desk.instantiate(1, &[none])),
        Refusal::NoOutputs(drv("a"))
    );

    let mut many = derivation("a", &[]);
    for number in 0..limits::OUTPUTS {
        many.outputs
            .insert(format!("o{number}"), path(&format!("a-o{number}")));
    }
    let refusal = refused(|desk| desk.instantiate(1, &[many]));
    assert!(matches!(
        refusal,
        Refusal::DerivationTooLarge { what: "outputs", .. }
    ));
}

#[test]
fn a_derivation_with_too_many_inputs() {
    let mut many = derivation("a", &[]);
    many.sources = (0..=limits::INPUTS)
        .map(|number| path(&format!("s{number}")))
        .collect();
    let refusal = refused(|desk| desk.instantiate(1, &[many]));
    assert!(matches!(
        refusal,
        Refusal::DerivationTooLarge { what: "inputs", .. }
    ));
}

#[test]
fn a_number_that_comes_twice() {
    let twice = |what| Refusal::Twice { what, number: 3 };
    let refusal = refused(|desk| {
        desk.instantiate(1, &[derivation("a", &[])]);
        desk.target(1, 3, "a");
        desk.target(1, 3, "a");
    });
    assert_eq!(refusal, twice("target"));
    let refusal = refused(|desk| {
        desk.instantiate(1, &[derivation("a", &[])]);
        desk.import(1, 3, "a");
        desk.import(1, 3, "a");
    });
    assert_eq!(refusal, twice("import"));
}

#[test]
fn more_of_an_evaluation_that_had_ended() {
    let refusal = refused(|desk| {
        desk.instantiate(1, &[derivation("a", &[])]);
        desk.target(1, 0, "a");
        desk.end_evaluation(1);
        desk.instantiate(1, &[derivation("b", &[])]);
    });
    assert_eq!(refusal, Refusal::AfterTheEnd);
}

#[test]
fn one_session_too_many_which_disturbs_nobody() {
    let mut desk = Desk::new(1);
    for session in 0..=limits::SESSIONS as u64 {
        desk.open(session, options());
    }
    assert_eq!(
        desk.refusals,
        [(SessionId(limits::SESSIONS as u64), Refusal::TooManySessions)]
    );
    desk.end_evaluation(0);
    desk.open(1000, options());
    assert_eq!(desk.refusals.len(), 1, "there is room again");
}

#[test]
fn a_session_number_that_is_in_use_which_leaves_that_session_alone() {
    let mut desk = Desk::new(1);
    desk.open(1, options());
    desk.open(1, options());
    assert_eq!(
        desk.refusals,
        [(SessionId(1), Refusal::SessionKnown(SessionId(1)))]
    );
    assert_eq!(desk.outcome(1), None);
}

#[test]
fn the_same_derivation_again_is_not_refused_and_not_told_again() {
    let mut desk = Desk::new(1);
    desk.open(1, options());
    desk.instantiate(1, &[derivation("a", &[])]);
    desk.instantiate(1, &[derivation("a", &[])]);
    let told = desk
        .told
        .iter()
        .filter(|(_, event)| matches!(event, EventKind::Instantiated { .. }));
    assert_eq!(told.count(), 1);
    assert!(desk.refusals.is_empty());
}
