//! Which of the derivations that could be built is placed next, and what gives way to it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::action::Urgency;
use crate::build::{Placement, Stage};
use crate::coordinator::Coordinator;
use crate::graph::{DrvId, Own, PathId, RequirementId, Weighing, Weights};
use crate::id::{BuildId, Time};
use crate::limits;
use crate::line::Entry;
use crate::placement::{self, Candidate, Circumstances, Job};
use crate::session_set::{SessionSet, Slot};
use crate::weighing::Weigh;
use tvix_node_protocol::envelope::NodeKey;

impl Coordinator {
    pub(crate) fn schedule(&mut self) {
        self.queues.held = None;
        self.rank_if_due();
        self.give_up_stranded();
        self.join_left();
        for urgency in [Urgency::Import, Urgency::Demanded] {
            for build in self.to_be_hedged(urgency) {
                self.hedge(build);
            }
            while self.place_next(urgency) {}
        }
        while self.place_next(Urgency::Speculative) {}
        self.race_late();
        self.preempt();
    }

    /// Places one derivation, or starts to find out who has its inputs. Whether there was one.
    fn place_next(&mut self, urgency: Urgency) -> bool {
        let mut free = self.builders.room_here(urgency);
        if urgency > Urgency::Speculative {
            free = free.saturating_add(self.builders.free_at_peers());
        }
        // What is being weighed is about to take a slot.
        if self.queues.weighing.len() >= free as usize {
            return false;
        }
        let mut sessions: Vec<(u32, u64, Slot)> = Vec::new();
        for (_, slot) in self.queues.lines.keys().filter(|(line, _)| *line == urgency) {
            // What was queued as a guess is none any more when the evaluation has ended.
            let over = urgency == Urgency::Speculative && !self.sessions.speculating.contains(*slot);
            if let Some(session) = self.sessions.get(*slot).filter(|_| !over) {
                sessions.push((session.placed, session.order, *slot));
            }
        }
        sessions.sort_unstable();
        sessions
            .into_iter()
            .any(|(_, _, slot)| self.place_for(slot, urgency))
    }

    fn place_for(&mut self, slot: Slot, urgency: Urgency) -> bool {
        let Some(lines) = self.queues.lines.get(&(urgency, slot)) else {
            return false;
        };
        let heads = lines
            .iter()
            .filter_map(|(requirement, line)| Some((*line.first()?, *requirement)));
        let mut heads: Vec<(Entry, RequirementId)> = heads.collect();
        heads.sort_unstable();
        for (_, requirement) in heads {
            if !self.has_room(slot, requirement, urgency) {
                continue;
            }
            let lines = self.queues.lines.get(&(urgency, slot));
            let Some(line) = lines.and_then(|lines| lines.get(&requirement)) else {
                continue;
            };
            let entries: Vec<DrvId> = line
                .iter()
                .take(limits::LOOKED_AT)
                .map(|(_, _, id)| *id)
                .collect();
            for id in entries {
                if self.place_drv(id, slot, urgency) {
                    return true;
                }
            }
        }
        false
    }

    /// Whether some builder that could build what requires this has a free slot for the session.
    fn has_room(&mut self, slot: Slot, requirement: RequirementId, urgency: Urgency) -> bool {
        let required = self.graph.requirements.get(requirement);
        if self.session_may_build_here(slot)
            && self.builders.room_here(urgency) > 0
            && self.builders.capable_here(required)
        {
            return true;
        }
        if urgency == Urgency::Speculative {
            return false;
        }
        let capable = self.builders.capable(requirement, required).to_vec();
        capable
            .iter()
            .any(|node| self.builders.peer(node).is_some_and(|peer| peer.free() > 0))
    }

    /// Whether the session's own bound on builds here leaves room.
    fn session_may_build_here(&self, slot: Slot) -> bool {
        let session = self.sessions.get(slot);
        session.is_some_and(|session| session.options.jobs.is_none_or(|jobs| session.placed_here < jobs))
    }

    /// Whether the session lets this node build at all.
    pub(crate) fn session_builds_here(&self, slot: Slot) -> bool {
        self.sessions
            .get(slot)
            .is_some_and(|session| session.options.jobs != Some(0))
    }

    fn place_drv(&mut self, id: DrvId, slot: Slot, urgency: Urgency) -> bool {
        let mut candidates = self.candidates(id, slot, urgency, &[]);
        if candidates.is_empty() {
            return false;
        }
        match self.weigh(id, slot, &candidates) {
            Weigh::Done => {}
            Weigh::Asked => return true,
            Weigh::Later => return false,
        }
        if let Some(node) = self.maker(id, &[]) {
            if urgency == Urgency::Speculative {
                self.graph.drvs[id].left_to_others = true;
                self.queues.left.insert(id);
                self.graph.touch_drv(id);
                self.settle();
                return true;
            }
            self.join(id, slot, node, None);
            return true;
        }
        if self.is_promised(id) {
            candidates.retain(|candidate| candidate.node.is_none());
            if candidates.is_empty() {
                // It is begun here for another, or is looked at anew by then.
                let until = self.now.after(limits::HELD);
                self.queues.held.get_or_insert(until);
                return false;
            }
        }
        let circumstances = self.circumstances(id, urgency);
        let job = self.job(id, urgency);
        if let Some((node, reason)) = placement::choose(self.config.cost, &job, &candidates, &circumstances) {
            let placement = Placement {
                node,
                reason,
                hedges: None,
                joins: false,
            };
            self.place(id, slot, placement);
            return true;
        }
        false
    }

    /// Places where a derivation could be built now: this node first, then peers by their keys.
    fn candidates(
        &mut self,
        id: DrvId,
        slot: Slot,
        urgency: Urgency,
        not: &[Option<NodeKey>],
    ) -> Vec<Candidate> {
        let prefer_local = self
            .graph
            .requirements
            .get(self.graph.drvs[id].requirement)
            .prefer_local
            || self.metered;
        let not = &[not, self.in_quorum(id).as_slice()].concat();
        let here = self.may_build_here(id) && self.session_builds_here(slot) && !not.contains(&None);
        let mut candidates = Vec::new();
        if here && self.session_may_build_here(slot) && self.builders.room_here(urgency) > 0 {
            candidates.push(Candidate {
                node: None,
                name: self.config.name.clone(),
                slots_free: self.builders.free_here(),
                slots: self.builders.slots_here(),
                bytes_there: self.bytes_at(id, None),
                link: None,
                own_bandwidth: self.builders.best_bandwidth(),
                load: 0,
                cores: 0,
                took: self.history.took(&self.graph.drvs[id].name, None),
            });
        }
        // Nobody else's machine is asked to work on a guess, nor on what is not worth the way.
        if urgency == Urgency::Speculative || (here && prefer_local) {
            return candidates;
        }
        for node in self.peers_for(id) {
            let Some(peer) = self.builders.peer(&node) else {
                continue;
            };
            if peer.free() > 0 && !not.contains(&Some(node)) {
                candidates.push(Candidate {
                    node: Some(node),
                    name: peer.offer.name.clone(),
                    slots_free: peer.free(),
                    slots: peer.offer.slots,
                    bytes_there: self.bytes_at(id, Some(node)),
                    link: Some(peer.offer.link),
                    own_bandwidth: None,
                    load: peer.offer.load,
                    cores: peer.offer.cores,
                    took: self.history.took(&self.graph.drvs[id].name, Some(node)),
                });
            }
        }
        let drv = &self.graph.drvs[id];
        let lost = |candidate: &Candidate| candidate.node.is_some_and(|node| drv.has_lost(&node));
        if !candidates.iter().all(lost) {
            candidates.retain(|candidate| !lost(candidate));
        }
        candidates
    }

    fn weights(&self, id: DrvId) -> Option<&Weights> {
        match &self.graph.drvs[id].weighing {
            Weighing::Done(weights) => weights.as_ref(),
            Weighing::No | Weighing::Asked(_) => None,
        }
    }

    fn bytes_at(&self, id: DrvId, node: Option<NodeKey>) -> Option<u64> {
        let there = &self.weights(id)?.there;
        there
            .iter()
            .find(|(other, _)| *other == node)
            .map(|(_, bytes)| *bytes)
    }

    fn job(&self, id: DrvId, urgency: Urgency) -> Job {
        let requirement = self.graph.requirements.get(self.graph.drvs[id].requirement);
        let input_bytes = self.weights(id).map(|weights| weights.total);
        Job {
            urgency,
            input_bytes,
            prefer_local: requirement.prefer_local || self.metered,
            took: self.history.usual(&self.graph.drvs[id].name),
        }
    }

    fn circumstances(&mut self, id: DrvId, urgency: Urgency) -> Circumstances {
        let here = self.may_build_here(id);
        let capable = self.peers_for(id).len() + usize::from(here);
        let trouble = self.graph.drvs[id].trouble.as_ref();
        Circumstances {
            speculative: urgency == Urgency::Speculative,
            only_capable: capable == 1,
            before: trouble.map(|trouble| trouble.story.clone()).unwrap_or_default(),
            silent: None,
            quorum: self.quorum(id).map(|quorum| quorum.needed),
        }
    }

    /// Starts a second builder beside one that is silent.
    fn hedge(&mut self, build: BuildId) {
        let Some(attempt) = self.attempts.get(&build) else {
            return;
        };
        let (id, silent) = (attempt.drv, attempt.node_name.clone());
        let running: Vec<Option<NodeKey>> = {
            let attempts = self.graph.drvs[id]
                .attempts
                .iter()
                .filter_map(|build| self.attempts.get(build));
            attempts.map(|attempt| attempt.node).collect()
        };
        if running.len() > 1 {
            return;
        }
        let participants = self.participants(build);
        let demanding = self.graph.drvs[id].demanded;
        let Some(payer) = participants.and(demanding).iter().next() else {
            return;
        };
        let urgency = self.urgency(id, participants);
        let candidates = self.candidates(id, payer, urgency, &running);
        // Others may have begun it, since their builder is silent, too.
        if self.weigh(id, payer, &candidates) != Weigh::Done {
            return;
        }
        if let Some(node) = self.maker(id, &running) {
            if let Some(attempt) = self.attempts.get_mut(&build) {
                attempt.lease.hedged();
            }
            self.join(id, payer, node, Some(build));
            return;
        }
        let circumstances = Circumstances {
            silent: Some(silent),
            ..self.circumstances(id, urgency)
        };
        let job = self.job(id, urgency);
        if let Some((node, reason)) = placement::choose(self.config.cost, &job, &candidates, &circumstances) {
            if let Some(attempt) = self.attempts.get_mut(&build) {
                attempt.lease.hedged();
            }
            self.place(
                id,
                payer,
                Placement {
                    node,
                    reason,
                    hedges: Some(build),
                    joins: false,
                },
            );
        }
    }

    /// Has short builds that a peer should have done by now done here as well, in slots that nothing else wants: whoever
    /// is first. Only what could start at once.
    fn race_late(&mut self) {
        for build in self.to_be_raced() {
            if self.builders.free_here() == 0 || !self.queues.lines.is_empty() {
                return;
            }
            let Some(attempt) = self.attempts.get(&build) else {
                continue;
            };
            let (id, name) = (attempt.drv, attempt.node_name.clone());
            let drv = &self.graph.drvs[id];
            let here = |input: &PathId| self.graph.paths[*input].own == Own::Here;
            let alone = drv.attempts.len() == 1 && self.quorum(id).is_none();
            if !alone || !drv.inputs.iter().all(here) || !self.may_build_here(id) {
                continue;
            }
            let wanting = self.participants(build).and(drv.demanded);
            let payer = wanting
                .iter()
                .find(|slot| self.session_may_build_here(*slot) && self.session_builds_here(*slot));
            let Some(payer) = payer else { continue };
            if let Some(attempt) = self.attempts.get_mut(&build) {
                attempt.late = None;
            }
            let reason = format!("this node: {name} takes longer than this package usually does");
            let placement = Placement {
                node: None,
                reason,
                hedges: None,
                joins: false,
            };
            self.place(id, payer, placement);
        }
    }

    /// How long what nobody could build now waits for somebody who can.
    fn patience(&self) -> Duration {
        match self.builders.may_turn_up() {
            true => limits::NO_BUILDER_PATIENCE,
            false => Duration::ZERO,
        }
    }

    /// Gives up what is demanded and what nobody could build for too long.
    fn give_up_stranded(&mut self) {
        let patience = self.patience();
        let mut stranded = BTreeMap::new();
        let mut failed: BTreeMap<DrvId, SessionSet> = BTreeMap::new();
        let demanded = self.queues.lines.range((Urgency::Demanded, Slot::FIRST)..);
        let lines: Vec<(Slot, RequirementId)> = demanded
            .flat_map(|((_, slot), lines)| lines.keys().map(|requirement| (*slot, *requirement)))
            .collect();
        for (slot, requirement) in lines {
            let required = self.graph.requirements.get(requirement);
            let here = self.session_builds_here(slot) && self.builders.capable_here(required);
            if here || !self.builders.capable(requirement, required).is_empty() {
                continue;
            }
            let since = self
                .queues
                .stranded
                .get(&(slot, requirement))
                .copied()
                .unwrap_or(self.now);
            if since.after(patience) > self.now {
                stranded.insert((slot, requirement), since);
                continue;
            }
            for urgency in [Urgency::Import, Urgency::Demanded] {
                let lines = self.queues.lines.get(&(urgency, slot));
                let line = lines.and_then(|lines| lines.get(&requirement));
                for (_, _, id) in line.into_iter().flatten() {
                    failed.entry(*id).or_default().insert(slot);
                }
            }
        }
        self.queues.stranded = stranded;
        for id in self.queues.troubled.clone() {
            if self.graph.drvs[id].queued.is_none() && self.graph.drvs[id].trouble.is_none() {
                self.queues.troubled.remove(&id);
                continue;
            }
            let queued = self.graph.drvs[id].queued.as_ref();
            let demanded = queued.map_or(SessionSet::EMPTY, |queued| queued.import.or(queued.demanded));
            let stuck: SessionSet = demanded
                .iter()
                .filter(|slot| !self.can_be_built(id, *slot))
                .collect();
            if stuck.is_empty() {
                self.graph.drvs[id].stranded_since = None;
                continue;
            }
            let since = *self.graph.drvs[id].stranded_since.get_or_insert(self.now);
            if since.after(patience) <= self.now {
                let sessions = failed.entry(id).or_default();
                *sessions = sessions.or(stuck);
            }
        }
        for (id, sessions) in failed {
            self.fail_stranded(id, sessions);
        }
        self.settle();
    }

    /// Stops speculation that keeps something demanded waiting: at once where it has not started and
    /// loses nothing, otherwise after a while.
    fn preempt(&mut self) {
        let (preparing, running): (Vec<BuildId>, Vec<BuildId>) = self
            .in_the_way()
            .into_iter()
            .partition(|build| self.is_preparing(*build));
        for build in preparing {
            self.unplace(build, "something demanded needs its slot");
        }
        if running.is_empty() {
            self.queues.starved = None;
            return;
        }
        let since = *self.queues.starved.get_or_insert(self.now);
        if since.after(limits::PREEMPT_AFTER) <= self.now {
            self.queues.starved = None;
            for build in running {
                self.cancel(build, "something demanded needs its slot");
            }
        }
    }

    /// Speculative builds on this node that hold a slot, or a session's own share of the slots, that
    /// something demanded waits for.
    fn in_the_way(&self) -> Vec<BuildId> {
        let mut speculative: Vec<(BuildId, Option<Slot>)> = Vec::new();
        let mut dying: Vec<Option<Slot>> = Vec::new();
        for (build, attempt) in self
            .attempts
            .iter()
            .rev()
            .filter(|(_, attempt)| attempt.node.is_none() && !attempt.joins)
        {
            if attempt.stage == Stage::Dying {
                dying.push(attempt.payer);
            } else if !self.is_demanded(*build) {
                speculative.push((*build, attempt.payer));
            }
        }
        let mut chosen = Vec::new();
        if speculative.is_empty() {
            return chosen;
        }
        // What has not started has the least to lose, then the youngest.
        speculative.sort_by_key(|(build, _)| !self.is_preparing(*build));
        let mut waiting_for_slots = 0;
        for (slot, waiting) in self.waiting_for_here() {
            let Some(session) = self.sessions.get(slot) else {
                continue;
            };
            let jobs = session.options.jobs.unwrap_or(u32::MAX);
            let share = jobs.saturating_sub(session.placed_here) as usize;
            waiting_for_slots += waiting.min(share);
            let freed = dying.iter().filter(|payer| **payer == Some(slot)).count();
            let mut own = waiting.saturating_sub(share.saturating_add(freed));
            speculative.retain(|(build, payer)| {
                let take = own > 0 && *payer == Some(slot);
                if take {
                    own -= 1;
                    chosen.push(*build);
                }
                !take
            });
        }
        if self.builders.room_here(Urgency::Demanded) == 0 {
            let more = waiting_for_slots.saturating_sub(dying.len() + chosen.len());
            chosen.extend(speculative.into_iter().map(|(build, _)| build).take(more));
        }
        chosen
    }

    /// How many demanded derivations of each session could be built here if there were slots.
    fn waiting_for_here(&self) -> Vec<(Slot, usize)> {
        let mut waiting: Vec<(Slot, usize)> = Vec::new();
        for ((_, slot), lines) in self.queues.lines.range((Urgency::Demanded, Slot::FIRST)..) {
            let mut ready = 0;
            for (requirement, line) in lines {
                if self
                    .builders
                    .capable_here(self.graph.requirements.get(*requirement))
                {
                    let may = line.iter().take(limits::LOOKED_AT);
                    ready += may.filter(|(_, _, id)| self.may_build_here(*id)).count();
                }
            }
            if self.session_builds_here(*slot) && ready > 0 {
                waiting.push((*slot, ready));
            }
        }
        waiting
    }

    pub(crate) fn schedule_due(&self) -> Option<Time> {
        let weighing =
            self.queues
                .weighing
                .iter()
                .filter_map(|id| match self.graph.drvs.get(*id)?.weighing {
                    Weighing::Asked(since) => Some(since.after(limits::WEIGH_PATIENCE)),
                    Weighing::No | Weighing::Done(_) => None,
                });
        let stranded = self.queues.stranded.values().copied();
        let troubled = self
            .queues
            .troubled
            .iter()
            .filter_map(|id| self.graph.drvs.get(*id)?.stranded_since);
        let patience = self.patience();
        let stranded = stranded.chain(troubled).map(|since| since.after(patience));
        let starved = self
            .queues
            .starved
            .map(|since| since.after(limits::PREEMPT_AFTER));
        weighing
            .chain(stranded)
            .chain(starved)
            .chain(self.builders.pauses_due())
            .chain(self.queues.held)
            .min()
    }
}
