//! The world around one coordinator: stores, builders, evaluations, and a clock.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_coordinator::{
    Action, BuildFailure, BuildId, BuiltPath, Config, Coordinator, Delivery, Event, FailureKind, FetchId,
    OwnBuilder, PushId, QuestionId, SessionId, Source, Time,
};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::DesiredStore;

use crate::checker::Checker;
use crate::peers::{Peer, PeerStep};
use crate::rng::Rng;
use crate::scenario::Scenario;

/// Something that will happen.
#[derive(Debug, Clone)]
pub enum Happening {
    Report(Event),
    Evaluate(usize),
    Interrupt(usize),
    Answer {
        question: QuestionId,
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

pub struct Fetch {
    pub path: StorePath,
    pub from: Vec<Source>,
}

pub struct OwnBuild {
    pub job: usize,
    pub limit: Option<u64>,
    pub dying: bool,
}

#[derive(Default)]
pub struct Evaluation {
    pub next: usize,
    pub waits_for: Option<u64>,
    pub over: bool,
}

pub struct World {
    pub scenario: Scenario,
    pub rng: Rng,
    pub now: u64,
    pub coordinator: Coordinator,
    pub queue: BTreeMap<(u64, u64), Happening>,
    pub happened: u64,
    pub own: BTreeSet<StorePath>,
    /// What the coordinator has been told is in the own store and has not released.
    pub pinned: BTreeSet<StorePath>,
    /// What sessions have added; stays.
    pub added: BTreeSet<StorePath>,
    pub folder: BTreeSet<StorePath>,
    pub fetches: BTreeMap<FetchId, Fetch>,
    pub pushes: BTreeMap<PushId, (StorePath, DesiredStore)>,
    pub own_builds: BTreeMap<BuildId, OwnBuild>,
    pub peers: Vec<Peer>,
    pub evaluations: Vec<Evaluation>,
    pub checker: Checker,
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
        if world.scenario.known {
            let names = BTreeMap::new();
            let builders = world.peers.iter().map(|peer| peer.machine.key).collect();
            world.hand_over(Event::Team { names, builders });
        }
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
                ..
            } => {
                if !self.lost(20) {
                    let some = |node: &&tvix_node_protocol::envelope::NodeKey| node.0[0].is_multiple_of(3);
                    let mut makers: Vec<_> = match self.rng.between(0, 3) {
                        0 => nodes.iter().filter(some).copied().map(Some).collect(),
                        _ => vec![],
                    };
                    if self.rng.between(0, 9) == 0 {
                        makers.push(None);
                    }
                    let promised = self.rng.between(0, 9) == 0;
                    let made = self.rng.between(0, 9) == 0;
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
                            makers,
                            promised,
                            made,
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
            Action::HurryFetch { .. } => {}
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
                joins,
                ..
            } => {
                // Now and then there is nothing to take part in.
                if joins && self.rng.between(0, 3) == 0 {
                    let failure = BuildFailure {
                        kind: FailureKind::Busy,
                        error: "it is over".into(),
                        log_tail: vec![],
                    };
                    self.report_after(3, Event::BuildFailed { build, failure });
                } else {
                    self.build_here(build, &derivation, limits.time);
                }
            }
            Action::Request {
                build,
                node,
                derivation,
                desired_store,
                ..
            } => {
                self.request(build, node, &derivation, desired_store);
            }
            Action::Check { .. } | Action::CancelChecks { .. } => {
                panic!("no session of the simulation checks")
            }
            // Nobody asks in these worlds.
            Action::Announce { .. } | Action::Retract { .. } => {}
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
}
