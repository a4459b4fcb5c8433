//! The machines of a team, the network between them, and time.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildKey;
use tvix_node_protocol::envelope::{Envelope, NodeKey};
use tvix_node_protocol::messages::Shown;
use tvix_node_protocol::nix::hash::{CAHash, NixHash};
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_protocol::tree::TreeDigest;
use tvix_node_swarm::gate::NonceBook;

use super::super::private::Marked;
use super::dice::Dice;
use super::executor::{Executor, WORLD};
use super::ledger::{Ledger, Said};
use super::node::Node;
use super::plan::{BEGINNING, Plan, nar_hash};

/// Steps of one world; more mean that it does not end.
const STEPS: u64 = 80_000_000;

/// How long a question waits for its answer, in milliseconds.
pub const PATIENCE: u64 = 3_000;

/// What is in a tree. The digest of a tree decides all of it.
#[derive(Clone)]
pub struct Tree {
    pub size: u64,
    pub references: BTreeSet<StorePath>,
}

/// What survives a crash.
#[derive(Default)]
pub struct Disk {
    pub paths: BTreeMap<StorePath, PathInfo>,
    pub aside: BTreeSet<(StorePath, TreeDigest)>,
    pub texts: BTreeMap<StorePath, Vec<u8>>,
    pub records: BTreeMap<StorePath, Vec<Envelope>>,
    pub by_key: BTreeMap<BuildKey, Vec<Envelope>>,
    pub nonces: NonceBook,
    pub private: Marked,
}

pub struct World {
    pub plan: Arc<Plan>,
    pub executor: Arc<Executor>,
    dice: Mutex<Dice>,
    pub disks: Vec<Mutex<Disk>>,
    up: Mutex<Vec<Option<Arc<Node>>>>,
    lives: Mutex<u64>,
    ledger: Mutex<Ledger>,
    trees: Mutex<BTreeMap<TreeDigest, Tree>>,
    numbers: BTreeMap<NodeKey, usize>,
    pub jobs: BTreeMap<StorePath, usize>,
    pub trace: bool,
}

/// What came of a world.
#[derive(Debug, Default)]
pub struct Came {
    pub steps: u64,
    pub millis: u64,
    pub counts: BTreeMap<String, u64>,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl World {
    pub fn new(plan: Plan, trace: bool) -> Arc<Self> {
        let plan = Arc::new(plan);
        let numbers = plan
            .machines
            .iter()
            .enumerate()
            .map(|(at, machine)| (machine.key, at));
        let jobs = plan
            .jobs
            .iter()
            .enumerate()
            .map(|(at, job)| (job.drv.clone(), at));
        let trees = plan.sources.iter().map(|source| {
            let tree = Tree {
                size: 1_000,
                references: BTreeSet::new(),
            };
            (source.tree, tree)
        });
        Arc::new(Self {
            executor: Arc::default(),
            dice: Mutex::new(Dice::new(plan.seed ^ 0xabcd)),
            disks: plan
                .machines
                .iter()
                .map(|machine| {
                    let secrets = machine.secrets.iter();
                    let mut disk = Disk::default();
                    disk.private
                        .mark(secrets.map(|source| plan.sources[*source].path.clone()));
                    Mutex::new(disk)
                })
                .collect(),
            up: Mutex::new(plan.machines.iter().map(|_| None).collect()),
            lives: Mutex::default(),
            ledger: Mutex::new(Ledger::new(&plan)),
            trees: Mutex::new(trees.collect()),
            numbers: numbers.collect(),
            jobs: jobs.collect(),
            trace,
            plan,
        })
    }

    pub fn now(&self) -> u64 {
        self.executor.now()
    }

    pub fn dice(&self) -> MutexGuard<'_, Dice> {
        lock(&self.dice)
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    pub fn number(&self, key: NodeKey) -> Option<usize> {
        self.numbers.get(&key).copied()
    }

    pub fn node(&self, at: usize) -> Option<Arc<Node>> {
        lock(&self.up)[at].clone()
    }

    /// Seconds since 1970 on a machine's clock.
    pub fn clock(&self, at: usize) -> u64 {
        (BEGINNING + self.now() / 1000).saturating_add_signed(self.plan.machines[at].skew)
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>7} {}", self.now(), what());
        }
    }

    /// A tree comes into being.
    pub fn make_tree(&self, digest: TreeDigest, tree: Tree) {
        lock(&self.trees).insert(digest, tree);
    }

    pub fn tree(&self, digest: TreeDigest) -> Option<Tree> {
        lock(&self.trees).get(&digest).cloned()
    }

    /// Whether an info says of a tree what is in it. The store finds out when it hashes what came.
    pub fn fits(&self, info: &PathInfo) -> bool {
        let tree = self.tree(info.tree);
        let content = CAHash::Nar(NixHash::Sha256(nar_hash(info.tree).0)).to_nix_string();
        tree.is_some_and(|tree| {
            tree.references == info.references
                && tree.size == info.nar_size
                && nar_hash(info.tree) == info.nar_hash
                && info.ca.as_ref().is_none_or(|ca| *ca == content)
        })
    }

    /// What else a member says that shows something.
    pub fn as_said(&self, shown: &Shown) -> Said {
        Said {
            record: shown.record.as_ref().and_then(|record| {
                let signer = self.number(record.signer)?;
                Some((record.payload_hash(), signer))
            }),
            from: match shown.info.origin {
                Origin::Record { builder } => self.number(builder),
                Origin::Peer { peer } => self.number(peer),
                _ => None,
            },
        }
    }

    /// How long a message is under way; none: it does not arrive.
    pub fn way(&self, from: usize, to: usize) -> Option<u64> {
        let mut dice = self.dice();
        let millis = if dice.percent(self.plan.slow) {
            dice.between(200, 2_500)
        } else {
            dice.between(1, 25)
        };
        let lost = dice.percent(self.plan.loss);
        (!lost && self.plan.hear(from, to, self.now())).then_some(millis)
    }

    /// Asks a machine something. None: no answer came, or it came too late.
    pub async fn ask<T: Send>(
        self: &Arc<Self>,
        from: usize,
        to: usize,
        question: impl FnOnce(&Arc<Node>) -> T + Send,
    ) -> Option<T> {
        let answer = self.executor.within(PATIENCE, async {
            let (there, back) = (self.way(from, to), self.way(to, from));
            let Some(there) = there else {
                return std::future::pending().await;
            };
            self.executor.sleep(there).await;
            // Nobody listens there: that is said at once.
            let answer = question(&self.node(to)?);
            let Some(back) = back.filter(|_| self.plan.hear(from, to, self.now())) else {
                return std::future::pending().await;
            };
            self.executor.sleep(back).await;
            Some(answer)
        });
        let answer = answer.await.flatten();
        if answer.is_none() {
            self.ledger().unheard(from, to, self.now());
        }
        answer
    }

    fn start(self: &Arc<Self>, at: usize) {
        let life = {
            let mut lives = lock(&self.lives);
            *lives += 1;
            *lives
        };
        let node = Node::new(self, at, life);
        self.say(|| format!("machine {at} starts"));
        lock(&self.up)[at] = Some(Arc::clone(&node));
        self.ledger().started(at, self.now());
        node.begin();
    }

    fn crash(&self, at: usize) {
        let Some(node) = lock(&self.up)[at].take() else {
            return;
        };
        self.say(|| format!("machine {at} crashes"));
        lock(&self.disks[at]).nonces = node.nonces();
        self.executor.kill(node.group);
        self.ledger().crashed(at);
    }

    /// Lets happen what the plan says. Gives what came of it; panics with what went wrong.
    pub fn run(self: &Arc<Self>) -> Came {
        for at in 0..self.plan.machines.len() {
            self.start(at);
            let world = Arc::clone(self);
            self.executor.spawn(WORLD, async move {
                let mut crashes = world.plan.machines[at].crashes.clone();
                crashes.sort_unstable();
                for (when, away) in crashes {
                    world.executor.sleep(when.saturating_sub(world.now())).await;
                    world.crash(at);
                    world.executor.sleep(away).await;
                    world.collect(at);
                    world.start(at);
                }
            });
            let world = Arc::clone(self);
            let hears = world.plan.machines[at].hears;
            if hears != u64::MAX {
                self.executor.spawn(WORLD, async move {
                    world.executor.sleep(hears).await;
                    if let Some(node) = world.node(at) {
                        node.hears_of_revocation();
                    }
                });
            }
        }
        for number in 0..self.plan.sessions.len() {
            let world = Arc::clone(self);
            self.executor
                .spawn(WORLD, async move { world.command(number).await });
        }
        for (when, at, attack) in self.plan.attacks.clone() {
            let world = Arc::clone(self);
            self.executor.spawn(WORLD, async move {
                world.executor.sleep(when).await;
                if let Some(node) = world.node(at) {
                    node.attack(attack);
                }
            });
        }
        for edge in self
            .plan
            .partitions
            .iter()
            .flat_map(|partition| [partition.from, partition.to])
        {
            let world = Arc::clone(self);
            self.executor.spawn(WORLD, async move {
                world.executor.sleep(edge).await;
                for at in 0..world.plan.machines.len() {
                    if let Some(node) = world.node(at) {
                        node.look_around();
                    }
                }
            });
        }
        let ran = catch_unwind(AssertUnwindSafe(|| self.executor.run(STEPS)));
        let ended = ran.and_then(|steps| catch_unwind(AssertUnwindSafe(|| self.end(steps))));
        // The world holds itself through its tasks.
        self.executor.clear();
        lock(&self.up).clear();
        ended.unwrap_or_else(|error| resume_unwind(error))
    }

    fn end(&self, steps: u64) -> Came {
        self.ledger().end();
        for (at, disk) in self.disks.iter().enumerate() {
            let paths = lock(disk)
                .paths
                .iter()
                .map(|(path, info)| (path.clone(), info.tree))
                .collect();
            self.ledger().compare(at, &paths);
        }
        let nodes: Vec<Arc<Node>> = lock(&self.up).iter().flatten().cloned().collect();
        for node in nodes {
            node.check_idle();
        }
        let ledger = self.ledger();
        let counts = ledger
            .counts
            .iter()
            .map(|(what, count)| ((*what).to_owned(), *count));
        let reasons = ledger
            .reasons
            .iter()
            .map(|(reason, count)| (format!("again: {reason:?}"), *count));
        Came {
            steps,
            millis: self.now(),
            counts: counts.chain(reasons).collect(),
        }
    }

    /// A user's command: opened, evaluated, and tried again if its machine crashes.
    async fn command(self: &Arc<Self>, number: usize) {
        let session = &self.plan.sessions[number];
        self.executor.sleep(session.opens).await;
        for attempt in 0..2_u64 {
            while self.node(session.machine).is_none() {
                self.executor.sleep(500).await;
            }
            let Some(node) = self.node(session.machine) else {
                return;
            };
            let id = number as u64 * 2 + attempt;
            let over = node.open(id, number);
            let mut over = over;
            // The node's end of this goes with the node.
            if over.wait_for(|over| *over).await.is_ok() || !session.tries_again {
                return;
            }
        }
    }

    /// While a machine is away, what nobody was told of is collected now and then.
    fn collect(&self, at: usize) {
        if !self.dice().percent(30) {
            return;
        }
        let mut disk = lock(&self.disks[at]);
        disk.aside.clear();
        let all: Vec<StorePath> = disk.paths.keys().rev().cloned().collect();
        for path in all {
            let referred = disk
                .paths
                .values()
                .any(|info| info.path != path && info.references.contains(&path));
            if !referred && !self.ledger().is_acknowledged(at, &path) && self.dice().percent(50) {
                disk.paths.remove(&path);
                self.ledger().collected(at, &path);
            }
        }
    }
}
