//! Follows every change to its consequences, until nothing is left that does not fit.
//!
//! Events change facts about paths and derivations and mark them as touched. What depends on these
//! facts (counts of missing inputs, readiness, who is still needed) is brought up to date here, so
//! that it is one piece of code that decides it, whatever happened.

use tvix_node_protocol::control::{EventKind, Outcome};

use crate::action::Urgency;
use crate::build::Stage;
use crate::coordinator::Coordinator;
use crate::graph::{DrvId, Own, Path, PathId, Weighing};
use crate::id::BuildId;
use crate::limits;
use crate::line::Queued;
use crate::session::Sessions;
use crate::session_set::{SessionSet, Slot};

/// Which outputs decide whether a derivation is present.
#[derive(Clone, Copy)]
enum Deciding {
    Demanded,
    Read,
    Any,
}

impl Coordinator {
    pub(crate) fn is_settled(&self) -> bool {
        self.graph.dirty_paths.is_empty() && self.graph.dirty_drvs.is_empty() && self.gone.is_empty()
    }

    pub(crate) fn settle(&mut self) {
        loop {
            if let Some(path) = self.graph.dirty_paths.pop() {
                self.settle_path(path);
            } else if let Some(drv) = self.graph.dirty_drvs.pop() {
                self.settle_drv(drv);
            } else if !self.gone.is_empty() {
                self.remove_gone();
            } else if !self.end_speculation() {
                return;
            }
        }
    }

    fn settle_path(&mut self, id: PathId) {
        let Some(path) = self.graph.paths.get_mut(id) else {
            return;
        };
        path.dirty = false;
        let (available, known) = (path.available(), path.known());
        if std::mem::replace(&mut path.was_available, available) != available {
            self.availability_changed(id, available);
        }
        let path = &mut self.graph.paths[id];
        if std::mem::replace(&mut path.was_known, known) != known {
            for slot in path.demanded.iter() {
                if let Some(session) = self.sessions.get_mut(slot) {
                    if known {
                        session.unknown -= 1;
                    } else {
                        session.unknown += 1;
                    }
                }
            }
            if known {
                self.answer_came(id);
            } else {
                self.asking.due.insert(id, self.graph.paths[id].demanded);
            }
        }
        let path = &self.graph.paths[id];
        if let Some(producer) = path.producer {
            self.graph.touch_drv(producer);
        }
        let path = &self.graph.paths[id];
        let demanded = path.demanded;
        if available {
            self.tell_present(id, demanded);
            self.tell_would_fetch(id);
        } else if known && path.producer.is_some() {
            self.demand_producer(id);
        } else if known {
            self.path_lost(id);
        } else if !demanded.is_empty() {
            let to = demanded.iter().find_map(|slot| self.sessions.get(slot)?.to);
            self.ask(id, to);
        }
        self.settle_home(id);
        self.settle_goals(id);
        self.unqueue_pushes(id);
    }

    fn availability_changed(&mut self, id: PathId, available: bool) {
        let readers = std::mem::take(&mut self.graph.paths[id].consumers);
        for reader in &readers {
            let drv = &mut self.graph.drvs[*reader];
            if available {
                drv.missing_inputs -= 1;
            } else {
                drv.missing_inputs += 1;
            }
            // Only the first and the last missing input make a difference.
            if drv.missing_inputs <= 1 {
                self.graph.touch_drv(*reader);
            }
        }
        self.graph.paths[id].consumers = readers;
        if !available {
            for build in std::mem::take(&mut self.graph.paths[id].waiting_builds) {
                self.unplace(build, "an input is not to be had any more");
            }
            self.review_demand(id);
        }
    }

    /// Wakes builds that wait for a path, or has it fetched for them, or stops fetching it.
    fn settle_home(&mut self, id: PathId) {
        if self.graph.paths[id].own == Own::Here {
            for build in std::mem::take(&mut self.graph.paths[id].waiting_builds) {
                self.input_arrived(build);
            }
            return;
        }
        let path = &self.graph.paths[id];
        let wanted = !path.waiting_builds.is_empty()
            || path
                .goals
                .iter()
                .any(|(slot, goal)| self.goal_wants_home(*slot, *goal, id));
        if wanted {
            self.queue_fetch(id);
        } else {
            self.unqueue_fetch(id);
        }
    }

    /// Outputs that decide whether a derivation is present: those that are demanded; where none is,
    /// those that anybody reads; where nobody reads any, all.
    fn deciding_outputs(&self, id: DrvId) -> (Deciding, impl Iterator<Item = &Path>) {
        let demanded = |path: &&Path| Self::is_demanded_path(&self.sessions, path);
        let deciding = if self.outputs(id).any(|path| demanded(&path)) {
            Deciding::Demanded
        } else {
            self.read_outputs(id)
        };
        let chosen = self.outputs(id).filter(move |path| match deciding {
            Deciding::Demanded => demanded(path),
            Deciding::Read => !path.consumers.is_empty(),
            Deciding::Any => true,
        });
        (deciding, chosen)
    }

    fn outputs(&self, id: DrvId) -> impl Iterator<Item = &Path> {
        self.graph.drvs[id]
            .outputs
            .iter()
            .map(|(_, output)| &self.graph.paths[*output])
    }

    fn read_outputs(&self, id: DrvId) -> Deciding {
        let read = self.outputs(id).any(|path| !path.consumers.is_empty());
        if read { Deciding::Read } else { Deciding::Any }
    }

    /// Whether anybody who builds demands a path; who only plans does not.
    fn is_demanded_path(sessions: &Sessions, path: &Path) -> bool {
        !path
            .demanded
            .without(sessions.planning.without(path.import))
            .is_empty()
    }

    /// All outputs that decide are to be had. Where nobody reads or wants any, one is enough: nobody
    /// would build a package for its manual.
    fn is_present(&self, id: DrvId) -> bool {
        let (deciding, mut outputs) = self.deciding_outputs(id);
        match deciding {
            Deciding::Any => outputs.any(Path::available),
            Deciding::Demanded | Deciding::Read => outputs.all(Path::available),
        }
    }

    /// All outputs that anybody reads are to be had.
    fn is_read_present(&self, id: DrvId) -> bool {
        match self.read_outputs(id) {
            Deciding::Any => self.outputs(id).any(Path::available),
            _ => self
                .outputs(id)
                .filter(|path| !path.consumers.is_empty())
                .all(Path::available),
        }
    }

    /// It is known of all outputs that decide whether they can be had.
    fn is_known(&self, id: DrvId) -> bool {
        self.deciding_outputs(id).1.all(Path::known)
    }

    /// Sessions for which a derivation must be built.
    fn needed_by(&self, id: DrvId) -> SessionSet {
        let drv = &self.graph.drvs[id];
        if drv.present {
            return SessionSet::EMPTY;
        }
        let only_planned = self.sessions.planning.without(drv.import);
        drv.demanded
            .without(drv.failed)
            .without(drv.blocked)
            .without(only_planned)
    }

    /// Sessions for which a derivation may be built before anybody is known to need it.
    fn speculated_by(&self, id: DrvId) -> SessionSet {
        let drv = &self.graph.drvs[id];
        if drv.present || drv.read_present || drv.pointless() {
            return SessionSet::EMPTY;
        }
        let done = drv.demanded.or(drv.failed).or(drv.blocked);
        let sessions = self.sessions.speculating.or(self.sessions.undecided);
        drv.known.and(sessions).without(done)
    }

    /// Sessions that want a derivation built with this value of `NIX_BUILD_CORES`.
    pub(crate) fn wanted_by(&self, id: DrvId, cores: u32) -> SessionSet {
        let wanted = self.needed_by(id).or(self.speculated_by(id));
        wanted.and(self.sessions.with_cores(cores))
    }

    /// Sessions that take part in a build: they want the derivation, with the same options.
    pub(crate) fn participants(&self, build: BuildId) -> SessionSet {
        let attempt = self.attempts.get(&build);
        attempt.map_or(SessionSet::EMPTY, |attempt| {
            self.wanted_by(attempt.drv, attempt.cores)
        })
    }

    /// Whether a session that takes part in a build needs it.
    pub(crate) fn is_demanded(&self, build: BuildId) -> bool {
        let attempt = self.attempts.get(&build);
        attempt.is_some_and(|attempt| {
            !self
                .needed_by(attempt.drv)
                .and(self.sessions.with_cores(attempt.cores))
                .is_empty()
        })
    }

    fn settle_drv(&mut self, id: DrvId) {
        let Some(drv) = self.graph.drvs.get_mut(id) else {
            return;
        };
        drv.dirty = false;
        let (present, read_present) = (self.is_present(id), self.is_read_present(id));
        let drv = &mut self.graph.drvs[id];
        drv.read_present = read_present;
        let arrived = !std::mem::replace(&mut drv.present, present) && present;
        let settled = present || drv.pointless();
        if std::mem::replace(&mut drv.settled, settled) != settled {
            for input in drv.inputs.clone() {
                let Some(producer) = self.graph.paths[input].producer else {
                    continue;
                };
                let live = &mut self.graph.drvs[producer].live_edges;
                *live = if settled { *live - 1 } else { *live + 1 };
                self.graph.touch_drv(producer);
            }
        }
        if arrived {
            // Nobody needs it built any more, nor what only it needed. Who only plans still wants
            // to know.
            let drv = &mut self.graph.drvs[id];
            drv.demanded = drv.demanded.and(self.sessions.planning).without(drv.import);
            drv.import = SessionSet::EMPTY;
            for input in self.graph.drvs[id].inputs.clone() {
                if !self.graph.paths[input].available() {
                    self.review_demand(input);
                }
            }
        }
        self.settle_pending(id);
        for build in self.graph.drvs[id].attempts.clone() {
            self.settle_attempt(build);
        }
        self.settle_queued(id);
        let drv = &self.graph.drvs[id];
        if drv.known.is_empty() && drv.attempts.is_empty() {
            self.gone.insert(id);
        }
    }

    fn settle_pending(&mut self, id: DrvId) {
        let pending = self.needed_by(id);
        let before = std::mem::replace(&mut self.graph.drvs[id].pending, pending);
        for slot in pending.without(before).iter() {
            if let Some(session) = self.sessions.get_mut(slot) {
                session.pending += 1;
            }
        }
        for slot in before.without(pending).iter() {
            if let Some(session) = self.sessions.get_mut(slot) {
                session.pending -= 1;
            }
        }
    }

    /// Cancels a build that nobody wants any more, and tells those who want it newly.
    fn settle_attempt(&mut self, build: BuildId) {
        let Some(attempt) = self.attempts.get(&build) else {
            return;
        };
        if matches!(attempt.stage, Stage::Dying) {
            return;
        }
        let participants = self.participants(build);
        if participants.is_empty() {
            let drv = &self.graph.drvs[attempt.drv];
            let reason = if drv.present {
                "its outputs are there now"
            } else if !drv.failed.is_empty() {
                "it failed on another builder"
            } else if drv.pointless() {
                "what would read it is there already"
            } else {
                "the evaluation ended without needing it"
            };
            self.cancel(build, reason);
        } else {
            let over: SessionSet = attempt.told.iter().filter(|slot| self.is_ending(*slot)).collect();
            if let Some(attempt) = self.attempts.get_mut(&build) {
                attempt.told = attempt.told.without(over);
            }
            self.tell_placed(build, participants);
        }
    }

    fn settle_queued(&mut self, id: DrvId) {
        let drv = &self.graph.drvs[id];
        let free =
            drv.missing_inputs == 0 && self.wants_builder(id) && !matches!(drv.weighing, Weighing::Asked(_));
        // Once the evaluation has ended nothing new is begun on speculation.
        let speculated = match drv.left_to_others {
            true => SessionSet::EMPTY,
            false => self.speculated_by(id).and(self.sessions.speculating),
        };
        let needed = self.needed_by(id);
        let wanted = !needed.or(speculated).is_empty();
        if !free || !wanted || !self.is_known(id) {
            let interrupted = drv.missing_inputs > 0 && drv.tries > 0 && drv.attempts.is_empty();
            self.queues.set(&mut self.graph.drvs, id, None);
            if interrupted {
                // An input may have failed while it was being built with what its builder had of it.
                for slot in needed.iter() {
                    self.check_for_failures(slot, id);
                }
            }
            return;
        }
        self.note_vanished(id);
        if self.graph.drvs[id].tries >= limits::TRIES {
            self.queues.set(&mut self.graph.drvs, id, None);
            self.fail_worn_out(id, needed.or(speculated));
            return;
        }
        let drv = &self.graph.drvs[id];
        let queued = Queued {
            requirement: drv.requirement,
            rank: drv.rank,
            seq: drv.seq,
            import: needed.and(drv.import),
            demanded: needed.without(drv.import),
            speculative: speculated,
        };
        self.queues.set(&mut self.graph.drvs, id, Some(queued));
        if self.quorum(id).is_some() {
            // Whether enough of its builders are left has to be watched.
            self.queues.troubled.insert(id);
        }
    }

    /// How badly a derivation is wanted by any of these sessions.
    pub(crate) fn urgency(&self, id: DrvId, sessions: SessionSet) -> Urgency {
        let drv = &self.graph.drvs[id];
        if !drv.import.and(sessions).is_empty() {
            Urgency::Import
        } else if !drv.demanded.and(sessions).is_empty() {
            Urgency::Demanded
        } else {
            Urgency::Speculative
        }
    }

    /// Tells those who had been told of a build that it is cancelled; a session that is being ended
    /// learns its own reason.
    pub(crate) fn tell_cancelled(&mut self, build: BuildId, reason: &str) {
        let Some(attempt) = self.attempts.get(&build) else {
            return;
        };
        let (told, derivation) = (attempt.told, attempt.derivation.clone());
        for slot in told.iter() {
            let reason = self.ending_reason(slot).unwrap_or(reason).to_owned();
            self.tell(
                slot,
                EventKind::Cancelled {
                    derivation: derivation.clone(),
                    reason,
                },
            );
        }
    }

    fn ending_reason(&self, slot: Slot) -> Option<&'static str> {
        Some(match self.sessions.get(slot)?.ending?.outcome {
            Outcome::Success => "everything asked for is there",
            Outcome::BuildFailed => "another build failed",
            Outcome::EvaluationFailed => "the evaluation failed",
            Outcome::Interrupted => "interrupted",
        })
    }

    fn remove_gone(&mut self) {
        let gone: Vec<DrvId> = std::mem::take(&mut self.gone)
            .into_iter()
            .filter(|id| {
                let drv = self.graph.drvs.get(*id);
                drv.is_some_and(|drv| drv.known.is_empty() && drv.attempts.is_empty())
            })
            .collect();
        for id in &gone {
            self.queues.set(&mut self.graph.drvs, *id, None);
            self.queues.weighing.remove(id);
            self.queues.left.remove(id);
            self.queues.troubled.remove(id);
        }
        self.given_up
            .retain(|_, attempt| gone.binary_search(&attempt.drv).is_err());
        for dropped in self.graph.remove(&gone) {
            self.path_dropped(dropped);
        }
    }
}
