//! How long members that are not connected are worth waiting for, when somebody waits for what they have to say.
//!
//! Who was just found to be away is not waited for: it is dialled anew in the background, and dials itself when it is back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tvix_node_protocol::envelope::NodeKey;

use crate::limits::{DIAL_PATIENCE, DIAL_ROUND_TRIPS, FIND_TIME, UNREACHABLE};

/// What is known of a member that is not connected.
#[derive(Debug, Clone, Copy, Default)]
struct Absence {
    /// It was connected: how far away it was then, where that was measured.
    lost: Option<Option<Duration>>,
    /// Since when it is being dialled.
    dialled: Option<Instant>,
    /// When it was last dialled in vain.
    failed: Option<Instant>,
    /// When it is dialled again in the background.
    due: Option<Instant>,
}

/// See the [module](self). Clones are the same; bounded by the members.
#[derive(Debug, Clone, Default)]
pub(crate) struct Absent(Arc<Mutex<HashMap<NodeKey, Absence>>>);

impl Absent {
    fn with<T>(&self, action: impl FnOnce(&mut HashMap<NodeKey, Absence>) -> T) -> T {
        action(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, member: NodeKey, action: impl FnOnce(&mut Absence)) {
        self.with(|absent| action(absent.entry(member).or_default()));
    }

    /// It is connected.
    pub(crate) fn connected(&self, member: NodeKey) {
        self.with(|absent| absent.remove(&member));
    }

    /// It was connected until now, with this round trip.
    pub(crate) fn gone(&self, member: NodeKey, round_trip: Option<Duration>) {
        self.with(|absent| {
            let lost = Some(round_trip);
            absent.insert(
                member,
                Absence {
                    lost,
                    ..Absence::default()
                },
            )
        });
    }

    /// It is being dialled.
    pub(crate) fn dialled(&self, member: NodeKey, now: Instant) {
        self.change(member, |absence| {
            absence.dialled.get_or_insert(now);
        });
    }

    /// It was dialled in vain.
    pub(crate) fn failed(&self, member: NodeKey, now: Instant) {
        self.change(member, |absence| {
            (absence.dialled, absence.failed) = (None, Some(now));
        });
    }

    /// It is dialled again then, if it is not connected by then.
    pub(crate) fn due(&self, member: NodeKey, at: Instant) {
        self.change(member, |absence| absence.due = Some(at));
    }

    /// Whether it was connected, and is gone.
    pub(crate) fn is_lost(&self, member: NodeKey) -> bool {
        self.with(|absent| absent.get(&member).is_some_and(|absence| absence.lost.is_some()))
    }

    pub(crate) fn retain(&self, is_member: impl Fn(NodeKey) -> bool) {
        self.with(|absent| absent.retain(|member, _| is_member(*member)));
    }

    /// How long to wait until it is connected and has answered a question; none: not at all.
    ///
    /// Who has not been dialled yet may be far away. Who was connected is reached within a few round trips, or is
    /// gone. Either time counts from when it was first dialled, whoever asks when.
    pub(crate) fn patience(&self, member: NodeKey, now: Instant) -> Option<Duration> {
        let Some(absence) = self.with(|absent| absent.get(&member).copied()) else {
            return Some(FIND_TIME);
        };
        if let Some(failed) = absence.failed
            && (now.duration_since(failed) < UNREACHABLE || absence.due.is_some_and(|due| now < due))
        {
            return None;
        }
        let round_trip = match absence.lost {
            Some(round_trip) => round_trip.unwrap_or_default(),
            None if absence.failed.is_some() => Duration::ZERO,
            None => FIND_TIME,
        };
        let most = (DIAL_PATIENCE + round_trip * DIAL_ROUND_TRIPS).min(FIND_TIME);
        let passed = absence
            .dialled
            .map_or(Duration::ZERO, |since| now.duration_since(since));
        most.checked_sub(passed).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: NodeKey = NodeKey([1; 32]);
    const BOB: NodeKey = NodeKey([2; 32]);
    const MOMENT: Duration = Duration::from_millis(1);

    #[test]
    fn who_was_never_dialled_may_be_far_away_and_is_waited_for_once() {
        let (absent, now) = (Absent::default(), Instant::now());
        assert_eq!(absent.patience(ANN, now), Some(FIND_TIME));
        absent.dialled(ANN, now);
        absent.due(ANN, now + UNREACHABLE);
        let later = now + Duration::from_secs(1);
        absent.dialled(ANN, later);
        assert_eq!(
            absent.patience(ANN, later),
            Some(FIND_TIME - Duration::from_secs(1))
        );
        assert_eq!(absent.patience(ANN, now + FIND_TIME), None);
        absent.connected(ANN);
        assert_eq!(absent.patience(ANN, later), Some(FIND_TIME));
    }

    #[test]
    fn who_was_connected_is_waited_for_a_moment_or_as_long_as_it_is_away() {
        let (absent, now) = (Absent::default(), Instant::now());
        assert!(!absent.is_lost(ANN));
        absent.gone(ANN, None);
        assert!(absent.is_lost(ANN));
        absent.gone(BOB, Some(Duration::from_millis(100)));
        assert_eq!(absent.patience(ANN, now), Some(DIAL_PATIENCE));
        let far = DIAL_PATIENCE + Duration::from_millis(100) * DIAL_ROUND_TRIPS;
        assert_eq!(absent.patience(BOB, now), Some(far.min(FIND_TIME)));
        absent.dialled(ANN, now);
        assert_eq!(absent.patience(ANN, now + MOMENT), Some(DIAL_PATIENCE - MOMENT));
        assert_eq!(absent.patience(ANN, now + DIAL_PATIENCE), None);
        absent.retain(|key| key == BOB);
        assert_eq!(absent.with(|absent| absent.len()), 1);
    }

    #[test]
    fn who_was_dialled_in_vain_is_not_waited_for_until_it_may_be_back() {
        let (absent, now) = (Absent::default(), Instant::now());
        absent.dialled(ANN, now);
        absent.failed(ANN, now);
        assert_eq!(absent.patience(ANN, now + UNREACHABLE - MOMENT), None);
        assert_eq!(absent.patience(ANN, now + UNREACHABLE), Some(DIAL_PATIENCE));
        // It is looked after in the background.
        absent.due(ANN, now + UNREACHABLE * 2);
        assert_eq!(absent.patience(ANN, now + UNREACHABLE), None);
        assert_eq!(absent.patience(ANN, now + UNREACHABLE * 2), Some(DIAL_PATIENCE));
        absent.dialled(ANN, now + UNREACHABLE * 2);
        absent.failed(ANN, now + UNREACHABLE * 2 + MOMENT);
        assert_eq!(absent.patience(ANN, now + UNREACHABLE * 2 + MOMENT), None);
    }
}
