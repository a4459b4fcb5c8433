//! What sessions wait for: targets, and imports that an evaluation waits for.

use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{EventKind, SessionMode};

use crate::action::{Refusal, Urgency};
use crate::check::{Check, CheckStage};
use crate::coordinator::Coordinator;
use crate::graph::{Asked, Desired, DesiredId, DrvId, GoalId, Own, PathId};
use crate::id::SessionId;
use crate::session_set::{SessionSet, Slot};

/// What a session wants of an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GoalKind {
    Target { number: u64, name: String },
    Import { number: u64 },
    Check(Check),
}

/// Something a session waits for.
#[derive(Debug, Clone)]
pub(crate) struct Goal {
    pub(crate) kind: GoalKind,
    pub(crate) outputs: Vec<(String, PathId)>,
}

impl Coordinator {
    pub(crate) fn target_named(
        &mut self,
        id: SessionId,
        number: u64,
        name: String,
        derivation: &StorePath,
        outputs: &[String],
    ) {
        let Some(slot) = self.evaluating(id) else { return };
        let (drv, outputs) = match self.find_outputs(slot, derivation, outputs) {
            Ok(found) => found,
            Err(refusal) => return self.refuse(id, refusal),
        };
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        if session.targets.len() >= self.config.bounds.targets {
            return self.refuse(
                id,
                Refusal::TooMany {
                    what: "targets",
                    limit: self.config.bounds.targets,
                },
            );
        }
        if !session.targets.insert(number) {
            return self.refuse(
                id,
                Refusal::Twice {
                    what: "target",
                    number,
                },
            );
        }
        let mode = session.options.mode;
        let derivation = self.graph.drvs[drv].name.clone();
        self.tell(
            slot,
            EventKind::TargetNamed {
                target: number,
                name: name.clone(),
                derivation,
            },
        );
        match mode {
            SessionMode::Instantiate => {}
            SessionMode::DryRun => {
                for (_, path) in outputs {
                    self.demand(slot, path, Urgency::Demanded, 1);
                }
            }
            SessionMode::Build => {
                let kind = GoalKind::Target { number, name };
                self.add_goal(slot, Goal { kind, outputs });
            }
            SessionMode::Check => self.begin_check(slot, number, name, drv, outputs),
        }
    }

    pub(crate) fn import_requested(
        &mut self,
        id: SessionId,
        import: u64,
        derivation: &StorePath,
        outputs: &[String],
    ) {
        let Some(slot) = self.evaluating(id) else { return };
        let outputs = match self.find_outputs(slot, derivation, outputs) {
            Ok((_, outputs)) => outputs,
            Err(refusal) => return self.refuse(id, refusal),
        };
        if self.count_import(slot, id, import) {
            let kind = GoalKind::Import { number: import };
            self.add_goal(slot, Goal { kind, outputs });
        }
    }

    pub(crate) fn ensure_requested(&mut self, id: SessionId, import: u64, path: &StorePath) {
        let Some(slot) = self.evaluating(id) else { return };
        if self.count_import(slot, id, import) {
            let path_id = self.graph.use_path(path);
            if let Some(session) = self.sessions.get_mut(slot) {
                session.ensured.push(path_id);
            }
            let kind = GoalKind::Import { number: import };
            self.add_goal(
                slot,
                Goal {
                    kind,
                    outputs: vec![(String::new(), path_id)],
                },
            );
        }
    }

    /// Whether the import may be taken up.
    fn count_import(&mut self, slot: Slot, id: SessionId, number: u64) -> bool {
        let Some(session) = self.sessions.get_mut(slot) else {
            return false;
        };
        let refusal = if session.imports.len() >= self.config.bounds.imports {
            Refusal::TooMany {
                what: "imports",
                limit: self.config.bounds.imports,
            }
        } else if !session.imports.insert(number) {
            Refusal::Twice {
                what: "import",
                number,
            }
        } else {
            return true;
        };
        self.refuse(id, refusal);
        false
    }

    /// Outputs of a derivation that the session has instantiated.
    fn find_outputs(
        &self,
        slot: Slot,
        derivation: &StorePath,
        outputs: &[String],
    ) -> Result<(DrvId, Vec<(String, PathId)>), Refusal> {
        let known = self
            .graph
            .drv(derivation)
            .filter(|id| self.graph.drvs[*id].known.contains(slot));
        let id = known.ok_or_else(|| Refusal::UnknownDerivation(derivation.clone()))?;
        let drv = &self.graph.drvs[id];
        if outputs.is_empty() {
            return Err(Refusal::NoOutputs(derivation.clone()));
        }
        let find = |output: &String| {
            let found = drv.outputs.iter().find(|(name, _)| name == output);
            found.cloned().ok_or_else(|| {
                let (derivation, output) = (derivation.clone(), output.clone());
                Refusal::UnknownOutput { derivation, output }
            })
        };
        let mut found = outputs.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        found.sort_unstable();
        found.dedup();
        Ok((id, found))
    }

    /// Gives the goal a number of its own.
    pub(crate) fn add_goal(&mut self, slot: Slot, goal: Goal) -> GoalId {
        let Some(session) = self.sessions.get_mut(slot) else {
            return GoalId(u32::MAX);
        };
        let number = GoalId(session.next_goal);
        session.next_goal += 1;
        let import = matches!(goal.kind, GoalKind::Import { .. });
        let to = session
            .to
            .filter(|_| matches!(goal.kind, GoalKind::Target { .. }));
        let looks_only = matches!(&goal.kind, GoalKind::Check(check) if check.stage == CheckStage::Outputs);
        let paths: Vec<PathId> = goal.outputs.iter().map(|(_, path)| *path).collect();
        session.goals.insert(number, goal);
        for path in paths {
            self.graph.paths[path].goals.push((slot, number));
            self.graph.touch_path(path);
            let urgency = if import {
                Urgency::Import
            } else {
                Urgency::Demanded
            };
            // With a desired store, what is there is not wanted anywhere else: it answers first.
            let wait = to.is_some_and(|store| {
                let entry = self.graph.paths[path].desired_mut(store);
                if entry.state == Desired::Failed {
                    // It failed for another session; this one may have mended what was wrong.
                    (entry.state, entry.tries) = (Desired::Absent, 0);
                }
                matches!(entry.state, Desired::Unknown(_) | Desired::There)
            });
            if !wait && !looks_only {
                self.demand(slot, path, urgency, 1);
            }
        }
        number
    }

    pub(crate) fn import_failed(&mut self, slot: Slot, import: u64, error: String) {
        if let Some(session) = self.sessions.get_mut(slot) {
            session.import_unreported = true;
        }
        self.tell(slot, EventKind::ImportFailed { import, error });
    }

    /// What a session's goals need of a path: whether it must be in the own store.
    pub(crate) fn goal_wants_home(&self, slot: Slot, goal: GoalId, path: PathId) -> bool {
        let Some(session) = self.sessions.get(slot) else {
            return false;
        };
        let Some(goal) = session.goals.get(&goal) else {
            return false;
        };
        match (&goal.kind, session.to) {
            (GoalKind::Check(check), _) => check.stage == CheckStage::Inputs,
            (GoalKind::Import { .. }, _) | (GoalKind::Target { .. }, None) => true,
            (GoalKind::Target { .. }, Some(store)) => {
                let state = self.graph.paths[path].desired(store).map(|entry| entry.state);
                matches!(state, Some(Desired::Absent))
            }
        }
    }

    /// Looks at what sessions want of a path: asks, pushes, and tells what is done.
    pub(crate) fn settle_goals(&mut self, id: PathId) {
        for (slot, number) in self.graph.paths[id].goals.clone() {
            let Some(session) = self.sessions.get(slot) else {
                continue;
            };
            let Some(goal) = session.goals.get(&number) else {
                continue;
            };
            if let GoalKind::Check(Check {
                stage: CheckStage::Outputs,
                ..
            }) = goal.kind
            {
                self.look_for_outputs(slot, number);
                continue;
            }
            let to = session
                .to
                .filter(|_| matches!(goal.kind, GoalKind::Target { .. }));
            if let Some(store) = to {
                let here = self.graph.paths[id].own == Own::Here;
                let entry = self.graph.paths[id].desired_mut(store);
                match entry.state {
                    Desired::Unknown(Asked::No) => self.ask(id, Some(store)),
                    Desired::Absent if here => self.queue_push(id, store),
                    Desired::Absent => self.demand(slot, id, Urgency::Demanded, 1),
                    Desired::Failed => {
                        let error = entry.error.clone();
                        let store = self.desired_name(self.graph.desired.get(store));
                        let path = &self.graph.paths[id].name;
                        let error = format!("{path} could not be pushed to {store}: {error}");
                        self.fail_goal_counted(slot, number, error);
                        continue;
                    }
                    Desired::Unknown(_) | Desired::Queued | Desired::Pushing(_) | Desired::There => {}
                }
            }
            self.settle_goal(slot, number, to);
        }
    }

    fn settle_goal(&mut self, slot: Slot, number: GoalId, to: Option<DesiredId>) {
        let Some(session) = self.sessions.get(slot) else {
            return;
        };
        let Some(goal) = session.goals.get(&number) else {
            return;
        };
        let there = |(_, path): &(String, PathId)| {
            let path = &self.graph.paths[*path];
            match to {
                None => path.own == Own::Here,
                Some(store) => path
                    .desired(store)
                    .is_some_and(|entry| matches!(entry.state, Desired::There)),
            }
        };
        let missing: Vec<PathId> = goal
            .outputs
            .iter()
            .filter(|output| !there(output))
            .map(|(_, path)| *path)
            .collect();
        if !missing.is_empty() {
            self.fail_hopeless_goal(slot, number, &missing);
            return;
        }
        let Some(goal) = self.take_goal(slot, number) else {
            return;
        };
        if to.is_some() {
            for (_, path) in &goal.outputs {
                self.tell_present(*path, SessionSet::of(slot));
                self.review_demand(*path);
            }
        }
        match goal.kind {
            GoalKind::Check(check) => self.ready_to_check(slot, number, check),
            GoalKind::Import { number } => self.tell(slot, EventKind::ImportDone { import: number }),
            GoalKind::Target { number, name } => {
                let paths = goal.outputs.into_iter();
                let outputs = paths
                    .map(|(name, path)| (name, self.graph.paths[path].name.clone()))
                    .collect();
                self.tell(
                    slot,
                    EventKind::TargetDone {
                        target: number,
                        name,
                        outputs,
                    },
                );
            }
        }
    }

    /// Removes a goal: it is reached or given up.
    pub(crate) fn take_goal(&mut self, slot: Slot, number: GoalId) -> Option<Goal> {
        let goal = self.sessions.get_mut(slot)?.goals.remove(&number)?;
        for (_, path) in &goal.outputs {
            self.graph.paths[*path]
                .goals
                .retain(|other| *other != (slot, number));
            self.graph.touch_path(*path);
        }
        Some(goal)
    }
}
