//! Building again what is there, to compare: sessions in the mode
//! [`Check`](tvix_node_protocol::control::SessionMode::Check).
//!
//! A target is checked in three stages, each a state of its goal: its outputs are looked for in the own
//! store, and only there, because that is what is compared with; what the derivation reads is brought or
//! built, like for any build; then it is built again on this node, in a slot that no build wants.

use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::EventKind;

use crate::action::Action;
use crate::coordinator::Coordinator;
use crate::event::CheckOutcome;
use crate::goal::{Goal, GoalKind};
use crate::graph::{Asked, DrvId, GoalId, Own, PathId};
use crate::id::SessionId;
use crate::session_set::Slot;

/// A target that is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    /// The target's number.
    pub(crate) number: u64,
    /// What the user called it.
    pub(crate) name: String,
    drv: DrvId,
    /// Outputs that the user asked for.
    wanted: Vec<(String, PathId)>,
    pub(crate) stage: CheckStage,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckStage {
    /// Its outputs are looked for.
    Outputs,
    /// What it reads is on its way.
    Inputs,
    /// It waits for another check of its session to end, or is being built.
    Ready,
}

impl Coordinator {
    pub(crate) fn begin_check(
        &mut self,
        slot: Slot,
        number: u64,
        name: String,
        drv: DrvId,
        outputs: Vec<(String, PathId)>,
    ) {
        let check = Check {
            number,
            name,
            drv,
            wanted: outputs.clone(),
            stage: CheckStage::Outputs,
        };
        let kind = GoalKind::Check(check);
        let number = self.add_goal(slot, Goal { kind, outputs });
        let jobs = self.sessions.get(slot).and_then(|session| session.options.jobs);
        if jobs == Some(0) || self.builders.slots_here() == 0 {
            let error = "what is checked is built on this node, which may build nothing (its slots, or -j)";
            self.fail_goal_counted(slot, number, error.to_owned());
        }
    }

    /// Goes on where all outputs are here, and gives up where one is known not to be.
    pub(crate) fn look_for_outputs(&mut self, slot: Slot, number: GoalId) {
        let Some(goal) = self
            .sessions
            .get(slot)
            .and_then(|session| session.goals.get(&number))
        else {
            return;
        };
        let mut unknown = false;
        for (_, id) in goal.outputs.clone() {
            let path = &self.graph.paths[id];
            if !path.known() {
                unknown = true;
                if matches!(path.asked, Asked::No) {
                    self.ask(id, None);
                }
            } else if path.own != Own::Here {
                let error = format!(
                    "{} is not in the store of this node, so there is nothing to compare with: build it first",
                    path.name
                );
                return self.fail_goal_counted(slot, number, error);
            }
        }
        if unknown {
            return;
        }
        let Some(Goal {
            kind: GoalKind::Check(check),
            ..
        }) = self.take_goal(slot, number)
        else {
            return;
        };
        let inputs = self.graph.drvs[check.drv].inputs.clone();
        let check = Check {
            stage: CheckStage::Inputs,
            ..check
        };
        if inputs.is_empty() {
            return self.ready_to_check(slot, number, check);
        }
        let outputs = inputs.into_iter().map(|input| (String::new(), input)).collect();
        let kind = GoalKind::Check(check);
        self.add_goal(slot, Goal { kind, outputs });
    }

    /// Everything it reads is here.
    pub(crate) fn ready_to_check(&mut self, slot: Slot, number: GoalId, check: Check) {
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        let kind = GoalKind::Check(Check {
            stage: CheckStage::Ready,
            ..check
        });
        let outputs = Vec::new();
        session.goals.insert(number, Goal { kind, outputs });
        self.start_checks(slot);
    }

    /// Starts what the session may have under way at once.
    fn start_checks(&mut self, slot: Slot) {
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        let most = match session.options.jobs {
            None => usize::MAX,
            Some(jobs) => jobs as usize,
        };
        let mut started = Vec::new();
        for goal in session.goals.values() {
            let GoalKind::Check(check) = &goal.kind else {
                continue;
            };
            if check.stage == CheckStage::Ready && session.checking.len() < most {
                let derivation = self.graph.drvs[check.drv].name.clone();
                // Another target may be of the same derivation.
                if session.checking.insert(derivation.clone()) {
                    started.push(derivation);
                }
            }
        }
        let (session, cores, limits) = (session.id, session.options.cores, session.options.limits);
        for derivation in started {
            self.actions.push(Action::Check {
                session,
                derivation,
                cores,
                limits,
            });
        }
    }

    pub(crate) fn checked(&mut self, id: SessionId, derivation: &StorePath, outcome: CheckOutcome) {
        let Some(slot) = self.sessions.find(id) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        if !session.checking.remove(derivation) || session.ending.is_some() {
            return;
        }
        let goals: Vec<GoalId> = session
            .goals
            .iter()
            .filter(|(_, goal)| {
                matches!(&goal.kind, GoalKind::Check(check)
                    if check.stage == CheckStage::Ready && self.graph.drvs[check.drv].name == *derivation)
            })
            .map(|(number, _)| *number)
            .collect();
        let (node, derivation) = (self.config.name.clone(), derivation.clone());
        let error = match outcome {
            CheckOutcome::Built {
                duration,
                differences,
            } => {
                let same = differences.is_empty();
                self.tell(
                    slot,
                    EventKind::Checked {
                        derivation: derivation.clone(),
                        node,
                        duration,
                        differences,
                    },
                );
                (!same).then(|| format!("{derivation} was built again and is not the same"))
            }
            CheckOutcome::Failed(failure) => {
                let error = format!("{derivation} could not be built again: {}", failure.error);
                self.tell(
                    slot,
                    EventKind::BuildFailed {
                        derivation,
                        node,
                        error: failure.error,
                        log_tail: failure.log_tail,
                        demanded: true,
                    },
                );
                Some(error)
            }
        };
        if let Some(session) = self.sessions.get_mut(slot) {
            match error {
                None => session.built += 1,
                Some(_) => session.failed += 1,
            }
        }
        for number in goals {
            let Some(Goal {
                kind: GoalKind::Check(check),
                ..
            }) = self.take_goal(slot, number)
            else {
                continue;
            };
            let (target, name) = (check.number, check.name);
            self.tell(
                slot,
                match &error {
                    None => {
                        let outputs = check.wanted.into_iter();
                        let outputs = outputs
                            .map(|(name, path)| (name, self.graph.paths[path].name.clone()))
                            .collect();
                        EventKind::TargetDone {
                            target,
                            name,
                            outputs,
                        }
                    }
                    Some(error) => EventKind::TargetFailed {
                        target,
                        name,
                        error: error.clone(),
                    },
                },
            );
        }
        if error.is_some() {
            self.stop_after_failure(slot);
        }
        if !self.is_ending(slot) {
            self.start_checks(slot);
        }
    }
}
