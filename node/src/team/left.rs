//! A build for a requester whose connection broke.

use super::limits::{REQUESTER_BACK, REQUESTER_LOOK};
use super::together::{Progress, Waiting};

/// Waits for a requester that may ask for the same again: it then joins the build, and has its log from the beginning. Not for one
/// who may not ask for builds any more, nor for what is over, or turns out to be for another alone. What is held (its part in the
/// build, its place) goes with the end of that.
pub(super) async fn kept_for_who_left<P>(waiting: Waiting, place: P, may_ask: impl Fn() -> bool) {
    let since = tokio::time::Instant::now();
    let can_end_for_it = || {
        let progress = waiting.build.progress();
        !matches!(progress, Progress::Over(_)) && !progress.is_for_another()
    };
    while since.elapsed() < REQUESTER_BACK && may_ask() && can_end_for_it() {
        tokio::time::sleep(REQUESTER_LOOK).await;
    }
    drop((waiting, place));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::time::Instant;
    use tvix_node_protocol::build::{BuildKey, BuildLimits, SwarmId};

    use super::super::inputs::refusal;
    use super::super::together::{Ended, SharedBuild, SharedBuilds};
    use super::*;
    use tvix_node_protocol::messages::RefusalReason;

    fn running(builds: &Arc<SharedBuilds>) -> (Waiting, Arc<SharedBuild>) {
        let (waiting, _) = builds.join(SwarmId([1; 32]), Some(BuildKey([1; 32])), BuildLimits::NONE);
        let build = Arc::clone(&waiting.build);
        build.set(Progress::Running { for_one: false });
        (waiting, build)
    }

    #[tokio::test(start_paused = true)]
    async fn a_build_goes_on_for_a_while_for_a_requester_that_left() {
        let builds = Arc::new(SharedBuilds::default());
        let (waiting, build) = running(&builds);
        let began = Instant::now();
        let keeping = tokio::spawn(kept_for_who_left(waiting, (), || true));
        tokio::time::sleep(REQUESTER_BACK - REQUESTER_LOOK).await;
        assert!(!build.cancel.is_cancelled());
        // Who comes back joins it, and it goes on when the time is over.
        let (back, begun) = builds.join(SwarmId([1; 32]), Some(BuildKey([1; 32])), BuildLimits::NONE);
        assert!(!begun);
        keeping.await.unwrap();
        assert!(began.elapsed() <= REQUESTER_BACK + REQUESTER_LOOK);
        assert!(!build.cancel.is_cancelled());
        drop(back);
        assert!(build.cancel.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_put_out_meanwhile_is_not_waited_for() {
        let builds = Arc::new(SharedBuilds::default());
        let (waiting, build) = running(&builds);
        let member = Arc::new(AtomicBool::new(true));
        let may_ask = {
            let member = Arc::clone(&member);
            move || member.load(Ordering::Relaxed)
        };
        let keeping = tokio::spawn(kept_for_who_left(waiting, (), may_ask));
        tokio::time::sleep(REQUESTER_LOOK * 3).await;
        assert!(!build.cancel.is_cancelled());
        member.store(false, Ordering::Relaxed);
        let revoked = Instant::now();
        keeping.await.unwrap();
        assert!(revoked.elapsed() <= REQUESTER_LOOK);
        assert!(build.cancel.is_cancelled(), "nobody else waits for it");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_over_holds_no_place() {
        let builds = Arc::new(SharedBuilds::default());
        let (waiting, build) = running(&builds);
        let place = Arc::new(());
        let keeping = tokio::spawn(kept_for_who_left(waiting, Arc::clone(&place), || true));
        tokio::time::sleep(REQUESTER_LOOK).await;
        let ended = Ended::Refused(refusal(RefusalReason::Busy, "it is over"));
        build.set(Progress::Over(Arc::new(ended)));
        let over = Instant::now();
        keeping.await.unwrap();
        assert!(over.elapsed() <= REQUESTER_LOOK);
        assert_eq!(Arc::strong_count(&place), 1);
    }

    /// Who comes back does not join what was the owner's own, was refused, and is now from inputs of one requester.
    #[tokio::test(start_paused = true)]
    async fn what_becomes_one_that_cannot_be_joined_is_not_waited_for() {
        let builds = Arc::new(SharedBuilds::default());
        let (waiting, build) = running(&builds);
        let keeping = tokio::spawn(kept_for_who_left(waiting, (), || true));
        tokio::time::sleep(REQUESTER_LOOK).await;
        build.set(Progress::Preparing);
        tokio::time::sleep(REQUESTER_LOOK * 3).await;
        assert!(!build.cancel.is_cancelled(), "it may still be for both");
        build.set(Progress::Running { for_one: true });
        let known = Instant::now();
        keeping.await.unwrap();
        assert!(known.elapsed() <= REQUESTER_LOOK);
    }
}
