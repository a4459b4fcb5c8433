//! Peers that build for others: honest ones and the rest.

use std::collections::BTreeMap;

use tvix_node_coordinator::{BuildFailure, BuildId, Delivery, Event, FailureKind, limits};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::DesiredStore;
use tvix_node_protocol::envelope::NodeKey;

use crate::scenario::{Character, Fate, Machine};
use crate::world::{Happening, World};

#[derive(Debug, Clone)]
pub enum PeerStep {
    Arrive,
    Leave,
    Begin {
        build: BuildId,
        job: usize,
        to: Option<DesiredStore>,
    },
    Beat(BuildId),
    Done(BuildId),
    Drop(BuildId),
}

struct PeerBuild {
    job: usize,
    to: Option<DesiredStore>,
    renewed: u64,
    quiet: bool,
}

pub struct Peer {
    pub machine: Machine,
    pub connected: bool,
    builds: BTreeMap<BuildId, PeerBuild>,
}

impl Peer {
    pub fn new(machine: Machine) -> Self {
        Self {
            machine,
            connected: false,
            builds: BTreeMap::new(),
        }
    }
}

impl World {
    fn peer(&self, node: NodeKey) -> usize {
        let found = self.peers.iter().position(|peer| peer.machine.key == node);
        found.expect("only known peers are asked")
    }

    pub fn request(
        &mut self,
        build: BuildId,
        node: NodeKey,
        derivation: &StorePath,
        to: Option<DesiredStore>,
    ) {
        let peer = self.peer(node);
        let job = self.job(derivation);
        if !self.lost(2) {
            let delay = self.delay();
            self.after(delay, Happening::Peer(peer, PeerStep::Begin { build, job, to }));
        }
    }

    pub fn renew(&mut self, build: BuildId, node: NodeKey) {
        let (peer, now, lost) = (self.peer(node), self.now, self.lost(5));
        if let Some(build) = self.peers[peer].builds.get_mut(&build).filter(|_| !lost) {
            build.renewed = now;
        }
    }

    pub fn cancel_request(&mut self, build: BuildId, node: NodeKey) {
        let peer = self.peer(node);
        let delay = self.delay();
        self.after(delay, Happening::Peer(peer, PeerStep::Drop(build)));
    }

    pub fn peer_step(&mut self, peer: usize, step: PeerStep) {
        match step {
            PeerStep::Arrive => {
                if !self.peers[peer].connected {
                    self.peers[peer].connected = true;
                    self.offer(peer);
                }
            }
            PeerStep::Leave => self.leave(peer),
            _ if !self.peers[peer].connected => {}
            PeerStep::Begin { build, job, to } => self.begin(peer, build, job, to),
            PeerStep::Beat(build) => self.beat(peer, build),
            PeerStep::Done(build) => self.done(peer, build),
            PeerStep::Drop(build) => {
                self.peers[peer].builds.remove(&build);
                self.offer(peer);
            }
        }
    }

    fn leave(&mut self, peer: usize) {
        if std::mem::replace(&mut self.peers[peer].connected, false) {
            self.peers[peer].builds.clear();
            let node = self.peers[peer].machine.key;
            self.hand_over(Event::PeerGone { node });
        }
    }

    fn offer(&mut self, peer: usize) {
        if self.lost(20) && !self.peers[peer].builds.is_empty() {
            return;
        }
        let (node, mut offer) = (
            self.peers[peer].machine.key,
            self.peers[peer].machine.offer.clone(),
        );
        offer.slots_free = offer.slots.saturating_sub(self.peers[peer].builds.len() as u32);
        self.hand_over(Event::Peer { node, offer });
    }

    fn report_failure(&mut self, build: BuildId, kind: FailureKind, error: &str) {
        let failure = BuildFailure {
            kind,
            error: error.into(),
            log_tail: vec![],
        };
        let delay = self.delay();
        self.report_after(delay, Event::BuildFailed { build, failure });
    }

    fn begin(&mut self, peer: usize, build: BuildId, job: usize, to: Option<DesiredStore>) {
        let character = self.peers[peer].machine.character;
        if character == Character::Silent {
            return;
        }
        if character == Character::Refusing {
            self.report_failure(build, FailureKind::Refused, "not for you");
            return;
        }
        // It takes its inputs from whoever has them.
        for input in self.inputs(job) {
            let there = self.peers[peer].machine.store.contains(&input);
            let elsewhere = || {
                self.sources()
                    .iter()
                    .any(|source| self.source_has(source, &input))
            };
            if !there && !self.own.contains(&input) && !elsewhere() {
                if !self.lost(30) {
                    self.hand_over(Event::InputsMissing {
                        build,
                        paths: vec![input],
                    });
                }
                self.report_failure(build, FailureKind::Transient, "an input cannot be had");
                return;
            }
            let closure = self.scenario.closure(&input);
            self.peers[peer].machine.store.extend(closure);
        }
        let renewed = self.now;
        self.peers[peer].builds.insert(
            build,
            PeerBuild {
                job,
                to,
                renewed,
                quiet: false,
            },
        );
        self.offer(peer);
        let delay = self.delay();
        self.report_after(delay, Event::BuildStarted { build });
        self.after(500, Happening::Peer(peer, PeerStep::Beat(build)));
        let mut duration = self.scenario.jobs[job].duration;
        if character == Character::Sleepy && self.rng.percent(60) {
            duration += self.rng.between(1_000, 50_000);
            if let Some(build) = self.peers[peer].builds.get_mut(&build) {
                build.quiet = true;
            }
        }
        self.after(duration, Happening::Peer(peer, PeerStep::Done(build)));
    }

    pub fn source_has(&self, source: &tvix_node_coordinator::Source, path: &StorePath) -> bool {
        use tvix_node_coordinator::Source;
        match source {
            Source::Peer(node) => {
                let mut peers = self.peers.iter();
                peers.any(|peer| peer.machine.key == *node && peer.machine.store.contains(path))
            }
            Source::Cache(_) => self.scenario.cache.contains(path),
            Source::Folder(_) => self.folder.contains(path),
        }
    }

    fn beat(&mut self, peer: usize, build: BuildId) {
        let now = self.now;
        let Some(running) = self.peers[peer].builds.get(&build) else {
            return;
        };
        let patience = limits::LEASE.as_millis() as u64;
        let quiet = running.quiet;
        if now > running.renewed + patience && !quiet {
            // Nobody seems to want it any more.
            self.peers[peer].builds.remove(&build);
            self.offer(peer);
            return;
        }
        if !quiet && !self.lost(5) {
            let delay = self.delay();
            self.report_after(delay, Event::Heartbeat { build });
        }
        self.after(500, Happening::Peer(peer, PeerStep::Beat(build)));
    }

    fn done(&mut self, peer: usize, build: BuildId) {
        let Some(PeerBuild { job, to, .. }) = self.peers[peer].builds.remove(&build) else {
            return;
        };
        let character = self.peers[peer].machine.character;
        match self.scenario.jobs[job].fate {
            Fate::Deadly => {
                self.leave(peer);
                let delay = self.rng.between(100, 10_000);
                self.after(delay, Happening::Peer(peer, PeerStep::Arrive));
                return;
            }
            Fate::Broken => {
                self.report_failure(build, FailureKind::Builder, "exit code 1");
                self.offer(peer);
                return;
            }
            Fate::Fine => {}
        }
        if character == Character::Flaky && self.rng.percent(60) {
            self.report_failure(build, FailureKind::Transient, "the disk is full");
            self.offer(peer);
            return;
        }
        if self.lost(3) {
            self.offer(peer);
            return;
        }
        let mut outputs = self.built(job);
        let mut delivery = if self.rng.percent(50) {
            Delivery::AtBuilder
        } else {
            Delivery::OwnStore
        };
        match character {
            Character::Pretender => delivery = Delivery::AtBuilder,
            Character::Pusher => {
                delivery = if to.is_some() {
                    Delivery::DesiredStore
                } else {
                    Delivery::AtBuilder
                }
            }
            Character::Forger => {
                for built in outputs.values_mut() {
                    built.path = crate::scenario::nowhere();
                }
                delivery = Delivery::AtBuilder;
            }
            _ => {
                for output in outputs.values() {
                    let closure = self.scenario.closure(&output.path);
                    self.peers[peer].machine.store.extend(closure);
                }
                if let Some(to) = &to
                    && self.rng.percent(60)
                {
                    delivery = Delivery::DesiredStore;
                    let made = outputs
                        .values()
                        .flat_map(|output| self.scenario.closure(&output.path));
                    let made: Vec<StorePath> = made.collect();
                    match to {
                        DesiredStore::Folder(_) => self.folder.extend(made),
                        DesiredStore::Node(node) => {
                            let node = self.peer(*node);
                            self.peers[node].machine.store.extend(made);
                        }
                    }
                }
            }
        }
        let delay = self.delay();
        self.after(
            delay,
            Happening::Deliver {
                build,
                outputs,
                delivery,
            },
        );
        self.offer(peer);
    }
}
