//! What is known to be needed, and by whom.
//!
//! A session demands paths: those of its targets and imports, and, wherever a demanded path is
//! nowhere to be had, the inputs of the derivation that makes it. A path that can be had ends the
//! chain. Demand only grows until the session ends.

use std::cmp::Reverse;

use tvix_node_protocol::control::{EventKind, SessionMode};

use crate::action::{Refusal, Urgency};
use crate::coordinator::Coordinator;
use crate::event::Derivation;
use crate::graph::{Asked, DrvId, Own, PathId};
use crate::id::SessionId;
use crate::limits;
use crate::session_set::{SessionSet, Slot};

/// A path on its way to being demanded.
struct Wanted {
    path: PathId,
    urgency: Urgency,
    rank: u32,
}

impl Coordinator {
    pub(crate) fn instantiated(&mut self, id: SessionId, derivations: &[Derivation]) {
        let Some(slot) = self.evaluating(id) else { return };
        let mut names = Vec::new();
        let mut refused = None;
        for derivation in derivations {
            match self.add_derivation(slot, derivation) {
                Ok(true) => names.push(derivation.path.clone()),
                Ok(false) => {}
                Err(refusal) => {
                    refused = Some(refusal);
                    break;
                }
            }
        }
        if !names.is_empty() {
            self.tell(slot, EventKind::Instantiated { derivations: names });
        }
        if let Some(refusal) = refused {
            self.refuse(id, refusal);
        }
    }

    /// Whether the session did not know it before.
    fn add_derivation(&mut self, slot: Slot, derivation: &Derivation) -> Result<bool, Refusal> {
        let existing = self.graph.drv(&derivation.path);
        if existing.is_some_and(|drv| self.graph.drvs[drv].known.contains(slot)) {
            return Ok(false);
        }
        let Some(session) = self.sessions.get(slot) else {
            return Ok(false);
        };
        if session.derivations.len() >= self.config.bounds.derivations {
            return Err(Refusal::TooMany {
                what: "derivations",
                limit: self.config.bounds.derivations,
            });
        }
        let (mode, to) = (session.options.mode, session.to);
        let existing = existing.or_else(|| self.graph.same_outputs(derivation));
        let inputs = self.check_derivation(slot, derivation, existing)?;
        let id = match existing {
            Some(id) => {
                self.graph.alias(id, &derivation.path);
                id
            }
            None => self.graph.insert(derivation, inputs),
        };
        self.know(slot, id);
        if mode != SessionMode::Instantiate {
            let drv = &self.graph.drvs[id];
            let paths: Vec<PathId> = drv
                .outputs
                .iter()
                .map(|(_, path)| *path)
                .chain(drv.inputs.iter().copied())
                .collect();
            for path in paths {
                if matches!(self.graph.paths[path].asked, Asked::No) && !self.graph.paths[path].known() {
                    self.ask(path, to);
                }
            }
        }
        Ok(true)
    }

    /// Makes a session responsible for a derivation's stay.
    fn know(&mut self, slot: Slot, id: DrvId) {
        if self.graph.drvs[id].known.insert(slot)
            && let Some(session) = self.sessions.get_mut(slot)
        {
            session.derivations.push(id);
        }
        self.gone.remove(&id);
        self.graph.touch_drv(id);
    }

    /// Checks a derivation and answers with the outputs of others that it reads.
    fn check_derivation(
        &self,
        slot: Slot,
        derivation: &Derivation,
        existing: Option<DrvId>,
    ) -> Result<Vec<PathId>, Refusal> {
        let too_large = |what, count, limit| Refusal::DerivationTooLarge {
            derivation: derivation.path.clone(),
            what,
            count,
            limit,
        };
        let outputs = derivation.outputs.len();
        if outputs == 0 {
            return Err(Refusal::NoOutputs(derivation.path.clone()));
        }
        if outputs > limits::OUTPUTS {
            return Err(too_large("outputs", outputs, limits::OUTPUTS));
        }
        for path in derivation.outputs.values() {
            if let Some(producer) = self
                .graph
                .path(path)
                .and_then(|path| self.graph.paths[path].producer)
                && existing != Some(producer)
            {
                let (first, second) = (self.graph.drvs[producer].name.clone(), derivation.path.clone());
                return Err(Refusal::OutputConflict {
                    path: path.clone(),
                    first,
                    second,
                });
            }
        }
        let mut inputs = Vec::new();
        for input in &derivation.inputs {
            let known = self.graph.drv(&input.derivation);
            let known = known.filter(|id| self.graph.drvs[*id].known.contains(slot));
            let Some(known) = known else {
                let (derivation, input) = (derivation.path.clone(), input.derivation.clone());
                return Err(Refusal::UnknownInput { derivation, input });
            };
            let made = &self.graph.drvs[known].outputs;
            for output in &input.outputs {
                let Some((_, path)) = made.iter().find(|(name, _)| name == output) else {
                    let (derivation, output) = (input.derivation.clone(), output.clone());
                    return Err(Refusal::UnknownOutput { derivation, output });
                };
                inputs.push(*path);
            }
        }
        let count = inputs.len() + derivation.sources.len();
        if count > limits::INPUTS {
            return Err(too_large("inputs", count, limits::INPUTS));
        }
        Ok(inputs)
    }

    /// Notes that a session needs a path to be had, and what follows from it.
    pub(crate) fn demand(&mut self, slot: Slot, path: PathId, urgency: Urgency, rank: u32) {
        if self.is_ending(slot) {
            return;
        }
        let mut wanted = vec![Wanted { path, urgency, rank }];
        while let Some(Wanted {
            path: id,
            urgency,
            rank,
        }) = wanted.pop()
        {
            let path = &mut self.graph.paths[id];
            path.rank = path.rank.max(rank);
            let first = path.demanded.insert(slot);
            let sooner = urgency == Urgency::Import && path.import.insert(slot);
            if !first && !sooner {
                continue;
            }
            let unknown = first && !path.was_known;
            let to = self.sessions.get_mut(slot).and_then(|session| {
                session.unknown += usize::from(unknown);
                session.to
            });
            if unknown {
                self.asking.due.insert(id, SessionSet::of(slot));
            } else if first {
                self.answer_was_there(slot, id);
            }
            self.graph.touch_path(id);
            let path = &self.graph.paths[id];
            if !path.known() && !path.available() {
                self.ask(id, to);
            } else if !path.available()
                && let Some(producer) = path.producer
            {
                self.demand_drv(slot, producer, urgency, &mut wanted);
            }
        }
    }

    /// Demands a derivation of which a demanded output is nowhere to be had.
    fn demand_drv(&mut self, slot: Slot, id: DrvId, urgency: Urgency, wanted: &mut Vec<Wanted>) {
        if self.is_ending(slot) {
            return;
        }
        self.know(slot, id);
        let drv = &mut self.graph.drvs[id];
        drv.present = false;
        let first = drv.demanded.insert(slot);
        let sooner = urgency == Urgency::Import && drv.import.insert(slot);
        let rank = drv
            .outputs
            .iter()
            .map(|(_, path)| self.graph.paths[*path].rank)
            .max()
            .unwrap_or(0);
        drv.rank = drv.rank.max(rank);
        if !first && !sooner {
            return;
        }
        let rank = drv.rank;
        for input in &drv.inputs {
            wanted.push(Wanted {
                path: *input,
                urgency,
                rank: rank.saturating_add(1),
            });
        }
        if first {
            self.queues.demanded_since_ranking += 1;
            self.dry_run(slot, id, urgency);
            self.check_for_failures(slot, id);
        }
    }

    fn dry_run(&mut self, slot: Slot, id: DrvId, urgency: Urgency) {
        if self.sessions.planning.contains(slot) && urgency != Urgency::Import {
            let derivation = self.graph.drvs[id].name.clone();
            self.tell(slot, EventKind::WouldBuild { derivation });
        }
    }

    /// A path or derivation that has become demanded while nobody knew whether it can be had.
    pub(crate) fn demand_producer(&mut self, id: PathId) {
        let path = &self.graph.paths[id];
        let Some(producer) = path.producer else { return };
        let (demanded, import) = (path.demanded, path.import);
        for slot in demanded.iter() {
            let urgency = if import.contains(slot) {
                Urgency::Import
            } else {
                Urgency::Demanded
            };
            let mut wanted = Vec::new();
            self.demand_drv(slot, producer, urgency, &mut wanted);
            for Wanted { path, urgency, rank } in wanted {
                self.demand(slot, path, urgency, rank);
            }
        }
    }

    /// Takes back the demand for a path that is not to be had, where neither a goal nor anything that
    /// is still to be built needs it; and so on with what would have been needed to build it.
    pub(crate) fn review_demand(&mut self, path: PathId) {
        let mut paths = vec![path];
        while let Some(id) = paths.pop() {
            let path = &self.graph.paths[id];
            if path.available() {
                continue;
            }
            let idle = |slot: &Slot| !self.is_wanted(*slot, id);
            let over: SessionSet = path.demanded.iter().filter(idle).collect();
            for slot in over.iter() {
                self.drop_demand(slot, id, &mut paths);
            }
        }
    }

    /// Whether a goal or something that is still to be built needs a path.
    fn is_wanted(&self, slot: Slot, id: PathId) -> bool {
        let path = &self.graph.paths[id];
        let reads = |reader: &DrvId| {
            let drv = &self.graph.drvs[*reader];
            let done = drv.present && !self.sessions.planning.contains(slot);
            !done && drv.demanded.contains(slot) && !drv.failed.contains(slot)
        };
        let goal = path.goals.iter().any(|(other, _)| *other == slot);
        goal || path.in_vain.contains(slot) || path.consumers.iter().any(reads)
    }

    fn drop_demand(&mut self, slot: Slot, id: PathId, paths: &mut Vec<PathId>) {
        let path = &mut self.graph.paths[id];
        path.import.remove(slot);
        let unknown = path.demanded.remove(slot) && !path.was_known;
        let producer = path.producer;
        self.graph.touch_path(id);
        if unknown && let Some(session) = self.sessions.get_mut(slot) {
            session.unknown -= 1;
        }
        self.asking.due.remove(id, slot);
        let Some(producer) = producer else { return };
        let wanted = |(_, output): &(String, PathId)| self.graph.paths[*output].demanded.contains(slot);
        let drv = &self.graph.drvs[producer];
        if drv.demanded.contains(slot) && !drv.outputs.iter().any(wanted) {
            paths.extend(&drv.inputs);
            let drv = &mut self.graph.drvs[producer];
            drv.demanded.remove(slot);
            drv.import.remove(slot);
            self.graph.touch_drv(producer);
        }
    }

    /// Tells sessions that a derivation need not be built, once all they want of it can be had.
    pub(crate) fn tell_present(&mut self, id: PathId, sessions: SessionSet) {
        let Some(producer) = self.graph.paths[id].producer else {
            return;
        };
        for slot in sessions.without(self.graph.drvs[producer].told_present).iter() {
            let drv = &self.graph.drvs[producer];
            let missing = |(_, output): &(String, PathId)| {
                let path = &self.graph.paths[*output];
                path.demanded.contains(slot) && !path.available() && !self.is_desired(slot, *output)
            };
            if drv.demanded.contains(slot) || drv.outputs.iter().any(missing) {
                continue;
            }
            let derivation = drv.name.clone();
            self.graph.drvs[producer].told_present.insert(slot);
            if let Some(session) = self.sessions.get_mut(slot) {
                session.present += 1;
            }
            self.tell(slot, EventKind::Present { derivation });
        }
    }

    /// Tells sessions that only plan that a path would be fetched.
    pub(crate) fn tell_would_fetch(&mut self, id: PathId) {
        let path = &self.graph.paths[id];
        let planning = self
            .sessions
            .planning
            .without(path.import)
            .without(path.told_fetch);
        if path.own == Own::Here || !path.available() {
            return;
        }
        for slot in path.demanded.and(planning).iter() {
            let path = &mut self.graph.paths[id];
            path.told_fetch.insert(slot);
            let path = path.name.clone();
            self.tell(slot, EventKind::WouldFetch { path });
        }
    }

    /// Works out anew how far each demanded derivation is from what is wanted. A first guess is made
    /// when it becomes demanded; doing it exactly each time again would cost the whole graph for
    /// every target, so it is done when enough has been added.
    pub(crate) fn rank_if_due(&mut self) {
        let since = self.queues.demanded_since_ranking;
        if since < 64 || since < self.queues.demanded_at_ranking / 2 {
            return;
        }
        let drvs = &self.graph.drvs;
        let mut order: Vec<DrvId> = drvs
            .keys()
            .filter(|id| !drvs[*id].demanded.is_empty() && !drvs[*id].present)
            .collect();
        order.sort_unstable_by_key(|id| Reverse(drvs[*id].seq));
        self.queues.demanded_since_ranking = 0;
        self.queues.demanded_at_ranking = order.len();
        for id in &order {
            self.graph.drvs[*id].rank = 1;
        }
        for id in &order {
            let drv = &self.graph.drvs[*id];
            let rank = drv.rank;
            for input in drv.inputs.clone() {
                let path = &self.graph.paths[input];
                if let Some(producer) = path.producer.filter(|_| !path.available()) {
                    let producer = &mut self.graph.drvs[producer];
                    producer.rank = producer.rank.max(rank.saturating_add(1));
                }
            }
            self.graph.touch_drv(*id);
        }
    }
}
