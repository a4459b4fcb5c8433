//! The world around one coordinator: stores, builders, evaluations, and a clock.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_coordinator::{
    Action, BuildFailure, BuildId, BuiltPath, Config, Coordinator, Delivery, Event, FailureKind, FetchId,
    OwnBuilder, PathPresence, PushId, SessionId, Source, Time,
};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::DesiredStore;
use tvix_node_protocol::control::EventKind;

use crate::checker::Checker;
use crate::peers::{Peer, PeerStep};
use crate::rng::Rng;
use crate::scenario::{CACHE, FOLDER, Scenario, Step};

/// Something that will happen.
#[derive(Debug, Clone)]
pub enum Happening {
    Report(Event),
    Evaluate(usize),
    Interrupt(usize),
    Answer {
        question: tvix_node_coordinator::QuestionId,
        desired: Option<DesiredStore>,
        paths: Vec<StorePath>,
    },
    FetchDone(FetchId),
    PushDone(PushId),
    OwnBuildDone(BuildId),
    OwnBuildKilled(BuildId),
    /// A peer's result gets here.
    Deliver {
        build: BuildId,
        outputs: BTreeMap<String, BuiltPath>,
        delivery: Delivery,
    },
    Peer(usize, PeerStep),
    CollectGarbage,
}

struct Fetch {
    path: StorePath,
    from: Vec<Source>,
}

struct OwnBuild {
    job: usize,
    limit: Option<u64>,
    dying: bool,
}

#[derive(Default)]
struct Evaluation {
    next: usize,
    waits_for: Option<u64>,
    over: bool,
}

pub struct World {
    pub scenario: Scenario,
    pub rng: Rng,
    pub now: u64,
    pub coordinator: Coordinator,
    queue: BTreeMap<(u64, u64), Happening>,
    happened: u64,
    pub own: BTreeSet<StorePath>,
    /// What the coordinator has been told is in the own store and has not released.
    pinned: BTreeSet<StorePath>,
    /// What sessions have added; stays.
    added: BTreeSet<StorePath>,
    pub folder: BTreeSet<StorePath>,
    fetches: BTreeMap<FetchId, Fetch>,
    pushes: BTreeMap<PushId, (StorePath, DesiredStore)>,
    own_builds: BTreeMap<BuildId, OwnBuild>,
    pub peers: Vec<Peer>,
    evaluations: Vec<Evaluation>,
    checker: Checker,
    /// Digest of everything that was wanted done.
    pub digest: u64,
    pub trace: bool,
}

impl World {
    pub fn new(seed: u64, trace: bool) -> Self {
        let scenario = Scenario::new(seed);
        let mut world = Self {
            rng: Rng::new(seed ^ 0xabcd),
            now: 0,
            coordinator: Coordinator::new(Config::new("home")),
            queue: BTreeMap::new(),
            happened: 0,
            own: scenario.own.clone(),
            pinned: BTreeSet::new(),
            added: BTreeSet::new(),
            folder: scenario.folder.clone(),
            fetches: BTreeMap::new(),
            pushes: BTreeMap::new(),
            own_builds: BTreeMap::new(),
            peers: scenario.machines.iter().cloned().map(Peer::new).collect(),
            evaluations: scenario.scripts.iter().map(|_| Evaluation::default()).collect(),
            checker: Checker::new(&scenario),
            digest: 0xcbf2_9ce4_8422_2325,
            trace,
            scenario,
        };
        let own = OwnBuilder {
            slots: world.scenario.slots,
            systems: vec!["x86_64-linux".into()],
            features: if world.scenario.calm {
                vec!["kvm".into()]
            } else {
                vec![]
            },
        };
        world.hand_over(Event::OwnBuilder(own));
        for (number, script) in world.scenario.scripts.clone().iter().enumerate() {
            world.at(script.opens, Happening::Evaluate(number));
            if let Some(after) = script.interrupted {
                world.at(script.opens + after, Happening::Interrupt(number));
            }
        }
        for (number, machine) in world.scenario.machines.clone().iter().enumerate() {
            world.at(machine.arrives, Happening::Peer(number, PeerStep::Arrive));
            if let Some(leaves) = machine.leaves {
                world.at(leaves, Happening::Peer(number, PeerStep::Leave));
            }
            if let Some(returns) = machine.returns {
                world.at(returns, Happening::Peer(number, PeerStep::Arrive));
            }
        }
        world
    }

    fn at(&mut self, time: u64, happening: Happening) {
        self.happened += 1;
        self.queue.insert((time.max(self.now), self.happened), happening);
    }

    pub fn after(&mut self, millis: u64, happening: Happening) {
        self.at(self.now + millis, happening);
    }

    pub fn report_after(&mut self, millis: u64, event: Event) {
        self.after(millis, Happening::Report(event));
    }

    /// Runs until nothing happens any more; checks that everything came to its end.
    pub fn run(&mut self) {
        let mut steps = 0;
        loop {
            steps += 1;
            assert!(steps < 200_000, "it does not end");
            let next = self.queue.first_key_value().map(|((time, _), _)| *time);
            let due = self.coordinator.deadline().map(|time| time.0);
            match (next, due) {
                (None, None) => break,
                (Some(next), due) if due.is_none_or(|due| next <= due) => {
                    self.now = next;
                    if let Some((_, happening)) = self.queue.pop_first() {
                        self.happen(happening);
                    }
                }
                (_, Some(due)) => {
                    self.now = self.now.max(due);
                    self.hand_over(Event::Tick);
                    let due = self.coordinator.deadline();
                    assert!(
                        due.is_none_or(|due| due.0 > self.now),
                        "time stands still at {}",
                        self.now
                    );
                }
                (Some(_), None) => unreachable!("covered above"),
            }
        }
        self.checker.check_end(&self.coordinator);
        assert!(self.pinned.is_empty(), "never released: {:?}", self.pinned);
        assert!(
            self.own_builds.is_empty(),
            "still running here: {:?}",
            self.own_builds.keys()
        );
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Report(event) => self.hand_over(event),
            Happening::Evaluate(session) => self.evaluate(session),
            Happening::Interrupt(session) => {
                let started = self.evaluations[session].next > 0;
                if started && !self.evaluations[session].over {
                    self.hand_over(Event::SessionInterrupted {
                        session: SessionId(session as u64),
                    });
                }
            }
            Happening::Answer {
                question,
                desired,
                paths,
            } => self.answer(question, desired.as_ref(), paths),
            Happening::FetchDone(fetch) => self.fetch_done(fetch),
            Happening::PushDone(push) => self.push_done(push),
            Happening::OwnBuildDone(build) => self.own_build_done(build),
            Happening::OwnBuildKilled(build) => {
                if self.own_builds.remove(&build).is_some() {
                    self.fail(build, FailureKind::Cancelled, "cancelled");
                }
            }
            Happening::Deliver {
                build,
                outputs,
                delivery,
            } => {
                if delivery == Delivery::OwnStore {
                    for built in outputs.values() {
                        let closure = self.scenario.closure(&built.path);
                        self.own.extend(closure);
                    }
                }
                self.hand_over(Event::BuildFinished {
                    build,
                    outputs,
                    delivery,
                });
            }
            Happening::Peer(peer, step) => self.peer_step(peer, step),
            Happening::CollectGarbage => self.collect_garbage(),
        }
    }

    pub fn fail(&mut self, build: BuildId, kind: FailureKind, error: &str) {
        let failure = BuildFailure {
            kind,
            error: error.into(),
            log_tail: vec![],
        };
        self.hand_over(Event::BuildFailed { build, failure });
    }

    fn pin(&mut self, path: &StorePath) {
        assert!(self.own.contains(path));
        self.pinned.insert(path.clone());
    }

    pub fn hand_over(&mut self, event: Event) {
        self.note_reported(&event);
        if self.trace {
            println!("{:>7} event  {event:?}", self.now);
        }
        let actions = self.coordinator.handle(Time(self.now), event.clone());
        for action in &actions {
            for byte in format!("{action:?}").bytes() {
                self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
            if self.trace {
                println!("{:>7} action {action:?}", self.now);
            }
        }
        self.checker.check(self.now, &event, &actions);
        for action in actions {
            self.carry_out(action);
        }
        if self.rng.percent(2) {
            self.after(0, Happening::CollectGarbage);
        }
    }

    /// What the coordinator is told to be in the own store stays there.
    fn note_reported(&mut self, event: &Event) {
        match event {
            Event::Presence { paths, .. } => {
                for presence in paths.iter().filter(|presence| presence.own) {
                    self.pin(&presence.path);
                }
            }
            Event::FetchArrived { path, .. } => self.pin(path),
            Event::BuildFinished {
                outputs,
                delivery: Delivery::OwnStore,
                ..
            } => {
                for built in outputs.values() {
                    self.pin(&built.path);
                }
            }
            _ => {}
        }
    }

    fn collect_garbage(&mut self) {
        let roots = self.pinned.iter().chain(&self.added);
        self.own = roots.flat_map(|path| self.scenario.closure(path)).collect();
    }

    /// How long something takes that crosses a network.
    pub fn delay(&mut self) -> u64 {
        if !self.scenario.calm && self.rng.percent(3) {
            self.rng.between(500, 6_000)
        } else {
            self.rng.between(1, 40)
        }
    }

    pub fn lost(&mut self, percent: u64) -> bool {
        !self.scenario.calm && self.rng.percent(percent)
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::AskPresence {
                question,
                desired_store: desired,
                paths,
            } => {
                if self.lost(1) {
                    return;
                }
                let cut = self.rng.between(0, paths.len() as u64) as usize;
                let (one, other) = paths.split_at(cut);
                for part in [one, other] {
                    if !part.is_empty() {
                        let delay = if self.lost(1) { 35_000 } else { self.delay() };
                        let (desired, paths) = (desired.clone(), part.to_vec());
                        self.after(
                            delay,
                            Happening::Answer {
                                question,
                                desired,
                                paths,
                            },
                        );
                    }
                }
            }
            Action::WeighInputs {
                derivation,
                inputs,
                nodes,
            } => {
                if !self.lost(20) {
                    let total = inputs.len() as u64 * 1_000_000;
                    let mut there = vec![(None, self.rng.between(0, total))];
                    for node in nodes {
                        there.push((Some(node), self.rng.between(0, total)));
                    }
                    let delay = self.delay();
                    self.report_after(
                        delay,
                        Event::InputsWeighed {
                            derivation,
                            total,
                            there,
                        },
                    );
                }
            }
            Action::Fetch {
                fetch, path, from, ..
            } => {
                self.fetches.insert(fetch, Fetch { path, from });
                let delay = self.rng.between(5, 1_000);
                self.after(delay, Happening::FetchDone(fetch));
            }
            Action::CancelFetch { fetch } => drop(self.fetches.remove(&fetch)),
            Action::Push { push, path, to } => {
                assert!(self.own.contains(&path), "{path} is pushed and not here");
                self.pushes.insert(push, (path, to));
                let delay = self.rng.between(5, 1_000);
                self.after(delay, Happening::PushDone(push));
            }
            Action::CancelPush { push } => drop(self.pushes.remove(&push)),
            Action::BuildHere {
                build,
                derivation,
                limits,
                ..
            } => self.build_here(build, &derivation, limits.time),
            Action::Request {
                build,
                node,
                derivation,
                desired_store,
                ..
            } => {
                self.request(build, node, &derivation, desired_store);
            }
            Action::RenewLease { build, node } => self.renew(build, node),
            Action::CancelBuild {
                build,
                node: Some(node),
            } => self.cancel_request(build, node),
            Action::CancelBuild { build, node: None } => {
                if let Some(running) = self.own_builds.get_mut(&build) {
                    running.dying = true;
                    // Now and then it is done before it is killed.
                    let delay = self.rng.between(0, 300);
                    self.after(delay, Happening::OwnBuildKilled(build));
                }
            }
            Action::Release { paths } => {
                for path in paths {
                    assert!(self.pinned.remove(&path), "{path} is released and was not held");
                }
            }
            Action::Tell { session, event } => self.told(session.0 as usize, &event),
            Action::Refuse { refusal, .. } => panic!("refused: {refusal}"),
        }
    }

    fn told(&mut self, session: usize, event: &EventKind) {
        let evaluation = &mut self.evaluations[session];
        match event {
            EventKind::Ended { .. } => evaluation.over = true,
            EventKind::ImportDone { import } if evaluation.waits_for == Some(*import) => {
                evaluation.waits_for = None;
                self.after(1, Happening::Evaluate(session));
            }
            EventKind::ImportFailed { import, .. } if evaluation.waits_for == Some(*import) => {
                evaluation.waits_for = None;
                let failed = Event::TargetFailed {
                    session: SessionId(session as u64),
                    target: 1_000 + import,
                    name: "import".into(),
                    error: "cannot import".into(),
                };
                self.report_after(1, failed);
                self.after(2, Happening::Evaluate(session));
            }
            _ => {}
        }
    }

    fn evaluate(&mut self, number: usize) {
        let script = &self.scenario.scripts[number];
        let (pace, options) = (script.pace, script.options.clone());
        let session = SessionId(number as u64);
        if self.evaluations[number].over {
            return;
        }
        let next = self.evaluations[number].next;
        self.evaluations[number].next += 1;
        if next == 0 {
            self.hand_over(Event::SessionOpened { session, options });
            self.after(1, Happening::Evaluate(number));
            return;
        }
        let Some(step) = self.scenario.scripts[number].steps.get(next - 1).cloned() else {
            return;
        };
        let mut waits = false;
        match step {
            Step::Instantiate(jobs) => {
                let derivations: Vec<_> = jobs
                    .iter()
                    .map(|job| self.scenario.jobs[*job].derivation.clone())
                    .collect();
                for source in derivations.iter().flat_map(|derivation| &derivation.sources) {
                    self.own.insert(source.clone());
                    self.added.insert(source.clone());
                }
                self.hand_over(Event::Instantiated { session, derivations });
            }
            Step::Target {
                number: target,
                job,
                outputs,
            } => {
                let derivation = self.scenario.jobs[job].derivation.path.clone();
                let name = format!("target {target}");
                self.hand_over(Event::TargetNamed {
                    session,
                    target,
                    name,
                    derivation,
                    outputs,
                });
            }
            Step::Import {
                number: import,
                job,
                outputs,
            } => {
                let derivation = self.scenario.jobs[job].derivation.path.clone();
                self.evaluations[number].waits_for = Some(import);
                waits = true;
                self.hand_over(Event::ImportRequested {
                    session,
                    import,
                    derivation,
                    outputs,
                });
            }
            Step::Ensure { number: import, path } => {
                self.evaluations[number].waits_for = Some(import);
                waits = true;
                self.hand_over(Event::EnsureRequested {
                    session,
                    import,
                    path,
                });
            }
            Step::Fail { number: target } => {
                let (name, error) = (format!("target {target}"), "it does not evaluate".into());
                self.hand_over(Event::TargetFailed {
                    session,
                    target,
                    name,
                    error,
                });
            }
            Step::End => self.hand_over(Event::EvaluationEnded { session }),
        }
        if !waits {
            let delay = self.rng.between(1, pace);
            self.after(delay, Happening::Evaluate(number));
        }
    }

    /// Whether a source has a path, and can be reached.
    fn has(&self, source: &Source, path: &StorePath) -> bool {
        match source {
            Source::Peer(node) => self
                .peers
                .iter()
                .any(|peer| peer.machine.key == *node && peer.connected && peer.machine.store.contains(path)),
            Source::Cache(_) => self.scenario.cache.contains(path),
            Source::Folder(_) => self.folder.contains(path),
        }
    }

    pub fn in_desired_store(&self, store: &DesiredStore, path: &StorePath) -> bool {
        match store {
            DesiredStore::Node(node) => self.has(&Source::Peer(*node), path),
            DesiredStore::Folder(folder) => self.has(&Source::Folder(folder.clone()), path),
        }
    }

    /// Everyone who could be asked for a path.
    pub fn sources(&self) -> Vec<Source> {
        let peers = self.peers.iter().filter(|peer| peer.connected);
        let peers = peers.map(|peer| Source::Peer(peer.machine.key));
        peers
            .chain([Source::Cache(CACHE.into()), Source::Folder(FOLDER.into())])
            .collect()
    }

    fn answer(
        &mut self,
        question: tvix_node_coordinator::QuestionId,
        desired: Option<&DesiredStore>,
        paths: Vec<StorePath>,
    ) {
        let mut answers = vec![];
        for path in paths {
            let own = self.own.contains(&path);
            let mut sources = vec![];
            if !own {
                for source in self.sources() {
                    // A peer may well say that it has what it has not.
                    let lie = matches!(source, Source::Peer(_)) && self.lost(1);
                    if self.has(&source, &path) || lie {
                        sources.push(source);
                    }
                }
            }
            let desired = desired.is_some_and(|store| self.in_desired_store(store, &path));
            answers.push(PathPresence {
                path,
                own,
                desired,
                sources,
                nar_size: Some(10),
            });
        }
        self.hand_over(Event::Presence {
            question,
            paths: answers,
        });
    }

    fn fetch_done(&mut self, fetch: FetchId) {
        let Some(Fetch { path, from }) = self.fetches.remove(&fetch) else {
            return;
        };
        let Some(source) = from.iter().find(|source| self.has(source, &path)).cloned() else {
            self.hand_over(Event::FetchFailed {
                fetch,
                error: "nobody had it".into(),
            });
            return;
        };
        let closure = self.scenario.closure(&path);
        for part in closure {
            if self.own.insert(part.clone()) || part == path {
                let from = source.clone();
                self.hand_over(Event::FetchStarted {
                    fetch,
                    path: part.clone(),
                    from: from.clone(),
                });
                self.hand_over(Event::FetchArrived {
                    fetch,
                    path: part,
                    from,
                    bytes: 10,
                });
            }
        }
        self.hand_over(Event::FetchFinished { fetch });
    }

    fn push_done(&mut self, push: PushId) {
        let Some((path, to)) = self.pushes.remove(&push) else {
            return;
        };
        let closure = self.scenario.closure(&path);
        let unreachable = match &to {
            DesiredStore::Folder(_) => false,
            DesiredStore::Node(node) => !self
                .peers
                .iter()
                .any(|peer| peer.machine.key == *node && peer.connected),
        };
        if unreachable || self.lost(10) {
            let transient = !self.lost(20);
            self.hand_over(Event::PushFailed {
                push,
                error: "no connection".into(),
                transient,
            });
            return;
        }
        match to {
            DesiredStore::Folder(_) => self.folder.extend(closure),
            DesiredStore::Node(node) => {
                if let Some(peer) = self.peers.iter_mut().find(|peer| peer.machine.key == node) {
                    peer.machine.store.extend(closure);
                }
            }
        }
        self.hand_over(Event::PushFinished { push });
    }

    pub fn job(&self, derivation: &StorePath) -> usize {
        let found = self
            .scenario
            .jobs
            .iter()
            .position(|job| job.derivation.path == *derivation);
        found.expect("only known derivations are built")
    }

    /// What a derivation reads.
    pub fn inputs(&self, job: usize) -> Vec<StorePath> {
        let derivation = &self.scenario.jobs[job].derivation;
        let mut inputs = derivation.sources.clone();
        for input in &derivation.inputs {
            let made = &self.scenario.jobs[self.job(&input.derivation)].derivation.outputs;
            inputs.extend(input.outputs.iter().map(|name| made[name].clone()));
        }
        inputs
    }

    pub fn built(&self, job: usize) -> BTreeMap<String, BuiltPath> {
        let outputs = self.scenario.jobs[job].derivation.outputs.iter();
        outputs
            .map(|(name, path)| {
                (
                    name.clone(),
                    BuiltPath {
                        path: path.clone(),
                        nar_size: 10,
                    },
                )
            })
            .collect()
    }

    fn build_here(&mut self, build: BuildId, derivation: &StorePath, limit: Option<u64>) {
        let job = self.job(derivation);
        for input in self.inputs(job) {
            for path in self.scenario.closure(&input) {
                assert!(
                    self.own.contains(&path),
                    "{derivation} is built here without {path}"
                );
            }
        }
        let limit = limit.map(|seconds| seconds * 1_000);
        self.own_builds.insert(
            build,
            OwnBuild {
                job,
                limit,
                dying: false,
            },
        );
        self.report_after(1, Event::BuildStarted { build });
        let duration = self.scenario.jobs[job].duration;
        let duration = limit.map_or(duration, |limit| limit.min(duration));
        self.after(duration + 2, Happening::OwnBuildDone(build));
    }

    fn own_build_done(&mut self, build: BuildId) {
        let Some(OwnBuild { job, limit, dying }) = self.own_builds.remove(&build) else {
            return;
        };
        let fate = self.scenario.jobs[job].fate;
        let duration = self.scenario.jobs[job].duration;
        if limit.is_some_and(|limit| duration > limit) {
            self.fail(build, FailureKind::Limit, "too slow");
        } else if fate == crate::scenario::Fate::Broken {
            self.fail(build, FailureKind::Builder, "exit code 1");
        } else if fate == crate::scenario::Fate::Deadly || (!dying && self.lost(2)) {
            let kind = if self.rng.percent(50) {
                FailureKind::Transient
            } else {
                FailureKind::Refused
            };
            self.fail(build, kind, "the machine is unwell");
        } else {
            let outputs = self.built(job);
            self.own.extend(outputs.values().map(|built| built.path.clone()));
            self.hand_over(Event::BuildFinished {
                build,
                outputs,
                delivery: Delivery::OwnStore,
            });
        }
    }
}
