//! Sessions: what a command wants, how far it is, and how it ends.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{EventKind, Outcome, SessionMode};

use crate::action::{Action, Refusal, Urgency};
use crate::coordinator::Coordinator;
use crate::event::SessionOptions;
use crate::graph::{Asked, Desired, DesiredId, DrvId, GoalId, Own, PathId};
use crate::id::{SessionId, Time};
use crate::limits;
use crate::session_set::{SessionSet, Slot};

/// What a session wants of an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GoalKind {
    Target { number: u64, name: String },
    Import { number: u64 },
}

/// Something a session waits for.
#[derive(Debug, Clone)]
pub(crate) struct Goal {
    pub(crate) kind: GoalKind,
    pub(crate) outputs: Vec<(String, PathId)>,
}

/// A command.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) options: SessionOptions,
    pub(crate) to: Option<DesiredId>,
    /// Orders sessions that are otherwise equal.
    pub(crate) order: u64,
    pub(crate) derivations: Vec<DrvId>,
    /// Paths that imports named without a derivation.
    ensured: Vec<PathId>,
    pub(crate) goals: BTreeMap<GoalId, Goal>,
    next_goal: u32,
    targets: BTreeSet<u64>,
    imports: BTreeSet<u64>,
    evaluating: bool,
    /// Demanded derivations that are neither present nor failed.
    pub(crate) pending: usize,
    /// Demanded paths that have not been asked for.
    pub(crate) unknown: usize,
    /// Builds placed on its account, and those of them on this node.
    pub(crate) placed: u32,
    pub(crate) placed_here: u32,
    pub(crate) built: u64,
    pub(crate) fetched: u64,
    pub(crate) present: u64,
    pub(crate) failed: u64,
    evaluation_failed: bool,
    /// An import failed, and the evaluation has not said yet what came of it.
    import_unreported: bool,
    pub(crate) ending: Option<Ending>,
}

/// A session that is only waiting for its remains to be over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ending {
    pub(crate) outcome: Outcome,
    pub(crate) since: Time,
}

/// The sessions that are open.
pub(crate) struct Sessions {
    slots: Vec<Option<Box<Session>>>,
    numbers: BTreeMap<SessionId, Slot>,
    opened: u64,
    /// Those whose derivations may be built before they are demanded.
    pub(crate) speculating: SessionSet,
    /// Those that build only what an evaluation imports.
    pub(crate) planning: SessionSet,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            slots: (0..limits::SESSIONS).map(|_| None).collect(),
            numbers: BTreeMap::new(),
            opened: 0,
            speculating: SessionSet::EMPTY,
            planning: SessionSet::EMPTY,
        }
    }
}

impl Sessions {
    pub(crate) fn get(&self, slot: Slot) -> Option<&Session> {
        self.slots.get(slot.index())?.as_deref()
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut Session> {
        self.slots.get_mut(slot.index())?.as_deref_mut()
    }

    pub(crate) fn find(&self, id: SessionId) -> Option<Slot> {
        self.numbers.get(&id).copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// In the order in which they were opened.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Slot, &Session)> {
        self.numbers
            .values()
            .filter_map(|slot| Some((*slot, self.get(*slot)?)))
    }

    /// Sessions whose builds would be the same: those with this value of `NIX_BUILD_CORES`.
    pub(crate) fn with_cores(&self, cores: u32) -> SessionSet {
        self.iter()
            .filter(|(_, session)| session.options.cores == cores)
            .map(|(slot, _)| slot)
            .collect()
    }
}

impl Coordinator {
    pub(crate) fn open_session(&mut self, id: SessionId, options: SessionOptions) {
        if self.sessions.find(id).is_some() {
            self.refuse(id, Refusal::SessionKnown(id));
            return;
        }
        let free = Slot::all().find(|slot| self.sessions.get(*slot).is_none());
        let Some(slot) = free else {
            self.refuse(id, Refusal::TooManySessions);
            return;
        };
        let to = options.to.as_ref().map(|store| self.graph.desired.intern(store));
        match options.mode {
            SessionMode::Build => self.sessions.speculating.insert(slot),
            SessionMode::Instantiate | SessionMode::DryRun => self.sessions.planning.insert(slot),
        };
        self.sessions.opened += 1;
        self.sessions.numbers.insert(id, slot);
        self.sessions.slots[slot.index()] = Some(Box::new(Session {
            id,
            options,
            to,
            order: self.sessions.opened,
            derivations: Vec::new(),
            ensured: Vec::new(),
            goals: BTreeMap::new(),
            next_goal: 0,
            targets: BTreeSet::new(),
            imports: BTreeSet::new(),
            evaluating: true,
            pending: 0,
            unknown: 0,
            placed: 0,
            placed_here: 0,
            built: 0,
            fetched: 0,
            present: 0,
            failed: 0,
            evaluation_failed: false,
            import_unreported: false,
            ending: None,
        }));
    }

    /// Refuses an event. A session that is open ends by it.
    pub(crate) fn refuse(&mut self, id: SessionId, refusal: Refusal) {
        self.actions.push(Action::Refuse {
            session: id,
            refusal: refusal.clone(),
        });
        if refusal == Refusal::SessionKnown(id) {
            return;
        }
        if let Some(slot) = self.running(id) {
            let (level, text) = ("error".to_owned(), refusal.to_string());
            self.tell(slot, EventKind::Message { level, text });
            self.stop_session(slot, Outcome::EvaluationFailed);
        }
    }

    /// The session is over, or only waits for its remains to be.
    pub(crate) fn is_ending(&self, slot: Slot) -> bool {
        self.sessions
            .get(slot)
            .is_none_or(|session| session.ending.is_some())
    }

    /// The session, if it is open and not ending.
    pub(crate) fn running(&self, id: SessionId) -> Option<Slot> {
        let slot = self.sessions.find(id)?;
        self.sessions.get(slot)?.ending.is_none().then_some(slot)
    }

    /// The session, if its evaluation may still add to it. Otherwise it is refused.
    pub(crate) fn evaluating(&mut self, id: SessionId) -> Option<Slot> {
        let slot = self.running(id)?;
        if self.sessions.get(slot)?.evaluating {
            return Some(slot);
        }
        self.refuse(id, Refusal::AfterTheEnd);
        None
    }

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
        if session.targets.len() >= limits::TARGETS {
            return self.refuse(
                id,
                Refusal::TooMany {
                    what: "targets",
                    limit: limits::TARGETS,
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
        let refusal = if session.imports.len() >= limits::IMPORTS {
            Refusal::TooMany {
                what: "imports",
                limit: limits::IMPORTS,
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

    fn add_goal(&mut self, slot: Slot, goal: Goal) {
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        let number = GoalId(session.next_goal);
        session.next_goal += 1;
        let import = matches!(goal.kind, GoalKind::Import { .. });
        let to = session.to.filter(|_| !import);
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
            if !wait {
                self.demand(slot, path, urgency, 1);
            }
        }
    }

    pub(crate) fn target_failed(&mut self, id: SessionId, target: u64, name: String, error: String) {
        let Some(slot) = self.sessions.find(id) else {
            return;
        };
        self.tell(slot, EventKind::TargetFailed { target, name, error });
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        session.import_unreported = false;
        session.evaluation_failed = true;
        if session.ending.is_none() && !session.options.keep_going {
            self.stop_session(slot, Outcome::EvaluationFailed);
        }
    }

    pub(crate) fn evaluation_ended(&mut self, id: SessionId) {
        let Some(slot) = self.sessions.find(id) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        session.import_unreported = false;
        if session.ending.is_some() || !std::mem::replace(&mut session.evaluating, false) {
            return;
        }
        self.sessions.speculating.remove(slot);
        self.tell(slot, EventKind::EvaluationEnded);
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        let derivations = std::mem::take(&mut session.derivations);
        for id in &derivations {
            self.graph.touch_drv(*id);
        }
        if let Some(session) = self.sessions.get_mut(slot) {
            session.derivations = derivations;
        }
    }

    pub(crate) fn import_failed(&mut self, slot: Slot, import: u64, error: String) {
        if let Some(session) = self.sessions.get_mut(slot) {
            session.import_unreported = true;
        }
        self.tell(slot, EventKind::ImportFailed { import, error });
    }

    /// Stops a session before everything is done: all that only it wants is cancelled.
    pub(crate) fn stop_session(&mut self, slot: Slot, outcome: Outcome) {
        let since = self.now;
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        if let Some(ending) = &mut session.ending {
            // An interruption does not wait for the evaluation to explain itself.
            if outcome == Outcome::Interrupted {
                session.import_unreported = false;
                ending.outcome = outcome;
            }
            return;
        }
        if outcome == Outcome::Interrupted {
            session.import_unreported = false;
        }
        session.ending = Some(Ending { outcome, since });
        self.release_session(slot);
    }

    /// Takes back everything a session wants.
    fn release_session(&mut self, slot: Slot) {
        self.sessions.speculating.remove(slot);
        self.sessions.planning.remove(slot);
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        session.pending = 0;
        session.unknown = 0;
        let goals = std::mem::take(&mut session.goals);
        let derivations = std::mem::take(&mut session.derivations);
        let ensured = std::mem::take(&mut session.ensured);
        for (_, path) in goals.values().flat_map(|goal| &goal.outputs) {
            self.graph.paths[*path].goals.retain(|(other, _)| *other != slot);
        }
        for id in &derivations {
            let drv = &mut self.graph.drvs[*id];
            for set in [
                &mut drv.known,
                &mut drv.demanded,
                &mut drv.import,
                &mut drv.failed,
                &mut drv.blocked,
                &mut drv.pending,
                &mut drv.told_present,
            ] {
                set.remove(slot);
            }
            drv.causes.retain(|(other, _)| *other != slot);
            let (outputs, inputs) = (drv.outputs.clone(), drv.inputs.clone());
            for path in outputs.iter().map(|(_, path)| path).chain(&inputs) {
                self.forget_demand(slot, *path);
            }
            self.graph.touch_drv(*id);
        }
        for path in ensured {
            self.forget_demand(slot, path);
            if let Some(dropped) = self.graph.drop_path(path) {
                self.path_dropped(dropped);
            }
        }
    }

    fn forget_demand(&mut self, slot: Slot, id: PathId) {
        let path = &mut self.graph.paths[id];
        let demanded = path.demanded.remove(slot);
        path.import.remove(slot);
        path.told_fetch.remove(slot);
        if demanded {
            self.graph.touch_path(id);
        }
    }

    /// Ends the sessions for which nothing is left to do. Whether there were any.
    pub(crate) fn end_sessions(&mut self) -> bool {
        let slots: Vec<Slot> = self.sessions.iter().map(|(slot, _)| slot).collect();
        let mut ended = false;
        for slot in slots {
            let Some(session) = self.sessions.get(slot) else {
                continue;
            };
            match session.ending {
                None if self.is_complete(session) => {
                    let outcome = if session.failed > 0 {
                        Outcome::BuildFailed
                    } else if session.evaluation_failed {
                        Outcome::EvaluationFailed
                    } else {
                        Outcome::Success
                    };
                    self.stop_session(slot, outcome);
                    ended = true;
                }
                Some(ending) => {
                    if !self.lingers(slot, session, ending) {
                        self.end_session(slot, ending.outcome);
                        ended = true;
                    }
                }
                None => {}
            }
        }
        ended
    }

    /// Whether a session that ends still waits: for the evaluation to say what came of an import
    /// that failed, or for its builds on this node to be over, so that a command that was
    /// interrupted leaves nothing running behind it.
    fn lingers(&self, slot: Slot, session: &Session, ending: Ending) -> bool {
        let dying = ending.outcome != Outcome::Success && self.is_dying(slot);
        self.now < ending.since.after(limits::END_PATIENCE) && (session.import_unreported || dying)
    }

    pub(crate) fn endings_due(&self) -> Option<Time> {
        let endings = self.sessions.iter().filter_map(|(_, session)| session.ending);
        endings
            .map(|ending| ending.since.after(limits::END_PATIENCE))
            .min()
    }

    fn is_complete(&self, session: &Session) -> bool {
        !session.evaluating && session.goals.is_empty() && session.pending == 0 && session.unknown == 0
    }

    fn end_session(&mut self, slot: Slot, outcome: Outcome) {
        let Some(session) = self.sessions.get(slot) else {
            return;
        };
        let (built, fetched) = (session.built, session.fetched);
        let (present, failed) = (session.present, session.failed);
        let id = session.id;
        self.tell(
            slot,
            EventKind::Ended {
                outcome,
                built,
                fetched,
                present,
                failed,
            },
        );
        self.sessions.numbers.remove(&id);
        self.sessions.slots[slot.index()] = None;
        self.forget_watcher(slot);
        if self.sessions.is_empty() && self.graph.is_empty() {
            self.forget_questions();
            self.builders.forget_requirements();
            self.graph.forget_names();
        }
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
        if !goal.outputs.iter().all(there) {
            return;
        }
        let Some(goal) = self.take_goal(slot, number) else {
            return;
        };
        if to.is_some() {
            for (_, path) in &goal.outputs {
                self.tell_present(*path, SessionSet::of(slot));
                self.undemand(slot, *path);
            }
        }
        match goal.kind {
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
