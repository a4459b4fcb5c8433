//! What a seed decides before anything happens: who is in the team, what is wanted of it, and what goes wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::envelope::{NodeKey, NodeSecret, seal};
use tvix_node_protocol::nix::derivation::{DerivationFields, ModuloHash, OutputKind};
use tvix_node_protocol::nix::hash::{CAHash, NixHash};
use tvix_node_protocol::nix::store_path::build_ca_path;
use tvix_node_protocol::path_info::NarHash;
use tvix_node_protocol::presence::PresenceSecret;
use tvix_node_protocol::roster::{Founder, Genesis, Member, Revoked, Role, Roles};
use tvix_node_protocol::tree::TreeDigest;
use tvix_node_protocol::trust::TrustPolicy;
use tvix_node_swarm::roster::{Members, Roster};

use super::dice::Dice;
use super::rules::{Rule, Rules};

/// Of so many seeds one has a team of 1,000 nodes.
const LARGE: u64 = 1_000;

/// Seconds since 1970 at which a world begins.
pub const BEGINNING: u64 = 1_800_000_000;

/// A source: what names itself.
pub struct Source {
    pub path: StorePath,
    pub ca: String,
    pub tree: TreeDigest,
    pub nar_hash: NarHash,
}

/// A derivation, real to the byte.
pub struct Job {
    pub drv: StorePath,
    pub text: Vec<u8>,
    pub outputs: BTreeMap<String, StorePath>,
    pub inputs: Vec<usize>,
    pub sources: Vec<usize>,
    /// Which of its inputs' outputs its own outputs refer to.
    pub references: BTreeSet<StorePath>,
    /// Milliseconds it takes.
    pub duration: u64,
    pub size: u64,
    /// It never makes the same twice.
    pub restless: bool,
    /// It fails, wherever it is built.
    pub broken: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nature {
    Honest,
    /// It lies, and has no role with which anybody believes it.
    Stranger,
    /// It lies, and its records or its word count.
    Traitor,
}

/// What a liar does when it is asked to build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It says nothing at all.
    Mute,
    /// This and that.
    Fickle,
    /// It nearly always answers.
    Talkative,
}

/// What a liar does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// One of many things.
    Any,
    /// It asks for a build as if nothing had happened, though it is out.
    GoesOnAsking,
}

pub struct Machine {
    pub secret: NodeSecret,
    pub key: NodeKey,
    pub nature: Nature,
    pub manner: Manner,
    pub roles: Roles,
    /// What its owner takes for true, and the same as the code that is checked has it.
    pub rules: Rules,
    pub policy: Arc<TrustPolicy>,
    pub slots: u32,
    /// Seconds its clock is ahead.
    pub skew: i64,
    pub neighbours: BTreeSet<usize>,
    /// When it crashes, and for how long it is away.
    pub crashes: Vec<(u64, u64)>,
    /// When it hears of the revocation.
    pub hears: u64,
    /// Sources that its owner keeps private, by their numbers.
    pub secrets: BTreeSet<usize>,
}

pub struct Session {
    pub machine: usize,
    pub opens: u64,
    pub targets: Vec<usize>,
    pub keep_going: bool,
    pub interrupted: Option<u64>,
    /// After a crash its user tries again.
    pub tries_again: bool,
}

/// A time in which some nodes do not hear the others.
pub struct Partition {
    pub from: u64,
    pub to: u64,
    pub side: BTreeSet<usize>,
}

/// The team as those see it who have or have not heard of the revocation.
pub struct View {
    pub members: Arc<Members>,
    pub secret: PresenceSecret,
}

pub struct Plan {
    pub seed: u64,
    pub sources: Vec<Source>,
    pub jobs: Vec<Job>,
    pub machines: Vec<Machine>,
    pub sessions: Vec<Session>,
    pub partitions: Vec<Partition>,
    pub views: [View; 2],
    pub swarm: tvix_node_protocol::build::SwarmId,
    pub revoked: Option<usize>,
    /// Of a hundred messages, how many are lost.
    pub loss: u64,
    /// Of a hundred messages, how many take long.
    pub slow: u64,
    /// When liars lie, and how.
    pub attacks: Vec<(u64, usize, Attack)>,
}

fn secret(seed: u64, number: usize) -> NodeSecret {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&(number as u64).to_le_bytes());
    NodeSecret::from_bytes(hasher.finalize().as_bytes())
}

pub fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// What a tree's archive hashes to. In this world that follows from the tree alone.
pub fn nar_hash(tree: TreeDigest) -> NarHash {
    NarHash(digest(&[b"nar", &tree.0]))
}

fn source(seed: u64, number: usize) -> Source {
    let name = format!("source-{number}");
    let tree = TreeDigest(digest(&[b"source", &seed.to_le_bytes(), name.as_bytes()]));
    let nar_hash = nar_hash(tree);
    let ca = CAHash::Nar(NixHash::Sha256(nar_hash.0));
    let path = build_ca_path(&name, &ca, std::iter::empty(), false).unwrap();
    let ca = ca.to_nix_string();
    Source {
        path,
        ca,
        tree,
        nar_hash,
    }
}

fn jobs(dice: &mut Dice, sources: &[Source], count: usize, troubled: bool) -> Vec<Job> {
    let mut jobs: Vec<Job> = Vec::new();
    let mut modulo: BTreeMap<StorePath, ModuloHash> = BTreeMap::new();
    for number in 0..count {
        let inputs = if number == 0 {
            vec![]
        } else {
            let most = number.min(3);
            let chosen = usize::try_from(dice.between(0, most as u64)).unwrap();
            let first = number.saturating_sub(8);
            dice.some(number - first, chosen)
                .into_iter()
                .map(|at| first + at)
                .collect()
        };
        let chosen = usize::try_from(dice.between(u64::from(inputs.is_empty()), 2)).unwrap();
        let read = dice.some(sources.len(), chosen);
        let mut outputs = BTreeMap::from([("out".to_owned(), OutputKind::InputAddressed)]);
        if dice.percent(20) {
            outputs.insert("dev".to_owned(), OutputKind::InputAddressed);
        }
        let all = |job: &Job| job.outputs.keys().cloned().collect::<BTreeSet<String>>();
        let fields = DerivationFields {
            name: format!("job-{number}"),
            outputs,
            input_derivations: inputs
                .iter()
                .map(|at| (jobs[*at].drv.clone(), all(&jobs[*at])))
                .collect(),
            input_sources: read.iter().map(|at| sources[*at].path.clone()).collect(),
            system: b"x86_64-linux".to_vec(),
            builder: b"/bin/sh".to_vec(),
            arguments: vec![],
            environment: BTreeMap::new(),
        };
        let made = fields.instantiate(|path| modulo.get(path).copied()).unwrap();
        modulo.insert(made.drv_path.clone(), made.modulo);
        let references = inputs
            .iter()
            .flat_map(|at| jobs[*at].outputs.values().cloned())
            .filter(|_| dice.percent(50));
        let references = references.collect();
        let duration = if dice.percent(15) {
            dice.between(3_000, 40_000)
        } else {
            dice.between(20, 3_000)
        };
        jobs.push(Job {
            drv: made.drv_path,
            text: made.aterm,
            outputs: made.outputs,
            inputs,
            sources: read,
            references,
            duration,
            size: dice.between(1 << 10, 8 << 20),
            restless: troubled && dice.percent(8),
            broken: troubled && dice.percent(4),
        });
    }
    jobs
}

impl Plan {
    pub fn new(seed: u64, nodes: Option<usize>) -> Self {
        let mut dice = Dice::new(seed);
        let usual = match dice.below(100) {
            _ if seed % LARGE == LARGE - 1 => 1_000,
            0 => dice.between(60, 120),
            1..=9 => dice.between(15, 30),
            _ => dice.between(3, 10),
        };
        let nodes = nodes.unwrap_or(usize::try_from(usual).unwrap()).max(2);
        // A calm world shows what holds where nothing goes wrong.
        let calm = dice.percent(15);
        let horizon = 60_000;
        let sources: Vec<Source> = (0..4).map(|number| source(seed, number)).collect();
        let (fewest, most) = if nodes < 60 { (3, 14) } else { (20, 60) };
        let count = usize::try_from(dice.between(fewest, most)).unwrap();
        let jobs = jobs(&mut dice, &sources, count, !calm);
        let (mut machines, builders) = machines(&mut dice, seed, nodes, calm);
        mix_rules(seed, &mut machines, &builders, &jobs);
        let liars: Vec<usize> = (0..nodes)
            .filter(|at| machines[*at].nature != Nature::Honest)
            .collect();
        let revoked = (!calm && nodes > 3 && dice.percent(25)).then(|| {
            let by_its_lies = !liars.is_empty() && dice.percent(70);
            if by_its_lies {
                liars[dice.below(liars.len())]
            } else {
                1 + dice.below(nodes - 1)
            }
        });
        let mut attacks = Vec::new();
        if let Some(revoked) = revoked {
            let at = dice.between(1_000, horizon);
            for machine in &mut machines {
                machine.hears = at + dice.between(1, 5_000);
            }
            if machines[revoked].nature != Nature::Honest {
                for _ in 0..dice.between(2, 8) {
                    attacks.push((at + dice.between(0, 30_000), revoked, Attack::GoesOnAsking));
                }
            }
        }
        let mut secrecy = Dice::new(seed ^ 0x5ec7);
        for machine in machines
            .iter_mut()
            .filter(|machine| machine.nature == Nature::Honest)
        {
            // What several have to build is built by nobody who keeps it to himself.
            if secrecy.percent(12) && !machine.rules.asks_several() {
                machine.secrets.insert(secrecy.below(sources.len()));
            }
        }
        let (views, swarm) = views(seed, &machines, revoked);
        let partitions = (0..if calm { 0 } else { dice.below(3) }).map(|_| {
            let from = dice.between(0, horizon);
            let side = dice.between(1, nodes as u64 / 2);
            Partition {
                from,
                to: from + dice.between(500, 40_000),
                side: dice
                    .some(nodes, usize::try_from(side).unwrap())
                    .into_iter()
                    .collect(),
            }
        });
        let partitions = partitions.collect();
        let honest: Vec<usize> = (0..nodes)
            .filter(|at| machines[*at].nature == Nature::Honest)
            .collect();
        let askers = (nodes / 3).clamp(2, 64);
        let sessions = (0..askers).map(|_| {
            let targets = 1 + dice.below(3);
            let late = if dice.percent(50) { 200 } else { 30_000 };
            Session {
                machine: honest[dice.below(honest.len())],
                opens: dice.between(0, late),
                targets: dice.some(jobs.len(), targets),
                keep_going: dice.percent(30),
                interrupted: (!calm && dice.percent(12)).then(|| dice.between(100, 20_000)),
                tries_again: dice.percent(70),
            }
        });
        let sessions: Vec<Session> = sessions.collect();
        for (at, machine) in machines.iter().enumerate() {
            if machine.nature != Nature::Honest {
                let count = dice.between(2, 12);
                for _ in 0..count {
                    // At any time, or while somebody else is likely to want the same.
                    let when = if dice.percent(50) {
                        dice.between(0, horizon)
                    } else {
                        sessions[dice.below(sessions.len())].opens + dice.between(0, 4_000)
                    };
                    attacks.push((when, at, Attack::Any));
                }
            }
        }
        Self {
            seed,
            sources,
            jobs,
            machines,
            sessions,
            partitions,
            views,
            swarm,
            revoked,
            loss: if calm { 0 } else { dice.between(0, 4) },
            slow: if calm { 0 } else { dice.between(0, 6) },
            attacks,
        }
    }

    /// Whether two nodes hear each other.
    pub fn hear(&self, one: usize, other: usize, now: u64) -> bool {
        let apart = |partition: &Partition| {
            (partition.from..partition.to).contains(&now)
                && partition.side.contains(&one) != partition.side.contains(&other)
        };
        !self.partitions.iter().any(apart)
    }

    /// Who keeps the records of a region: those closest to it.
    pub fn keepers(&self, label: &[u8], count: usize) -> Vec<usize> {
        let mut all: Vec<([u8; 32], usize)> = Vec::with_capacity(self.machines.len());
        for (at, machine) in self.machines.iter().enumerate() {
            all.push((digest(&[label, &machine.key.0]), at));
        }
        all.sort_unstable();
        all.truncate(count);
        all.into_iter().map(|(_, at)| at).collect()
    }

    /// Whether the records of a node count where the roster decides.
    pub fn is_builder(&self, at: usize) -> bool {
        self.machines[at].roles.has(Role::Build)
    }
}

/// And who may be among several that have to agree.
fn machines(dice: &mut Dice, seed: u64, nodes: usize, calm: bool) -> (Vec<Machine>, Vec<usize>) {
    let with_traitors = !calm && dice.percent(40);
    // Hardly anybody but liars builds; they say nothing, or a lot.
    let (silent, talkative) = match dice.below(100) {
        0..15 if with_traitors => (true, false),
        15..40 if with_traitors => (false, true),
        _ => (false, false),
    };
    let sparse = nodes > 30 || dice.percent(20);
    let mut machines: Vec<Machine> = Vec::with_capacity(nodes);
    for number in 0..nodes {
        let secret = secret(seed, number);
        let key = secret.key();
        // The founder has every role, so it is honest; so is one more, that somebody wants something.
        let nature = match dice.below(100) {
            _ if calm || number < 2 => Nature::Honest,
            0..40 if silent || talkative => Nature::Traitor,
            0..12 => Nature::Stranger,
            12..24 if with_traitors => Nature::Traitor,
            _ => Nature::Honest,
        };
        let mut roles = vec![Role::Request];
        match nature {
            Nature::Stranger => {}
            Nature::Traitor => {
                let how = dice.below(100);
                if how < 80 {
                    roles.push(Role::Build);
                }
                if how >= 55 {
                    roles.push(Role::Store);
                }
            }
            Nature::Honest => {
                if dice.percent(85) {
                    roles.push(Role::Build);
                }
                if dice.percent(30) {
                    roles.push(Role::Store);
                }
            }
        }
        let roles = if number == 0 {
            Roles::all()
        } else {
            roles.into_iter().collect()
        };
        let skew = match dice.below(100) {
            _ if calm => 0,
            0..80 => dice.between(0, 4) as i64 - 2,
            80..95 => dice.between(0, 160) as i64 - 80,
            _ => dice.between(0, 2_000) as i64 - 1_000,
        };
        let mut crashes = vec![];
        if !calm && number > 0 && dice.percent(25) {
            for _ in 0..dice.between(1, 3) {
                crashes.push((dice.between(100, 60_000), dice.between(50, 20_000)));
            }
        }
        machines.push(Machine {
            secret,
            key,
            nature,
            manner: match nature {
                Nature::Traitor if silent => Manner::Mute,
                Nature::Traitor if talkative => Manner::Talkative,
                Nature::Traitor if dice.percent(20) => Manner::Mute,
                _ => Manner::Fickle,
            },
            roles,
            rules: Rules::default(),
            policy: Arc::default(),
            slots: if number > 0 && (silent || (talkative && dice.percent(60))) {
                // A liar has one all the same.
                0
            } else {
                u32::try_from(dice.between(u64::from(number < 2), 3)).unwrap()
            },
            skew,
            neighbours: BTreeSet::new(),
            crashes,
            hears: u64::MAX,
            secrets: BTreeSet::new(),
        });
    }
    for at in 0..nodes {
        let others: Vec<usize> = if sparse {
            let mut others = dice.some(nodes, if nodes > 30 { 5 } else { 2 });
            others.push((at + 1) % nodes);
            others
        } else {
            (0..nodes).collect()
        };
        for other in others.into_iter().filter(|other| *other != at) {
            machines[at].neighbours.insert(other);
            machines[other].neighbours.insert(at);
        }
    }
    let builders: Vec<usize> = (0..nodes)
        .filter(|at| machines[*at].roles.has(Role::Build))
        .collect();
    for machine in &mut machines {
        match dice.below(100) {
            0..15 if builders.len() >= 3 && !sparse => {
                let chosen = dice.some(builders.len(), 3);
                machine.rules = Rules::for_all(Rule::Quorum {
                    needed: 2,
                    of: chosen.into_iter().map(|number| builders[number]).collect(),
                });
            }
            15..20 if machine.slots > 0 => machine.rules = Rules::for_all(Rule::Own),
            _ => {}
        }
    }
    // Of a team in which not everybody knows everybody, several hardly come to agree.
    if sparse {
        (machines, vec![])
    } else {
        (machines, builders)
    }
}

/// In some teams some have rules that differ from path to path.
fn mix_rules(seed: u64, machines: &mut [Machine], builders: &[usize], jobs: &[Job]) {
    let mut dice = Dice::new(seed ^ 0x7a11);
    let nodes = machines.len();
    let mixed = dice.percent(40);
    let stores: Vec<usize> = (0..nodes)
        .filter(|at| machines[*at].roles.has(Role::Store))
        .collect();
    for (at, machine) in machines.iter_mut().enumerate() {
        if mixed && machine.nature == Nature::Honest && dice.percent(50) {
            let builds = machine.slots > 0;
            machine.rules = Rules::mixed(&mut dice, jobs, (at, nodes), (builders, builds), &stores);
        }
    }
    let keys: Vec<NodeKey> = machines.iter().map(|machine| machine.key).collect();
    for machine in machines {
        machine.policy = Arc::new(machine.rules.policy(&keys));
    }
}

/// The real roster of the team, before and after one of its members is put out.
fn views(
    seed: u64,
    machines: &[Machine],
    revoked: Option<usize>,
) -> ([View; 2], tvix_node_protocol::build::SwarmId) {
    let founder = &machines[0];
    let genesis = Genesis {
        name: "team".into(),
        founders: vec![Founder {
            key: founder.key,
            name: "node-0".into(),
        }],
        threshold: 1,
        salt: digest(&[b"salt", &seed.to_le_bytes()]),
    };
    let mut roster = Roster::new(genesis).unwrap();
    let swarm = roster.swarm();
    for (number, machine) in machines.iter().enumerate().skip(1) {
        let member = Member {
            swarm,
            key: machine.key,
            name: format!("node-{number}"),
            roles: machine.roles.clone(),
            issued_by: founder.key,
            serial: 1,
            issued_at: BEGINNING - 10_000,
            not_after: BEGINNING + 100_000_000,
            ticket: None,
        };
        assert!(roster.merge(seal(&member, &founder.secret).unwrap()).unwrap());
    }
    let view = |roster: &Roster| View {
        members: Arc::new(roster.members(BEGINNING)),
        secret: roster.presence_secret(),
    };
    let before = view(&roster);
    if let Some(revoked) = revoked {
        let statement = Revoked {
            swarm,
            key: machines[revoked].key,
            revoked_by: founder.key,
            serial: 1,
            issued_at: BEGINNING,
            fresh: digest(&[b"fresh", &seed.to_le_bytes()]),
        };
        assert!(roster.merge(seal(&statement, &founder.secret).unwrap()).unwrap());
    }
    let after = view(&roster);
    ([before, after], swarm)
}
