use super::*;

use tvix_node_store::Audience;

const KEY: BuildKey = BuildKey([1; 32]);
const TEAM: SwarmId = SwarmId([1; 32]);
const OTHER_TEAM: SwarmId = SwarmId([2; 32]);

#[test]
fn a_build_goes_on_as_long_as_anybody_waits_for_it() {
    let builds = Arc::new(SharedBuilds::default());
    let (first, begun) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
    assert!(begun);
    let (second, begun) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
    assert!(!begun && Arc::ptr_eq(&first.build, &second.build));
    let (other, begun) = builds.join(TEAM, Some(BuildKey([2; 32])), BuildLimits::NONE);
    assert!(begun && !Arc::ptr_eq(&first.build, &other.build));
    let cancel = first.build.cancel.clone();
    drop(first);
    assert!(!cancel.is_cancelled(), "the second one waits for it");
    drop(second);
    assert!(cancel.is_cancelled());
    let (third, begun) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
    assert!(begun && !third.build.cancel.is_cancelled(), "it begins anew");
    assert!(!other.build.cancel.is_cancelled());
}

#[test]
fn what_is_over_or_for_one_alone_is_not_joined() {
    let builds = Arc::new(SharedBuilds::default());
    let (first, _) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
    builds.end(&first.build);
    let (second, begun) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
    assert!(begun);
    drop(first);
    assert!(!second.build.cancel.is_cancelled(), "it is another build");
    let (alone, begun) = builds.join(TEAM, None, BuildLimits::NONE);
    assert!(begun);
    let cancel = alone.build.cancel.clone();
    drop(alone);
    assert!(cancel.is_cancelled());
}

#[test]
fn what_runs_and_is_for_everybody_can_be_joined_by_who_comes_back() {
    let builds = Arc::new(SharedBuilds::default());
    let (shared, _) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
    assert!(!shared.can_be_joined(), "it does not run");
    shared.build.set(Progress::Running { for_one: false });
    assert!(shared.can_be_joined());
    shared.build.set(Progress::Running { for_one: true });
    assert!(!shared.can_be_joined());
    let (alone, _) = builds.join(TEAM, None, BuildLimits::NONE);
    alone.build.set(Progress::Running { for_one: false });
    assert!(!alone.can_be_joined());
}

#[test]
fn those_who_had_joined_what_is_for_one_alone_share_another_build() {
    let builds = Arc::new(SharedBuilds::default());
    let (first, _) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
    let (second, begun) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
    assert!(!begun);
    let own = builds.join_own_or_run(TEAM, Some(KEY), BuildLimits::NONE, &first.build, true);
    assert!(own.is_none() && second.build.progress().is_for_another());
    let (again, begun) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
    assert!(begun && !Arc::ptr_eq(&again.build, &first.build));
    let (third, begun) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
    assert!(!begun && Arc::ptr_eq(&again.build, &third.build), "one is enough");
    drop(second);
    assert!(!first.build.cancel.is_cancelled(), "who asked first waits for it");
    let cancel = first.build.cancel.clone();
    drop(first);
    assert!(cancel.is_cancelled());
    assert!(!again.build.cancel.is_cancelled(), "it is another build");
    builds.end(&again.build);
}

#[test]
fn who_comes_late_is_told_the_log_from_the_beginning() {
    let build = SharedBuild::new(BuildLimits::NONE);
    build.line(b"one");
    build.line(b"two");
    let (bytes, next) = build.log_from(0);
    assert_eq!((bytes.as_slice(), next), (&b"one\ntwo\n"[..], 2));
    assert_eq!(build.log_from(next), (Vec::new(), 2));
    build.line(b"three");
    assert_eq!(build.log_from(next), (b"three\n".to_vec(), 3));
}

#[test]
fn a_log_that_is_too_long_loses_its_beginning_and_says_so() {
    let build = SharedBuild::new(BuildLimits::NONE);
    let line = vec![b'x'; 1000];
    let count = SHARED_LOG / 1000 + 10;
    for _ in 0..count {
        build.line(&line);
    }
    let (bytes, next) = build.log_from(0);
    assert_eq!(next, count);
    assert!(bytes.starts_with(b"("), "it says what is missing");
    assert!(bytes.len() <= SHARED_LOG + 100);
    let (rest, _) = build.log_from(next - 1);
    assert_eq!(rest.len(), 1001);
}

fn begun(builds: &Arc<SharedBuilds>, limits: BuildLimits) -> Owned {
    match builds.begin_own(KEY, limits, Some(&Audience::Everyone)) {
        OwnBegin::Begun(own) => own,
        OwnBegin::Joined(other) => panic!("joined {other:?}"),
        OwnBegin::Nothing => panic!("it may begin"),
    }
}

#[test]
fn the_owner_s_build_goes_on_for_others_when_the_owner_leaves() {
    let builds = Arc::new(SharedBuilds::default());
    let own = begun(&builds, BuildLimits::NONE);
    let other = builds.join_own(TEAM, KEY, BuildLimits::NONE).expect("it runs");
    own.abandon();
    assert!(!own.build.cancel.is_cancelled(), "another one waits for it");
    drop(other);
    assert!(own.build.cancel.is_cancelled());
    assert!(
        builds.join_own(TEAM, KEY, BuildLimits::NONE).is_none(),
        "it is being stopped"
    );
    drop(own);
    let own = begun(&builds, BuildLimits::NONE);
    own.abandon();
    assert!(own.build.cancel.is_cancelled(), "nobody waits for it");
}

#[test]
fn the_owner_with_a_limit_of_his_own_does_not_wait_for_a_build_with_another() {
    let builds = Arc::new(SharedBuilds::default());
    let (other, begun) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
    assert!(begun);
    other.build.set(Progress::Running { for_one: false });
    let three = BuildLimits {
        time: Some(3),
        ..BuildLimits::NONE
    };
    assert!(matches!(
        builds.begin_own(KEY, three, Some(&Audience::Everyone)),
        OwnBegin::Begun(_)
    ));
    assert!(matches!(
        builds.begin_own(KEY, BuildLimits::NONE, Some(&Audience::Everyone)),
        OwnBegin::Joined(_)
    ));
}

#[test]
fn nobody_waits_for_a_build_whose_task_broke_off() {
    let builds = Arc::new(SharedBuilds::default());
    let (waiting, _) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
    drop(builds.undertake(Arc::clone(&waiting.build)));
    let Progress::Over(ended) = waiting.build.progress() else {
        panic!("it goes on");
    };
    assert!(matches!(&*ended, Ended::Refused(_)));
    let (_, begun) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
    assert!(begun, "who comes now begins anew");
}

#[test]
fn a_build_that_goes_on_for_others_is_joined_by_the_owner_s_next_command() {
    let builds = Arc::new(SharedBuilds::default());
    let own = begun(&builds, BuildLimits::NONE);
    let other = builds.join_own(TEAM, KEY, BuildLimits::NONE).expect("it runs");
    own.abandon();
    let OwnBegin::Joined(next) = builds.begin_own(KEY, BuildLimits::NONE, Some(&Audience::Everyone)) else {
        panic!("built twice");
    };
    drop(other);
    assert!(!own.build.cancel.is_cancelled(), "the next command waits for it");
    // With a limit of its own a command has its own build, which leaves the first one where it is.
    let hour = BuildLimits {
        time: Some(3600),
        ..BuildLimits::NONE
    };
    let limited = begun(&builds, hour);
    limited.abandon();
    assert!(limited.build.cancel.is_cancelled());
    drop(limited);
    assert!(!own.build.cancel.is_cancelled());
    drop(next);
    assert!(own.build.cancel.is_cancelled(), "nobody waits for it any more");
}

#[test]
fn who_leaves_does_not_stop_what_the_owner_wants() {
    let builds = Arc::new(SharedBuilds::default());
    let own = begun(&builds, BuildLimits::NONE);
    drop(builds.join_own(TEAM, KEY, BuildLimits::NONE).expect("it runs"));
    assert!(!own.build.cancel.is_cancelled());
    let waiting = builds
        .join_own(TEAM, KEY, BuildLimits::NONE)
        .expect("it still runs");
    drop(own);
    assert!(
        matches!(waiting.build.progress(), Progress::Over(_)),
        "it is not waited for in vain"
    );
    assert!(builds.join_own(TEAM, KEY, BuildLimits::NONE).is_none());
}

#[test]
fn a_limit_that_was_asked_for_is_kept() {
    let builds = Arc::new(SharedBuilds::default());
    let hour = BuildLimits {
        time: Some(3600),
        ..BuildLimits::NONE
    };
    let own = begun(&builds, BuildLimits::NONE);
    assert!(builds.join_own(TEAM, KEY, hour).is_none());
    drop(own);
    let own = begun(&builds, hour);
    assert!(builds.join_own(TEAM, KEY, hour).is_some());
    assert!(
        builds.join_own(TEAM, KEY, BuildLimits::NONE).is_none(),
        "it would be stopped too early"
    );
    drop(own);
}

#[test]
fn the_owner_joins_what_runs_for_others_and_nothing_that_waits() {
    let builds = Arc::new(SharedBuilds::default());
    let (other, _) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
    // It may wait for the slot that the own build has.
    drop(begun(&builds, BuildLimits::NONE));
    other.build.set(Progress::Running { for_one: true });
    drop(begun(&builds, BuildLimits::NONE));
    let none = builds.join_own_or_run(TEAM, Some(KEY), BuildLimits::NONE, &other.build, false);
    assert!(none.is_none());
    let OwnBegin::Joined(joined) = builds.begin_own(KEY, BuildLimits::NONE, Some(&Audience::Everyone)) else {
        panic!("built twice");
    };
    assert!(Arc::ptr_eq(&joined.build, &other.build));
    let cancel = other.build.cancel.clone();
    drop(other);
    assert!(!cancel.is_cancelled(), "the owner waits for it");
    drop(joined);
    assert!(cancel.is_cancelled());
}

#[tokio::test]
async fn a_build_for_others_is_prepared_anew_when_the_owner_s_that_it_followed_is_given_up() {
    let builds = Arc::new(SharedBuilds::default());
    let own = begun(&builds, BuildLimits::NONE);
    let (other, _) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
    let followed = builds.join_own(TEAM, KEY, BuildLimits::NONE).expect("it runs");
    let following = other.build.follow_own(&followed.build);
    let giving_up = async {
        assert!(matches!(
            other.build.progress(),
            Progress::Running { for_one: false }
        ));
        own.build.line(b"one line");
        drop(own);
    };
    let (ended, ()) = tokio::join!(biased; following, giving_up);
    assert!(ended.is_none(), "it says nothing about the other one");
    assert!(matches!(other.build.progress(), Progress::Preparing));
    assert_eq!(other.build.log_from(0).0, b"one line\n");
    // It may wait for the slot that the owner's next build has.
    drop(begun(&builds, BuildLimits::NONE));
}

#[test]
fn a_build_for_others_that_begins_meanwhile_follows_the_owner_s() {
    let builds = Arc::new(SharedBuilds::default());
    let (other, _) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
    let own = begun(&builds, BuildLimits::NONE);
    let followed = builds.join_own_or_run(TEAM, Some(KEY), BuildLimits::NONE, &other.build, false);
    assert!(followed.is_some_and(|followed| Arc::ptr_eq(&followed.build, &own.build)));
    assert!(matches!(other.build.progress(), Progress::Preparing));
}

#[test]
fn members_of_two_teams_do_not_wait_for_one_build() {
    let builds = Arc::new(SharedBuilds::default());
    let (first, begun) = builds.join(TEAM, Some(KEY), BuildLimits::NONE);
    assert!(begun);
    let (second, begun) = builds.join(OTHER_TEAM, Some(KEY), BuildLimits::NONE);
    assert!(begun && !Arc::ptr_eq(&first.build, &second.build));
}

#[test]
fn the_owner_s_build_is_joined_by_those_alone_who_may_learn_of_what_it_reads() {
    let builds = Arc::new(SharedBuilds::default());
    let OwnBegin::Begun(_owned) = builds.begin_own(KEY, BuildLimits::NONE, Some(&Audience::team(TEAM)))
    else {
        panic!("there is nothing to join");
    };
    assert!(builds.join_own(OTHER_TEAM, KEY, BuildLimits::NONE).is_none());
    let (theirs, _) = builds.join(OTHER_TEAM, Some(KEY), BuildLimits::NONE);
    let followed = builds.join_own_or_run(OTHER_TEAM, Some(KEY), BuildLimits::NONE, &theirs.build, false);
    assert!(followed.is_none());
    assert!(builds.join_own(TEAM, KEY, BuildLimits::NONE).is_some());
}
