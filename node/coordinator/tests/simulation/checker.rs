//! Watches everything that goes in and out and complains. It shares no code with the coordinator: it
//! works out from events alone who needs what.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_coordinator::{
    Action, BuildId, Coordinator, Delivery, Event, FailureKind, FetchId, PushId, QuestionId, SessionId,
    SessionOptions, Source, limits,
};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::DesiredStore;
use tvix_node_protocol::control::{EventKind, Outcome, SessionMode};
use tvix_node_protocol::envelope::NodeKey;

use crate::scenario::{Fate, Scenario};

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
    peers: BTreeMap<NodeKey, tvix_node_coordinator::PeerOffer>,
    refused: BTreeSet<(StorePath, NodeKey)>,
    /// Builds whose builder could not get their inputs.
    excused: BTreeSet<BuildId>,
    unwell_here: BTreeMap<StorePath, u32>,
    starts: BTreeMap<StorePath, u32>,
    starved_since: Option<u64>,
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
            peers: BTreeMap::new(),
            refused: BTreeSet::new(),
            excused: BTreeSet::new(),
            unwell_here: BTreeMap::new(),
            starts: BTreeMap::new(),
            starved_since: None,
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

    fn path(&mut self, path: &StorePath) -> &mut Known {
        self.known.entry(path.clone()).or_default()
    }

    fn is_available(&self, path: &StorePath) -> bool {
        self.known.get(path).is_some_and(Known::available)
    }

    fn is_answered(&self, path: &StorePath) -> bool {
        self.known
            .get(path)
            .is_some_and(|known| known.answered || known.available())
    }

    fn lose(&mut self, gone: impl Fn(&StorePath, &Source) -> bool) {
        for (path, known) in &mut self.known {
            let before = known.sources.len();
            known.sources.retain(|source| !gone(path, source));
            if known.sources.len() < before && !known.available() {
                known.answered = false;
            }
        }
    }

    /// Takes note of what happened.
    fn learn(&mut self, event: &Event) {
        match event {
            Event::SessionOpened { session, options } => {
                let fresh = Session {
                    options: options.clone(),
                    known: BTreeSet::new(),
                    goals: vec![],
                    named: 0,
                    evaluating: true,
                    evaluation_failed: false,
                    interrupted: false,
                    stopped: false,
                    failed: BTreeSet::new(),
                    blocked: BTreeSet::new(),
                    ever_needed: BTreeSet::new(),
                    ended: None,
                };
                assert!(self.sessions.insert(*session, fresh).is_none());
            }
            Event::SessionInterrupted { session } => self.session(*session).interrupted = true,
            Event::Instantiated { session, derivations } => {
                let paths = derivations.iter().map(|derivation| derivation.path.clone());
                self.session(*session).known.extend(paths);
            }
            Event::TargetNamed {
                session,
                target,
                derivation,
                outputs,
                ..
            } => {
                let session_state = self.session(*session);
                session_state.named += 1;
                if session_state.options.mode == SessionMode::Build {
                    self.add_goal(*session, true, *target, derivation, outputs);
                }
            }
            Event::ImportRequested {
                session,
                import,
                derivation,
                outputs,
            } => {
                self.add_goal(*session, false, *import, derivation, outputs);
            }
            Event::EnsureRequested {
                session,
                import,
                path,
            } => {
                let goal = Goal {
                    target: false,
                    number: *import,
                    outputs: vec![path.clone()],
                    answered: false,
                };
                self.session(*session).goals.push(goal);
            }
            Event::TargetFailed { session, .. } => {
                let session = self.session(*session);
                if session.active() {
                    session.evaluation_failed = true;
                    session.stopped = !session.options.keep_going;
                }
            }
            Event::EvaluationEnded { session } => self.session(*session).evaluating = false,
            Event::OwnBuilder(own) => {
                self.slots = own.slots;
                self.own_kvm = own.features.contains(&"kvm".to_owned());
            }
            Event::Peer { node, offer } => drop(self.peers.insert(*node, offer.clone())),
            Event::PeerGone { node } => {
                self.peers.remove(node);
                self.lose(|_, source| *source == Source::Peer(*node));
                let there = self.builds.extract_if(.., |_, build| build.node == Some(*node));
                let lost: Vec<_> = there.collect();
                self.forgotten.extend(lost);
            }
            Event::Presence { question, paths } => {
                let desired = self
                    .questions
                    .get(question)
                    .and_then(|question| question.desired.clone());
                for presence in paths {
                    let known = self.path(&presence.path);
                    known.own |= presence.own;
                    known.answered = true;
                    if known.failed_fetches < u32::from(limits::FETCH_TRIES) {
                        known
                            .sources
                            .extend(presence.sources.iter().take(limits::SOURCES).cloned());
                    }
                    if let Some(store) = &desired {
                        let there = known.desired.entry(store.clone()).or_default();
                        *there |= presence.desired;
                    }
                    if let Some(question) = self.questions.get_mut(question) {
                        question.paths.remove(&presence.path);
                    }
                }
                if self
                    .questions
                    .get(question)
                    .is_some_and(|question| question.paths.is_empty())
                {
                    self.questions.remove(question);
                }
            }
            Event::InputsWeighed { derivation, .. } => drop(self.weighing.remove(derivation)),
            Event::FetchStarted { .. } => {}
            Event::FetchArrived { path, .. } => self.path(path).own = true,
            Event::FetchFinished { fetch } => {
                if let Some((path, _)) = self.fetches.remove(fetch) {
                    self.path(&path).own = true;
                }
            }
            Event::FetchFailed { fetch, .. } => {
                if let Some((path, from)) = self.fetches.remove(fetch) {
                    self.path(&path).failed_fetches += 1;
                    self.lose(|other, source| *other == path && from.contains(source));
                }
            }
            Event::PushFinished { push } => {
                if let Some((path, to)) = self.pushes.remove(push) {
                    self.path(&path).desired.insert(to, true);
                }
            }
            Event::PushFailed { push, .. } => drop(self.pushes.remove(push)),
            Event::BuildStarted { build } | Event::Heartbeat { build } => {
                let now = self.now;
                if let Some(build) = self.builds.get_mut(build) {
                    build.heard = now;
                }
            }
            Event::InputsMissing { paths, build } => {
                if self.builds.contains_key(build) {
                    self.excused.insert(*build);
                }
                for path in paths {
                    self.path(path).failed_fetches += 1;
                }
                self.lose(|path, _| paths.contains(path));
            }
            Event::BuildFinished {
                build,
                outputs,
                delivery,
            } => {
                let running = self.builds.remove(build);
                let known = running.or_else(|| self.forgotten.remove(build));
                let Some(known) = known else {
                    return self.learn_outputs(outputs.values().map(|built| &built.path), *delivery, None);
                };
                let expected: Vec<&StorePath> = self.jobs[&known.derivation].outputs.values().collect();
                let made: Vec<&StorePath> = outputs.values().map(|built| &built.path).collect();
                if expected == made {
                    for path in &made {
                        self.path(path).failed_fetches = 0;
                    }
                    self.learn_outputs(made.into_iter(), *delivery, known.node);
                }
            }
            Event::BuildFailed { build, failure } => {
                self.forgotten.remove(build);
                if let Some(over) = self.builds.remove(build) {
                    if self.excused.contains(build) {
                        return;
                    }
                    match (over.node, failure.kind) {
                        (Some(node), FailureKind::Refused | FailureKind::Transient) => {
                            self.refused.insert((over.derivation, node));
                        }
                        (None, FailureKind::Refused) if !over.dying => {
                            *self.unwell_here.entry(over.derivation).or_default() += 10;
                        }
                        (None, FailureKind::Transient) if !over.dying => {
                            *self.unwell_here.entry(over.derivation).or_default() += 1;
                        }
                        _ => {}
                    }
                }
            }
            Event::Tick => {}
        }
    }

    fn learn_outputs<'a>(
        &mut self,
        outputs: impl Iterator<Item = &'a StorePath>,
        delivery: Delivery,
        node: Option<NodeKey>,
    ) {
        for path in outputs {
            let known = self.path(path);
            match (delivery, node) {
                (Delivery::OwnStore, _) => known.own = true,
                (Delivery::AtBuilder, Some(node)) => drop(known.sources.insert(Source::Peer(node))),
                (Delivery::DesiredStore, _) => known.answered = known.available(),
                (Delivery::AtBuilder, None) => {}
            }
        }
    }

    fn session(&mut self, session: SessionId) -> &mut Session {
        self.sessions.get_mut(&session).expect("it was opened")
    }

    fn add_goal(
        &mut self,
        session: SessionId,
        target: bool,
        number: u64,
        derivation: &StorePath,
        outputs: &[String],
    ) {
        let made = &self.jobs[derivation].outputs;
        let outputs = outputs.iter().map(|name| made[name].clone()).collect();
        self.session(session).goals.push(Goal {
            target,
            number,
            outputs,
            answered: false,
        });
    }

    /// Derivations that a session needs built. Where it is not known yet whether a path can be had,
    /// it is taken to be `absent` or not.
    fn needs(&self, session: &Session, absent: bool) -> BTreeSet<StorePath> {
        let mut needed = BTreeSet::new();
        if !session.active() {
            return needed;
        }
        let mut paths: Vec<&StorePath> = vec![];
        for goal in &session.goals {
            for path in &goal.outputs {
                if let (true, Some(store)) = (goal.target, &session.options.to) {
                    let there = self.known.get(path).and_then(|known| known.desired.get(store));
                    if there == Some(&true) || (there.is_none() && !absent) {
                        continue;
                    }
                }
                paths.push(path);
            }
        }
        let mut seen: BTreeSet<&StorePath> = paths.iter().copied().collect();
        while let Some(path) = paths.pop() {
            if self.is_available(path) || (!absent && !self.is_answered(path)) {
                continue;
            }
            let Some(maker) = self.maker.get(path) else {
                continue;
            };
            if needed.insert(maker.clone()) && !session.failed.contains(maker) {
                for input in &self.jobs[maker].inputs {
                    if seen.insert(input) {
                        paths.push(input);
                    }
                }
            }
        }
        needed
    }

    fn note_needs(&mut self) {
        let needs: Vec<_> = self
            .sessions
            .iter()
            .map(|(id, session)| (*id, self.needs(session, true)))
            .collect();
        for (id, needed) in needs {
            self.session(id).ever_needed.extend(needed);
        }
    }

    fn check_told(&mut self, id: SessionId, event: &EventKind) {
        let now = self.now;
        let session = self
            .sessions
            .get(&id)
            .unwrap_or_else(|| panic!("{id} was told something unopened"));
        assert!(session.ended.is_none(), "{id} is told {event:?} after its end");
        match event {
            EventKind::BuildFailed {
                derivation,
                demanded,
                error,
                ..
            } => {
                if *demanded {
                    let needed = session.ever_needed.contains(derivation)
                        || self.needs(session, true).contains(derivation);
                    assert!(
                        needed,
                        "{now}: {id} fails over {derivation}, which it does not need"
                    );
                    let job = &self.jobs[derivation];
                    let slow = session
                        .options
                        .limits
                        .time
                        .is_some_and(|time| job.duration > time * 1000);
                    assert!(
                        !self.calm || job.fate == Fate::Broken || slow || error.starts_with("no builder"),
                        "{now}: {id} fails over {derivation}, which is fine: {error}"
                    );
                }
                let session = self.session(id);
                session.failed.insert(derivation.clone());
                if *demanded {
                    session.ever_needed.insert(derivation.clone());
                }
                session.stopped |= *demanded && !session.options.keep_going;
            }
            EventKind::DependencyFailed { derivation, because } => {
                assert!(
                    session.failed.contains(because),
                    "{now}: {because} has not failed for {id}"
                );
                assert!(
                    self.is_hopeless(session, derivation),
                    "{now}: {derivation} does not need {because}"
                );
                self.session(id).blocked.insert(derivation.clone());
            }
            EventKind::TargetFailed { error, target, .. } => {
                let session = self.session(id);
                session.stopped |= error.contains("could not be pushed") && !session.options.keep_going;
                for goal in session
                    .goals
                    .iter_mut()
                    .filter(|goal| goal.target && goal.number == *target)
                {
                    assert!(!goal.answered, "target {target} is answered twice");
                    goal.answered = true;
                }
            }
            EventKind::TargetDone { target, .. } => self.check_goal_done(id, true, *target),
            EventKind::ImportDone { import } => self.check_goal_done(id, false, *import),
            EventKind::ImportFailed { import, .. } => {
                let mut goals = self.session(id).goals.iter_mut();
                let goal = goals.find(|goal| !goal.target && goal.number == *import);
                let goal = goal.expect("the import was requested");
                assert!(!goal.answered, "import {import} is answered twice");
                goal.answered = true;
            }
            EventKind::Ended { outcome, .. } => self.check_ended(id, *outcome),
            _ => {}
        }
    }

    fn check_goal_done(&mut self, id: SessionId, target: bool, number: u64) {
        let session = &self.sessions[&id];
        let to = session.options.to.clone().filter(|_| target);
        let goal = session
            .goals
            .iter()
            .find(|goal| goal.target == target && goal.number == number);
        let goal = goal.expect("it was asked for");
        assert!(!goal.answered, "{number} of {id} is answered twice");
        for path in &goal.outputs {
            let known = &self.known[path];
            match &to {
                None => assert!(known.own, "{path} is not here"),
                Some(store) => assert_eq!(known.desired.get(store), Some(&true), "{path} is not there"),
            }
        }
        let mut goals = self.session(id).goals.iter_mut();
        if let Some(goal) = goals.find(|goal| goal.target == target && goal.number == number) {
            goal.answered = true;
        }
    }

    fn check_ended(&mut self, id: SessionId, outcome: Outcome) {
        let now = self.now;
        let session = &self.sessions[&id];
        let failed = session
            .failed
            .iter()
            .any(|derivation| session.ever_needed.contains(derivation));
        match outcome {
            Outcome::Interrupted => assert!(session.interrupted),
            Outcome::EvaluationFailed => assert!(session.evaluation_failed, "{now}: {id}"),
            Outcome::BuildFailed => {
                let pushed = session.options.to.is_some();
                assert!(
                    failed || pushed,
                    "{now}: {id} ends as failed and nothing it needs has failed"
                );
            }
            Outcome::Success => {
                assert!(!session.evaluation_failed && !session.evaluating);
                assert!(
                    session.goals.iter().all(|goal| goal.answered),
                    "{now}: {id} ends too early"
                );
            }
        }
        let builds = session.options.mode == SessionMode::Build;
        if builds && session.options.keep_going && outcome != Outcome::Interrupted {
            for derivation in self.needs(session, false) {
                let hopeless = self.is_hopeless(session, &derivation);
                assert!(hopeless, "{now}: {id} ends and {derivation} was not tried");
            }
        }
        self.session(id).ended = Some(outcome);
    }

    /// It failed, or something it needs did.
    fn is_hopeless(&self, session: &Session, derivation: &StorePath) -> bool {
        session.failed.contains(derivation)
            || session.blocked.contains(derivation)
            || self.jobs[derivation].inputs.iter().any(|input| {
                !self.is_available(input)
                    && self
                        .maker
                        .get(input)
                        .is_none_or(|maker| self.is_hopeless(session, maker))
            })
    }

    fn fresh(&mut self, number: u64) {
        assert!(self.numbers.insert(number), "the number {number} is used twice");
    }

    fn check_action(&mut self, action: &Action) {
        let now = self.now;
        match action {
            Action::AskPresence {
                question,
                desired_store,
                paths,
            } => {
                self.fresh(question.0);
                assert!(!paths.is_empty() && paths.len() <= limits::PRESENCE_BATCH);
                let set: Paths = paths.iter().cloned().collect();
                assert_eq!(
                    set.len(),
                    paths.len(),
                    "a path is asked for twice in one question"
                );
                let known = |path: &StorePath| {
                    let of = |session: &Session| {
                        session.ended.is_none()
                            && (session.goals.iter().any(|goal| goal.outputs.contains(path))
                                || session.known.iter().any(|derivation| {
                                    let job = &self.jobs[derivation];
                                    job.inputs.contains(path)
                                        || job.outputs.values().any(|other| other == path)
                                }))
                    };
                    self.sessions.values().any(of)
                };
                assert!(paths.iter().all(known), "{now}: asks for what nobody has named");
                self.questions.insert(
                    *question,
                    Question {
                        desired: desired_store.clone(),
                        paths: set,
                    },
                );
            }
            Action::WeighInputs {
                derivation, nodes, ..
            } => {
                assert!(self.jobs.contains_key(derivation));
                assert!(nodes.iter().all(|node| self.peers.contains_key(node)));
                self.weighing.insert(derivation.clone(), now);
            }
            Action::Fetch {
                fetch, path, from, ..
            } => {
                self.fresh(fetch.0);
                let known = self.path(path).clone();
                assert!(!known.own, "{now}: fetches {path}, which is here");
                assert!(!from.is_empty() && from.iter().all(|source| known.sources.contains(source)));
                self.check_fetch_is_wanted(path);
                self.fetches.insert(*fetch, (path.clone(), from.clone()));
            }
            Action::CancelFetch { fetch } => {
                assert!(
                    self.fetches.remove(fetch).is_some(),
                    "{now}: cancels an unknown {fetch}"
                );
            }
            Action::Push { push, path, to } => {
                self.fresh(push.0);
                assert!(self.path(path).own);
                let wanted = self.sessions.values().any(|session| {
                    session.active()
                        && session.options.to.as_ref() == Some(to)
                        && session
                            .goals
                            .iter()
                            .any(|goal| goal.target && goal.outputs.contains(path))
                });
                assert!(wanted, "{now}: pushes {path}, which nobody wants at {to:?}");
                self.pushes.insert(*push, (path.clone(), to.clone()));
            }
            Action::CancelPush { push } => {
                assert!(
                    self.pushes.remove(push).is_some(),
                    "{now}: cancels an unknown {push}"
                );
            }
            Action::BuildHere {
                build,
                derivation,
                demanded,
                cores,
                ..
            } => {
                self.fresh(build.0);
                let job = &self.jobs[derivation];
                assert!(
                    !job.kvm || self.own_kvm,
                    "{now}: {derivation} cannot be built here"
                );
                for input in &job.inputs {
                    assert!(
                        self.known[input].own,
                        "{now}: {derivation} is built here without {input}"
                    );
                }
                let running = self.builds.values().filter(|build| build.node.is_none()).count();
                assert!((running as u32) < self.slots, "{now}: more builds than slots");
                self.check_start(derivation, *demanded, *cores);
                if !demanded {
                    let waiting = self.waiting_for_here();
                    assert!(
                        waiting.is_empty(),
                        "{now}: {derivation} is a guess, and {waiting:?} waits for the slot"
                    );
                }
                self.start(*build, derivation, None, *demanded, *cores);
            }
            Action::Request {
                build,
                node,
                derivation,
                outputs,
                cores,
                ..
            } => {
                self.fresh(build.0);
                let job = &self.jobs[derivation];
                for input in &job.inputs {
                    assert!(
                        self.is_available(input),
                        "{now}: {derivation} is requested without {input}"
                    );
                }
                assert!(!outputs.is_empty() && outputs.iter().all(|name| job.outputs.contains_key(name)));
                let offer = self.peers.get(node).expect("only connected peers are asked");
                assert!(!job.kvm || offer.features.contains(&"kvm".to_owned()));
                assert!(offer.systems.contains(&job.system));
                let refused = self.refused.contains(&(derivation.clone(), *node));
                assert!(
                    !refused || self.sessions.len() > 1,
                    "{now}: {node} has refused {derivation}"
                );
                self.check_start(derivation, true, *cores);
                self.start(*build, derivation, Some(*node), true, *cores);
            }
            Action::RenewLease { build, node } => {
                let running = &self.builds.get(build).expect("only running builds are renewed");
                assert_eq!(running.node, Some(*node));
            }
            Action::CancelBuild { build, node } => {
                let cancelled = self
                    .builds
                    .get_mut(build)
                    .unwrap_or_else(|| panic!("{now}: unknown {build}"));
                assert_eq!(cancelled.node, *node);
                assert!(!cancelled.dying, "{now}: {build} is cancelled twice");
                cancelled.dying = true;
                let cancelled = cancelled.clone();
                if node.is_some() {
                    self.builds.remove(build);
                    self.forgotten.insert(*build, cancelled.clone());
                }
                self.check_cancelled(&cancelled);
            }
            Action::Release { paths } => {
                for path in paths {
                    self.known.remove(path);
                }
            }
            Action::Tell { .. } => {}
            Action::Refuse { session, refusal } => panic!("{now}: {session} is refused: {refusal}"),
        }
    }

    fn check_fetch_is_wanted(&self, path: &StorePath) {
        let wanted = self.sessions.values().any(|session| {
            let goal = session.goals.iter().any(|goal| goal.outputs.contains(path));
            // What a build reads is fetched when it is placed; placements are told before.
            let read = session
                .known
                .iter()
                .any(|derivation| self.jobs[derivation].inputs.contains(path));
            session.active() && (goal || (read && self.slots > 0))
        });
        assert!(wanted, "{}: {path} is fetched for nobody", self.now);
    }

    fn start(
        &mut self,
        id: BuildId,
        derivation: &StorePath,
        node: Option<NodeKey>,
        demanded: bool,
        cores: u32,
    ) {
        *self.starts.entry(derivation.clone()).or_default() += 1;
        let most = u32::from(limits::TRIES + limits::BUILDERS_LOST) * (self.sessions.len() as u32 + 1) + 20;
        assert!(self.starts[derivation] <= most, "{derivation} is built for ever");
        let (heard, placed) = (self.now, self.now);
        let derivation = derivation.clone();
        self.builds.insert(
            id,
            Build {
                derivation,
                node,
                demanded,
                cores,
                dying: false,
                heard,
                placed,
            },
        );
    }

    /// A build may start if somebody wants it, who has not seen it fail, and it is not present, and
    /// nobody is at it already but a builder that is silent.
    fn check_start(&self, derivation: &StorePath, demanded: bool, cores: u32) {
        let now = self.now;
        let wanting = self.sessions.values().filter(|session| {
            session.active()
                && session.options.cores == cores
                && session.known.contains(derivation)
                && !session.failed.contains(derivation)
                && (self.needs(session, true).contains(derivation)
                    || (!demanded && session.evaluating && session.options.mode == SessionMode::Build))
        });
        assert!(wanting.count() > 0, "{now}: {derivation} is built for nobody");
        let job = &self.jobs[derivation];
        let read = |output: &StorePath| {
            self.sessions
                .values()
                .filter(|session| session.ended.is_none())
                .any(|session| {
                    session.goals.iter().any(|goal| goal.outputs.contains(output))
                        || session
                            .known
                            .iter()
                            .any(|reader| self.jobs[reader].inputs.contains(output))
                })
        };
        let outputs: Vec<&StorePath> = job.outputs.values().collect();
        let read: Vec<&StorePath> = outputs.iter().copied().filter(|output| read(output)).collect();
        let deciding = if read.is_empty() { outputs } else { read };
        assert!(
            deciding.iter().any(|output| !self.is_available(output)),
            "{now}: {derivation} is built and present"
        );
        let same = self
            .builds
            .values()
            .filter(|build| build.derivation == *derivation);
        for other in same {
            let silent = other.node.is_some() && now >= other.heard + limits::HEDGE_AFTER.as_millis() as u64;
            assert!(silent, "{now}: {derivation} is built twice at once");
        }
    }

    /// A build that is needed is cancelled only where its outputs are there, it failed, another one is
    /// at it, or it is a guess that gives way.
    fn check_cancelled(&self, cancelled: &Build) {
        let now = self.now;
        let derivation = &cancelled.derivation;
        let needed = self.sessions.iter().find(|(_, session)| {
            session.options.cores == cancelled.cores
                && (session.options.mode == SessionMode::Build)
                && !session.failed.contains(derivation)
                && !self.is_hopeless(session, derivation)
                && self.needs(session, false).contains(derivation)
        });
        let beside = self
            .builds
            .values()
            .any(|build| build.derivation == *derivation && !build.dying);
        if let Some((id, _)) = needed {
            assert!(beside, "{now}: {derivation} is cancelled and {id} needs it");
        }
    }

    /// Demanded derivations that could be built on this node now, were there a slot.
    fn waiting_for_here(&self) -> Vec<StorePath> {
        let mut waiting = vec![];
        if self.slots == 0 {
            return waiting;
        }
        for (id, session) in &self.sessions {
            let here = |build: &&Build| build.node.is_none();
            let mine = self.builds.values().filter(here).filter(|build| {
                session.known.contains(&build.derivation) && session.options.cores == build.cores
            });
            let full = session
                .options
                .jobs
                .is_some_and(|jobs| mine.count() as u32 >= jobs);
            if full || !session.active() {
                continue;
            }
            let planning = session.options.mode != SessionMode::Build;
            for derivation in self.needs(session, false) {
                let job = &self.jobs[&derivation];
                let weighing = self.weighing.get(&derivation);
                let weighed = weighing.is_none_or(|since| self.now >= since + 250);
                let ready = job.inputs.iter().all(|input| self.is_available(input))
                    && job.outputs.values().all(|output| self.is_answered(output))
                    && !self.starting.contains(&derivation)
                    && !self.builds.values().any(|build| build.derivation == derivation);
                let well = self.unwell_here.get(&derivation).copied().unwrap_or(0) == 0
                    && self.starts.get(&derivation).copied().unwrap_or(0) < u32::from(limits::TRIES)
                    && (!job.kvm || self.own_kvm);
                let prepared = job
                    .inputs
                    .iter()
                    .all(|input| self.known.get(input).is_some_and(|known| known.own));
                if !planning
                    && ready
                    && weighed
                    && well
                    && prepared
                    && !self.is_hopeless(session, &derivation)
                {
                    let _ = id;
                    waiting.push(derivation);
                }
            }
        }
        waiting
    }

    /// Nothing demanded waits for long while a guess holds a slot.
    fn check_starvation(&mut self) {
        let needed: BTreeSet<&StorePath> = self
            .sessions
            .values()
            .flat_map(|session| &session.ever_needed)
            .collect();
        let guess =
            |build: &Build| build.node.is_none() && !build.dying && !needed.contains(&build.derivation);
        let guesses = self.builds.values().any(guess);
        let dying = self.builds.values().any(|build| build.dying);
        if !guesses || dying || self.waiting_for_here().is_empty() {
            self.starved_since = None;
            return;
        }
        let since = *self.starved_since.get_or_insert(self.now);
        let most = limits::PREEMPT_AFTER.as_millis() as u64 + 300;
        assert!(
            self.now <= since + most,
            "{}: {:?} starve",
            self.now,
            self.waiting_for_here()
        );
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
    }
}
