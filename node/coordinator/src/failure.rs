//! What a failure means: for whom it counts, what is tried again, and what cannot be had now.

use std::collections::VecDeque;

use tvix_node_protocol::build::BuildLimits;
use tvix_node_protocol::control::{EventKind, Outcome};
use tvix_node_protocol::envelope::NodeKey;

use crate::action::Urgency;
use crate::build::{Attempt, Stage};
use crate::coordinator::Coordinator;
use crate::event::{BuildFailure, FailureKind};
use crate::goal::GoalKind;
use crate::graph::{DrvId, Failed, GoalId, PathId};
use crate::id::BuildId;
use crate::limits;
use crate::session_set::{SessionSet, Slot};

/// Whether any of these limits lets a build go on where the others stop it.
fn is_wider(one: &BuildLimits, other: &BuildLimits) -> bool {
    let wider = |one: Option<u64>, other: Option<u64>| match (one, other) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(one), Some(other)) => one > other,
    };
    wider(one.time, other.time)
        || wider(one.silence, other.silence)
        || wider(one.log, other.log)
        || wider(one.disk, other.disk)
        || wider(one.memory, other.memory)
        || one.processes() > other.processes()
}

impl Coordinator {
    pub(crate) fn build_failed(&mut self, build: BuildId, mut failure: BuildFailure) {
        self.given_up.remove(&build);
        let participants = self.participants(build);
        let Some(attempt) = self.take_attempt(build) else {
            return;
        };
        if attempt.stage == Stage::Dying {
            return;
        }
        let excess = failure.log_tail.len().saturating_sub(limits::LOG_TAIL);
        failure.log_tail.drain(..excess);
        match failure.kind {
            FailureKind::Builder | FailureKind::Disagreed => {
                self.fail(attempt.drv, participants, attempt.node_name, failure);
            }
            FailureKind::Limit => {
                let wider = |slot: &Slot| {
                    let session = self.sessions.get(*slot);
                    session.is_some_and(|session| is_wider(&session.options.limits, &attempt.limits))
                };
                let others: SessionSet = participants.iter().filter(wider).collect();
                self.fail(
                    attempt.drv,
                    participants.without(others),
                    attempt.node_name,
                    failure,
                );
            }
            FailureKind::Busy if attempt.joins && attempt.node.is_none() => {
                self.graph.drvs[attempt.drv].not_joined_here = true;
                self.try_later(&attempt, participants, failure.error);
            }
            FailureKind::Busy if attempt.node.is_some() && !attempt.inputs_missing => {
                if self.counts_as_refusal(&attempt) {
                    failure.kind = FailureKind::Refused;
                    self.try_elsewhere(&attempt, participants, failure);
                } else {
                    self.try_later(&attempt, participants, failure.error);
                }
            }
            FailureKind::Busy
            | FailureKind::Transient
            | FailureKind::Gone
            | FailureKind::Refused
            | FailureKind::Cancelled => {
                self.try_elsewhere(&attempt, participants, failure);
            }
        }
    }

    /// Counts that a builder has said that it lacks inputs though this node has them all, and says whether it is believed to
    /// lack them for good: what it holds for itself alone, it takes from nobody.
    fn counts_as_refusal(&mut self, attempt: &Attempt) -> bool {
        if !attempt.inputs_untaken {
            return false;
        }
        let drv = &mut self.graph.drvs[attempt.drv];
        drv.untaken = drv.untaken.saturating_add(1);
        drv.untaken >= limits::UNTAKEN_TRIES
    }

    /// A builder has too much to do. It is left alone for a moment, and nothing is held against it.
    fn try_later(&mut self, attempt: &Attempt, participants: SessionSet, why: String) {
        if let Some(node) = attempt.node {
            self.builders.pause(&node, self.now.after(limits::REFUSAL_PAUSE));
        }
        let drv = &mut self.graph.drvs[attempt.drv];
        drv.tries = drv.tries.saturating_sub(1);
        // Said once, however often it is tried.
        if drv.put_off.as_ref() == Some(&why) {
            return;
        }
        drv.put_off = Some(why.clone());
        for slot in participants.iter() {
            let (level, derivation) = ("info".to_owned(), &attempt.derivation);
            let text = format!("{derivation} has to wait: {}: {why}", attempt.node_name);
            self.tell(slot, EventKind::Message { level, text });
        }
    }

    /// A build came to nothing, which says nothing about its derivation.
    pub(crate) fn try_elsewhere(
        &mut self,
        attempt: &Attempt,
        participants: SessionSet,
        failure: BuildFailure,
    ) {
        if attempt.inputs_missing {
            // Not the builder's fault: it is built again when its inputs have been found or made.
            return;
        }
        let refused = failure.kind == FailureKind::Refused;
        let gone = failure.kind == FailureKind::Gone;
        let now = self.now;
        let drv = &mut self.graph.drvs[attempt.drv];
        let trouble = drv.trouble_mut();
        match attempt.node {
            None if refused => trouble.refused_here = true,
            None => trouble.tries_here = trouble.tries_here.saturating_add(1),
            Some(node) => {
                let out = if gone {
                    &mut trouble.gone
                } else {
                    &mut trouble.excluded
                };
                out.push(node);
                // What took several of them at once has taken them, and not the derivation.
                let together = gone && trouble.last_gone.is_some_and(|last| attempt.placed < last);
                trouble.lost = trouble.lost.saturating_add(u8::from(!refused && !together));
                if gone {
                    trouble.last_gone = Some(now);
                }
            }
        }
        trouble
            .story
            .push(format!("{}: {}", attempt.node_name, failure.error));
        self.queues.troubled.insert(attempt.drv);
        let worn_out = trouble.lost >= limits::BUILDERS_LOST;
        if let Some(node) = attempt.node.filter(|_| refused) {
            self.builders.pause(&node, self.now.after(limits::REFUSAL_PAUSE));
        }
        if let Some(node) = attempt.node.filter(|_| gone) {
            self.builders.pause(&node, self.now.after(limits::GONE_PAUSE));
        }
        let beside = !self.graph.drvs[attempt.drv].attempts.is_empty();
        // It may be back as soon as it was gone: what cannot be built meanwhile waits for it as for any other builder.
        let back = gone && !worn_out && self.builders.may_turn_up();
        let (again, stuck): (Vec<Slot>, Vec<Slot>) = participants
            .iter()
            .partition(|slot| beside || back || self.can_be_built(attempt.drv, *slot));
        for slot in again {
            let (level, derivation) = ("warning".to_owned(), &attempt.derivation);
            let what = match beside || self.is_anybody_there(attempt.drv, slot) {
                true => "is placed again",
                false => "waits for a builder to turn up",
            };
            let text = format!("{derivation} {what}: {}: {}", attempt.node_name, failure.error);
            self.tell(slot, EventKind::Message { level, text });
        }
        if stuck.is_empty() {
            return;
        }
        let story = self.story(attempt.drv);
        let error = if story.contains(';') {
            format!("no builder is left: {story}")
        } else {
            failure.error
        };
        let failure = BuildFailure { error, ..failure };
        self.fail(
            attempt.drv,
            stuck.into_iter().collect(),
            attempt.node_name.clone(),
            failure,
        );
    }

    fn story(&self, id: DrvId) -> String {
        self.graph.drvs[id]
            .trouble
            .as_ref()
            .map(|trouble| trouble.story.join("; "))
            .unwrap_or_default()
    }

    /// Whether there is anybody who might build a derivation for a session, with room or without; where
    /// several have to agree, whether there are enough.
    pub(crate) fn can_be_built(&mut self, id: DrvId, slot: Slot) -> bool {
        let here = self.may_build_here(id) && self.session_builds_here(slot);
        if self.quorum(id).is_some() {
            return self.quorum_is_possible(id, here);
        }
        here || !self.peers_for(id).is_empty()
    }

    /// Whether somebody might build a derivation for a session who was not lost over it.
    fn is_anybody_there(&mut self, id: DrvId, slot: Slot) -> bool {
        let here = self.may_build_here(id) && self.session_builds_here(slot);
        let peers = self.peers_for(id);
        here || !peers.iter().all(|node| self.graph.drvs[id].has_lost(node))
    }

    /// Whether this node may build a derivation.
    pub(crate) fn may_build_here(&self, id: DrvId) -> bool {
        let drv = &self.graph.drvs[id];
        let trouble = drv.trouble.as_ref();
        trouble.is_none_or(|trouble| !trouble.refused_here && trouble.tries_here < limits::TRIES_HERE)
            && self
                .builders
                .capable_here(self.graph.requirements.get(drv.requirement))
    }

    /// Peers that may build a derivation.
    pub(crate) fn peers_for(&mut self, id: DrvId) -> Vec<NodeKey> {
        let drv = &self.graph.drvs[id];
        let trouble = drv.trouble.as_ref();
        if trouble.is_some_and(|trouble| trouble.lost >= limits::BUILDERS_LOST) {
            return Vec::new();
        }
        let requirement = self.graph.requirements.get(drv.requirement);
        let capable = self.builders.capable(drv.requirement, requirement).iter();
        let excluded = |node: &NodeKey| trouble.is_some_and(|trouble| trouble.excluded.contains(node));
        capable.filter(|node| !excluded(node)).copied().collect()
    }

    /// A derivation that a peer had built must be built again: what the peer made could not be had.
    pub(crate) fn note_vanished(&mut self, id: DrvId) {
        let drv = &mut self.graph.drvs[id];
        let Some(node) = drv.built_by.take() else { return };
        let name = self.builders.name(&node);
        let trouble = drv.trouble_mut();
        trouble.excluded.push(node);
        trouble.lost = trouble.lost.saturating_add(1);
        trouble.story.push(format!(
            "{name}: it said that it had built it, but the outputs could not be had"
        ));
        self.queues.troubled.insert(id);
    }

    /// A derivation that was built again and again for nothing.
    pub(crate) fn fail_worn_out(&mut self, id: DrvId, sessions: SessionSet) {
        let tries = self.graph.drvs[id].tries;
        let error = format!(
            "given up after {tries} builds that came to nothing: {}",
            self.story(id)
        );
        let node = self.config.name.clone();
        let failure = BuildFailure {
            kind: FailureKind::Transient,
            error,
            log_tail: Vec::new(),
        };
        self.fail(id, sessions, node, failure);
    }

    /// A derivation that nobody can build.
    pub(crate) fn fail_stranded(&mut self, id: DrvId, sessions: SessionSet) {
        let requirement = self.graph.requirements.get(self.graph.drvs[id].requirement);
        let mut wanted = requirement.system.clone();
        if !requirement.features.is_empty() {
            wanted.push_str(&format!(" with {}", requirement.features.join(" ")));
        }
        let what = if requirement.fixed_output {
            "fixed outputs "
        } else {
            ""
        };
        let builders = self
            .builders
            .describe(&self.config.name, requirement.fixed_output);
        let mut error = match self.too_few(id) {
            Some(too_few) => format!("{too_few}; builders: {builders}"),
            None => format!("no builder builds {what}for {wanted}; builders: {builders}"),
        };
        if self.may_build_here(id) && !sessions.iter().any(|slot| self.session_builds_here(slot)) {
            let name = &self.config.name;
            error.push_str(&format!("; {name} is not used, because of '--jobs 0'"));
        }
        let story = self.story(id);
        if !story.is_empty() {
            error.push_str(&format!("; tried before: {story}"));
        }
        let node = self.config.name.clone();
        let failure = BuildFailure {
            kind: FailureKind::Refused,
            error,
            log_tail: Vec::new(),
        };
        self.fail(id, sessions, node, failure);
    }

    /// A derivation has failed for these sessions. Where it is speculative, that is remembered.
    fn fail(&mut self, id: DrvId, sessions: SessionSet, node: String, failure: BuildFailure) {
        let sessions: SessionSet = sessions.iter().filter(|slot| !self.is_ending(*slot)).collect();
        let drv = &mut self.graph.drvs[id];
        drv.failure = Some(Box::new(Failed { node, failure }));
        drv.failed = drv.failed.or(sessions);
        drv.stranded_since = None;
        // Nobody's failure is another one's trouble: who asks next starts afresh.
        if drv.known.without(drv.failed).is_empty() {
            drv.trouble = None;
            drv.tries = 0;
            drv.untaken = 0;
            drv.votes.clear();
            self.queues.troubled.remove(&id);
        }
        for input in drv.inputs.clone() {
            self.review_demand(input);
        }
        self.graph.touch_drv(id);
        for slot in sessions.iter() {
            self.tell_failed(slot, id);
            if self.graph.drvs[id].demanded.contains(slot) {
                self.count_failure(slot, id);
            }
        }
    }

    fn tell_failed(&mut self, slot: Slot, id: DrvId) {
        let drv = &self.graph.drvs[id];
        let Some(failed) = &drv.failure else { return };
        let event = EventKind::BuildFailed {
            derivation: drv.name.clone(),
            node: failed.node.clone(),
            error: failed.failure.error.clone(),
            log_tail: failed.failure.log_tail.clone(),
            demanded: self.urgency(id, SessionSet::of(slot)) > Urgency::Speculative,
        };
        self.tell(slot, event);
    }

    /// Counts the failure of something demanded, with everything that follows for the session.
    fn count_failure(&mut self, slot: Slot, id: DrvId) {
        if let Some(session) = self.sessions.get_mut(slot) {
            session.failed += 1;
        }
        self.spread_failure(slot, id, id);
        self.stop_after_failure(slot);
    }

    pub(crate) fn stop_after_failure(&mut self, slot: Slot) {
        if self
            .sessions
            .get(slot)
            .is_some_and(|session| !session.options.keep_going)
        {
            self.stop_session(slot, Outcome::BuildFailed);
        }
    }

    /// Fails the goals that need what cannot be had any more, and blocks the derivations that do.
    fn spread_failure(&mut self, slot: Slot, from: DrvId, cause: DrvId) {
        let mut broken = VecDeque::from([from]);
        while let Some(id) = broken.pop_front() {
            for (_, output) in self.graph.drvs[id].outputs.clone() {
                if self.graph.paths[output].available() {
                    continue;
                }
                self.fail_goals(slot, output, cause);
                for reader in self.graph.paths[output].consumers.clone() {
                    if self.block(slot, reader, cause) {
                        broken.push_back(reader);
                    }
                }
            }
        }
    }

    /// Whether a demanded derivation cannot be built for a session now, and could before.
    fn block(&mut self, slot: Slot, id: DrvId, cause: DrvId) -> bool {
        let drv = &mut self.graph.drvs[id];
        let over = drv.failed.or(drv.blocked).contains(slot) || drv.present;
        if !drv.demanded.contains(slot) || over || !drv.attempts.is_empty() {
            return false;
        }
        drv.blocked.insert(slot);
        drv.causes.push((slot, cause));
        let derivation = drv.name.clone();
        self.graph.touch_drv(id);
        if self
            .sessions
            .get(slot)
            .is_some_and(|session| session.options.keep_going)
        {
            let because = self.graph.drvs[cause].name.clone();
            self.tell(slot, EventKind::DependencyFailed { derivation, because });
        }
        true
    }

    fn fail_goals(&mut self, slot: Slot, path: PathId, because: DrvId) {
        let goals = self.graph.paths[path].goals.clone();
        for (_, goal) in goals.into_iter().filter(|(other, _)| *other == slot) {
            let error = self.failure_of(because);
            self.fail_goal(slot, goal, error);
        }
    }

    fn failure_of(&self, id: DrvId) -> String {
        let drv = &self.graph.drvs[id];
        let error = drv.failure.as_ref().map_or("", |failed| &failed.failure.error);
        format!("{} could not be built: {error}", drv.name)
    }

    /// Fails a goal some of whose paths are known to be beyond reach.
    pub(crate) fn fail_hopeless_goal(&mut self, slot: Slot, number: GoalId, missing: &[PathId]) {
        for id in missing {
            let path = &self.graph.paths[*id];
            let Some(producer) = path.producer.filter(|_| !path.available()) else {
                continue;
            };
            if let Some(cause) = self.cause_of_failure(slot, producer) {
                let error = self.failure_of(cause);
                self.fail_goal(slot, number, error);
                return;
            }
        }
    }

    /// What failed, if that keeps a derivation from being built for a session.
    fn cause_of_failure(&self, slot: Slot, id: DrvId) -> Option<DrvId> {
        let drv = &self.graph.drvs[id];
        if drv.failed.and(drv.demanded).contains(slot) {
            return Some(id);
        }
        drv.causes
            .iter()
            .find(|(other, _)| *other == slot)
            .map(|(_, cause)| *cause)
    }

    fn fail_goal(&mut self, slot: Slot, number: GoalId, error: String) {
        let Some(goal) = self.take_goal(slot, number) else {
            return;
        };
        for (_, path) in &goal.outputs {
            self.graph.paths[*path].in_vain.insert(slot);
        }
        match goal.kind {
            GoalKind::Target { number, name } => {
                self.tell(
                    slot,
                    EventKind::TargetFailed {
                        target: number,
                        name,
                        error,
                    },
                );
            }
            GoalKind::Import { number } => self.import_failed(slot, number, error),
            GoalKind::Check(check) => self.tell(
                slot,
                EventKind::TargetFailed {
                    target: check.number,
                    name: check.name,
                    error,
                },
            ),
        }
    }

    /// Fails a goal for a reason that no derivation has been counted for.
    pub(crate) fn fail_goal_counted(&mut self, slot: Slot, number: GoalId, error: String) {
        if let Some(session) = self.sessions.get_mut(slot) {
            session.failed += 1;
        }
        self.fail_goal(slot, number, error);
        self.stop_after_failure(slot);
    }

    /// A derivation has become demanded: what failed before counts from now on.
    pub(crate) fn check_for_failures(&mut self, slot: Slot, id: DrvId) {
        let drv = &self.graph.drvs[id];
        if drv.failed.contains(slot) {
            self.tell_failed(slot, id);
            self.count_failure(slot, id);
            return;
        }
        for input in drv.inputs.clone() {
            let path = &self.graph.paths[input];
            if path.available() {
                continue;
            }
            let Some(producer) = path.producer else {
                self.graph.touch_path(input);
                continue;
            };
            let Some(cause) = self.cause_of_failure(slot, producer) else {
                continue;
            };
            if self.block(slot, id, cause) {
                self.spread_failure(slot, id, cause);
            }
            return;
        }
    }

    /// A path that nothing makes and nobody has.
    pub(crate) fn path_lost(&mut self, id: PathId) {
        let path = &self.graph.paths[id];
        let (demanded, readers) = (path.demanded, path.consumers.clone());
        let name = path.name.clone();
        for (slot, goal) in path.goals.clone() {
            let error = format!("{name} is not in the store, nothing makes it, and nobody has it");
            self.fail_goal(slot, goal, error);
        }
        for slot in demanded.iter() {
            for reader in &readers {
                let drv = &self.graph.drvs[*reader];
                let over = drv.failed.or(drv.blocked).contains(slot) || drv.present;
                if !drv.demanded.contains(slot) || over || !drv.attempts.is_empty() {
                    continue;
                }
                let error = format!("its input {name} is not in the store, and nobody has it");
                let failure = BuildFailure {
                    kind: FailureKind::Refused,
                    error,
                    log_tail: Vec::new(),
                };
                let node = self.config.name.clone();
                self.fail(*reader, SessionSet::of(slot), node, failure);
            }
        }
    }
}
