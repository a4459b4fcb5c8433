//! Builds that a node does for others, step by step as `team/serve` does them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use tvix_node_coordinator::Event;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildKey, BuildLimits, BuildRecord, BuildRequest, RequestHash};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::{self, Refusal, RefusalReason};
use tvix_node_protocol::nix::derivation::{Derivation, DrvError, read_derivation};
use tvix_node_protocol::path_info::PathInfo;

use super::super::answer::made_out;
use super::super::fetch::Keep;
use super::super::inputs::{Known, check_closure_of, check_references, judge_missing, refusal};
use super::super::limits::{SLOT_PATIENCE, TURNED_AWAY};
use super::super::policy::opened;
use super::super::together::{Ended, Heard, Progress, SharedBuild, work_key};
use super::super::votes::Standing;
use super::building::{Frame, HEARTBEAT, contents, failure};
use super::ledger::{Content, End, Whose};
use super::node::Node;
use super::world::lock;
use crate::daemon::depot::DepotError;

/// A request that is seen through.
struct Order {
    request: BuildRequest,
    hash: RequestHash,
    /// Who signed it.
    requester: usize,
    outputs: BTreeMap<String, StorePath>,
    direct: BTreeSet<StorePath>,
}

impl Order {
    /// By which it is shared with others; none: with nobody.
    fn key(&self) -> Option<BuildKey> {
        let request = &self.request;
        if request.fresh {
            return None;
        }
        let (derivation, inputs) = (&request.derivation, &request.inputs);
        work_key(derivation, inputs, &self.outputs, request.options)
    }
}

/// What this node knows of a build that several may wait for.
#[derive(Clone, Copy)]
pub struct Begun {
    /// Who asked first.
    by: usize,
    /// What the ledger calls it, once it runs.
    noted: Option<usize>,
}

fn name_of(build: &Arc<SharedBuild>) -> usize {
    Arc::as_ptr(build) as usize
}

impl Node {
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
        match self
            .take_part(admitted.request, admitted.hash, sender, frames)
            .await
        {
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
        requester: usize,
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
        if !request.fresh
            && let Some(record) = self.built_before(&request, &outputs)
        {
            self.world.ledger().count("answered from an earlier build");
            frames.send(Frame::Accepted).ok();
            return Ok(Frame::Finished(self.sign(
                &made_out(record, self.world.plan.machines[self.at].key, &request, hash).unwrap(),
            )));
        }
        let order = Arc::new(Order {
            request,
            hash,
            requester,
            outputs,
            direct,
        });
        let (mut waiting, mut begun) =
            self.building
                .join(self.world.plan.swarm, order.key(), BuildLimits::NONE);
        let mut turned_away = 0;
        loop {
            if begun {
                let by = Begun {
                    by: requester,
                    noted: None,
                };
                lock(&self.begun).insert(name_of(&waiting.build), by);
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
                self.world.ledger().turned_away(hash.0);
                turned_away += 1;
                let key = order.key().filter(|_| turned_away < TURNED_AWAY);
                (waiting, begun) = self.building.join(self.world.plan.swarm, key, BuildLimits::NONE);
                continue;
            }
            if let Progress::Over(ended) = &progress
                && let Ended::Refused(refusal) = &**ended
            {
                if refusal.reason != RefusalReason::Busy {
                    let begun = lock(&self.begun)[&name_of(&waiting.build)];
                    self.world.ledger().refused_for(self.at, requester, begun.by);
                }
                return Err(refusal.clone());
            }
            break;
        }
        frames.send(Frame::Accepted).ok();
        let mut following = waiting.build.follow();
        let ended = loop {
            if let Heard::Over(ended) = following.next().await {
                break ended;
            }
        };
        if let Some(noted) = lock(&self.begun)[&name_of(&waiting.build)].noted {
            self.world.ledger().answers(noted, requester);
        }
        let frame = match &*ended {
            Ended::Built { record, aside, .. } => {
                for tree in aside {
                    self.grants.give(order.request.requester, *tree, self.clock());
                }
                let record = made_out(
                    (**record).clone(),
                    self.world.plan.machines[self.at].key,
                    &order.request,
                    order.hash,
                )
                .unwrap();
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

    /// The record of an earlier build of the same work by this node, whose outputs are here.
    fn built_before(
        &self,
        request: &BuildRequest,
        outputs: &BTreeMap<String, StorePath>,
    ) -> Option<BuildRecord> {
        let all = work_key(&request.derivation, &request.inputs, outputs, request.options)?;
        let keys = [request.build_key().ok()?, all];
        let disk = lock(&self.world.disks[self.at]);
        let known = keys.iter().filter_map(|key| disk.by_key.get(key)).flatten();
        let own = known.filter(|record| record.signer == self.key);
        own.filter_map(|record| opened(record).ok()).find(|record| {
            let mut outputs = record.outputs.values();
            outputs.all(|output| {
                disk.paths
                    .get(&output.path)
                    .is_some_and(|info| info.tree == output.tree)
            })
        })
    }

    async fn build_for_all(self: Arc<Self>, build: Arc<SharedBuild>, order: Arc<Order>) {
        let ended = self.build_and_keep(&build, &order).await;
        self.building.end(&build);
        build.set(Progress::Over(Arc::new(ended)));
    }

    async fn build_and_keep(self: &Arc<Self>, build: &Arc<SharedBuild>, order: &Order) -> Ended {
        let limits = order.request.limits;
        if let Some(own) = order
            .key()
            .and_then(|key| self.building.join_own(self.world.plan.swarm, key, limits))
            && let Some(ended) = self.follow_own(build, &own.build).await
        {
            return ended;
        }
        let gathered = tokio::select! {
            biased;
            gathered = self.gather(&order.request, &order.direct) => gathered,
            () = build.cancel.cancelled() => Err(refusal(RefusalReason::Busy, "nobody waits for it any more")),
        };
        let (accepted, slot) = match gathered {
            Ok(gathered) => gathered,
            Err(refusal) => return Ended::Refused(refusal),
        };
        let key = if accepted { order.key() } else { None };
        if let Some(own) = self
            .building
            .join_own_or_run(self.world.plan.swarm, key, limits, build, !accepted)
            && let Some(ended) = self.follow_own(build, &own.build).await
        {
            return ended;
        }
        let request = &order.request;
        if key.is_some()
            && let Some(record) = self.built_before(request, &order.outputs)
        {
            self.world.ledger().count("found done when a slot was free");
            return Ended::Built {
                record: Box::new(record),
                accepted: true,
                aside: vec![],
            };
        }
        let Some(number) = self.world.jobs.get(&request.derivation).copied() else {
            panic!(
                "UNTRUSTED: machine {} builds {}, whose output paths are false",
                self.at, request.derivation
            );
        };
        let (inputs, job) = (contents(&request.inputs), &self.world.plan.jobs[number]);
        let noted = self.world.ledger().build_begins(
            self.at,
            number,
            inputs.clone(),
            Whose::Requester {
                by: order.requester,
                request: order.hash.0,
                alone: !accepted,
            },
        );
        if let Some(begun) = lock(&self.begun).get_mut(&name_of(build)) {
            begun.noted = Some(noted);
        }
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
        let key = work_key(
            &request.derivation,
            &request.inputs,
            &order.outputs,
            request.options,
        )
        .unwrap();
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
                accepted: false,
                aside,
            }
        };
        drop(slot);
        ended
    }

    /// Takes part in the build of the own command.
    async fn follow_own(&self, build: &SharedBuild, own: &SharedBuild) -> Option<Ended> {
        self.world.ledger().count("own builds followed for others");
        build.follow_own(own).await
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
            let asked_by = self.world.number(request.requester);
            let brought = self.bring_all(coming.collect(), asked_by).await;
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
