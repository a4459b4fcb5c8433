use futures::FutureExt as _;
use tvix_node_protocol::build::{BuildKey, BuildLimits, SwarmId};

use super::super::together::{Ended, SharedBuilds, Waiting, share_key};
use super::*;

const TEAM: SwarmId = SwarmId([1; 32]);
const ANN: NodeKey = NodeKey([1; 32]);
const BOB: NodeKey = NodeKey([2; 32]);

#[tokio::test]
async fn one_requester_does_not_have_all_that_is_looked_at() {
    let considering = Considering::default();
    let mut taken = vec![];
    for _ in 0..CONSIDERED_PER_REQUESTER {
        taken.push(considering.enter(ANN).now_or_never().flatten().unwrap());
    }
    assert!(considering.enter(ANN).now_or_never().is_none());
    for _ in CONSIDERED_PER_REQUESTER..CONSIDERED {
        taken.push(considering.enter(BOB).now_or_never().flatten().unwrap());
    }
    assert!(considering.enter(NodeKey([3; 32])).now_or_never().is_none());
    drop(taken.remove(0));
    assert!(considering.enter(ANN).now_or_never().flatten().is_some());
}

fn work(number: u8) -> BuildKey {
    BuildKey([number; 32])
}

fn sought(number: u8) -> Key {
    share_key(TEAM, work(number), BuildLimits::NONE)
}

fn build(builds: &Arc<SharedBuilds>, number: u8) -> Waiting {
    builds.join(TEAM, Some(work(number)), BuildLimits::NONE).0
}

/// A requester that has all its places, the last one for a build that it has left.
struct Leaver {
    served: Arc<Served>,
    builds: Arc<SharedBuilds>,
    others: Vec<ServedPlace>,
    kept: Waiting,
    left: LeftPlace,
}

fn leaver() -> Leaver {
    let (served, builds) = (Arc::new(Served::default()), Arc::new(SharedBuilds::default()));
    let kept = build(&builds, 0);
    let mut others: Vec<ServedPlace> = (0..SERVED_BUILDS_PER_REQUESTER)
        .map(|_| served.enter(ANN, None).unwrap().joined(&kept.build).unwrap())
        .collect();
    let left = others.remove(0).left(sought(0), Arc::clone(&kept.build));
    Leaver {
        served,
        builds,
        others,
        kept,
        left,
    }
}

#[test]
fn who_comes_back_for_what_it_left_has_one_place_for_it() {
    let Leaver {
        served,
        others,
        kept,
        left,
        ..
    } = leaver();
    for other in [None, Some(sought(1))] {
        assert!(served.enter(ANN, other).is_err(), "it is kept for what joins it");
    }
    let other = served.enter(BOB, Some(sought(0)));
    assert!(
        matches!(other, Ok(EnteredPlace::New(_))),
        "another one has his own places"
    );
    let back = served.enter(ANN, Some(sought(0))).unwrap();
    assert!(served.enter(ANN, Some(sought(0))).is_err(), "it comes back once");
    let back = back.joined(&kept.build).unwrap();
    drop(left);
    assert!(
        served.enter(ANN, None).is_err(),
        "the place is taken by who came back"
    );
    drop(back);
    assert!(served.enter(ANN, None).is_ok());
    drop((others, other));
    assert!(!served.is_serving());
}

#[test]
fn who_does_not_get_there_again_leaves_the_place_as_it_was() {
    let Leaver {
        served,
        others,
        kept,
        left,
        ..
    } = leaver();
    drop(served.enter(ANN, Some(sought(0))).unwrap());
    assert!(served.enter(ANN, None).is_err(), "the build goes on");
    let again = served.enter(ANN, Some(sought(0))).unwrap();
    // What was kept is over before that one is there.
    drop(left);
    assert!(served.enter(ANN, None).is_err(), "that one has the place");
    drop(again);
    let place = served.enter(ANN, None).unwrap().joined(&kept.build).unwrap();
    drop((others, place));
    assert!(!served.is_serving());
}

#[test]
fn a_build_beside_the_one_that_is_kept_needs_a_place_of_its_own() {
    let Leaver {
        served,
        builds,
        mut others,
        kept,
        left,
    } = leaver();
    let beside = build(&builds, 1);
    let back = || served.enter(ANN, Some(sought(0))).unwrap();
    let refused = back().joined(&beside.build).unwrap_err();
    assert_eq!(refused.reason, RefusalReason::Busy);
    others.pop();
    let beside = back().joined(&beside.build).unwrap();
    assert!(served.enter(ANN, None).is_err(), "both are counted");
    // It can still be come back for.
    let back = back().joined(&kept.build).unwrap();
    drop((left, beside, back, others));
    assert!(!served.is_serving());
}

/// Whether it was noticed before that it is over, or not yet.
#[test]
fn who_finds_what_was_kept_over_has_its_place_for_another_build() {
    for is_noticed in [true, false] {
        let Leaver {
            served,
            builds,
            others,
            kept,
            left,
        } = leaver();
        let back = served.enter(ANN, Some(sought(0))).unwrap();
        let ended = Ended::Refused(refusal(RefusalReason::InputMissing, "it is over"));
        kept.build.set(Progress::Over(Arc::new(ended)));
        let left = (!is_noticed).then_some(left);
        let anew = back.joined(&build(&builds, 1).build).unwrap();
        drop(left);
        assert!(served.enter(ANN, None).is_err(), "it has the place");
        drop((anew, others));
        assert!(!served.is_serving());
    }
}

#[test]
fn a_place_that_nobody_comes_back_for_is_free_again() {
    let (served, builds) = (Arc::new(Served::default()), Arc::new(SharedBuilds::default()));
    let kept = build(&builds, 1);
    let place = served.enter(ANN, Some(sought(1))).unwrap();
    let left = place
        .joined(&kept.build)
        .unwrap()
        .left(sought(1), Arc::clone(&kept.build));
    assert!(served.is_serving());
    drop(left);
    assert!(!served.is_serving());
    // It is not there to come back to.
    let again = served.enter(ANN, Some(sought(1))).unwrap();
    assert!(matches!(again, EnteredPlace::New(_)));
    drop(again);
    assert!(!served.is_serving());
}

#[test]
fn one_requester_cannot_fill_the_queue_alone() {
    let served = Arc::new(Served::default());
    let mut places: Vec<EnteredPlace> = (0..SERVED_BUILDS_PER_REQUESTER)
        .map(|_| served.enter(ANN, None).unwrap())
        .collect();
    let refused = served.enter(ANN, None).unwrap_err();
    assert_eq!(refused.reason, RefusalReason::Busy);
    places.push(served.enter(BOB, None).unwrap());
    places.remove(0);
    assert!(served.enter(ANN, None).is_ok());
}

#[test]
fn all_requesters_together_have_a_bound() {
    let served = Arc::new(Served::default());
    let requester = |number: usize| NodeKey([u8::try_from(number % 200).unwrap(); 32]);
    let places: Vec<EnteredPlace> = (0..SERVED_BUILDS)
        .map(|number| served.enter(requester(number), None).unwrap())
        .collect();
    assert!(served.enter(NodeKey([250; 32]), None).is_err());
    drop(places);
    assert!(!served.is_serving());
}
