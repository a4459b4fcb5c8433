//! Builds: what they make, this node's own, and those for others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;
use tvix_node_coordinator::{BuildFailure, BuildId, BuiltPath, Delivery, Event, FailureKind};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{
    BuildKey, BuildLimits, BuildOptions, BuildRecord, BuildRequest, BuiltOutput, Input, RecordInput,
    RequestHash, build_key,
};
use tvix_node_protocol::envelope::{Envelope, NodeKey, seal};
use tvix_node_protocol::messages::{self, Refusal, RefusalReason};
use tvix_node_protocol::nix::derivation::{Derivation, DrvError, read_derivation};
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_protocol::tree::TreeDigest;

use super::super::fetch::Keep;
use super::super::inputs::{Known, check_closure_of, check_references, judge_missing, refusal};
use super::super::limits::SLOT_PATIENCE;
use super::super::policy::opened;
use super::super::together::{Ended, Progress, SharedBuild};
use super::super::votes::{self, Ballot, Standing};
use super::ledger::{Content, End};
use super::node::Node;
use super::plan::{digest, nar_hash};
use super::world::{Tree, lock};
use crate::daemon::depot::DepotError;
use crate::daemon::perform::as_input;

/// Between two signs of life of a builder, in milliseconds.
const HEARTBEAT: u64 = 1_000;

/// What a builder says.
#[derive(Clone)]
pub enum Frame {
    Accepted,
    Heartbeat,
    Refused(Refusal),
    Failed(messages::BuildFailure),
    Finished(Envelope),
}

/// A request that is seen through.
struct Order {
    request: BuildRequest,
    hash: RequestHash,
    outputs: BTreeMap<String, StorePath>,
    direct: BTreeSet<StorePath>,
}

pub fn contents(inputs: &[Input]) -> Vec<Content> {
    inputs
        .iter()
        .map(|input| (input.path.clone(), input.tree))
        .collect()
}

pub fn failure(kind: messages::FailureKind, message: &str) -> messages::BuildFailure {
    messages::BuildFailure {
        kind,
        message: message.to_owned(),
        tail: vec![],
        folder: None,
    }
}

impl Node {
    /// What a build of these inputs makes here and now.
    pub fn make(&self, job: usize, inputs: &[Content]) -> BTreeMap<String, PathInfo> {
        let job = &self.world.plan.jobs[job];
        let salt = if job.restless { self.world.dice().next() } else { 0 };
        let mut infos = BTreeMap::new();
        for (name, path) in &job.outputs {
            let mut parts = vec![path.to_basename().into_bytes(), salt.to_le_bytes().to_vec()];
            for (path, tree) in inputs {
                parts.push(path.to_basename().into_bytes());
                parts.push(tree.0.to_vec());
            }
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let tree = TreeDigest(digest(&parts));
            infos.insert(
                name.clone(),
                self.described_tree(job.drv.clone(), path.clone(), tree, job.size, &job.references),
            );
        }
        infos
    }

    /// A tree that comes into being under a name.
    pub fn described_tree(
        &self,
        deriver: StorePath,
        path: StorePath,
        tree: TreeDigest,
        size: u64,
        references: &BTreeSet<StorePath>,
    ) -> PathInfo {
        let made = Tree {
            size,
            references: references.clone(),
        };
        self.world.make_tree(tree, made);
        PathInfo {
            path,
            tree,
            nar_hash: nar_hash(tree),
            nar_size: size,
            references: references.clone(),
            deriver: Some(deriver),
            ca: None,
            origin: Origin::Built,
            registered: self.clock(),
            signatures: vec![],
        }
    }

    /// That this was made of that.
    pub fn record_of(
        &self,
        key: BuildKey,
        derivation: &StorePath,
        inputs: &[Content],
        infos: &BTreeMap<String, PathInfo>,
        request: Option<RequestHash>,
    ) -> BuildRecord {
        let outputs = infos.iter().map(|(name, info)| {
            let output = BuiltOutput {
                path: info.path.clone(),
                tree: info.tree,
                nar_hash: info.nar_hash,
                nar_size: info.nar_size,
                references: info.references.iter().cloned().collect(),
            };
            (name.clone(), output)
        });
        BuildRecord {
            build_key: key,
            request,
            derivation: derivation.clone(),
            inputs: inputs
                .iter()
                .cloned()
                .map(|(path, tree)| RecordInput { path, tree })
                .collect(),
            outputs: outputs.collect(),
            builder: self.key,
            started: self.clock(),
            finished: self.clock(),
            sandbox: "simulated".into(),
        }
    }

    /// Every signature under a record is written down.
    pub fn sign(&self, record: &BuildRecord) -> Envelope {
        let inputs = record
            .inputs
            .iter()
            .map(|input| (input.path.clone(), input.tree))
            .collect();
        let outputs = record
            .outputs
            .values()
            .map(|output| (output.path.clone(), output.tree))
            .collect();
        self.world
            .ledger()
            .signed(self.at, &record.derivation, inputs, outputs);
        seal(record, &self.world.plan.machines[self.at].secret).unwrap()
    }

    /// What a build reads, from the own store.
    pub fn inputs_here(&self, job: usize) -> Vec<Input> {
        let plan = &self.world.plan;
        let sources = plan.jobs[job]
            .sources
            .iter()
            .map(|source| plan.sources[*source].path.clone());
        let made = plan.jobs[job]
            .inputs
            .iter()
            .flat_map(|input| plan.jobs[*input].outputs.values().cloned());
        let direct: Vec<StorePath> = sources.chain(made).collect();
        let disk = lock(&self.world.disks[self.at]);
        for path in &direct {
            assert!(
                disk.paths.contains_key(path),
                "LOST: machine {} builds without {path}",
                self.at
            );
        }
        disk.closure(&direct).values().map(as_input).collect()
    }

    /// How a record stands by this node's rules. Kept, where it is one of several.
    pub fn standing(&self, record: &BuildRecord, envelope: &Envelope) -> Standing {
        use super::super::evidence::Surroundings as _;
        let grounds = self.grounds();
        match votes::ballot(&grounds, record) {
            Ballot::Decided(standing) => standing,
            Ballot::Open { needed, of, output } => {
                let mut disk = lock(&self.world.disks[self.at]);
                disk.put_record(envelope);
                let known = disk.records.get(&output.path).map_or(&[][..], Vec::as_slice);
                let all: Vec<BuildRecord> = known.iter().filter_map(|record| opened(record).ok()).collect();
                votes::count(&grounds, (needed, of), output, record, &all, |node| {
                    node.to_string()
                })
            }
        }
    }

    pub async fn build_here(
        self: &Arc<Self>,
        build: BuildId,
        derivation: StorePath,
        cancel: CancellationToken,
    ) -> Event {
        let failed = |kind, error: &str| Event::BuildFailed {
            build,
            failure: BuildFailure {
                kind,
                error: error.to_owned(),
                log_tail: vec![],
            },
        };
        let number = self.world.jobs[&derivation];
        let job = &self.world.plan.jobs[number];
        let inputs = self.inputs_here(number);
        let noted = self
            .world
            .ledger()
            .build_begins(self.at, number, contents(&inputs), true, false);
        self.event(Event::BuildStarted { build });
        if cancel
            .run_until_cancelled(self.sleep(job.duration))
            .await
            .is_none()
        {
            self.world.ledger().build_ends(noted, End::Failed);
            return failed(FailureKind::Cancelled, "cancelled");
        }
        if job.broken {
            self.world.ledger().build_ends(noted, End::Failed);
            return failed(FailureKind::Builder, "exit code 1");
        }
        let infos = self.make(number, &contents(&inputs));
        let names: Vec<String> = infos.keys().cloned().collect();
        let key = build_key(&derivation, &inputs, &names, BuildOptions { cores: 0 }).unwrap();
        let record = self.record_of(key, &derivation, &contents(&inputs), &infos, None);
        let envelope = self.sign(&record);
        let made: Vec<Content> = infos
            .values()
            .map(|info| (info.path.clone(), info.tree))
            .collect();
        self.world.ledger().build_makes(noted, &made);
        let built = infos.iter().map(|(name, info)| {
            let (path, nar_size) = (info.path.clone(), info.nar_size);
            (name.clone(), BuiltPath { path, nar_size })
        });
        let outputs = built.collect();
        let delivery = match self.standing(&record, &envelope) {
            Standing::Counts => {
                self.register(infos.into_values().collect(), Some(&envelope))
                    .await;
                self.world.ledger().build_ends(noted, End::Kept);
                Delivery::OwnStore
            }
            Standing::Vote => {
                self.world.ledger().build_ends(noted, End::Vote);
                Delivery::Vote
            }
            Standing::Disagreed(why) => {
                self.world.ledger().build_ends(noted, End::Failed);
                return failed(FailureKind::Disagreed, &why);
            }
            Standing::Refused(why) => {
                self.world.ledger().build_ends(noted, End::Failed);
                return failed(FailureKind::Refused, &why);
            }
        };
        Event::BuildFinished {
            build,
            outputs,
            delivery,
        }
    }

    /// A request has come, from whoever sent it.
    pub fn receive_request(self: &Arc<Self>, bytes: Vec<u8>, sender: usize, frames: UnboundedSender<Frame>) {
        let node = Arc::clone(self);
        if !self.is_honest() {
            lock(&self.bag).captured.push(bytes.clone());
            self.spawn(async move { node.answer_falsely(bytes, frames).await });
            return;
        }
        self.spawn(async move {
            let serving = node.serve(bytes, sender, &frames);
            tokio::pin!(serving);
            loop {
                tokio::select! {
                    biased;
                    last = &mut serving => {
                        // A requester that is gone has cancelled.
                        frames.send(last).ok();
                        return;
                    }
                    () = frames.closed() => return,
                    () = node.sleep(HEARTBEAT) => drop(frames.send(Frame::Heartbeat)),
                }
            }
        });
    }

    async fn serve(
        self: &Arc<Self>,
        bytes: Vec<u8>,
        sender: usize,
        frames: &UnboundedSender<Frame>,
    ) -> Frame {
        let (key, now) = (self.world.plan.machines[sender].key, self.clock());
        let members = Arc::clone(&self.view().members);
        let admitted = match lock(&self.core).gate.check(&bytes, key, &members, now) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                self.world
                    .say(|| format!("{:>3} refuses {sender}: {refusal}", self.at));
                self.world.ledger().count("requests refused at the gate");
                return Frame::Refused(refusal);
            }
        };
        self.world
            .ledger()
            .admitted(self.at, admitted.hash.0, sender, now);
        self.sleep(1).await;
        match self.take_part(admitted.request, admitted.hash, frames).await {
            Ok(frame) => frame,
            Err(refusal) => {
                self.world
                    .say(|| format!("{:>3} refuses {sender}: {refusal}", self.at));
                self.world.ledger().count("requests refused");
                Frame::Refused(refusal)
            }
        }
    }

    async fn take_part(
        self: &Arc<Self>,
        request: BuildRequest,
        hash: RequestHash,
        frames: &UnboundedSender<Frame>,
    ) -> Result<Frame, Refusal> {
        let _place = self.served.enter(request.requester)?;
        if self.world.plan.machines[self.at].slots == 0 {
            return Err(refusal(RefusalReason::Unsupported, "this node builds nothing"));
        }
        let (outputs, direct) = self.derivation(request.requester, &request.derivation).await?;
        if request.outputs.iter().any(|output| !outputs.contains_key(output)) {
            return Err(refusal(RefusalReason::Structure, "no such output"));
        }
        if let Some(record) = self.reuse(&request, hash) {
            self.world.ledger().count("answered from an earlier build");
            frames.send(Frame::Accepted).ok();
            return Ok(Frame::Finished(record));
        }
        let order = Arc::new(Order {
            request,
            hash,
            outputs,
            direct,
        });
        let key = if order.request.fresh {
            None
        } else {
            order.request.build_key().ok()
        };
        let (mut waiting, mut begun) = self.building.join(self.world.plan.swarm, key, BuildLimits::NONE);
        loop {
            if begun {
                let (node, build, order) = (Arc::clone(self), Arc::clone(&waiting.build), Arc::clone(&order));
                self.spawn(async move { node.build_for_all(build, order).await });
            } else {
                self.world.ledger().count("builds joined");
            }
            let progress = loop {
                let mut changes = waiting.build.changes();
                changes.mark_unchanged();
                match waiting.build.progress() {
                    Progress::Preparing => drop(changes.changed().await),
                    progress => break progress,
                }
            };
            if !begun && progress.is_for_another() {
                (waiting, begun) = self.building.join(self.world.plan.swarm, None, BuildLimits::NONE);
                continue;
            }
            if let Progress::Over(ended) = &progress
                && let Ended::Refused(refusal) = &**ended
            {
                return Err(refusal.clone());
            }
            break;
        }
        frames.send(Frame::Accepted).ok();
        let ended = loop {
            let mut changes = waiting.build.changes();
            changes.mark_unchanged();
            match waiting.build.progress() {
                Progress::Over(ended) => break ended,
                _ => drop(changes.changed().await),
            }
        };
        let frame = match &*ended {
            Ended::Built { record, aside, .. } => {
                for tree in aside {
                    self.grants.give(order.request.requester, *tree, self.clock());
                }
                let record = BuildRecord {
                    request: Some(order.hash),
                    ..(**record).clone()
                };
                let outputs: Vec<Content> = record
                    .outputs
                    .values()
                    .map(|output| (output.path.clone(), output.tree))
                    .collect();
                self.world.ledger().delivered(self.at, &outputs);
                Frame::Finished(self.sign(&record))
            }
            Ended::Failed(failure) => Frame::Failed(failure.clone()),
            Ended::Refused(refusal) => {
                Frame::Failed(failure(messages::FailureKind::Machine, &refusal.message))
            }
        };
        drop(waiting);
        Ok(frame)
    }

    /// The output paths of a derivation and what it reads, recomputed from the texts that the requester has.
    async fn derivation(
        &self,
        requester: NodeKey,
        root: &StorePath,
    ) -> Result<(BTreeMap<String, StorePath>, BTreeSet<StorePath>), Refusal> {
        let from = self.world.number(requester).unwrap();
        let mut read: HashMap<StorePath, Derivation> = HashMap::new();
        let mut frontier = vec![root.clone()];
        while !frontier.is_empty() {
            let asked = frontier.clone();
            let texts = self.world.ask(self.at, from, move |node| {
                let disk = lock(&node.world.disks[node.at]);
                asked
                    .iter()
                    .map(|path| disk.texts.get(path).cloned())
                    .collect::<Vec<_>>()
            });
            let texts = texts
                .await
                .ok_or_else(|| refusal(RefusalReason::InputMissing, "no texts came"))?;
            let mut next = BTreeSet::new();
            for (path, text) in frontier.into_iter().zip(texts) {
                let text = text.ok_or_else(|| refusal(RefusalReason::InputMissing, "a text is missing"))?;
                let derivation = read_derivation(&path, &text)
                    .map_err(|error| refusal(RefusalReason::InputContent, error.to_string()))?;
                next.extend(derivation.input_derivations().keys().cloned());
                read.insert(path, derivation);
            }
            frontier = self.derivations.unknown(next.iter());
            frontier.retain(|path| !read.contains_key(path));
        }
        let get = |path: &StorePath| {
            let unknown = || {
                DepotError::Derivation(DrvError::UnknownInput {
                    name: root.to_string(),
                    input: path.clone(),
                })
            };
            read.get(path).cloned().ok_or_else(unknown)
        };
        let bad = |error: DepotError| {
            self.world.ledger().count("false derivations refused");
            refusal(RefusalReason::OutputPath, error.to_string())
        };
        let derivation = get(root).map_err(bad)?;
        let checked = self.derivations.check(root, &derivation, get).map_err(bad)?;
        let direct = self
            .derivations
            .direct_inputs(&derivation)
            .map_err(|error| bad(error.into()))?;
        Ok(((*checked.outputs).clone(), direct))
    }

    /// The record of an earlier build of the same work by this node, made out to this request.
    fn reuse(&self, request: &BuildRequest, hash: RequestHash) -> Option<Envelope> {
        let key = request.build_key().ok()?;
        let disk = lock(&self.world.disks[self.at]);
        let known = disk
            .by_key
            .get(&key)?
            .iter()
            .filter(|record| record.signer == self.key);
        let record = known.filter_map(|record| opened(record).ok()).find(|record| {
            let mut outputs = record.outputs.values();
            outputs.all(|output| {
                disk.paths
                    .get(&output.path)
                    .is_some_and(|info| info.tree == output.tree)
            })
        })?;
        drop(disk);
        Some(self.sign(&BuildRecord {
            request: Some(hash),
            ..record
        }))
    }

    async fn build_for_all(self: Arc<Self>, build: Arc<SharedBuild>, order: Arc<Order>) {
        let ended = self.build_and_keep(&build, &order).await;
        self.building.end(&build);
        build.set(Progress::Over(Arc::new(ended)));
    }

    async fn build_and_keep(self: &Arc<Self>, build: &SharedBuild, order: &Order) -> Ended {
        let gathered = tokio::select! {
            biased;
            gathered = self.gather(&order.request, &order.direct) => gathered,
            () = build.cancel.cancelled() => Err(refusal(RefusalReason::Busy, "nobody waits for it any more")),
        };
        let (accepted, slot) = match gathered {
            Ok(gathered) => gathered,
            Err(refusal) => return Ended::Refused(refusal),
        };
        build.set(Progress::Running { for_one: !accepted });
        let request = &order.request;
        let Some(number) = self.world.jobs.get(&request.derivation).copied() else {
            panic!(
                "UNTRUSTED: machine {} builds {}, whose output paths are false",
                self.at, request.derivation
            );
        };
        let (inputs, job) = (contents(&request.inputs), &self.world.plan.jobs[number]);
        let noted = self
            .world
            .ledger()
            .build_begins(self.at, number, inputs.clone(), false, !accepted);
        if build
            .cancel
            .run_until_cancelled(self.sleep(job.duration))
            .await
            .is_none()
        {
            self.world.ledger().build_ends(noted, End::Failed);
            return Ended::Failed(failure(messages::FailureKind::Cancelled, "cancelled"));
        }
        if job.broken {
            self.world.ledger().build_ends(noted, End::Failed);
            return Ended::Failed(failure(messages::FailureKind::Build, "exit code 1"));
        }
        let infos = self.make(number, &inputs);
        assert!(
            infos
                .iter()
                .map(|(name, info)| (name, &info.path))
                .eq(&order.outputs)
        );
        let key = request.build_key().unwrap();
        let record = self.record_of(key, &request.derivation, &inputs, &infos, Some(order.hash));
        let envelope = self.sign(&record);
        let made: Vec<Content> = infos
            .values()
            .map(|info| (info.path.clone(), info.tree))
            .collect();
        self.world.ledger().build_makes(noted, &made);
        let counts = accepted && self.standing(&record, &envelope) == Standing::Counts;
        let differs = {
            let disk = lock(&self.world.disks[self.at]);
            let mut infos = infos.values();
            infos.any(|info| {
                disk.paths
                    .get(&info.path)
                    .is_some_and(|here| here.tree != info.tree)
            })
        };
        let infos: Vec<PathInfo> = infos.into_values().collect();
        let record = Box::new(record);
        let ended = if counts && !differs {
            self.register(infos, Some(&envelope)).await;
            self.world.ledger().build_ends(noted, End::Kept);
            Ended::Built {
                record,
                accepted: true,
                aside: vec![],
            }
        } else {
            let aside = infos.iter().map(|info| info.tree).collect();
            self.keep_aside(infos).await;
            self.world.ledger().build_ends(noted, End::Aside);
            Ended::Built {
                record,
                accepted: counts,
                aside,
            }
        };
        drop(slot);
        ended
    }

    /// The inputs of a build for another, and a slot. Whether this node accepts them all.
    async fn gather(
        self: &Arc<Self>,
        request: &BuildRequest,
        direct: &BTreeSet<StorePath>,
    ) -> Result<(bool, Lent), Refusal> {
        check_closure_of(&request.inputs, direct)?;
        let mut known: BTreeMap<StorePath, Known> = BTreeMap::new();
        let mut missing = vec![];
        {
            let disk = lock(&self.world.disks[self.at]);
            for input in &request.inputs {
                match disk.paths.get(&input.path) {
                    Some(info) if info.tree == input.tree => {
                        check_references(input, info)?;
                        known.insert(input.path.clone(), Known::Here(info.clone()));
                    }
                    other => missing.push((input, other.is_some())),
                }
            }
        }
        if !missing.is_empty() {
            judge_missing(
                self.as_ref(),
                &self.derivations,
                request.requester,
                missing,
                &mut known,
            )
            .await?;
            let coming = known.iter().filter_map(|(path, known)| match known {
                Known::Coming(item) => Some((path.clone(), item.clone())),
                Known::Here(_) => None,
            });
            let brought = self.bring_all(coming.collect()).await;
            brought.map_err(|error| refusal(RefusalReason::InputMissing, error))?;
        }
        let accepted = {
            let disk = lock(&self.world.disks[self.at]);
            known.iter().all(|(path, known)| match known {
                Known::Here(_) => true,
                Known::Coming(item) => {
                    !matches!(item.keep, Keep::Aside)
                        || disk
                            .paths
                            .get(path)
                            .is_some_and(|here| here.tree == item.info.tree)
                }
            })
        };
        let until = self.world.now() + u64::try_from(SLOT_PATIENCE.as_millis()).unwrap();
        loop {
            if let Some(slot) = self.lend() {
                return Ok((accepted, slot));
            }
            if self.world.now() >= until {
                return Err(refusal(
                    RefusalReason::Busy,
                    "all slots of this builder are in use",
                ));
            }
            self.sleep(50).await;
        }
    }

    /// A slot that nothing of this node wants.
    fn lend(self: &Arc<Self>) -> Option<Lent> {
        let count = {
            let mut core = lock(&self.core);
            if core.coordinator.free_slots() == 0 {
                return None;
            }
            core.lent += 1;
            core.lent
        };
        self.event(Event::SlotsLent { count });
        Some(Lent(Arc::clone(self)))
    }
}

/// A slot that is lent. It comes back.
struct Lent(Arc<Node>);

impl Drop for Lent {
    fn drop(&mut self) {
        let count = {
            let mut core = lock(&self.0.core);
            core.lent -= 1;
            core.lent
        };
        // Dropped where the machine crashes, too: then nobody is there to be told.
        if self
            .0
            .world
            .node(self.0.at)
            .is_some_and(|node| Arc::ptr_eq(&node, &self.0))
        {
            self.0.event(Event::SlotsLent { count });
        }
    }
}
