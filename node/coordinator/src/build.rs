//! Builds that are placed: from the placement to the cancellation. Results are another matter.

use tvix_node_protocol::StorePath;

use tvix_node_protocol::build::{BuildLimits, BuildOptions, BuildTerms, DesiredStore};
use tvix_node_protocol::control::EventKind;
use tvix_node_protocol::envelope::NodeKey;

use crate::action::{Action, Urgency};
use crate::coordinator::Coordinator;
use crate::graph::{DrvId, Own, PathId, Weighing};
use crate::id::{BuildId, Time};
use crate::lease::Lease;
use crate::session_set::{SessionSet, Slot};

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its slot is taken; inputs are on their way.
    Preparing { missing: usize },
    /// The builder has been asked.
    Asked,
    /// The builder is at it.
    Running { since: Time },
    /// Cancelled, and not over yet.
    Dying,
}

/// One try to build a derivation in one place.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) drv: DrvId,
    pub(crate) derivation: StorePath,
    /// None: here.
    pub(crate) node: Option<NodeKey>,
    pub(crate) node_name: String,
    pub(crate) reason: String,
    pub(crate) cores: u32,
    pub(crate) limits: BuildLimits,
    pub(crate) desired: Option<DesiredStore>,
    pub(crate) stage: Stage,
    pub(crate) lease: Lease,
    pub(crate) placed: Time,
    /// When a peer was done with it; bringing what it built is no part of how long it takes.
    pub(crate) done: Option<Time>,
    /// The silent build beside which it was placed.
    pub(crate) hedges: Option<BuildId>,
    /// Its builder had begun it before it was asked: it takes no slot.
    pub(crate) joins: bool,
    /// Whoever asks is told of it.
    pub(crate) announced: bool,
    /// When a short build on a peer should have been over. None: it is not short, or not known to be, or is raced.
    pub(crate) late: Option<Time>,
    /// Its builder could not get some inputs.
    pub(crate) inputs_missing: bool,
    /// Its builder did not get inputs that this node has.
    pub(crate) inputs_untaken: bool,
    /// The session on whose account it runs.
    pub(crate) payer: Option<Slot>,
    /// Sessions that were told of it.
    pub(crate) told: SessionSet,
}

impl Attempt {
    /// On which terms it is built.
    pub(crate) fn terms(&self) -> BuildTerms {
        BuildTerms {
            options: BuildOptions { cores: self.cores },
            limits: self.limits,
        }
    }

    pub(crate) fn takes_slot_here(&self) -> bool {
        self.node.is_none() && !self.joins
    }

    /// Whether it is to take a slot of a node that has not said so yet.
    pub(crate) fn is_unanswered_by(&self, node: &NodeKey) -> bool {
        self.node.as_ref() == Some(node) && self.stage == Stage::Asked && !self.joins
    }
}

/// Where a build goes, decided.
pub(crate) struct Placement {
    pub(crate) node: Option<NodeKey>,
    pub(crate) reason: String,
    /// The silent build beside which it is placed.
    pub(crate) hedges: Option<BuildId>,
    /// The builder is at it already.
    pub(crate) joins: bool,
}

/// The most generous of both.
fn wider(one: BuildLimits, other: BuildLimits) -> BuildLimits {
    let max = |one: Option<u64>, other: Option<u64>| Some(one?.max(other?));
    BuildLimits {
        time: max(one.time, other.time),
        silence: max(one.silence, other.silence),
        log: max(one.log, other.log),
        disk: max(one.disk, other.disk),
        memory: max(one.memory, other.memory),
        processes: match (one.processes, other.processes) {
            (None, None) => None,
            _ => Some(one.processes().max(other.processes())),
        },
    }
}

impl Coordinator {
    /// Places a build on the account of a session.
    pub(crate) fn place(&mut self, id: DrvId, payer: Slot, placement: Placement) {
        let Some(session) = self.sessions.get_mut(payer) else {
            return;
        };
        let cores = session.options.cores;
        session.placed += 1;
        let Placement {
            node,
            reason,
            hedges,
            joins,
        } = placement;
        match &node {
            _ if joins => {}
            None => {
                session.placed_here += 1;
                self.builders.used_here += 1;
            }
            Some(node) => self.builders.take_slot(node),
        }
        let limits = self.terms_for(id, payer).limits;
        let build = BuildId(self.next_number());
        let drv = &mut self.graph.drvs[id];
        drv.attempts.push(build);
        drv.tries += 1;
        drv.weighing = Weighing::No;
        drv.asked_anew = false;
        drv.left_to_others = false;
        drv.stranded_since = None;
        let derivation = drv.name.clone();
        self.queues.set(&mut self.graph.drvs, id, None);
        if self.quorum(id).is_some() {
            // Others may have to build it, too.
            self.graph.touch_drv(id);
        }
        // What has been begun for another may have to wait there for a slot; until it runs, it is not late.
        let late = match node.is_some() && !joins {
            true => self.history.late(&derivation, self.now),
            false => None,
        };
        let attempt = Attempt {
            drv: id,
            derivation,
            node_name: self.node_name(node.as_ref()),
            node,
            reason,
            cores,
            limits,
            desired: None,
            stage: Stage::Asked,
            lease: Lease::new(self.now),
            placed: self.now,
            done: None,
            hedges,
            joins,
            announced: false,
            late,
            inputs_missing: false,
            inputs_untaken: false,
            payer: Some(payer),
            told: SessionSet::EMPTY,
        };
        self.attempts.insert(build, attempt);
        let participants = self.participants(build);
        self.tell_placed(build, participants);
        self.announce(build);
        match node {
            None => self.prepare(build, id),
            Some(node) => self.request(build, id, node, participants),
        }
    }

    /// On which terms a derivation is built on the account of a session: with the widest limits of all who want it built with
    /// the same options.
    pub(crate) fn terms_for(&self, id: DrvId, payer: Slot) -> BuildTerms {
        let options = self.sessions.get(payer).map(|session| &session.options);
        let (cores, mut limits) =
            options.map_or((0, BuildLimits::NONE), |options| (options.cores, options.limits));
        let wanting = self.wanted_by(id, cores);
        for session in wanting.iter().filter_map(|slot| self.sessions.get(slot)) {
            limits = wider(limits, session.options.limits);
        }
        let options = BuildOptions { cores };
        BuildTerms { options, limits }
    }

    /// Has the inputs brought here, then starts.
    fn prepare(&mut self, build: BuildId, id: DrvId) {
        let inputs = self.graph.drvs[id].inputs.clone();
        let missing = inputs
            .iter()
            .filter(|input| self.graph.paths[**input].own != Own::Here);
        let missing: Vec<PathId> = missing.copied().collect();
        if let Some(attempt) = self.attempts.get_mut(&build) {
            attempt.stage = Stage::Preparing {
                missing: missing.len(),
            };
        }
        for input in &missing {
            self.graph.paths[*input].waiting_builds.push(build);
            self.graph.touch_path(*input);
        }
        if missing.is_empty() {
            self.start_here(build);
        }
    }

    pub(crate) fn input_arrived(&mut self, build: BuildId) {
        let Some(attempt) = self.attempts.get_mut(&build) else {
            return;
        };
        if let Stage::Preparing { missing } = &mut attempt.stage {
            *missing -= 1;
            if *missing == 0 {
                self.start_here(build);
            }
        }
    }

    fn start_here(&mut self, build: BuildId) {
        let participants = self.participants(build);
        let Some(attempt) = self.attempts.get_mut(&build) else {
            return;
        };
        attempt.stage = Stage::Asked;
        let (derivation, cores, limits) = (attempt.derivation.clone(), attempt.cores, attempt.limits);
        let joins = attempt.joins;
        let drv = attempt.drv;
        let urgency = self.urgency(drv, participants);
        let demanded = urgency > Urgency::Speculative;
        let kind = urgency.kind();
        self.actions.push(Action::BuildHere {
            build,
            derivation,
            kind,
            demanded,
            cores,
            limits,
            joins,
        });
    }

    fn request(&mut self, build: BuildId, id: DrvId, node: NodeKey, participants: SessionSet) {
        let drv = &self.graph.drvs[id];
        let wanted = |path: &PathId| {
            let path = &self.graph.paths[*path];
            !path.demanded.is_empty() || !path.consumers.is_empty()
        };
        let named = drv.outputs.iter().filter(|(_, path)| wanted(path));
        let mut outputs: Vec<String> = named.map(|(name, _)| name.clone()).collect();
        if outputs.is_empty() {
            outputs = drv.outputs.iter().map(|(name, _)| name.clone()).collect();
        }
        let goals = drv
            .outputs
            .iter()
            .flat_map(|(_, path)| &self.graph.paths[*path].goals);
        let stores = goals.filter_map(|(slot, _)| self.sessions.get(*slot)?.options.to.clone());
        let desired_store = stores.into_iter().next();
        let urgency = self.urgency(id, participants);
        let mut goals = drv
            .outputs
            .iter()
            .flat_map(|(_, path)| &self.graph.paths[*path].goals);
        let bring = goals.next().is_some()
            || participants
                .iter()
                .filter_map(|slot| self.sessions.get(slot))
                .any(|session| session.to.is_none());
        let Some(attempt) = self.attempts.get_mut(&build) else {
            return;
        };
        attempt.desired.clone_from(&desired_store);
        self.actions.push(Action::Request {
            build,
            node,
            derivation: attempt.derivation.clone(),
            outputs,
            kind: urgency.kind(),
            desired_store,
            bring,
            cores: attempt.cores,
            limits: attempt.limits,
            urgency,
        });
    }

    /// Tells sessions that take part and were not told yet where a build is.
    pub(crate) fn tell_placed(&mut self, build: BuildId, participants: SessionSet) {
        let Some(attempt) = self.attempts.get_mut(&build) else {
            return;
        };
        let new = participants.without(attempt.told);
        attempt.told = attempt.told.or(new);
        let running = matches!(attempt.stage, Stage::Running { .. });
        let (drv, derivation) = (attempt.drv, attempt.derivation.clone());
        let (node, reason) = (attempt.node_name.clone(), attempt.reason.clone());
        for slot in new.iter() {
            let urgency = self.urgency(drv, SessionSet::of(slot));
            let (derivation, node) = (derivation.clone(), node.clone());
            self.tell(
                slot,
                EventKind::Placed {
                    derivation: derivation.clone(),
                    node: node.clone(),
                    reason: reason.clone(),
                    demanded: urgency > Urgency::Speculative,
                    kind: urgency.kind(),
                },
            );
            if running {
                self.tell(slot, EventKind::BuildStarted { derivation, node });
            }
        }
    }

    pub(crate) fn build_done(&mut self, build: BuildId) {
        let now = self.now;
        if let Some(attempt) = self.attempts.get_mut(&build) {
            attempt.lease.heard(now);
            attempt.done.get_or_insert(now);
            // It is on its way here: to build it again would not be faster by what is known of builds.
            attempt.late = None;
        }
    }

    pub(crate) fn build_started(&mut self, build: BuildId) {
        let now = self.now;
        let Some(attempt) = self.attempts.get_mut(&build) else {
            return;
        };
        attempt.lease.heard(now);
        self.drop_hedge(build);
        let Some(attempt) = self.attempts.get_mut(&build) else {
            return;
        };
        if attempt.stage != Stage::Asked {
            return;
        }
        attempt.stage = Stage::Running { since: now };
        // It may have waited for a slot. What is raced already is not raced again.
        if attempt.node.is_some() && (attempt.joins || attempt.late.is_some()) {
            attempt.late = self.history.late(&attempt.derivation, now);
        }
        let (told, derivation) = (attempt.told, attempt.derivation.clone());
        let node = attempt.node_name.clone();
        for slot in told.iter() {
            let (derivation, node) = (derivation.clone(), node.clone());
            self.tell(slot, EventKind::BuildStarted { derivation, node });
        }
    }

    pub(crate) fn heartbeat(&mut self, build: BuildId) {
        let now = self.now;
        if let Some(attempt) = self.attempts.get_mut(&build) {
            attempt.lease.heard(now);
            self.drop_hedge(build);
        }
    }

    /// A builder that was silent has spoken: the one beside it is not needed, if it has not started.
    fn drop_hedge(&mut self, build: BuildId) {
        let Some(attempt) = self.attempts.get(&build) else {
            return;
        };
        for other in self.graph.drvs[attempt.drv].attempts.clone() {
            let hedge = self
                .attempts
                .get(&other)
                .is_some_and(|other| other.hedges == Some(build));
            if hedge && self.is_preparing(other) {
                self.unplace(other, "the first builder has been heard of again");
                if let Some(attempt) = self.attempts.get_mut(&build) {
                    attempt.lease.unhedged();
                }
            }
        }
    }

    /// Removes a build from everything that counts it.
    pub(crate) fn take_attempt(&mut self, build: BuildId) -> Option<Attempt> {
        self.retract(build);
        let attempt = self.attempts.remove(&build)?;
        let here = attempt.takes_slot_here();
        if let Some(session) = attempt.payer.and_then(|payer| self.sessions.get_mut(payer)) {
            session.placed = session.placed.saturating_sub(1);
            session.placed_here = session.placed_here.saturating_sub(u32::from(here));
        }
        match &attempt.node {
            _ if attempt.joins => {}
            None => self.builders.used_here -= 1,
            Some(node) => self.builders.give_slot(node),
        }
        let drv = &mut self.graph.drvs[attempt.drv];
        drv.attempts.retain(|other| *other != build);
        if matches!(attempt.stage, Stage::Preparing { .. }) {
            for input in drv.inputs.clone() {
                let path = &mut self.graph.paths[input];
                path.waiting_builds.retain(|other| *other != build);
                self.graph.touch_path(input);
            }
        }
        self.graph.touch_drv(attempt.drv);
        Some(attempt)
    }

    /// Cancels a build. One that runs on this node keeps its slot until it is over.
    pub(crate) fn cancel(&mut self, build: BuildId, reason: &str) {
        self.tell_cancelled(build, reason);
        let Some(attempt) = self.attempts.get_mut(&build) else {
            return;
        };
        let (drv, node) = (attempt.drv, attempt.node);
        let tries = &mut self.graph.drvs[drv].tries;
        *tries = tries.saturating_sub(1);
        if node.is_none() && !matches!(attempt.stage, Stage::Preparing { .. }) {
            attempt.stage = Stage::Dying;
            self.retract(build);
            self.actions.push(Action::CancelBuild { build, node });
            return;
        }
        let Some(attempt) = self.take_attempt(build) else {
            return;
        };
        if node.is_some() {
            self.actions.push(Action::CancelBuild { build, node });
            self.remember_given_up(build, attempt);
        }
    }

    /// Whether a build waits for its inputs and has not started.
    pub(crate) fn is_preparing(&self, build: BuildId) -> bool {
        let attempt = self.attempts.get(&build);
        attempt.is_some_and(|attempt| matches!(attempt.stage, Stage::Preparing { .. }))
    }

    /// Takes back a placement whose build has not started.
    pub(crate) fn unplace(&mut self, build: BuildId, reason: &str) {
        if self.is_preparing(build) {
            self.cancel(build, reason);
        }
    }

    /// Keeps a build on a peer in mind, should its result come after all.
    pub(crate) fn remember_given_up(&mut self, build: BuildId, mut attempt: Attempt) {
        attempt.told = SessionSet::EMPTY;
        self.given_up.insert(build, attempt);
        if self.given_up.len() > self.config.bounds.given_up {
            self.given_up.pop_first();
        }
    }

    /// Whether builds on this node that a session was told of are cancelled and not over.
    pub(crate) fn is_dying(&self, slot: Slot) -> bool {
        let dying = |attempt: &Attempt| attempt.stage == Stage::Dying && attempt.told.contains(slot);
        self.attempts.values().any(dying)
    }

    /// A session that has ended is told nothing more, and its builds that others want too go on the
    /// account of one of these.
    pub(crate) fn forget_watcher(&mut self, slot: Slot) {
        for attempt in self.attempts.values_mut() {
            attempt.told.remove(slot);
            if attempt.payer == Some(slot) {
                attempt.payer = attempt.told.iter().next();
                let payer = attempt.payer.and_then(|payer| self.sessions.get_mut(payer));
                if let Some(session) = payer {
                    session.placed += 1;
                    session.placed_here += u32::from(attempt.takes_slot_here());
                }
            }
        }
    }
}
