//! A desk from which a test plays the world: it names things by words, answers questions about
//! presence at once unless told not to, and keeps what the coordinator wants done.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_coordinator::{
    Action, BuildFailure, BuildId, BuiltPath, Config, Coordinator, Delivery, Derivation, Event, FailureKind,
    FetchId, InputDerivation, OwnBuilder, PathPresence, PeerOffer, PushId, QuestionId, Refusal, SessionId,
    SessionOptions, Source, Time, Urgency, limits::Bounds, placement::Link,
};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildLimits, DesiredStore};
use tvix_node_protocol::control::{EventKind, Outcome, SessionMode};
use tvix_node_protocol::envelope::NodeKey;

/// A store path named by a word.
pub fn path(word: &str) -> StorePath {
    let mut digest = [0; 20];
    for (index, byte) in word.bytes().enumerate() {
        digest[index % 20] ^= byte.rotate_left(index as u32 / 20);
    }
    StorePath::from_parts(digest, word).expect("a valid name")
}

/// The `.drv` path of the derivation that makes `path(word)`.
pub fn drv(word: &str) -> StorePath {
    path(&format!("{word}.drv"))
}

/// A derivation with the output `out` that reads the outputs `out` of others.
pub fn derivation(word: &str, inputs: &[&str]) -> Derivation {
    let input = |input: &&str| InputDerivation {
        derivation: drv(input),
        outputs: vec!["out".into()],
    };
    Derivation {
        path: drv(word),
        outputs: BTreeMap::from([("out".into(), path(word))]),
        inputs: inputs.iter().map(input).collect(),
        sources: vec![],
        system: "x86_64-linux".into(),
        required_features: vec![],
        prefer_local: false,
        fixed_output: false,
        quorum: None,
    }
}

pub fn options() -> SessionOptions {
    SessionOptions {
        mode: SessionMode::Build,
        keep_going: false,
        jobs: None,
        cores: 0,
        limits: BuildLimits::NONE,
        to: None,
    }
}

pub fn node(number: u8) -> NodeKey {
    NodeKey([number; 32])
}

pub fn offer(name: &str, slots: u32) -> PeerOffer {
    PeerOffer {
        name: name.into(),
        slots_free: slots,
        slots,
        systems: vec!["x86_64-linux".into()],
        features: vec![],
        fixed_outputs: false,
        link: Link {
            round_trip: Some(1),
            bandwidth: Some(100 << 20),
        },
        load: 0,
        cores: 4,
        withheld: None,
    }
}

/// A build that the coordinator wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    pub build: BuildId,
    pub word: String,
    pub node: Option<NodeKey>,
    pub demanded: bool,
    /// Whether its outputs are wanted here.
    pub bring: bool,
}

pub struct Desk {
    pub coordinator: Coordinator,
    pub now: u64,
    /// What there is, for the answers to questions about presence.
    pub own: BTreeSet<StorePath>,
    pub desired: BTreeSet<StorePath>,
    pub elsewhere: BTreeMap<StorePath, Vec<Source>>,
    /// Questions are not answered by themselves.
    pub hold_answers: bool,
    /// Somebody does not say in time what he has.
    pub unheard: bool,
    pub questions: Vec<(QuestionId, Vec<StorePath>)>,
    pub running: Vec<Started>,
    /// Everything that was ever started, in order.
    pub started: Vec<String>,
    pub cancelled: Vec<BuildId>,
    pub fetches: Vec<(FetchId, StorePath)>,
    /// Of everything that was ever fetched, whether a build waits for it.
    pub awaited: Vec<(String, bool)>,
    /// How fetches were hurried.
    pub hurried: Vec<(Urgency, bool)>,
    pub pushes: Vec<(PushId, StorePath)>,
    pub refusals: Vec<(SessionId, Refusal)>,
    /// Peers that were to be asked how much of the inputs they have.
    pub weighed: Vec<NodeKey>,
    /// Whether somebody builds it already is not answered by itself where there is nothing to weigh.
    pub hold_makers: bool,
    /// What whoever asks is told that it is under way, and where.
    pub announced: BTreeMap<BuildId, (String, Option<NodeKey>)>,
    pub told: Vec<(u64, EventKind)>,
    /// What the last event led to.
    pub actions: Vec<Action>,
}

fn word_of(path: &StorePath) -> String {
    path.name().trim_end_matches(".drv").to_owned()
}

impl Desk {
    /// With so many slots on this node.
    pub fn new(slots: u32) -> Self {
        let mut desk = Self::unready();
        desk.offer_own(slots);
        desk
    }

    /// The same, of a coordinator with bounds that a test can reach.
    pub fn bounded(slots: u32, bounds: Bounds) -> Self {
        let mut desk = Self::of(Config {
            bounds,
            ..Config::new("home")
        });
        desk.offer_own(slots);
        desk
    }

    /// This node's builder has not said yet what it can do.
    pub fn unready() -> Self {
        Self::of(Config::new("home"))
    }

    fn of(config: Config) -> Self {
        Self {
            coordinator: Coordinator::new(config),
            now: 0,
            own: BTreeSet::new(),
            desired: BTreeSet::new(),
            elsewhere: BTreeMap::new(),
            hold_answers: false,
            unheard: false,
            questions: vec![],
            running: vec![],
            started: vec![],
            cancelled: vec![],
            fetches: vec![],
            awaited: vec![],
            hurried: vec![],
            pushes: vec![],
            refusals: vec![],
            weighed: vec![],
            hold_makers: false,
            announced: BTreeMap::new(),
            told: vec![],
            actions: vec![],
        }
    }

    pub fn offer_own(&mut self, slots: u32) {
        let systems = vec!["x86_64-linux".into()];
        self.send(Event::OwnBuilder(OwnBuilder {
            slots,
            systems,
            features: vec![],
        }));
    }

    /// Hands over an event and carries out what can be carried out at once.
    pub fn send(&mut self, event: Event) {
        let actions = self.coordinator.handle(Time(self.now), event);
        self.actions.clone_from(&actions);
        let (mut answers, mut nobody) = (vec![], vec![]);
        for action in actions {
            match action {
                Action::AskPresence { question, paths, .. } => {
                    if self.hold_answers {
                        self.questions.push((question, paths));
                    } else {
                        answers.push((question, paths));
                    }
                }
                Action::Fetch {
                    fetch, path, awaited, ..
                } => {
                    self.awaited.push((path.name().to_owned(), awaited));
                    self.fetches.push((fetch, path));
                }
                Action::HurryFetch { urgency, awaited, .. } => self.hurried.push((urgency, awaited)),
                Action::CancelFetch { fetch } => self.fetches.retain(|(other, _)| *other != fetch),
                Action::Push { push, path, .. } => self.pushes.push((push, path)),
                Action::CancelPush { push } => self.pushes.retain(|(other, _)| *other != push),
                Action::BuildHere {
                    build,
                    derivation,
                    demanded,
                    ..
                } => {
                    let word = word_of(&derivation);
                    self.started.push(word.clone());
                    self.running.push(Started {
                        build,
                        word,
                        node: None,
                        demanded,
                        bring: true,
                    });
                }
                Action::Request {
                    build,
                    node,
                    derivation,
                    bring,
                    ..
                } => {
                    let word = word_of(&derivation);
                    self.started.push(word.clone());
                    self.running.push(Started {
                        build,
                        word,
                        node: Some(node),
                        demanded: true,
                        bring,
                    });
                }
                Action::CancelBuild { build, node } => {
                    self.cancelled.push(build);
                    if node.is_some() {
                        self.running.retain(|started| started.build != build);
                    }
                }
                Action::Tell { session, event } => self.told.push((session.0, event)),
                Action::Refuse { session, refusal } => self.refusals.push((session, refusal)),
                Action::Release { paths } => {
                    for path in paths {
                        assert!(self.own.contains(&path), "{path} was released and never there");
                    }
                }
                Action::WeighInputs {
                    derivation,
                    inputs,
                    nodes,
                    ..
                } if !self.hold_makers
                    && (inputs.is_empty() || (nodes.len() == 1 && self.coordinator.free_slots() == 0)) =>
                {
                    nobody.push(derivation);
                }
                Action::WeighInputs { nodes, .. } => self.weighed.extend(nodes),
                Action::Announce {
                    build,
                    derivation,
                    node,
                    ..
                } => {
                    let before = self.announced.insert(build, (word_of(&derivation), node));
                    assert_eq!(before, None, "{build} is announced twice");
                }
                Action::Retract { build } => {
                    assert!(
                        self.announced.remove(&build).is_some(),
                        "{build} was never announced"
                    );
                }
                Action::RenewLease { .. } | Action::Check { .. } | Action::CancelChecks { .. } => {}
            }
        }
        for (question, paths) in answers {
            self.answer(question, &paths);
        }
        for derivation in nobody {
            self.send(Event::InputsWeighed {
                derivation,
                total: 0,
                there: vec![],
                makers: vec![],
                promised: false,
                made: false,
            });
        }
    }

    pub fn answer(&mut self, question: QuestionId, paths: &[StorePath]) {
        let paths = paths
            .iter()
            .map(|path| PathPresence {
                path: path.clone(),
                own: self.own.contains(path),
                desired: self.desired.contains(path),
                sources: self.elsewhere.get(path).cloned().unwrap_or_default(),
                unheard: self.unheard,
                nar_size: None,
            })
            .collect();
        self.send(Event::Presence { question, paths });
    }

    /// Answers all questions that were held.
    pub fn answer_all(&mut self) {
        for (question, paths) in std::mem::take(&mut self.questions) {
            self.answer(question, &paths);
        }
    }

    /// Lets time pass, with every tick that falls due.
    pub fn wait(&mut self, millis: u64) {
        let end = self.now + millis;
        while let Some(due) = self.coordinator.deadline().filter(|due| due.0 <= end) {
            self.now = self.now.max(due.0);
            self.send(Event::Tick);
            assert!(
                self.coordinator.deadline().is_none_or(|due| due.0 > self.now),
                "time stands still"
            );
        }
        self.now = end;
    }

    pub fn open(&mut self, session: u64, options: SessionOptions) {
        self.send(Event::SessionOpened {
            session: SessionId(session),
            options,
        });
    }

    pub fn instantiate(&mut self, session: u64, derivations: &[Derivation]) {
        self.send(Event::Instantiated {
            session: SessionId(session),
            derivations: derivations.to_vec(),
        });
    }

    pub fn target(&mut self, session: u64, number: u64, word: &str) {
        self.send(Event::TargetNamed {
            session: SessionId(session),
            target: number,
            name: word.into(),
            derivation: drv(word),
            outputs: vec!["out".into()],
        });
    }

    pub fn import(&mut self, session: u64, number: u64, word: &str) {
        self.send(Event::ImportRequested {
            session: SessionId(session),
            import: number,
            derivation: drv(word),
            outputs: vec!["out".into()],
        });
    }

    pub fn end_evaluation(&mut self, session: u64) {
        self.send(Event::EvaluationEnded {
            session: SessionId(session),
        });
    }

    pub fn interrupt(&mut self, session: u64) {
        self.send(Event::SessionInterrupted {
            session: SessionId(session),
        });
    }

    /// A session with these derivations, the last of which is its only target.
    pub fn command(&mut self, session: u64, options: SessionOptions, derivations: &[Derivation]) {
        self.open(session, options);
        self.instantiate(session, derivations);
        let last = word_of(&derivations.last().expect("one at least").path);
        self.target(session, 0, &last);
        self.end_evaluation(session);
    }

    /// The build of a derivation that runs.
    #[track_caller]
    pub fn build(&self, word: &str) -> Started {
        let found = self.running.iter().find(|started| started.word == word);
        found
            .unwrap_or_else(|| panic!("{word} is not being built, but {:?}", self.words()))
            .clone()
    }

    /// What runs, sorted.
    pub fn words(&self) -> Vec<&str> {
        let mut words: Vec<&str> = self.running.iter().map(|started| started.word.as_str()).collect();
        words.sort_unstable();
        words
    }

    fn over(&mut self, build: BuildId) {
        self.running.retain(|started| started.build != build);
    }

    #[track_caller]
    pub fn finish(&mut self, word: &str) {
        let build = self.build(word).build;
        self.finish_as(build, word, Delivery::OwnStore);
    }

    pub fn finish_as(&mut self, build: BuildId, word: &str, delivery: Delivery) {
        self.over(build);
        if delivery == Delivery::OwnStore {
            self.own.insert(path(word));
        }
        let outputs = BTreeMap::from([(
            "out".into(),
            BuiltPath {
                path: path(word),
                nar_size: 100,
            },
        )]);
        self.send(Event::BuildFinished {
            build,
            outputs,
            delivery,
        });
    }

    #[track_caller]
    pub fn fail(&mut self, word: &str, kind: FailureKind) {
        let build = self.build(word).build;
        self.fail_build(build, kind);
    }

    pub fn fail_build(&mut self, build: BuildId, kind: FailureKind) {
        self.over(build);
        let error = match kind {
            FailureKind::Builder => "exit code 1",
            FailureKind::Limit => "too slow",
            FailureKind::Busy => "it has too much to do",
            FailureKind::Transient => "the machine has trouble",
            FailureKind::Gone => "the line is dead",
            FailureKind::Refused => "no, thank you",
            FailureKind::Disagreed => "they differ",
            FailureKind::Cancelled => "cancelled",
        };
        let failure = BuildFailure {
            kind,
            error: error.into(),
            log_tail: vec!["last words".into()],
        };
        self.send(Event::BuildFailed { build, failure });
    }

    /// Reports all cancelled builds of this node as over.
    pub fn bury(&mut self) {
        for build in std::mem::take(&mut self.cancelled) {
            self.fail_build(build, FailureKind::Cancelled);
        }
    }

    #[track_caller]
    pub fn arrive(&mut self, word: &str) {
        let found = self
            .fetches
            .iter()
            .position(|(_, fetched)| *fetched == path(word));
        let found = found.unwrap_or_else(|| panic!("{word} is not being fetched, but {:?}", self.fetches));
        let (fetch, _) = self.fetches.remove(found);
        self.own.insert(path(word));
        let from = Source::Cache("https://cache.example".into());
        self.send(Event::FetchArrived {
            fetch,
            path: path(word),
            from,
            bytes: 7,
        });
        self.send(Event::FetchFinished { fetch });
    }

    pub fn peer(&mut self, number: u8, offer: PeerOffer) {
        self.send(Event::Peer {
            node: node(number),
            offer,
        });
    }

    pub fn outcome(&self, session: u64) -> Option<Outcome> {
        self.told.iter().find_map(|(other, event)| match event {
            EventKind::Ended { outcome, .. } if *other == session => Some(*outcome),
            _ => None,
        })
    }

    pub fn was_told(&self, session: u64, wanted: impl Fn(&EventKind) -> bool) -> bool {
        self.told
            .iter()
            .any(|(other, event)| *other == session && wanted(event))
    }

    /// The reason that a session was given for the last placement of a derivation.
    #[track_caller]
    pub fn reason(&self, session: u64, word: &str) -> String {
        let mut reasons = self.told.iter().filter_map(|(other, event)| match event {
            EventKind::Placed {
                derivation, reason, ..
            } if *other == session && *derivation == drv(word) => Some(reason.clone()),
            _ => None,
        });
        reasons
            .next_back()
            .unwrap_or_else(|| panic!("{session} was not told where {word} is built"))
    }

    pub fn cache_has(&mut self, word: &str) {
        self.elsewhere
            .insert(path(word), vec![Source::Cache("https://cache.example".into())]);
    }

    pub fn peer_has(&mut self, number: u8, word: &str) {
        self.elsewhere
            .insert(path(word), vec![Source::Peer(node(number))]);
    }
}

pub fn to_folder() -> SessionOptions {
    SessionOptions {
        to: Some(DesiredStore::Folder("/srv/cache".into())),
        ..options()
    }
}

pub fn keep_going() -> SessionOptions {
    SessionOptions {
        keep_going: true,
        ..options()
    }
}
