//! Builds that a node does for others, in the daemon's own order of steps.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use tvix_node_coordinator::Event;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildLimits, BuildRecord, BuildRequest, RequestHash, SwarmId};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::{self, Refusal, RefusalReason};
use tvix_node_protocol::nix::derivation::{Derivation, DrvError, read_derivation};
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_swarm::underway::Underway;

use super::super::answer::made_out;
use super::super::fetch::Keep;
use super::super::inputs::{Known, check_closure_of, judge_missing, known_here, not_brought, refusal};
use super::super::limits::SLOT_PATIENCE;
use super::super::policy::opened;
use super::super::steps::{self, Order, Step, Workshop};
use super::super::together::{Ended, Heard, SharedBuild, SharedBuilds, work_key};
use super::super::votes::Standing;
use super::building::{Frame, HEARTBEAT, contents, failure};
use super::ledger::{Content, End, Judged, Whose};
use super::node::Node;
use super::world::lock;
use crate::daemon::depot::DepotError;

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
            .admitted(self.at, admitted.hash.0, sender, (self.world.now(), now));
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
        let place = self.served.enter(request.requester, steps::sought(&request))?;
        if self.world.plan.machines[self.at].slots == 0 {
            return Err(refusal(RefusalReason::Unsupported, "this node builds nothing"));
        }
        let (derivation, outputs, direct) = self.derivation(request.requester, &request.derivation).await?;
        if request.outputs.iter().any(|output| !outputs.contains_key(output)) {
            return Err(refusal(RefusalReason::Structure, "no such output"));
        }
        if !request.fresh
            && let Some(record) = self.built_before(&request, &outputs).await
        {
            self.world.ledger().count("answered from an earlier build");
            let outputs = record.outputs.values();
            let outputs: Vec<Content> = outputs.map(|output| (output.path.clone(), output.tree)).collect();
            self.world.ledger().delivered(self.at, &outputs);
            frames.send(Frame::Accepted).ok();
            return Ok(Frame::Finished(self.sign(
                &made_out(record, self.world.plan.machines[self.at].key, &request, hash).unwrap(),
            )));
        }
        let order = Arc::new(Order {
            request,
            hash,
            derivation,
            outputs,
            direct,
            limits: BuildLimits::NONE,
        });
        let waiting = steps::join(self, &order).await?;
        let _place = place.joined(&waiting.build)?;
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
    ) -> Result<(Derivation, BTreeMap<String, StorePath>, BTreeSet<StorePath>), Refusal> {
        let from = self.world.number(requester).unwrap();
        let mut read: HashMap<StorePath, Derivation> = HashMap::new();
        let mut frontier = vec![root.clone()];
        while !frontier.is_empty() {
            let asked = frontier.clone();
            let texts = self.world.ask(self.at, from, move |node| {
                let disk = lock(&node.world.disks[node.at]);
                let seen = |path: &&StorePath| !node.is_honest() || !disk.private.is_private(path);
                let text = |path| Some(path).filter(seen).and_then(|path| disk.texts.get(path));
                let given: Vec<_> = asked.iter().map(|path| text(path).cloned()).collect();
                if node.is_honest() {
                    let given = asked.iter().zip(&given).filter(|(_, text)| text.is_some());
                    node.world
                        .ledger()
                        .texts_given(node.at, given.map(|(path, _)| path));
                }
                given
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
        Ok((derivation, (*checked.outputs).clone(), direct))
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
        self.event(Event::SlotsLent {
            count,
            giving_way: count,
        });
        Some(Lent(Arc::clone(self)))
    }
}

impl Workshop for Node {
    type Ready = Lent;

    fn team(&self) -> SwarmId {
        self.world.plan.swarm
    }

    fn building(&self) -> &Arc<SharedBuilds> {
        &self.building
    }

    fn underway(&self) -> &Arc<Underway> {
        &self.underway
    }

    fn begin(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.world.executor.spawn(self.group, task);
    }

    async fn built_before(
        &self,
        request: &BuildRequest,
        outputs: &BTreeMap<String, StorePath>,
    ) -> Option<BuildRecord> {
        let keys = Order::earlier_keys(request, outputs)?;
        let disk = lock(&self.world.disks[self.at]);
        let known = keys.iter().filter_map(|key| disk.by_key.get(key)).flatten();
        let own = known.filter(|record| record.signer == self.key);
        own.filter_map(|record| opened(record).ok()).find(|record| {
            let mut outputs = record.outputs.values();
            outputs.all(|output| {
                let here = disk
                    .paths
                    .get(&output.path)
                    .filter(|_| !disk.private.is_private(&output.path));
                here.is_some_and(|info| info.tree == output.tree)
            })
        })
    }

    async fn gather(self: &Arc<Self>, order: &Order) -> Result<(Lent, bool), Refusal> {
        let request = &order.request;
        check_closure_of(&request.inputs, &order.direct)?;
        let mut known: BTreeMap<StorePath, Known> = BTreeMap::new();
        let mut missing = vec![];
        {
            let disk = lock(&self.world.disks[self.at]);
            for input in &request.inputs {
                if disk.paths.contains_key(&input.path) && disk.private.is_private(&input.path) {
                    self.world.ledger().count("private inputs not used");
                    let message = format!("{} cannot be had here", input.path);
                    return Err(refusal(RefusalReason::InputMissing, message));
                }
                match disk.paths.get(&input.path) {
                    Some(info) if info.tree == input.tree => {
                        let here = known_here(&self.derivations, input, info.clone())?;
                        known.insert(input.path.clone(), here);
                    }
                    other => missing.push((input, other.is_some())),
                }
            }
        }
        // What has come for this is the requester's to name.
        let held: Vec<StorePath> = known.keys().cloned().collect();
        if !missing.is_empty() {
            let since = self.world.now();
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
            let judged = Judged {
                asked_by: self.world.number(request.requester),
                since,
            };
            let brought = self.bring_all(coming.collect(), judged).await;
            brought.map_err(not_brought)?;
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
        self.world
            .ledger()
            .inputs_judged(self.at, &contents(&request.inputs), accepted);
        let until = self.world.now() + u64::try_from(SLOT_PATIENCE.as_millis()).unwrap();
        loop {
            if let Some(slot) = self.lend() {
                let disk = lock(&self.world.disks[self.at]);
                if let Some(path) = held.iter().find(|path| disk.private.is_private(path)) {
                    self.world.ledger().count("inputs that became private");
                    let message = format!("{path} cannot be had here");
                    return Err(refusal(RefusalReason::InputMissing, message));
                }
                drop(disk);
                return Ok((slot, accepted));
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

    async fn carry_out(
        self: &Arc<Self>,
        build: &Arc<SharedBuild>,
        order: &Order,
        slot: Lent,
        accepted: bool,
    ) -> Ended {
        let request = &order.request;
        let requester = self.world.number(request.requester).unwrap();
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
                by: requester,
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
        let private = {
            let disk = lock(&self.world.disks[self.at]);
            infos.values().any(|info| disk.private.is_private(&info.path))
        };
        let counts = accepted && !private && self.standing(&record, &envelope) == Standing::Counts;
        self.syncs().await;
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
            self.commit(infos, Some(&envelope), Judged::own(self.world.now()));
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

    fn noted(&self, order: &Order, build: &Arc<SharedBuild>, step: Step<'_>) {
        let requester = self.world.number(order.request.requester).unwrap();
        let mut ledger = self.world.ledger();
        match step {
            Step::Begun => {
                let begun = Begun {
                    by: requester,
                    noted: None,
                };
                lock(&self.begun).insert(name_of(build), begun);
            }
            Step::Joined => ledger.count("builds joined"),
            Step::TurnedAway => ledger.turned_away(order.hash.0),
            Step::Refused(refusal) if refusal.reason != RefusalReason::Busy => {
                let begun = lock(&self.begun)[&name_of(build)];
                ledger.refused_for(self.at, requester, begun.by);
            }
            Step::Refused(_) => {}
            Step::FollowsOwn => ledger.count("own builds followed for others"),
            Step::FoundDone => ledger.count("found done when a slot was free"),
        }
    }
}

/// A slot that is lent. It comes back.
pub struct Lent(Arc<Node>);

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
            self.0.event(Event::SlotsLent {
                count,
                giving_way: count,
            });
        }
    }
}
