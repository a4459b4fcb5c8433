//! What a seed's world is made of: derivations, commands, machines.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_coordinator::placement::Link;
use tvix_node_coordinator::{Derivation, InputDerivation, PeerOffer, SessionOptions};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildLimits, DesiredStore};
use tvix_node_protocol::control::SessionMode;
use tvix_node_protocol::envelope::NodeKey;

use crate::rng::Rng;

/// What becomes of a derivation when it is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Fine,
    Broken,
    /// Kills the machine it is built on, if that is a peer.
    Deadly,
}

#[derive(Debug, Clone)]
pub struct Job {
    pub derivation: Derivation,
    pub fate: Fate,
    pub duration: u64,
}

/// One step of a command's evaluation.
#[derive(Debug, Clone)]
pub enum Step {
    Instantiate(Vec<usize>),
    Target {
        number: u64,
        job: usize,
        outputs: Vec<String>,
    },
    Import {
        number: u64,
        job: usize,
        outputs: Vec<String>,
    },
    Ensure {
        number: u64,
        path: StorePath,
    },
    Fail {
        number: u64,
    },
    End,
}

#[derive(Debug, Clone)]
pub struct Script {
    pub opens: u64,
    pub options: SessionOptions,
    pub steps: Vec<Step>,
    pub pace: u64,
    pub interrupted: Option<u64>,
}

/// How a peer behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Character {
    Honest,
    /// Takes requests and never answers.
    Silent,
    /// Starts, falls silent for long, and comes back with the result.
    Sleepy,
    Refusing,
    Flaky,
    /// Says that it has built what it has not.
    Pretender,
    /// Says that it has pushed what it has not.
    Pusher,
    /// Builds something else than was asked.
    Forger,
}

#[derive(Debug, Clone)]
pub struct Machine {
    pub key: NodeKey,
    pub offer: PeerOffer,
    pub character: Character,
    pub arrives: u64,
    pub leaves: Option<u64>,
    pub returns: Option<u64>,
    pub store: BTreeSet<StorePath>,
}

#[derive(Debug, Clone)]
pub struct Scenario {
    /// Nothing fails but what is broken by itself, and no message is lost.
    pub calm: bool,
    /// The coordinator knows from the start who is in the team.
    pub known: bool,
    pub slots: u32,
    pub jobs: Vec<Job>,
    /// What each path refers to.
    pub references: BTreeMap<StorePath, Vec<StorePath>>,
    pub scripts: Vec<Script>,
    pub machines: Vec<Machine>,
    pub own: BTreeSet<StorePath>,
    pub cache: BTreeSet<StorePath>,
    pub folder: BTreeSet<StorePath>,
}

pub const FOLDER: &str = "/srv/cache";
pub const CACHE: &str = "https://cache.example";

pub fn node(number: usize) -> NodeKey {
    NodeKey([number as u8 + 1; 32])
}

fn path(kind: u8, number: usize, name: &str) -> StorePath {
    let mut digest = [kind; 20];
    digest[1..9].copy_from_slice(&(number as u64).to_be_bytes());
    StorePath::from_parts(digest, name).expect("a valid name")
}

/// A path that nobody makes and nobody has.
pub fn nowhere() -> StorePath {
    path(9, 0, "nowhere")
}

impl Scenario {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let calm = rng.percent(30);
        let (jobs, references) = jobs(&mut rng, calm);
        let mut scenario = Self {
            calm,
            known: seed.is_multiple_of(2),
            slots: if rng.percent(12) {
                0
            } else {
                rng.between(1, 4) as u32
            },
            jobs,
            references,
            scripts: vec![],
            machines: vec![],
            own: BTreeSet::new(),
            cache: BTreeSet::new(),
            folder: BTreeSet::new(),
        };
        let present = rng.between(0, 40);
        scenario.own = scenario.some_outputs(&mut rng, present / 2);
        scenario.cache = scenario.some_outputs(&mut rng, present / 3);
        scenario.folder = scenario.some_outputs(&mut rng, present / 4);
        for number in 0..rng.between(0, 4) as usize {
            let machine = scenario.machine(&mut rng, number);
            scenario.machines.push(machine);
        }
        if calm && scenario.slots == 0 {
            scenario.slots = 1;
        }
        for _ in 0..rng.between(1, 4) {
            let script = scenario.script(&mut rng);
            scenario.scripts.push(script);
        }
        scenario
    }

    /// Some outputs with everything they refer to.
    fn some_outputs(&self, rng: &mut Rng, chance: u64) -> BTreeSet<StorePath> {
        let mut chosen = BTreeSet::new();
        for job in &self.jobs {
            for output in job.derivation.outputs.values() {
                if rng.percent(chance) {
                    chosen.extend(self.closure(output));
                }
            }
        }
        chosen
    }

    /// A path and all it refers to, what is referred to first.
    pub fn closure(&self, path: &StorePath) -> Vec<StorePath> {
        let mut closure = vec![];
        self.add_closure(path, &mut BTreeSet::new(), &mut closure);
        closure
    }

    fn add_closure(&self, path: &StorePath, seen: &mut BTreeSet<StorePath>, closure: &mut Vec<StorePath>) {
        if seen.insert(path.clone()) {
            for reference in self.references.get(path).into_iter().flatten() {
                self.add_closure(reference, seen, closure);
            }
            closure.push(path.clone());
        }
    }

    fn machine(&self, rng: &mut Rng, number: usize) -> Machine {
        let characters = [
            Character::Honest,
            Character::Honest,
            Character::Honest,
            Character::Silent,
            Character::Sleepy,
            Character::Refusing,
            Character::Flaky,
            Character::Pretender,
            Character::Pusher,
            Character::Forger,
        ];
        let character = *rng.pick(&characters).expect("there are some");
        let slots = rng.between(1, 3) as u32;
        let leaves = (!self.calm && rng.percent(30)).then(|| rng.between(1_000, 40_000));
        let features = if rng.percent(50) {
            vec!["kvm".into()]
        } else {
            vec![]
        };
        Machine {
            key: node(number),
            offer: PeerOffer {
                name: format!("peer{number}"),
                slots_free: slots,
                slots,
                systems: vec!["x86_64-linux".into()],
                features,
                fixed_outputs: rng.percent(50),
                link: Link {
                    round_trip: Some(rng.between(1, 50) as u32),
                    bandwidth: Some(rng.between(1, 100) << 20),
                },
                load: 0,
                cores: 4,
                withheld: None,
            },
            character: if self.calm { Character::Honest } else { character },
            arrives: if rng.percent(60) { 0 } else { rng.between(0, 5_000) },
            leaves,
            returns: leaves
                .filter(|_| rng.percent(60))
                .map(|leaves| leaves + rng.between(100, 20_000)),
            store: self.some_outputs(rng, 10),
        }
    }

    fn script(&self, rng: &mut Rng) -> Script {
        let mode = match rng.between(0, 9) {
            0 => SessionMode::Instantiate,
            1 => SessionMode::DryRun,
            _ => SessionMode::Build,
        };
        let to = match rng.between(0, 9) {
            0 => Some(DesiredStore::Folder(FOLDER.into())),
            1 => self
                .machines
                .first()
                .map(|machine| DesiredStore::Node(machine.key)),
            _ => None,
        };
        let limits = BuildLimits {
            time: rng.percent(15).then(|| rng.between(1, 5)),
            ..BuildLimits::NONE
        };
        let options = SessionOptions {
            mode,
            keep_going: rng.percent(50),
            jobs: rng
                .percent(20)
                .then(|| rng.between(u64::from(self.calm), 2) as u32),
            cores: if rng.percent(20) { 2 } else { 0 },
            limits,
            to,
        };
        Script {
            opens: rng.between(0, 8_000),
            options,
            steps: self.steps(rng),
            pace: rng.between(1, 1_500),
            interrupted: rng.percent(12).then(|| rng.between(0, 20_000)),
        }
    }

    fn steps(&self, rng: &mut Rng) -> Vec<Step> {
        let mut steps = vec![];
        let (mut targets, mut imports) = (0, 0);
        // Each session evaluates some of the graph; inputs before what reads them.
        let mut wanted = BTreeSet::new();
        let roots = rng.between(1, 5);
        for _ in 0..roots {
            self.with_inputs(rng.next() as usize % self.jobs.len(), &mut wanted);
        }
        let order: Vec<usize> = wanted.into_iter().collect();
        for batch in order.chunks(rng.between(1, 8) as usize) {
            steps.push(Step::Instantiate(batch.to_vec()));
            let job = *rng.pick(batch).expect("chunks are not empty");
            let outputs = self.some_names(rng, job);
            if rng.percent(35) {
                steps.push(Step::Target {
                    number: targets,
                    job,
                    outputs,
                });
                targets += 1;
            } else if rng.percent(10) {
                steps.push(Step::Import {
                    number: imports,
                    job,
                    outputs,
                });
                imports += 1;
            } else if rng.percent(4) {
                let mut paths: Vec<StorePath> = self.jobs[job].derivation.sources.clone();
                paths.extend(self.jobs[job].derivation.outputs.values().cloned());
                if !self.calm {
                    paths.push(nowhere());
                }
                let path = rng.pick(&paths).expect("there are some").clone();
                steps.push(Step::Ensure {
                    number: imports,
                    path,
                });
                imports += 1;
            } else if !self.calm && rng.percent(2) {
                steps.push(Step::Fail { number: targets });
                targets += 1;
            }
        }
        let last = *order.last().expect("there are some");
        let outputs = self.some_names(rng, last);
        steps.push(Step::Target {
            number: targets,
            job: last,
            outputs,
        });
        steps.push(Step::End);
        steps
    }

    fn some_names(&self, rng: &mut Rng, job: usize) -> Vec<String> {
        let names: Vec<String> = self.jobs[job].derivation.outputs.keys().cloned().collect();
        if rng.percent(70) {
            vec![rng.pick(&names).expect("there are some").clone()]
        } else {
            names
        }
    }

    fn with_inputs(&self, job: usize, all: &mut BTreeSet<usize>) {
        if all.insert(job) {
            for input in &self.jobs[job].derivation.inputs {
                let found = self
                    .jobs
                    .iter()
                    .position(|other| other.derivation.path == input.derivation);
                self.with_inputs(found.expect("inputs come first"), all);
            }
        }
    }
}

fn jobs(rng: &mut Rng, calm: bool) -> (Vec<Job>, BTreeMap<StorePath, Vec<StorePath>>) {
    let count = rng.between(3, 40) as usize;
    let broken = if rng.percent(50) { rng.between(0, 12) } else { 0 };
    let mut jobs: Vec<Job> = vec![];
    let mut references: BTreeMap<StorePath, Vec<StorePath>> = BTreeMap::new();
    for number in 0..count {
        let mut outputs = BTreeMap::from([("out".to_owned(), path(1, number, &format!("p{number}")))]);
        if rng.percent(20) {
            outputs.insert("dev".to_owned(), path(2, number, &format!("p{number}-dev")));
        }
        let mut inputs: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
        if number > 0 {
            for _ in 0..rng.between(0, 4) {
                // Mostly near ones, which makes deep graphs.
                let reach = if rng.percent(70) { 5 } else { 40 };
                let back = rng.between(1, reach).min(number as u64) as usize;
                let names: Vec<&String> = jobs[number - back].derivation.outputs.keys().collect();
                let name = (*rng.pick(&names).expect("there are some")).clone();
                inputs.entry(number - back).or_default().insert(name);
            }
        }
        let sources: Vec<StorePath> = (0..rng.between(0, 2))
            .map(|_| path(3, rng.between(0, 30) as usize, "source"))
            .collect();
        let mut read: Vec<StorePath> = sources.clone();
        let mut input_derivations = vec![];
        for (input, names) in &inputs {
            let input = &jobs[*input].derivation;
            read.extend(names.iter().map(|name| input.outputs[name].clone()));
            input_derivations.push(InputDerivation {
                derivation: input.path.clone(),
                outputs: names.iter().cloned().collect(),
            });
        }
        for output in outputs.values() {
            let kept: Vec<StorePath> = read.iter().filter(|_| rng.percent(40)).cloned().collect();
            references.insert(output.clone(), kept);
        }
        let fate = match rng.between(0, 99) {
            chance if chance < broken => Fate::Broken,
            99 if !calm => Fate::Deadly,
            _ => Fate::Fine,
        };
        let kvm = !calm && rng.percent(5);
        jobs.push(Job {
            derivation: Derivation {
                path: path(0, number, &format!("p{number}.drv")),
                outputs,
                inputs: input_derivations,
                sources,
                system: "x86_64-linux".into(),
                required_features: if kvm { vec!["kvm".into()] } else { vec![] },
                prefer_local: rng.percent(10),
                fixed_output: rng.percent(10),
                quorum: None,
            },
            fate,
            duration: if rng.percent(85) {
                rng.between(10, 3_000)
            } else {
                rng.between(3_000, 90_000)
            },
        });
    }
    (jobs, references)
}
