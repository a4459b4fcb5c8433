//! How long members are waited for when somebody waits for what they have.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::{Duration, Instant};

use tvix_node_protocol::envelope::NodeKey;

use crate::call::CallError;
use crate::core::Core;
use crate::limits::{ANSWER_PATIENCE, ANSWER_ROUND_TRIPS, ANSWER_TIME_PER_KEY, FIND_TIME, PATIENCE_STEPS};
use crate::net::WireError;

/// How long a member may take until an answer to a question about so many keys begins to come; none: it is not asked.
///
/// Who is not connected has been away a moment ago, or is dialled for this question, once in a while. Who is connected and does
/// not answer may have been cut off or stopped: until it gives a sign of life nobody waits for it again.
pub(crate) fn patience(
    core: &Core,
    connected: &BTreeSet<NodeKey>,
    peer: NodeKey,
    keys: usize,
) -> Option<Duration> {
    if !connected.contains(&peer) {
        return core.network.dial_patience(peer);
    }
    let link = core.network.link(peer);
    (!link.is_silent(Instant::now())).then(|| answer_patience(link.round_trip(), keys))
}

fn answer_patience(round_trip: Option<Duration>, keys: usize) -> Duration {
    // Not measured yet: it has come this moment, and may be far away.
    round_trip.map_or(FIND_TIME, |round_trip| {
        let keys = ANSWER_TIME_PER_KEY * u32::try_from(keys).unwrap_or(u32::MAX);
        (ANSWER_PATIENCE + round_trip * ANSWER_ROUND_TRIPS + keys).min(FIND_TIME)
    })
}

pub(crate) fn is_silence(error: &CallError) -> bool {
    matches!(
        error,
        CallError::Wire {
            source: WireError::Silent(_),
            ..
        }
    )
}

/// Waits for something at a member for so long. In steps: where this machine is too busy to look at what has come, each takes as
/// long as it takes until it does.
pub(crate) async fn patiently<T, E>(
    patience: Duration,
    what: impl Future<Output = Result<T, E>>,
    silent: impl FnOnce(WireError) -> E,
) -> Result<T, E> {
    let mut what = pin!(what);
    for _ in 0..PATIENCE_STEPS {
        if let Ok(done) = tokio::time::timeout(patience / PATIENCE_STEPS, &mut what).await {
            return done;
        }
    }
    Err(silent(WireError::Silent(patience)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_far_away_or_busy_is_waited_for_longer_and_nobody_for_too_long() {
        let wait = |millis, keys| answer_patience(Some(Duration::from_millis(millis)), keys);
        assert_eq!(wait(0, 0), ANSWER_PATIENCE);
        assert!(wait(300, 1) > Duration::from_secs(1));
        assert!(wait(0, 10_000) > wait(0, 1) + Duration::from_millis(400));
        assert_eq!(wait(60_000, 0), FIND_TIME);
        assert_eq!(wait(0, usize::MAX), FIND_TIME);
        assert_eq!(answer_patience(None, 0), FIND_TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_and_what_comes_before_that_counts() {
        let wait = async |time| {
            let what = async {
                tokio::time::sleep(time).await;
                Ok::<_, WireError>(())
            };
            patiently(ANSWER_PATIENCE, what, |silent| silent).await
        };
        assert!(wait(ANSWER_PATIENCE * 9 / 10).await.is_ok());
        let silent = wait(ANSWER_PATIENCE * 2).await;
        assert!(matches!(silent, Err(WireError::Silent(ANSWER_PATIENCE))));
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_this_machine_does_nothing_is_not_held_against_a_member() {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let answered = async { answered.await.map_err(|_| WireError::Closed) };
        let waiting = patiently(ANSWER_PATIENCE, answered, |silent| silent);
        let asleep = async {
            tokio::time::sleep(ANSWER_PATIENCE / 20).await;
            tokio::time::advance(ANSWER_PATIENCE * 100).await;
            answer.send(()).unwrap();
        };
        assert!(tokio::join!(waiting, asleep).0.is_ok());
    }
}
