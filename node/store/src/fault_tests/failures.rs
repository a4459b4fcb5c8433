//! Steps that fail: each is an error, and leaves nothing.

use rustix::io::Errno;

use super::place::{Place, faults};
use super::whole::{Heard, assert_whole, whole_and_more};
use super::work::Work;
use super::{Sample, at_steps};
use crate::faults::{Faults, Plan};

#[test]
fn a_failing_operation_is_an_error_and_leaves_nothing() {
    let (mut noticed, mut all) = (0, 0);
    at_steps(&Sample::Some(2), &mut |step| {
        let errno = [Errno::IO, Errno::NOSPC][all % 2];
        noticed += usize::from(fail_at(Plan::Fail(step, errno)).is_some());
        all += 1;
    });
    assert!(noticed > all / 2, "most failures are noticed: {noticed} of {all}");
}

#[test]
#[ignore = "takes minutes; the sampled test is the short form"]
fn every_failing_operation_is_an_error_and_leaves_nothing() {
    at_steps(&Sample::All, &mut |step| {
        for errno in [Errno::IO, Errno::NOSPC] {
            fail_at(Plan::Fail(step, errno));
        }
        fail_at(Plan::Full(step));
    });
}

#[test]
fn a_full_disk_is_an_error_that_says_so_and_leaves_nothing() {
    at_steps(&Sample::Some(1), &mut |step| {
        if let Some(error) = fail_at(Plan::Full(step)) {
            assert!(error.contains("No space left"), "{error}");
        }
    });
}

/// Where the work failed, why.
fn fail_at(plan: Plan) -> Option<String> {
    let (place, faults) = (Place::new(), faults(plan));
    let mut heard = Heard::default();
    let mut hear = |told| heard.hear(told);
    let mut work = Work::new(&place, &faults, &mut hear);
    let mut failure = work.all().err().map(|error| error.to_string());
    let store = work.store.take();
    drop(work);
    faults.set(Plan::Pass);
    let when = format!("{plan:?}");
    if let Some(store) = store {
        heard.check(&store, &place, &when);
        // A removal that failed is made up for at the next start, as is one of what has been replaced.
        let rubbish = |name: &String| name.starts_with(".tmp-") || name.starts_with(".trash-");
        let more = whole_and_more(&store);
        assert!(more.len() <= 3 && more.iter().all(rubbish), "{plan:?}: {more:?}");
        if !more.is_empty() && failure.is_none() {
            failure = Some(format!("{more:?} could not be removed"));
        }
    }
    let store = place.open_safely();
    heard.check(&store, &place, &when);
    assert_whole(&store, &place);
    drop(store);
    work_again(&place, &when);
    failure
}

/// Nothing that was left is in the way of the same work.
pub(super) fn work_again(place: &Place, when: &str) {
    let (faults, mut heard) = (Faults::default(), Heard::default());
    let mut hear = |told| heard.hear(told);
    let mut work = Work::new(place, &faults, &mut hear);
    if let Err(error) = work.all() {
        panic!("{when}: {error}");
    }
    let store = work.store.take().unwrap();
    drop(work);
    heard.check(&store, place, when);
    assert_whole(&store, place);
    let beside = place.path().join("result.new-root");
    assert!(beside.symlink_metadata().is_err(), "{when}: a link is left");
}
