//! Watches everything that goes in and out and complains. It shares no code with the coordinator: it
//! works out from events alone who needs what.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_coordinator::{
    Action, BuildId, Coordinator, Event, FetchId, PushId, QuestionId, SessionId, SessionOptions, Source,
};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::DesiredStore;
use tvix_node_protocol::control::Outcome;
use tvix_node_protocol::envelope::NodeKey;

use crate::scenario::{Fate, Scenario};

mod actions;
mod knowledge;
mod needs;
mod told;

type Paths = BTreeSet<StorePath>;

/// What is known of a path.
#[derive(Debug, Default, Clone)]
struct Known {
    own: bool,
    sources: BTreeSet<Source>,
    /// Somebody has answered since it was last lost.
    answered: bool,
    desired: BTreeMap<DesiredStore, bool>,
    failed_fetches: u32,
}

impl Known {
    fn available(&self) -> bool {
        self.own || !self.sources.is_empty()
    }
}

struct Job {
    inputs: Vec<StorePath>,
    outputs: BTreeMap<String, StorePath>,
    system: String,
    kvm: bool,
    fate: Fate,
    duration: u64,
}

struct Goal {
    target: bool,
    number: u64,
    outputs: Vec<StorePath>,
    answered: bool,
}

struct Session {
    options: SessionOptions,
    known: BTreeSet<StorePath>,
    goals: Vec<Goal>,
    named: u64,
    evaluating: bool,
    evaluation_failed: bool,
    interrupted: bool,
    /// It has failed and is to stop.
    stopped: bool,
    failed: BTreeSet<StorePath>,
    /// Derivations that it was told would not be built, because something they need failed.
    blocked: BTreeSet<StorePath>,
    /// Derivations that were ever needed, as far as could be known then.
    ever_needed: BTreeSet<StorePath>,
    ended: Option<Outcome>,
}

impl Session {
    fn active(&self) -> bool {
        self.ended.is_none() && !self.stopped && !self.interrupted
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Build {
    derivation: StorePath,
    node: Option<NodeKey>,
    demanded: bool,
    cores: u32,
    dying: bool,
    heard: u64,
    renewed: u64,
    placed: u64,
}

struct Question {
    desired: Option<DesiredStore>,
    paths: Paths,
}

pub struct Checker {
    calm: bool,
    slots: u32,
    own_kvm: bool,
    jobs: BTreeMap<StorePath, Job>,
    maker: BTreeMap<StorePath, StorePath>,
    known: BTreeMap<StorePath, Known>,
    sessions: BTreeMap<SessionId, Session>,
    builds: BTreeMap<BuildId, Build>,
    /// Builds on peers that are over for the coordinator, whose results may still come.
    forgotten: BTreeMap<BuildId, Build>,
    numbers: BTreeSet<u64>,
    questions: BTreeMap<QuestionId, Question>,
    fetches: BTreeMap<FetchId, (StorePath, Vec<Source>)>,
    pushes: BTreeMap<PushId, (StorePath, DesiredStore)>,
    weighing: BTreeMap<StorePath, u64>,
    /// Outputs of which somebody has said that they are there by now.
    doubted: Paths,
    /// Builds here that take part in what is built for others, and take no slot.
    joined: BTreeSet<BuildId>,
    /// Builds that whoever asks is told of.
    announced: BTreeMap<BuildId, (StorePath, Option<NodeKey>)>,
    peers: BTreeMap<NodeKey, tvix_node_coordinator::PeerOffer>,
    refused: BTreeSet<(StorePath, NodeKey)>,
    /// Builds whose builder could not get their inputs.
    excused: BTreeSet<BuildId>,
    unwell_here: BTreeMap<StorePath, u32>,
    starts: BTreeMap<StorePath, u32>,
    starved_since: Option<u64>,
    /// Derivations whose builds are placed here and have not started.
    placed: Paths,
    /// Those of them that were placed in this step.
    just_placed: Paths,
    /// Derivations whose builds start here in this step, or are about to be placed.
    starting: Paths,
    now: u64,
}

impl Checker {
    pub fn new(scenario: &Scenario) -> Self {
        let mut outputs: BTreeMap<StorePath, BTreeMap<String, StorePath>> = BTreeMap::new();
        let mut jobs = BTreeMap::new();
        let mut maker = BTreeMap::new();
        for job in &scenario.jobs {
            let derivation = &job.derivation;
            outputs.insert(derivation.path.clone(), derivation.outputs.clone());
            let mut inputs = derivation.sources.clone();
            for input in &derivation.inputs {
                inputs.extend(
                    input
                        .outputs
                        .iter()
                        .map(|name| outputs[&input.derivation][name].clone()),
                );
            }
            for output in derivation.outputs.values() {
                maker.insert(output.clone(), derivation.path.clone());
            }
            let (system, kvm) = (
                derivation.system.clone(),
                !derivation.required_features.is_empty(),
            );
            let (fate, duration) = (job.fate, job.duration);
            let outputs = derivation.outputs.clone();
            jobs.insert(
                derivation.path.clone(),
                Job {
                    inputs,
                    outputs,
                    system,
                    kvm,
                    fate,
                    duration,
                },
            );
        }
        Self {
            calm: scenario.calm,
            slots: 0,
            own_kvm: false,
            jobs,
            maker,
            known: BTreeMap::new(),
            sessions: BTreeMap::new(),
            builds: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            numbers: BTreeSet::new(),
            questions: BTreeMap::new(),
            fetches: BTreeMap::new(),
            pushes: BTreeMap::new(),
            weighing: BTreeMap::new(),
            doubted: BTreeSet::new(),
            joined: BTreeSet::new(),
            announced: BTreeMap::new(),
            peers: BTreeMap::new(),
            refused: BTreeSet::new(),
            excused: BTreeSet::new(),
            unwell_here: BTreeMap::new(),
            starts: BTreeMap::new(),
            starved_since: None,
            placed: BTreeSet::new(),
            just_placed: BTreeSet::new(),
            starting: BTreeSet::new(),
            now: 0,
        }
    }

    pub fn check(&mut self, now: u64, event: &Event, actions: &[Action]) {
        self.now = now;
        self.learn(event);
        // What a session is told decides what else may be done for it in this step.
        for action in actions {
            if let Action::Tell { session, event } = action {
                self.check_told(*session, event);
            }
        }
        self.note_needs();
        let starting = actions.iter().filter_map(|action| match action {
            Action::BuildHere { derivation, .. } | Action::WeighInputs { derivation, .. } => {
                Some(derivation.clone())
            }
            _ => None,
        });
        self.starting = starting.collect();
        for action in actions {
            self.check_action(action);
        }
        self.starting.clear();
        self.just_placed.clear();
        self.check_leases();
        self.check_announced();
        self.note_needs();
        self.check_starvation();
        self.forget();
    }

    /// What was known of paths that nobody names any more is out of date when somebody does again.
    fn forget(&mut self) {
        let mut named: Paths = BTreeSet::new();
        let active = self.sessions.values().filter(|session| session.active());
        let derivations = active.clone().flat_map(|session| &session.known);
        for derivation in derivations.chain(self.builds.values().map(|build| &build.derivation)) {
            let job = &self.jobs[derivation];
            named.extend(job.inputs.iter().chain(job.outputs.values()).cloned());
        }
        named.extend(
            active
                .flat_map(|session| &session.goals)
                .flat_map(|goal| goal.outputs.clone()),
        );
        self.known.retain(|path, _| named.contains(path));
        let jobs = &self.jobs;
        let still = |build: &Build| {
            jobs[&build.derivation]
                .outputs
                .values()
                .any(|path| named.contains(path))
        };
        self.forgotten.retain(|_, build| still(build));
    }

    fn session(&mut self, session: SessionId) -> &mut Session {
        self.sessions.get_mut(&session).expect("it was opened")
    }

    fn fresh(&mut self, number: u64) {
        assert!(self.numbers.insert(number), "the number {number} is used twice");
    }

    pub fn check_end(&self, coordinator: &Coordinator) {
        for (id, session) in &self.sessions {
            assert!(session.ended.is_some(), "{id} never ended");
        }
        assert!(
            coordinator.is_idle(),
            "something is left: {:?}",
            coordinator.builds().collect::<Vec<_>>()
        );
        assert!(
            self.fetches.is_empty() && self.pushes.is_empty(),
            "transfers are left"
        );
        assert!(
            self.announced.is_empty(),
            "{:?} is announced for ever",
            self.announced
        );
    }
}
