//! One life of one machine: its coordinator, its memory, and what it does when something happens.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tvix_node_coordinator::{
    Action, BuildId, Config, Coordinator, Event, FailureKind, FetchId, OwnBuilder, PeerOffer, Time,
};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::roster::Role;
use tvix_node_swarm::gate::{NonceBook, RequestGate};
use tvix_node_swarm::presence::{Advertisement, PresenceTable};
use tvix_node_swarm::underway::{For, Noted, Stage, Underway};

use super::super::evidence::ShownPaths;
use super::super::grants::Grants;
use super::super::served::Served;
use super::super::together::SharedBuilds;
use super::executor::Group;
use super::ledger::Failing;
use super::plan::{Nature, View};
use super::serving::Begun;
use super::world::{World, lock};
use crate::daemon::derivations::CheckedDerivations;
use crate::daemon::told::Told;

pub struct Core {
    pub coordinator: Coordinator,
    pub gate: RequestGate<NonceBook>,
    pub table: PresenceTable,
    pub own: Advertisement,
    pub builds: HashMap<BuildId, CancellationToken>,
    pub fetches: HashMap<FetchId, CancellationToken>,
    pub lent: u32,
    pub serial: u64,
    pub publishing: bool,
    /// Builds that others are told of.
    announced: HashMap<BuildId, Noted>,
    /// What is about to be placed.
    deciding: HashMap<StorePath, Noted>,
    /// When the coordinator is told the time next.
    tick: Option<u64>,
    told_free: Option<u32>,
    telling: bool,
    seen: BTreeSet<usize>,
    known_builds: BTreeSet<BuildId>,
    pub sessions: BTreeMap<u64, (usize, watch::Sender<bool>)>,
}

pub struct Node {
    pub world: Arc<World>,
    pub at: usize,
    pub key: NodeKey,
    pub group: Group,
    pub core: Mutex<Core>,
    pub shown: ShownPaths,
    pub building: Arc<SharedBuilds>,
    pub underway: Arc<Underway>,
    /// By where it lies: who began what others may join.
    pub begun: Mutex<HashMap<usize, Begun>>,
    pub served: Arc<Served>,
    pub grants: Grants,
    pub derivations: CheckedDerivations,
    pub told: Told,
    /// What a liar has to lie with.
    pub bag: Mutex<super::liar::Bag>,
}

impl Node {
    pub fn new(world: &Arc<World>, at: usize, life: u64) -> Arc<Self> {
        let plan = &world.plan;
        let machine = &plan.machines[at];
        let nonces = lock(&world.disks[at]).nonces.clone();
        let view = &plan.views[usize::from(machine.hears <= world.now())];
        let mut own = Advertisement::new(view.secret.clone(), plan.machines.len());
        own.add(lock(&world.disks[at]).public());
        Arc::new(Self {
            world: Arc::clone(world),
            at,
            key: machine.key,
            group: Group(life),
            core: Mutex::new(Core {
                coordinator: Coordinator::new(Config::new(format!("node-{at}"))),
                gate: RequestGate::new(plan.swarm, machine.key, nonces),
                table: PresenceTable::new(plan.swarm),
                own,
                builds: HashMap::new(),
                fetches: HashMap::new(),
                lent: 0,
                serial: world.now() * 1_000,
                publishing: false,
                announced: HashMap::new(),
                deciding: HashMap::new(),
                tick: None,
                told_free: None,
                telling: false,
                seen: BTreeSet::new(),
                known_builds: BTreeSet::new(),
                sessions: BTreeMap::new(),
            }),
            shown: ShownPaths::default(),
            building: Arc::default(),
            underway: Arc::default(),
            begun: Mutex::default(),
            served: Arc::default(),
            grants: Grants::default(),
            derivations: CheckedDerivations::default(),
            told: Told::default(),
            bag: Mutex::default(),
        })
    }

    pub fn is_honest(&self) -> bool {
        self.world.plan.machines[self.at].nature == Nature::Honest
    }

    pub fn view(&self) -> &View {
        let heard = self.world.plan.machines[self.at].hears <= self.world.now();
        &self.world.plan.views[usize::from(heard)]
    }

    pub fn clock(&self) -> u64 {
        self.world.clock(self.at)
    }

    pub fn nonces(&self) -> NonceBook {
        lock(&self.core).gate.nonces().clone()
    }

    pub fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        self.world.executor.spawn(self.group, task);
    }

    pub async fn sleep(&self, millis: u64) {
        self.world.executor.sleep(millis).await;
    }

    /// The first thing in a life.
    pub fn begin(self: &Arc<Self>) {
        let machine = &self.world.plan.machines[self.at];
        if self.is_honest() {
            self.event(Event::OwnBuilder(OwnBuilder {
                slots: machine.slots,
                systems: vec!["x86_64-linux".to_owned()],
                features: vec![],
            }));
            self.publish_soon();
        } else {
            let texts = self
                .world
                .plan
                .jobs
                .iter()
                .map(|job| (job.drv.clone(), job.text.clone()));
            lock(&self.world.disks[self.at]).texts.extend(texts);
        }
        self.look_around();
        for other in machine.neighbours.clone() {
            if let Some(node) = self.world.node(other) {
                node.look_around();
            }
        }
    }

    /// Connections come and go: it takes a moment until that is noticed.
    pub fn look_around(self: &Arc<Self>) {
        for other in self.world.plan.machines[self.at].neighbours.clone() {
            if self.sees(other) == lock(&self.core).seen.contains(&other) {
                continue;
            }
            let node = Arc::clone(self);
            let delay = self.world.dice().between(5, 400);
            self.spawn(async move {
                node.sleep(delay).await;
                let sees = node.sees(other);
                let changed = {
                    let seen = &mut lock(&node.core).seen;
                    if sees {
                        seen.insert(other)
                    } else {
                        seen.remove(&other)
                    }
                };
                if changed && sees {
                    node.offer_of(other);
                } else if changed {
                    let key = node.world.plan.machines[other].key;
                    let now = node.world.now();
                    node.world.ledger().builder_gone(node.at, other, now);
                    node.event(Event::PeerGone { node: key });
                }
            });
        }
    }

    /// Who this node is connected with.
    pub fn seen(&self) -> BTreeSet<usize> {
        lock(&self.core).seen.clone()
    }

    fn sees(&self, other: usize) -> bool {
        let plan = &self.world.plan;
        let theirs = &plan.machines[other];
        self.world.node(other).is_some()
            && plan.hear(self.at, other, self.world.now())
            && self.view().members.contains(theirs.key)
            && plan.views[usize::from(theirs.hears <= self.world.now())]
                .members
                .contains(self.key)
    }

    /// Tells the coordinator what a peer offers.
    fn offer_of(self: &Arc<Self>, other: usize) {
        let Some(peer) = self.world.node(other) else {
            return;
        };
        if !self.is_honest() || !lock(&self.core).seen.contains(&other) {
            return;
        }
        let members = &self.view().members;
        let believed = !self.world.plan.machines[self.at]
            .policy
            .distrusts_wholly(peer.key);
        let builds = believed && members.may(peer.key, Role::Build) && members.may(self.key, Role::Request);
        let slots = self.world.plan.machines[other]
            .slots
            .max(u32::from(!peer.is_honest()));
        let free = if peer.is_honest() {
            lock(&peer.core).coordinator.free_slots()
        } else {
            slots
        };
        let offer = PeerOffer {
            name: format!("node-{other}"),
            slots_free: if builds { free } else { 0 },
            slots: if builds { slots } else { 0 },
            systems: vec!["x86_64-linux".to_owned()],
            features: vec![],
            fixed_outputs: false,
            link: tvix_node_coordinator::placement::Link::default(),
            load: 0,
            cores: 4,
            withheld: None,
        };
        self.event(Event::Peer {
            node: peer.key,
            offer,
        });
    }

    /// From now on somebody is out, and what has been advertised is advertised under other keys.
    pub fn hears_of_revocation(self: &Arc<Self>) {
        let mut own = Advertisement::new(self.view().secret.clone(), self.world.plan.machines.len());
        own.add(lock(&self.world.disks[self.at]).public());
        lock(&self.core).own = own;
        self.look_around();
        self.publish_soon();
        for other in self.seen() {
            self.offer_of(other);
        }
    }

    /// Whether nothing is left that a world without commands should not have.
    pub fn check_idle(&self) {
        let core = lock(&self.core);
        assert!(
            core.coordinator.is_idle(),
            "ENDLESS: the coordinator of machine {} is not idle at the end",
            self.at
        );
        assert!(
            core.sessions.is_empty(),
            "ENDLESS: commands are left at machine {}",
            self.at
        );
        assert!(
            core.announced.is_empty() && core.deciding.is_empty() && self.underway.is_empty(),
            "ENDLESS: machine {} says for ever that it builds something",
            self.at
        );
        assert!(
            !self.served.is_serving(),
            "ENDLESS: machine {} still serves somebody",
            self.at
        );
        assert_eq!(
            core.lent, 0,
            "ENDLESS: slots of machine {} are still lent",
            self.at
        );
    }

    /// Hands an event to the coordinator and does what it wants done.
    pub fn event(self: &Arc<Self>, event: Event) {
        let (at, now) = (self.at, self.world.now());
        self.world.ledger().check_silence(at, now);
        match &event {
            Event::BuildStarted { build } | Event::Heartbeat { build } => {
                self.world.ledger().heard_of(at, build.0, now)
            }
            Event::BuildFinished { build, .. } => {
                lock(&self.core).builds.remove(build);
                self.world.ledger().attempt_over(at, build.0);
            }
            Event::BuildFailed { build, failure } => {
                lock(&self.core).builds.remove(build);
                let how = match failure.kind {
                    FailureKind::Busy => Failing::Blameless,
                    FailureKind::Refused => Failing::Refused,
                    FailureKind::Transient | FailureKind::Cancelled => Failing::Lost,
                    FailureKind::Gone => Failing::Gone,
                    FailureKind::Builder | FailureKind::Limit | FailureKind::Disagreed => {
                        Failing::ItsOwnFault
                    }
                };
                self.world.ledger().attempt_failed(at, build.0, how, now);
            }
            Event::Peer { node, offer } => {
                if let Some(builder) = self.world.number(*node) {
                    self.world.ledger().offered(at, builder, offer.slots_free);
                }
            }
            Event::InputsMissing { build, paths } => {
                self.world.ledger().inputs_missing(at, build.0, paths);
            }
            _ => {}
        }
        self.world.say(|| format!("{at:>3} event  {event:?}"));
        let weighed = match &event {
            Event::InputsWeighed { derivation, .. } => Some(derivation.clone()),
            _ => None,
        };
        let (actions, new, waited_for, free) = {
            let mut core = lock(&self.core);
            let actions = core.coordinator.handle(Time(now), event);
            let views: Vec<_> = core
                .coordinator
                .builds()
                .map(|view| (view.build, view.derivation, view.node))
                .collect();
            let mut new = vec![];
            let mut waited_for = BTreeSet::new();
            for (build, derivation, node) in views {
                if node.is_some() {
                    waited_for.insert(build.0);
                }
                if core.known_builds.insert(build) {
                    new.push((build, derivation, node));
                }
            }
            (actions, new, waited_for, core.coordinator.free_slots())
        };
        for (build, derivation, node) in new {
            let builder = node.and_then(|key| self.world.number(key));
            self.world
                .ledger()
                .placed(at, build.0, self.world.jobs[&derivation], builder, now);
        }
        for action in actions {
            self.world.say(|| format!("{at:>3} action {action:?}"));
            self.act(action);
        }
        if let Some(derivation) = weighed {
            lock(&self.core).deciding.remove(&derivation);
        }
        {
            let mut ledger = self.world.ledger();
            ledger.still_waited_for(at, &waited_for, now);
            ledger.looked_around(at, free, now);
        }
        self.schedule_tick();
        self.tell_free(free);
    }

    fn schedule_tick(self: &Arc<Self>) {
        let mut core = lock(&self.core);
        let Some(due) = core.coordinator.deadline() else {
            return;
        };
        if core.tick.is_some_and(|tick| tick <= due.0) {
            return;
        }
        core.tick = Some(due.0);
        let node = Arc::clone(self);
        self.spawn(async move {
            node.sleep(due.0.saturating_sub(node.world.now()).max(1)).await;
            {
                let mut core = lock(&node.core);
                if core.tick != Some(due.0) {
                    return;
                }
                core.tick = None;
            }
            node.event(Event::Tick);
        });
    }

    /// Tells the neighbours how many slots are free, some time after that has changed.
    fn tell_free(self: &Arc<Self>, free: u32) {
        let mut core = lock(&self.core);
        if core.told_free == Some(free) || core.telling {
            return;
        }
        core.telling = true;
        let node = Arc::clone(self);
        self.spawn(async move {
            node.sleep(100).await;
            {
                let mut core = lock(&node.core);
                core.telling = false;
                core.told_free = Some(core.coordinator.free_slots());
            }
            for other in node.world.plan.machines[node.at].neighbours.clone() {
                let (world, at) = (Arc::clone(&node.world), node.at);
                node.spawn(async move {
                    // On a connection: as long as there is one, it arrives.
                    if world.travel(at, other).await
                        && let Some(peer) = world.node(other)
                    {
                        peer.offer_of(at);
                    }
                });
            }
        });
    }

    fn act(self: &Arc<Self>, action: Action) {
        let node = Arc::clone(self);
        match action {
            Action::AskPresence {
                question,
                paths,
                desired_store,
            } => {
                assert!(desired_store.is_none());
                self.world
                    .ledger()
                    .presence_asked(self.at, &paths, self.world.now());
                self.spawn(async move { node.answer_presence(question, paths).await });
            }
            Action::WeighInputs {
                derivation,
                inputs,
                outputs,
                terms,
                nodes,
            } => {
                self.world.ledger().looks(self.at, self.world.jobs[&derivation]);
                let (noted, turn) = self.underway.decide(derivation.clone(), terms, For::Owner);
                lock(&self.core).deciding.insert(derivation.clone(), noted);
                self.spawn(async move {
                    node.weigh(derivation, (turn, terms), inputs, outputs, nodes)
                        .await
                });
            }
            Action::Announce {
                build,
                derivation,
                terms,
                node,
            } => {
                let stage = node.map_or(Stage::Here, Stage::At);
                let noted = self.underway.note(derivation.clone(), terms, For::Owner, stage);
                let mut core = lock(&self.core);
                core.announced.insert(build, noted);
                core.deciding.remove(&derivation);
            }
            Action::Retract { build } => drop(lock(&self.core).announced.remove(&build)),
            Action::Fetch {
                fetch, path, from, ..
            } => {
                let cancel = CancellationToken::new();
                lock(&self.core).fetches.insert(fetch, cancel.clone());
                self.spawn(async move {
                    let fetching = node.fetch(fetch, path, from);
                    let event = cancel.run_until_cancelled(fetching).await;
                    lock(&node.core).fetches.remove(&fetch);
                    if let Some(event) = event {
                        node.event(event);
                    }
                });
            }
            // Nothing is slow here.
            Action::HurryFetch { .. } => {}
            Action::CancelFetch { fetch } => {
                if let Some(cancel) = lock(&self.core).fetches.remove(&fetch) {
                    cancel.cancel();
                }
            }
            Action::BuildHere {
                build,
                derivation,
                joins,
                ..
            } => {
                self.world.ledger().begins_here(self.at, build.0);
                let cancel = CancellationToken::new();
                lock(&self.core).builds.insert(build, cancel.clone());
                self.spawn(async move {
                    let event = node.build_here(build, (derivation, joins), cancel).await;
                    node.event(event);
                });
            }
            Action::Request {
                build,
                node: builder,
                derivation,
                outputs,
                kind,
                urgency,
                cores,
                limits,
                bring,
                ..
            } => {
                let cancel = CancellationToken::new();
                lock(&self.core).builds.insert(build, cancel.clone());
                let order = super::super::request::Order {
                    build,
                    node: builder,
                    derivation,
                    outputs,
                    kind,
                    desired_store: None,
                    bring,
                    cores,
                    limits,
                    urgency,
                    reason: String::new(),
                    keep_failed: false,
                };
                self.spawn(async move {
                    let event = node.request(order, cancel).await;
                    node.event(event);
                });
            }
            Action::CancelBuild { build, .. } => {
                self.world.ledger().attempt_over(self.at, build.0);
                if let Some(cancel) = lock(&self.core).builds.remove(&build) {
                    cancel.cancel();
                }
            }
            Action::Tell { session, event } => self.told(session.0, &event),
            // The store keeps everything while its node is up, and the stream of a request is its lease.
            Action::Release { .. } | Action::RenewLease { .. } => {}
            Action::Push { .. } | Action::CancelPush { .. } => panic!("no command here names a store"),
            Action::Check { .. } | Action::CancelChecks { .. } => panic!("no command here checks"),
            Action::Refuse { refusal, .. } => panic!("a command is refused: {refusal}"),
        }
    }
}
