//! Builders' promises: kept alive from both sides, hedged when they fall silent, given up at last.

use tvix_node_protocol::envelope::NodeKey;

use crate::action::{Action, Urgency};
use crate::build::Attempt;
use crate::coordinator::Coordinator;
use crate::event::{BuildFailure, FailureKind};
use crate::id::{BuildId, Time};
use crate::limits;

/// Whether a second builder was asked because the first one is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hedge {
    No,
    /// It should be, once there is one with room.
    Due,
    Done,
}

/// What is known of a builder's promise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lease {
    heard: Time,
    renewed: Time,
    hedge: Hedge,
}

impl Lease {
    pub(crate) fn new(now: Time) -> Self {
        Self {
            heard: now,
            renewed: now,
            hedge: Hedge::No,
        }
    }

    /// The builder has given a sign of life.
    pub(crate) fn heard(&mut self, now: Time) {
        self.heard = now;
        if self.hedge == Hedge::Due {
            self.hedge = Hedge::No;
        }
    }

    pub(crate) fn wants_hedge(&self) -> bool {
        self.hedge == Hedge::Due
    }

    pub(crate) fn hedged(&mut self) {
        self.hedge = Hedge::Done;
    }

    /// The second builder is not at it any more.
    pub(crate) fn unhedged(&mut self) {
        self.hedge = Hedge::No;
    }

    /// When something has to be done about it next.
    fn due(&self) -> Time {
        let give_up = self.heard.after(limits::GIVE_UP_AFTER);
        let renew = self.renewed.after(limits::LEASE_RENEWAL);
        let hedge = self.heard.after(limits::HEDGE_AFTER);
        let due = give_up.min(renew);
        if self.hedge == Hedge::No {
            due.min(hedge)
        } else {
            due
        }
    }
}

impl Coordinator {
    pub(crate) fn tick(&mut self) {
        self.expire_questions();
        self.expire_weighing();
        self.builders.end_pauses(self.now);
        self.watch_leases();
    }

    fn watch_leases(&mut self) {
        let now = self.now;
        let mut silent = Vec::new();
        for (build, attempt) in &mut self.attempts {
            let Some(node) = attempt.node else { continue };
            let lease = &mut attempt.lease;
            if lease.heard.after(limits::GIVE_UP_AFTER) <= now {
                silent.push(*build);
                continue;
            }
            if lease.renewed.after(limits::LEASE_RENEWAL) <= now {
                lease.renewed = now;
                self.actions.push(Action::RenewLease { build: *build, node });
            }
            if lease.hedge == Hedge::No && lease.heard.after(limits::HEDGE_AFTER) <= now {
                lease.hedge = Hedge::Due;
            }
        }
        for build in silent {
            let seconds = limits::GIVE_UP_AFTER.as_secs();
            self.lose_build(build, FailureKind::Transient, format!("silent for {seconds} s"));
        }
    }

    /// Does not wait for a build any more. It is not cancelled: its builder stops by itself when it
    /// is not told that the build is wanted, unless it is done before, which is welcome.
    fn lose_build(&mut self, build: BuildId, kind: FailureKind, error: String) {
        let participants = self.participants(build);
        let Some(attempt) = self.take_attempt(build) else {
            return;
        };
        let failure = BuildFailure {
            kind,
            error,
            log_tail: Vec::new(),
        };
        self.try_elsewhere(&attempt, participants, failure);
        self.remember_given_up(build, attempt);
    }

    /// A peer is gone, and its builds with it.
    pub(crate) fn lose_builder(&mut self, node: NodeKey, name: &str) {
        let there = |attempt: &Attempt| attempt.node == Some(node);
        let lost: Vec<BuildId> = self
            .attempts
            .iter()
            .filter(|(_, attempt)| there(attempt))
            .map(|(build, _)| *build)
            .collect();
        for build in lost {
            let error = format!("the connection to {name} is gone");
            self.lose_build(build, FailureKind::Gone, error);
        }
    }

    pub(crate) fn leases_due(&self) -> Option<Time> {
        let remote = self.attempts.values().filter(|attempt| attempt.node.is_some());
        // What is late already is looked at whenever anything happens.
        let late = |attempt: &Attempt| attempt.late.filter(|late| *late > self.now);
        let due = remote.flat_map(|attempt| [Some(attempt.lease.due()), late(attempt)]);
        due.flatten().min()
    }

    /// Short builds that are wanted and that a peer should have done by now.
    pub(crate) fn to_be_raced(&self) -> Vec<BuildId> {
        let late = self.attempts.iter().filter(|(build, attempt)| {
            attempt.late.is_some_and(|late| late <= self.now) && self.is_demanded(**build)
        });
        late.map(|(build, _)| *build).collect()
    }

    /// Builds so badly wanted whose builder is silent and for which a second one should start.
    pub(crate) fn to_be_hedged(&self, urgency: Urgency) -> Vec<BuildId> {
        let due = self.attempts.iter().filter(|(build, attempt)| {
            attempt.lease.wants_hedge()
                && self.graph.drvs[attempt.drv].missing_inputs == 0
                && self.urgency(attempt.drv, self.participants(**build)) == urgency
        });
        due.map(|(build, _)| *build).collect()
    }
}
