use std::time::Duration;

use tvix_node_protocol::build::{BuildLimits, BuildOptions};

use super::*;

fn derivation(name: &str) -> StorePath {
    StorePath::from_parts([name.len() as u8; 20], &format!("{name}.drv")).unwrap()
}

fn team(number: u8) -> SwarmId {
    SwarmId([number; 32])
}

const LOW: NodeKey = NodeKey([1; 32]);
const HIGH: NodeKey = NodeKey([9; 32]);
const OTHER: NodeKey = NodeKey([5; 32]);

const FIRST: Turn = Turn(0);

const TERMS: BuildTerms = BuildTerms {
    options: BuildOptions { cores: 0 },
    limits: BuildLimits::NONE,
};

fn asked(me: NodeKey, asker: NodeKey, turn: Turn) -> Asked {
    Asked {
        team: team(1),
        me,
        asker,
        turn,
        terms: TERMS,
        owners: true,
    }
}

/// Where `me` says that `a` is built, without waiting for any decision.
fn said(underway: &Underway, me: NodeKey, asker: NodeKey) -> Seen {
    underway.seen(&derivation("a"), asked(me, asker, FIRST))
}

#[test]
fn what_is_built_here_is_told_until_it_is_over() {
    let underway = Arc::new(Underway::default());
    assert_eq!(said(&underway, LOW, HIGH), Seen::Nowhere);
    let noted = underway.note(derivation("a"), TERMS, For::Owner, Stage::Here);
    let other = underway.note(derivation("other"), TERMS, For::Owner, Stage::Here);
    assert_eq!(said(&underway, LOW, HIGH), Seen::At(LOW));
    assert_eq!(said(&underway, HIGH, LOW), Seen::At(HIGH));
    drop(noted);
    assert_eq!(said(&underway, LOW, HIGH), Seen::Nowhere);
    drop(other);
}

#[test]
fn what_another_node_was_asked_for_is_told_with_its_name() {
    let underway = Arc::new(Underway::default());
    let _noted = underway.note(derivation("a"), TERMS, For::Owner, Stage::At(OTHER));
    assert_eq!(said(&underway, LOW, HIGH), Seen::At(OTHER));
    assert_eq!(
        said(&underway, LOW, OTHER),
        Seen::At(OTHER),
        "the request may be on its way"
    );
    let _here = underway.note(derivation("a"), TERMS, For::Team(team(1)), Stage::Here);
    assert_eq!(
        said(&underway, LOW, HIGH),
        Seen::At(LOW),
        "this node knows that better"
    );
}

#[test]
fn what_others_have_asked_for_is_known_until_it_is_over() {
    let underway = Arc::new(Underway::default());
    let for_others = || underway.for_others(&derivation("a"), TERMS);
    let _own = underway.note(derivation("a"), TERMS, For::Owner, Stage::Here);
    let _other = underway.note(derivation("other"), TERMS, For::Team(team(1)), Stage::Here);
    assert_eq!(for_others(), ForOthers::Not);
    let noted = underway.note(derivation("a"), TERMS, For::Team(team(1)), Stage::Waits);
    assert_eq!(for_others(), ForOthers::Waits);
    let second = underway.note(derivation("a"), TERMS, For::Team(team(2)), Stage::Waits);
    noted.set(Stage::Here);
    assert_eq!(for_others(), ForOthers::Runs);
    drop(noted);
    assert_eq!(for_others(), ForOthers::Waits);
    drop(second);
    assert_eq!(for_others(), ForOthers::Not);
}

#[test]
fn of_two_that_decide_one_goes_first_and_both_agree_which() {
    let [one, other] = [(); 2].map(|()| Arc::new(Underway::default()));
    for turn in 0..20 {
        // Now and then one has decided more, or has heard of the other.
        let more = turn % 3;
        for _ in 0..more {
            drop(one.decide(derivation("else"), TERMS, For::Owner));
        }
        if turn % 5 == 0 {
            other.heard(Turn(turn));
        }
        let (_of_one, ones) = one.decide(derivation("a"), TERMS, For::Owner);
        let (_of_other, others) = other.decide(derivation("a"), TERMS, For::Owner);
        let waits = |underway: &Underway, asked| underway.seen(&derivation("a"), asked) == Seen::Deciding;
        let other_waits = waits(&one, asked(LOW, HIGH, others));
        let one_waits = waits(&other, asked(HIGH, LOW, ones));
        assert!(one_waits != other_waits, "{ones:?} {others:?}");
    }
}

#[test]
fn whoever_has_asked_before_another_began_to_decide_goes_first() {
    for (first, second) in [(LOW, HIGH), (HIGH, LOW)] {
        let [of_first, of_second] = [(); 2].map(|()| Arc::new(Underway::default()));
        drop(of_first.decide(derivation("else"), TERMS, For::Owner));
        let (_noted, turn) = of_first.decide(derivation("a"), TERMS, For::Owner);
        of_second.heard(turn);
        assert_eq!(
            of_second.seen(&derivation("a"), asked(second, first, turn)),
            Seen::Nowhere
        );
        let (_noted, later) = of_second.decide(derivation("a"), TERMS, For::Owner);
        assert_eq!(
            of_first.seen(&derivation("a"), asked(first, second, later)),
            Seen::Deciding
        );
    }
}

#[test]
fn what_is_built_for_one_team_or_is_not_for_it_to_know_is_not_told() {
    let unknown = |number| Asked {
        team: team(number),
        owners: false,
        ..asked(LOW, HIGH, FIRST)
    };
    let underway = Arc::new(Underway::default());
    let _for_team = underway.note(derivation("a"), TERMS, For::Team(team(2)), Stage::Here);
    assert_eq!(said(&underway, LOW, HIGH), Seen::Nowhere);
    let _for_owner = underway.note(derivation("a"), TERMS, For::Owner, Stage::Here);
    assert_eq!(underway.seen(&derivation("a"), unknown(1)), Seen::Nowhere);
    assert_eq!(underway.seen(&derivation("a"), unknown(2)), Seen::At(LOW));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_decision_hears_of_it() {
    for stage in [Some(Stage::Here), Some(Stage::At(OTHER)), None] {
        let underway = Arc::new(Underway::default());
        let (deciding, turn) = underway.decide(derivation("a"), TERMS, For::Owner);
        let name = derivation("a");
        let waiting = underway.place(&name, asked(LOW, HIGH, turn));
        let decides = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let decided = stage.map(|stage| underway.note(derivation("a"), TERMS, For::Owner, stage));
            drop(deciding);
            // It is under way until the answer is there.
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(decided);
        };
        let (place, ()) = tokio::join!(waiting, decides);
        let expected = match stage {
            Some(Stage::At(node)) => Some(node),
            Some(_) => Some(LOW),
            None => None,
        };
        assert_eq!(place, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_decision_for_long() {
    let underway = Arc::new(Underway::default());
    let (_deciding, turn) = underway.decide(derivation("a"), TERMS, For::Owner);
    let from = tokio::time::Instant::now();
    let place = underway.place(&derivation("a"), asked(LOW, HIGH, turn)).await;
    assert_eq!(place, None);
    assert_eq!(from.elapsed(), UNDERWAY_TIME);
}

#[test]
fn a_build_on_other_terms_is_another_one() {
    let underway = Arc::new(Underway::default());
    let _noted = underway.note(derivation("a"), TERMS, For::Team(team(1)), Stage::Here);
    let cores = BuildTerms {
        options: BuildOptions { cores: 1 },
        ..TERMS
    };
    let limits = BuildTerms {
        limits: BuildLimits {
            time: Some(1),
            ..BuildLimits::NONE
        },
        ..TERMS
    };
    for terms in [cores, limits] {
        let asked = Asked {
            terms,
            ..asked(LOW, HIGH, FIRST)
        };
        assert_eq!(underway.seen(&derivation("a"), asked), Seen::Nowhere);
        assert_eq!(underway.for_others(&derivation("a"), terms), ForOthers::Not);
    }
}
