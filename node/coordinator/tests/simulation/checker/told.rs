//! What sessions are told.

use tvix_node_coordinator::SessionId;
use tvix_node_protocol::control::{EventKind, Outcome, SessionMode};

use crate::scenario::Fate;

use super::Checker;

impl Checker {
    pub(super) fn check_told(&mut self, id: SessionId, event: &EventKind) {
        let now = self.now;
        let session = self
            .sessions
            .get(&id)
            .unwrap_or_else(|| panic!("{id} was told something unopened"));
        assert!(session.ended.is_none(), "{id} is told {event:?} after its end");
        match event {
            EventKind::BuildFailed {
                derivation,
                demanded,
                error,
                ..
            } => {
                if *demanded {
                    let needed = session.ever_needed.contains(derivation)
                        || self.needs(session, true, false).contains(derivation);
                    assert!(
                        needed,
                        "{now}: {id} fails over {derivation}, which it does not need"
                    );
                    let job = &self.jobs[derivation];
                    let slow = session
                        .options
                        .limits
                        .time
                        .is_some_and(|time| job.duration > time * 1000);
                    assert!(
                        !self.calm || job.fate == Fate::Broken || slow || error.starts_with("no builder"),
                        "{now}: {id} fails over {derivation}, which is fine: {error}"
                    );
                }
                let session = self.session(id);
                session.failed.insert(derivation.clone());
                if *demanded {
                    session.ever_needed.insert(derivation.clone());
                }
                session.stopped |= *demanded && !session.options.keep_going;
            }
            EventKind::Placed { derivation, node, .. }
                if node == "home" && self.placed.insert(derivation.clone()) =>
            {
                self.just_placed.insert(derivation.clone());
            }
            EventKind::Cancelled { derivation, .. } => drop(self.placed.remove(derivation)),
            EventKind::DependencyFailed { derivation, because } => {
                assert!(
                    session.failed.contains(because),
                    "{now}: {because} has not failed for {id}"
                );
                assert!(
                    self.is_hopeless(session, derivation),
                    "{now}: {derivation} does not need {because}"
                );
                self.session(id).blocked.insert(derivation.clone());
            }
            EventKind::TargetFailed { error, target, .. } => {
                let session = self.session(id);
                session.stopped |= error.contains("could not be pushed") && !session.options.keep_going;
                for goal in session
                    .goals
                    .iter_mut()
                    .filter(|goal| goal.target && goal.number == *target)
                {
                    assert!(!goal.answered, "target {target} is answered twice");
                    goal.answered = true;
                }
            }
            EventKind::TargetDone { target, .. } => self.check_goal_done(id, true, *target),
            EventKind::ImportDone { import } => self.check_goal_done(id, false, *import),
            EventKind::ImportFailed { import, .. } => {
                let mut goals = self.session(id).goals.iter_mut();
                let goal = goals.find(|goal| !goal.target && goal.number == *import);
                let goal = goal.expect("the import was requested");
                assert!(!goal.answered, "import {import} is answered twice");
                goal.answered = true;
            }
            EventKind::Ended { outcome, .. } => self.check_ended(id, *outcome),
            _ => {}
        }
    }

    pub(super) fn check_goal_done(&mut self, id: SessionId, target: bool, number: u64) {
        let session = &self.sessions[&id];
        let to = session.options.to.clone().filter(|_| target);
        let goal = session
            .goals
            .iter()
            .find(|goal| goal.target == target && goal.number == number);
        let goal = goal.expect("it was asked for");
        assert!(!goal.answered, "{number} of {id} is answered twice");
        for path in &goal.outputs {
            let known = &self.known[path];
            match &to {
                None => assert!(known.own, "{path} is not here"),
                Some(store) => assert_eq!(known.desired.get(store), Some(&true), "{path} is not there"),
            }
        }
        let mut goals = self.session(id).goals.iter_mut();
        if let Some(goal) = goals.find(|goal| goal.target == target && goal.number == number) {
            goal.answered = true;
        }
    }

    pub(super) fn check_ended(&mut self, id: SessionId, outcome: Outcome) {
        let now = self.now;
        let session = &self.sessions[&id];
        let failed = session
            .failed
            .iter()
            .any(|derivation| session.ever_needed.contains(derivation));
        match outcome {
            Outcome::Interrupted => assert!(session.interrupted),
            Outcome::EvaluationFailed => assert!(session.evaluation_failed, "{now}: {id}"),
            Outcome::BuildFailed => {
                let pushed = session.options.to.is_some();
                assert!(
                    failed || pushed,
                    "{now}: {id} ends as failed and nothing it needs has failed"
                );
            }
            Outcome::Success => {
                assert!(!session.evaluation_failed && !session.evaluating);
                assert!(
                    session.goals.iter().all(|goal| goal.answered),
                    "{now}: {id} ends too early"
                );
            }
        }
        let builds = session.options.mode == SessionMode::Build;
        if builds && session.options.keep_going && outcome != Outcome::Interrupted {
            for derivation in self.needs(session, false, false) {
                let hopeless = self.is_hopeless(session, &derivation);
                assert!(hopeless, "{now}: {id} ends and {derivation} was not tried");
            }
        }
        self.session(id).ended = Some(outcome);
    }
}
