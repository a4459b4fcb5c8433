//! What members do that want others to believe what is not so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use tvix_node_coordinator::{BuildId, Urgency};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{
    BuildKey, BuildKind, BuildLimits, BuildRecord, BuildRequest, Input, RequestHash,
};
use tvix_node_protocol::envelope::{Envelope, NodeKey, seal};
use tvix_node_protocol::limits::ENVELOPE_BYTES;
use tvix_node_protocol::messages::{self, Claim, RefusalReason, Shown};
use tvix_node_protocol::nix::store_path::build_text_path;
use tvix_node_protocol::path_info::{NarHash, PathInfo};
use tvix_node_protocol::presence::PresenceKey;
use tvix_node_protocol::tree::TreeDigest;

use super::super::inputs::refusal;
use super::super::request::Order;
use super::building::{Frame, contents, failure};
use super::node::Node;
use super::plan::{Attack, Manner, Nature, digest};
use super::world::lock;
use crate::daemon::perform::as_input;

/// What a liar has gathered.
#[derive(Default)]
pub struct Bag {
    /// Signed requests of others that came by.
    pub captured: Vec<Vec<u8>>,
    /// What it has sent itself, and to whom.
    sent: Vec<(usize, Vec<u8>)>,
    /// Records of honest builders, made of its false inputs among them.
    trophies: Vec<Envelope>,
    /// What it has answered itself, by the name of the work.
    answered: BTreeMap<BuildKey, Envelope>,
    /// Trees that it has made up, or had made, and gives.
    lies: BTreeSet<TreeDigest>,
}

impl Node {
    fn throw(&self, sides: usize) -> usize {
        self.world.dice().below(sides)
    }

    fn maker_of(&self, path: &StorePath) -> Option<usize> {
        self.world
            .plan
            .jobs
            .iter()
            .position(|job| job.outputs.values().any(|output| output == path))
    }

    /// What somebody has under this name.
    fn seen_somewhere(&self, path: &StorePath) -> Option<PathInfo> {
        let mut disks = self.world.disks.iter();
        disks.find_map(|disk| lock(disk).paths.get(path).cloned())
    }

    /// Something else under a name. Liars make up the same few trees, so that they agree.
    fn made_up(&self, path: &StorePath) -> PathInfo {
        let number = self.throw(2);
        let tree = TreeDigest(digest(&[
            b"lie",
            path.to_basename().as_bytes(),
            &[u8::try_from(number).unwrap()],
        ]));
        let job = self.maker_of(path).map(|job| &self.world.plan.jobs[job]);
        let deriver = job.map_or_else(|| path.clone(), |job| job.drv.clone());
        let references = job.map(|job| job.references.clone()).unwrap_or_default();
        let mut info = self.described_tree(deriver, path.clone(), tree, 1_000, &references);
        if job.is_none() {
            info.deriver = None;
        }
        lock(&self.bag).lies.insert(tree);
        info
    }

    /// The inputs of a job: as they are, as far as anybody has them, and made up where not, or where that is wanted.
    fn inputs_with_lies(&self, job: usize, lie: bool) -> Vec<Input> {
        let plan = &self.world.plan;
        let mut frontier: Vec<StorePath> = plan.jobs[job]
            .inputs
            .iter()
            .flat_map(|input| plan.jobs[*input].outputs.values().cloned())
            .collect();
        frontier.extend(
            plan.jobs[job]
                .sources
                .iter()
                .map(|source| plan.sources[*source].path.clone()),
        );
        let mut infos = BTreeMap::new();
        while let Some(path) = frontier.pop() {
            if infos.contains_key(&path) {
                continue;
            }
            let info = match self.seen_somewhere(&path) {
                Some(info) if !(lie && info.ca.is_none() && self.throw(2) == 0) => info,
                _ => self.made_up(&path),
            };
            frontier.extend(info.references.iter().cloned());
            infos.insert(path, info);
        }
        infos.values().map(as_input).collect()
    }

    fn false_record(&self, info: &PathInfo, builder: NodeKey) -> Option<BuildRecord> {
        let job = self.maker_of(&info.path)?;
        let name = self.world.plan.jobs[job]
            .outputs
            .iter()
            .find(|(_, path)| **path == info.path)?
            .0
            .clone();
        let lie = self.throw(2) == 0;
        let inputs = self.inputs_with_lies(job, lie);
        let infos = [(name, info.clone())].into();
        let key = BuildKey(digest(&[b"key"]));
        let record = self.record_of(
            key,
            &self.world.plan.jobs[job].drv,
            &contents(&inputs),
            &infos,
            None,
        );
        Some(BuildRecord { builder, ..record })
    }

    /// What it says of a path.
    pub fn lie_about(&self, path: &StorePath) -> Option<Shown> {
        let mut info = self.made_up(path);
        let secret = &self.world.plan.machines[self.at].secret;
        let honest = self.seen_somewhere(path);
        let trophy = self.trophy_of(path);
        // What honest builders made of its false inputs is the best that it has.
        let how = if trophy.is_some() && self.throw(2) == 0 {
            6
        } else {
            self.throw(8)
        };
        let record = match how {
            0 => return None,
            1 => self
                .false_record(&info, self.key)
                .map(|record| self.sign(&record)),
            2 => self.a_record_of(path),
            3 => {
                let record = self
                    .false_record(&info, self.key)
                    .map(|record| seal(&record, secret).unwrap());
                // Signed for something else.
                record.map(|mut record| {
                    record.payload[10] ^= 1;
                    record
                })
            }
            4 => {
                let other = self.world.plan.machines[0].key;
                let record = self.false_record(&info, other);
                record
                    .map(|record| seal(&record, secret).unwrap())
                    .map(|mut record| {
                        if self.throw(2) == 0 {
                            record.signer = other;
                        }
                        record
                    })
            }
            5 => {
                let honest = honest?;
                info = PathInfo {
                    nar_hash: NarHash(digest(&[b"other"])),
                    ..honest
                };
                self.a_record_of(path)
            }
            6 => {
                let (trophy, record) = trophy?;
                let output = record.outputs.values().find(|output| output.path == *path)?;
                info.tree = output.tree;
                info.nar_hash = output.nar_hash;
                info.nar_size = output.nar_size;
                info.references = output.references.iter().cloned().collect();
                info.deriver = Some(record.derivation.clone());
                Some(trophy)
            }
            _ => {
                // A source by its true name and archive, and another tree.
                let honest = honest?;
                info = PathInfo {
                    tree: info.tree,
                    ..honest
                };
                None
            }
        };
        Some(Shown { info, record })
    }

    /// A record that somebody made out to it for a path.
    fn trophy_of(&self, path: &StorePath) -> Option<(Envelope, BuildRecord)> {
        let bag = lock(&self.bag);
        bag.trophies.iter().find_map(|trophy| {
            let record: BuildRecord = trophy.open().ok()?;
            let names = record.outputs.values().any(|output| output.path == *path);
            names.then(|| (trophy.clone(), record))
        })
    }

    /// A record of somebody for a path.
    fn a_record_of(&self, path: &StorePath) -> Option<Envelope> {
        let mut disks = self.world.disks.iter();
        disks.find_map(|disk| {
            lock(disk)
                .records
                .get(path)
                .and_then(|known| known.first().cloned())
        })
    }

    /// What it hands on of what others left with it.
    pub fn falsify(&self, claims: &mut Vec<Claim>, keys: &[PresenceKey]) {
        match self.throw(3) {
            0 => claims.clear(),
            1 => {
                for claim in claims {
                    claim.keys = tvix_node_protocol::presence::pack(keys);
                }
            }
            _ => {
                for claim in claims {
                    claim.header.payload.reverse();
                }
            }
        }
    }

    /// Which tree it gives in place of this one.
    pub fn serve_falsely(&self, tree: TreeDigest) -> Option<TreeDigest> {
        if lock(&self.bag).lies.contains(&tree) {
            return Some(tree);
        }
        (self.throw(2) == 0).then(|| TreeDigest(digest(&[b"garbage", &tree.0])))
    }

    /// Answers a build request.
    pub async fn answer_falsely(self: Arc<Self>, bytes: Vec<u8>, frames: UnboundedSender<Frame>) {
        let Ok(envelope) = Envelope::from_bytes(&bytes, ENVELOPE_BYTES) else {
            return;
        };
        let Ok(request) = envelope.open::<BuildRequest>() else {
            return;
        };
        let hash = RequestHash(envelope.payload_hash());
        self.world.ledger().count("requests to liars");
        let Some(job) = self.world.jobs.get(&request.derivation).copied() else {
            return;
        };
        let manner = self.world.plan.machines[self.at].manner;
        let how = self.throw(15);
        if manner == Manner::Mute || (how == 0 && manner == Manner::Fickle) {
            return frames.closed().await;
        }
        match self.throw(if manner == Manner::Talkative { 30 } else { 6 }) {
            0 => {
                for _ in 0..self.throw(40) {
                    frames.send(Frame::Heartbeat).ok();
                    self.sleep(1_000).await;
                }
            }
            1 => {
                let no = refusal(RefusalReason::InputMissing, "no");
                frames.send(Frame::Refused(no)).ok();
            }
            2 => {
                let no = failure(messages::FailureKind::Machine, "no");
                frames.send(Frame::Failed(no)).ok();
            }
            _ => {
                frames.send(Frame::Accepted).ok();
                let pause = self.world.dice().between(1, 3_000);
                self.sleep(pause).await;
                let answer = self.false_answer(&request, hash, job);
                self.world.ledger().count("answers of liars");
                frames.send(Frame::Finished(answer)).ok();
            }
        }
    }

    /// What it says that it has built. All but one thing in it is as it should be, or all.
    fn false_answer(&self, request: &BuildRequest, hash: RequestHash, job: usize) -> Envelope {
        let plan = &self.world.plan;
        let key = request.build_key().unwrap();
        let inputs = contents(&request.inputs);
        let outputs = &plan.jobs[job].outputs;
        let infos = if self.throw(3) == 0 {
            // The truth, for a change.
            self.make(job, &inputs)
        } else {
            let lies = outputs
                .iter()
                .map(|(name, path)| (name.clone(), self.made_up(path)));
            lies.collect()
        };
        lock(&self.bag).lies.extend(infos.values().map(|info| info.tree));
        let mut record = self.record_of(key, &request.derivation, &inputs, &infos, Some(hash));
        let accomplices =
            || (0..plan.machines.len()).filter(|at| plan.machines[*at].nature != Nature::Honest);
        match self.throw(14) {
            0 => {
                let output = record.outputs.values_mut().next().unwrap();
                output.path = plan.sources[0].path.clone();
            }
            1 => {
                let output = record.outputs.values_mut().next().unwrap();
                output.references.push(plan.sources[1].path.clone());
            }
            2 => drop(record.outputs.pop_last()),
            // Made of other inputs: of fewer, or of something else under the name of one.
            3 => drop(record.inputs.pop()),
            4 | 5 => {
                if let Some(input) = record.inputs.first_mut() {
                    input.tree = self.made_up(&input.path).tree;
                }
            }
            // For another request.
            6 => record.request = Some(RequestHash(digest(&[b"another"]))),
            7 => record.request = None,
            8 => {
                if let Some(earlier) = lock(&self.bag).answered.get(&key) {
                    self.world.ledger().count("old answers given again");
                    return earlier.clone();
                }
            }
            // Of other work.
            9 => record.derivation = plan.jobs[self.throw(plan.jobs.len())].drv.clone(),
            10 => record.build_key = BuildKey(digest(&[b"other work"])),
            // What another signed: an honest one of something, an accomplice or nobody of just this.
            11 => {
                let trophy = lock(&self.bag).trophies.first().cloned();
                if let Some(other) = trophy.or_else(|| self.a_record_of(&outputs["out"])) {
                    return other;
                }
            }
            12 => {
                let other = accomplices().find(|at| *at != self.at);
                return self.sign_as(&record, other);
            }
            _ => {
                let other = self.throw(plan.machines.len());
                record.builder = plan.machines[other].key;
                return self.sign(&record);
            }
        }
        let answer = self.sign(&record);
        lock(&self.bag).answered.insert(key, answer.clone());
        answer
    }

    /// Sends somebody a request that is not what it should be.
    pub fn attack(self: &Arc<Self>, attack: Attack) {
        let plan = &self.world.plan;
        let neighbours: Vec<usize> = plan.machines[self.at].neighbours.iter().copied().collect();
        let to = neighbours[self.throw(neighbours.len())];
        let job = self.throw(plan.jobs.len());
        self.world.ledger().count("attacks");
        if attack == Attack::GoesOnAsking {
            let inputs = self.inputs_with_lies(job, false);
            let order = self.order(job, to);
            let request = self.signed_request(&order, inputs);
            self.world.ledger().count("requests of one who is out");
            return self.send(to, self.sign_request(&request).to_bytes().unwrap());
        }
        let how = self.throw(11);
        if how == 10 {
            return self.steal(to);
        }
        if how < 2 {
            let old = {
                let bag = lock(&self.bag);
                let captured = bag.captured.last().map(|bytes| (to, bytes.clone()));
                if how == 0 {
                    captured
                } else {
                    bag.sent.last().cloned()
                }
            };
            if let Some((to, bytes)) = old {
                self.send(to, bytes);
            }
            return;
        }
        let order = self.order(job, to);
        let inputs = self.inputs_with_lies(job, how < 6);
        let mut request = self.signed_request(&order, inputs);
        match how {
            6 => request.issued_at += 5_000,
            7 => {
                request.issued_at -= 50_000;
                request.not_after -= 50_000;
            }
            8 => request.derivation = self.forged_derivation(job),
            9 => request.inputs.truncate(1),
            _ => {}
        }
        if how == 6 {
            request.not_after += 5_000;
        }
        let bytes = self.sign_request(&request).to_bytes().unwrap();
        lock(&self.bag).sent.push((to, bytes.clone()));
        // To the one it is for, and to another.
        if self.throw(4) == 0 {
            self.send(neighbours[self.throw(neighbours.len())], bytes.clone());
        }
        if self.throw(4) == 0 {
            let mut torn = bytes.clone();
            let at = self.throw(torn.len());
            torn[at] ^= 1;
            self.send(to, torn);
        }
        self.send(to, bytes);
    }

    fn order(&self, job: usize, to: usize) -> Order {
        let plan = &self.world.plan;
        let job = &plan.jobs[job];
        order_of(
            plan.machines[to].key,
            job.drv.clone(),
            job.outputs.keys().cloned().collect(),
        )
    }

    /// Asks for a tree that was made for another alone.
    fn steal(self: &Arc<Self>, from: usize) {
        let aside: Vec<TreeDigest> = {
            let disk = lock(&self.world.disks[from]);
            disk.aside.iter().map(|(_, tree)| *tree).collect()
        };
        if aside.is_empty() {
            return;
        }
        let (node, tree) = (Arc::clone(self), aside[self.throw(aside.len())]);
        self.spawn(async move {
            let asker = node.key;
            let asked = node
                .world
                .ask(node.at, from, move |peer| peer.serve_tree(asker, tree));
            if asked.await.flatten().is_none() {
                node.world.ledger().count("trees not given");
            }
        });
    }

    /// Asks for the same that somebody else asks for, now and then with that one's own bytes.
    pub fn copy(self: &Arc<Self>, to: usize, bytes: &[u8]) {
        if self.throw(4) == 0 {
            return self.send(to, bytes.to_vec());
        }
        let envelope = Envelope::from_bytes(bytes, ENVELOPE_BYTES).unwrap();
        let request: BuildRequest = envelope.open().unwrap();
        let order = order_of(request.builder, request.derivation, request.outputs);
        let request = self.signed_request(&order, request.inputs);
        self.world.ledger().count("requests copied");
        let bytes = self.sign_request(&request).to_bytes().unwrap();
        self.send(to, bytes);
    }

    fn send(self: &Arc<Self>, to: usize, bytes: Vec<u8>) {
        let mut call = self.world.call(self.at, to, bytes);
        let node = Arc::clone(self);
        self.spawn(async move {
            while let Some(frame) = call.recv().await {
                if let Frame::Finished(envelope) = frame {
                    let mut bag = lock(&node.bag);
                    // It fetches what was made, to hand it on.
                    if let Ok(record) = envelope.open::<BuildRecord>() {
                        bag.lies.extend(record.outputs.values().map(|output| output.tree));
                    }
                    bag.trophies.push(envelope);
                }
            }
        });
    }

    /// A derivation that says that it makes what another one makes.
    fn forged_derivation(&self, job: usize) -> StorePath {
        let job = &self.world.plan.jobs[job];
        let text = String::from_utf8(job.text.clone()).unwrap();
        let path = &job.outputs["out"];
        let basename = path.to_basename();
        let forged = format!("{}{}", "0".repeat(32), &basename[32..]);
        let text = text.replace(&basename, &forged).into_bytes();
        let references = job.inputs.iter().map(|input| &self.world.plan.jobs[*input].drv);
        let sources = job
            .sources
            .iter()
            .map(|source| &self.world.plan.sources[*source].path);
        let all: BTreeSet<&StorePath> = references.chain(sources).collect();
        let path = build_text_path(job.drv.name(), &text, all).unwrap();
        lock(&self.world.disks[self.at]).texts.insert(path.clone(), text);
        path
    }
}

fn order_of(node: NodeKey, derivation: StorePath, outputs: Vec<String>) -> Order {
    Order {
        build: BuildId(0),
        node,
        derivation,
        outputs,
        kind: BuildKind::Regular,
        desired_store: None,
        bring: true,
        cores: 0,
        limits: BuildLimits::NONE,
        urgency: Urgency::Demanded,
        reason: String::new(),
        keep_failed: false,
    }
}
