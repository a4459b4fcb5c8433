//! A far build whose connection breaks: whether its builder is asked for the same again, and what it has come to where it is not.

use tvix_node_protocol::messages::{Refusal, RefusalReason};
use tvix_node_swarm::{BuildCallError, CallError};

use super::limits::BUILDER_BREAKS;
use super::request::RequestFailure;

/// What has happened to the connection in the course of one build.
#[derive(Debug, Default)]
pub(super) struct Breaks {
    /// The builder has taken the request up.
    accepted: bool,
    /// How often it broke off.
    count: u32,
    /// How it did last, where it was gone on after that.
    last: Option<BuildCallError>,
}

impl Breaks {
    /// The builder takes the request up. Whether it had not before.
    pub(super) fn is_accepted(&mut self) -> bool {
        !std::mem::replace(&mut self.accepted, true)
    }

    /// Whether it ever did.
    pub(super) fn was_accepted(&self) -> bool {
        self.accepted
    }

    /// The connection is of no use any more. Whether the builder is asked for the same again: where it was at it, as often as
    /// is reasonable.
    pub(super) fn may_go_on(&mut self, error: &CallError) -> bool {
        self.count += 1;
        self.accepted && error.is_break() && self.count <= BUILDER_BREAKS
    }

    /// The builder goes on with it.
    pub(super) fn went_on(&mut self, after: BuildCallError) {
        self.last = Some(after);
    }

    /// What the build has come to. `is_there`: whether the builder can be reached at all.
    pub(super) fn failure(&self, error: BuildCallError, is_there: bool) -> RequestFailure {
        match error {
            error @ BuildCallError::Call(_) if is_there && !self.accepted || self.count > BUILDER_BREAKS => {
                RequestFailure::BreaksOff(error)
            }
            error @ BuildCallError::Call(_) => RequestFailure::WentAway(error),
            error => error.into(),
        }
    }

    /// The same where the builder says no.
    pub(super) fn refusal(&mut self, name: &str, refusal: Refusal) -> RequestFailure {
        // That it has no room, or no inputs, passes as it does elsewhere.
        let passes = matches!(refusal.reason, RefusalReason::Busy | RefusalReason::InputMissing);
        match self.last.take() {
            // It has lost what it was building.
            Some(error) if !passes => RequestFailure::WentAway(error),
            _ => RequestFailure::Refused {
                name: name.to_owned(),
                refusal,
            },
        }
    }
}

/// Whether a builder is told that its build is not wanted after this: it may be at it, and would go on for a while for who may
/// come back. Where the connection is broken there is no way to tell it.
pub(super) fn is_told_to_stop(error: &BuildCallError) -> bool {
    !matches!(error, BuildCallError::Call(error) if error.is_break())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tvix_node_coordinator::FailureKind;
    use tvix_node_protocol::StorePath;
    use tvix_node_protocol::envelope::NodeKey;
    use tvix_node_protocol::tree::TreeDigest;
    use tvix_node_swarm::{Door, FetchError, ProviderError, WireError};

    use super::super::fetch::FetchFailure;
    use super::*;

    const BOB: NodeKey = NodeKey([2; 32]);

    fn call(source: WireError) -> CallError {
        CallError::Wire {
            peer: BOB,
            door: Door::Build,
            source,
        }
    }

    fn break_() -> CallError {
        call(WireError::Closed)
    }

    #[test]
    fn a_builder_that_was_at_it_is_asked_again_so_often_and_counts_as_breaking_off_then() {
        let mut breaks = Breaks::default();
        assert!(breaks.is_accepted());
        assert!(!breaks.is_accepted(), "it is told of once");
        for _ in 0..BUILDER_BREAKS {
            assert!(breaks.may_go_on(&break_()));
            breaks.went_on(break_().into());
        }
        assert!(!breaks.may_go_on(&break_()));
        // It is there, so that who is asked next is another one: it is no candidate for this any more.
        for is_there in [true, false] {
            let failure = breaks.failure(break_().into(), is_there);
            assert!(matches!(failure, RequestFailure::BreaksOff(_)), "{failure}");
            assert_eq!(failure.kind(), FailureKind::Transient);
        }
    }

    #[test]
    fn a_builder_that_does_not_come_back_is_gone_and_may_be_asked_later() {
        let mut breaks = Breaks::default();
        breaks.is_accepted();
        assert!(breaks.may_go_on(&break_()));
        let failure = breaks.failure(break_().into(), false);
        assert!(matches!(failure, RequestFailure::WentAway(_)), "{failure}");
        assert_eq!(failure.kind(), FailureKind::Gone);
    }

    #[test]
    fn one_that_closes_before_it_takes_the_request_up_is_not_asked_again() {
        let mut breaks = Breaks::default();
        assert!(!breaks.may_go_on(&break_()));
        let failure = breaks.failure(break_().into(), true);
        assert!(matches!(failure, RequestFailure::BreaksOff(_)), "{failure}");
        let failure = breaks.failure(break_().into(), false);
        assert!(matches!(failure, RequestFailure::WentAway(_)), "{failure}");
    }

    #[test]
    fn one_that_has_lost_what_it_was_at_is_gone_and_one_that_has_no_room_is_busy() {
        let refusal = |reason| Refusal {
            reason,
            message: "no".to_owned(),
        };
        let mut breaks = Breaks::default();
        breaks.is_accepted();
        breaks.may_go_on(&break_());
        breaks.went_on(break_().into());
        let failure = breaks.refusal("bob", refusal(RefusalReason::Busy));
        assert_eq!(failure.kind(), FailureKind::Busy);
        breaks.went_on(break_().into());
        let failure = breaks.refusal("bob", refusal(RefusalReason::Policy));
        assert_eq!(failure.kind(), FailureKind::Gone);
        let failure = Breaks::default().refusal("bob", refusal(RefusalReason::Policy));
        assert_eq!(failure.kind(), FailureKind::Refused);
    }

    #[test]
    fn a_builder_is_told_to_stop_wherever_it_can_be_told() {
        let too_long = BuildCallError::LogTooLong { builder: BOB };
        assert!(is_told_to_stop(&too_long));
        let silent = call(WireError::Silent(Duration::from_secs(30)));
        assert!(is_told_to_stop(&silent.into()));
        assert!(!is_told_to_stop(&break_().into()));
        // It is at fault, and is not asked for this again.
        let failure = Breaks::default().failure(too_long, true);
        assert_eq!(failure.kind(), FailureKind::Transient);
    }

    #[test]
    fn a_builder_whose_outputs_break_off_is_gone_and_one_that_sends_something_else_is_at_fault() {
        let outputs = |error: ProviderError| RequestFailure::Outputs {
            name: "bob".to_owned(),
            source: FetchFailure::Transfer {
                path: StorePath::from_parts([1; 20], "x").unwrap(),
                why: error.to_string(),
                source: FetchError::Failed {
                    root: TreeDigest([1; 32]),
                    failures: vec![(BOB, error)],
                },
            },
        };
        for away in [
            ProviderError::Call(break_()),
            ProviderError::Ended("it stopped".to_owned()),
        ] {
            assert_eq!(outputs(away).kind(), FailureKind::Gone);
        }
        for fault in [
            ProviderError::Lied("x".to_owned()),
            ProviderError::NotThere,
            ProviderError::Broken,
        ] {
            assert_eq!(outputs(fault).kind(), FailureKind::Transient);
        }
    }
}
