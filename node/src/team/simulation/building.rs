//! What builds make, what is signed of it, and how that stands by the builder's own rules.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildKey, BuildRecord, BuiltOutput, Input, RecordInput, RequestHash};
use tvix_node_protocol::envelope::{Envelope, NodeSecret, seal};
use tvix_node_protocol::messages::{self, Refusal};
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_protocol::tree::TreeDigest;

use super::super::policy::opened;
use super::super::votes::{self, Ballot, Standing};
use super::ledger::{Content, Statement};
use super::node::Node;
use super::plan::{digest, nar_hash};
use super::world::{Tree, lock};
use crate::daemon::perform::as_input;

/// Between two signs of life of a builder, in milliseconds.
pub const HEARTBEAT: u64 = 1_000;

/// What a builder says.
#[derive(Clone)]
pub enum Frame {
    Accepted,
    Heartbeat,
    Refused(Refusal),
    Failed(messages::BuildFailure),
    Finished(Envelope),
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

    pub fn sign(&self, record: &BuildRecord) -> Envelope {
        self.sign_as(record, Some(self.at))
    }

    /// Signs with the key of this machine, or with one that nobody in the team has. Every signature under a record is
    /// written down.
    pub fn sign_as(&self, record: &BuildRecord, by: Option<usize>) -> Envelope {
        let nobody = NodeSecret::from_bytes(&digest(&[b"nobody", &self.world.plan.seed.to_le_bytes()]));
        let secret = by.map_or(&nobody, |by| &self.world.plan.machines[by].secret);
        let envelope = seal(record, secret).unwrap();
        let inputs = record.inputs.iter();
        let outputs = record.outputs.values();
        let statement = Statement {
            builder: self.world.number(record.builder),
            request: record.request.map(|request| request.0),
            work: record.build_key.0,
            job: record.derivation.clone(),
            inputs: inputs.map(|input| (input.path.clone(), input.tree)).collect(),
            outputs: outputs.map(|output| (output.path.clone(), output.tree)).collect(),
        };
        self.world.ledger().signed(envelope.payload_hash(), by, statement);
        envelope
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
            Ballot::Open(matters) => {
                let mut disk = lock(&self.world.disks[self.at]);
                disk.put_record(envelope);
                let all: Vec<Vec<BuildRecord>> = matters
                    .iter()
                    .map(|matter| {
                        let known = disk.records.get(&matter.output.path);
                        let known = known.map_or(&[][..], Vec::as_slice);
                        known.iter().filter_map(|record| opened(record).ok()).collect()
                    })
                    .collect();
                votes::count(&grounds, &matters, record, &all, |node| node.to_string())
            }
        }
    }
}
