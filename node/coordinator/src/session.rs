//! Sessions: what a command wants, how far it is, and how it ends.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{EventKind, Outcome, PresenceTiming, SessionMode};

use crate::action::{Action, Refusal};
use crate::coordinator::Coordinator;
use crate::event::SessionOptions;
use crate::goal::Goal;
use crate::graph::{DesiredId, DrvId, GoalId, PathId};
use crate::id::{SessionId, Time};
use crate::limits;
use crate::session_set::{SessionSet, Slot};

/// A command.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) options: SessionOptions,
    pub(crate) to: Option<DesiredId>,
    /// Orders sessions that are otherwise equal.
    pub(crate) order: u64,
    pub(crate) derivations: Vec<DrvId>,
    /// Paths that imports named without a derivation.
    pub(crate) ensured: Vec<PathId>,
    pub(crate) goals: BTreeMap<GoalId, Goal>,
    pub(crate) next_goal: u32,
    pub(crate) targets: BTreeSet<u64>,
    pub(crate) imports: BTreeSet<u64>,
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
    /// Whether answers about presence were there in time.
    pub(crate) timing: PresenceTiming,
    evaluation_failed: bool,
    /// An import failed, and the evaluation has not said yet what came of it.
    pub(crate) import_unreported: bool,
    pub(crate) ending: Option<Ending>,
    /// Derivations that are being built again for it.
    pub(crate) checking: BTreeSet<StorePath>,
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
    /// Those whose evaluation has ended, but of which it is not known yet what they need of what was begun so.
    pub(crate) undecided: SessionSet,
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
            undecided: SessionSet::EMPTY,
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
            // Nothing but what the targets read is built for it, and that only where it is not there.
            SessionMode::Check => true,
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
            timing: PresenceTiming::default(),
            evaluation_failed: false,
            import_unreported: false,
            ending: None,
            checking: BTreeSet::new(),
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
        if self.sessions.speculating.remove(slot) {
            self.sessions.undecided.insert(slot);
        }
        self.tell(slot, EventKind::EvaluationEnded);
    }

    /// Gives up what was begun on speculation for sessions whose evaluation has ended, once it is known of all that
    /// they demand whether it is to be had: until then, what that needs is not demanded yet, and would be cancelled
    /// and begun again. Whether there was anything to decide.
    pub(crate) fn end_speculation(&mut self) -> bool {
        let decided = |slot: &Slot| {
            let session = self.sessions.get(*slot);
            session.is_none_or(|session| session.unknown == 0)
        };
        let over: Vec<Slot> = self.sessions.undecided.iter().filter(decided).collect();
        for slot in &over {
            self.sessions.undecided.remove(*slot);
            let Some(session) = self.sessions.get(*slot) else {
                continue;
            };
            for id in &session.derivations {
                self.graph.touch_drv(*id);
            }
        }
        !over.is_empty()
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
        if !session.checking.is_empty() {
            let session = session.id;
            self.actions.push(Action::CancelChecks { session });
        }
        self.release_session(slot);
    }

    /// Takes back everything a session wants.
    fn release_session(&mut self, slot: Slot) {
        self.sessions.speculating.remove(slot);
        self.sessions.undecided.remove(slot);
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
        path.in_vain.remove(slot);
        if demanded {
            self.asking.due.remove(id, slot);
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
                Some(ending) if !self.lingers(slot, session, ending) => {
                    self.end_session(slot, ending.outcome);
                    ended = true;
                }
                Some(_) | None => {}
            }
        }
        ended
    }

    /// Whether a session that ends still waits: for the evaluation to say what came of an import
    /// that failed, or for its builds on this node to be over, so that a command that was
    /// interrupted leaves nothing running behind it.
    fn lingers(&self, slot: Slot, session: &Session, ending: Ending) -> bool {
        let dying =
            ending.outcome != Outcome::Success && (self.is_dying(slot) || !session.checking.is_empty());
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
        let (id, presence) = (session.id, session.timing);
        self.tell(
            slot,
            EventKind::Ended {
                outcome,
                built,
                fetched,
                present,
                failed,
                presence,
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
}
