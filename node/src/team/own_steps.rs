//! A build of the owner's command on this node, step by step, among those that members ask for: joined or begun, and told
//! to all who wait for the same.
//!
//! What the steps need of store and sandbox is behind [`OwnWork`], so that a node of a team that is simulated goes the
//! same way.

use std::future::Future;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tvix_node_protocol::build::{BuildKey, BuildLimits, BuildRecord};
use tvix_node_protocol::messages;
use tvix_node_store::Audience;

use super::together::{Ended, OwnBegin, Owned, SharedBuild, SharedBuilds};

/// What the command gets of what was built, and the record, where others are told of it.
pub(crate) type Kept<Built> = (Built, Option<Box<BuildRecord>>);

/// One build of the owner's command.
pub(crate) trait OwnWork: Send + Sized {
    /// What the command gets.
    type Built: Send;
    /// Why it gets nothing.
    type Failure: Send;

    /// Waits for the build of the same work for another, or for an earlier command. None: what came of it says nothing
    /// about this one.
    fn follow(
        &mut self,
        other: &SharedBuild,
    ) -> impl Future<Output = Result<Option<Self::Built>, Self::Failure>> + Send;

    /// What would be built, where all of it has come to lie here since it was decided to build it.
    fn here_meanwhile(&mut self) -> impl Future<Output = Option<Self::Built>> + Send;

    /// Builds, until `owned.build.cancel` stops it, and keeps what was built. With the record, where what it says lies
    /// here: without, nobody else is told of it.
    fn carry_out(
        self,
        owned: &Owned,
    ) -> impl Future<Output = Result<Kept<Self::Built>, Self::Failure>> + Send;

    /// There is no build any more to take part in.
    fn nothing_to_join() -> Self::Failure;

    /// The command wants it no more.
    fn cancelled() -> Self::Failure;

    /// What others who wait for the same are told of a failure. None: it says nothing about theirs.
    fn told(failure: &Self::Failure) -> Option<messages::BuildFailure>;
}

/// Builds, or takes part in the build of the same work that is under way. `cancel`: the command wants it no more;
/// `down`: the node ends, and nobody gets it. `audience`: whose members may wait for it; none: it has no slot, so that
/// it only takes part.
pub(crate) async fn build<W: OwnWork>(
    mut work: W,
    building: &Arc<SharedBuilds>,
    (key, limits, audience): (BuildKey, BuildLimits, Option<&Audience>),
    cancel: CancellationToken,
    down: &CancellationToken,
) -> Result<W::Built, W::Failure> {
    let owned = loop {
        match building.begin_own(key, limits, audience) {
            OwnBegin::Begun(owned) => break owned,
            OwnBegin::Nothing => {
                return match work.here_meanwhile().await {
                    Some(here) => Ok(here),
                    None => Err(W::nothing_to_join()),
                };
            }
            OwnBegin::Joined(other) => {
                let followed = cancel.run_until_cancelled(work.follow(&other.build)).await;
                let Some(followed) = followed else {
                    return Err(W::cancelled());
                };
                if let Some(built) = followed? {
                    return Ok(built);
                }
            }
        }
    };
    // What was built for another is registered before its build is over, so it is here or was joined.
    if let Some(here) = work.here_meanwhile().await {
        return Ok(here);
    }
    let kept = {
        let working = work.carry_out(&owned);
        tokio::pin!(working);
        tokio::select! {
            biased;
            kept = &mut working => kept,
            () = cancel.cancelled() => {
                owned.abandon();
                tokio::select! {
                    biased;
                    kept = &mut working => kept,
                    () = down.cancelled() => {
                        owned.build.cancel.cancel();
                        working.await
                    }
                }
            }
        }
    };
    match kept {
        Ok((built, record)) => {
            if let Some(record) = record {
                owned.end(Ended::Built {
                    record,
                    accepted: true,
                    aside: Vec::new(),
                });
            }
            Ok(built)
        }
        Err(failure) => {
            if let Some(told) = W::told(&failure) {
                owned.end(Ended::Failed(told));
            }
            Err(failure)
        }
    }
}

#[cfg(test)]
#[path = "own_steps_tests.rs"]
mod tests;
