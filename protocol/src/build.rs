//! Asking for a build, and saying what came of it.
//!
//! A [`BuildRequest`] is for one builder and travels signed. A [`BuildRecord`] is signed by the
//! builder and speaks for it alone. The [`BuildKey`] says when two requests want the same work.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cbor::{self, CborError};
use crate::digest::digest;
use crate::envelope::{Envelope, NodeKey, Statement};
use crate::limits::{CLOSURE_PATHS, OUTPUTS, REFERENCES};
use crate::nix::store_path::{StorePath, basename};
use crate::path_info::NarHash;
use crate::tree::TreeDigest;

digest! {
    /// Names the work of a build: equal key, same work. BLAKE3 over derivation, complete input
    /// closure, outputs and options.
    BuildKey
}

digest! {
    /// Names a swarm: BLAKE3 of its genesis statement.
    SwarmId
}

/// One path of a build's input closure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Its name.
    #[serde(with = "basename")]
    pub path: StorePath,
    /// Its content.
    pub tree: TreeDigest,
    /// Digest of its archive.
    pub nar_hash: NarHash,
    /// Bytes of its archive.
    pub nar_size: u64,
    /// What it refers to.
    #[serde(with = "basename")]
    pub references: Vec<StorePath>,
}

/// Whether the evaluation waits for the build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuildKind {
    /// Fire and forget: the evaluator never learns of it.
    Regular,
    /// Import from derivation: an evaluation waits for it.
    Ifd,
}

/// Where the outputs should be in the end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DesiredStore {
    /// A node of the swarm.
    Node(NodeKey),
    /// A binary cache in a folder of whichever machine has it: the absolute path of `file:///dir`.
    Folder(String),
}

/// Options that change what is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildOptions {
    /// Value of `NIX_BUILD_CORES`; 0 means all of the builder's.
    pub cores: u32,
}

/// Bounds of one build. The builder may have lower ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildLimits {
    /// Seconds from start to end; none: no limit.
    pub time: Option<u64>,
    /// Seconds without a line of log; none: no limit.
    pub silence: Option<u64>,
    /// Bytes of log; none: no limit.
    pub log: Option<u64>,
    /// Bytes on the builder's disk; none: no limit.
    pub disk: Option<u64>,
    /// Bytes of memory of all processes together; none: no limit.
    pub memory: Option<u64>,
    /// Processes and threads at once; none: [`BuildLimits::PROCESSES`]. Not written where there is none, so that nodes
    /// that do not know of it understand everything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
}

impl BuildLimits {
    /// No limits, as stock Nix has it.
    pub const NONE: Self = Self {
        time: None,
        silence: None,
        log: None,
        disk: None,
        memory: None,
        processes: None,
    };

    /// Processes and threads of a build for which nothing else is said: far above what parallel builds on large machines
    /// use, far below what a machine can have (`pid_max`), so that a fork bomb ends in its own sandbox.
    pub const PROCESSES: u64 = 8192;

    /// Processes and threads that a build may have at once.
    #[must_use]
    pub fn processes(&self) -> u64 {
        self.processes.unwrap_or(Self::PROCESSES)
    }
}

/// What two who want the same derivation must have in common besides its inputs to share one build of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildTerms {
    /// What changes what is built.
    pub options: BuildOptions,
    /// Where it is stopped.
    pub limits: BuildLimits,
}

/// A request for a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildRequest {
    /// The team it is made in.
    pub swarm: SwarmId,
    /// Who asks. Must be the envelope's signer.
    pub requester: NodeKey,
    /// The one builder it is for.
    pub builder: NodeKey,
    /// What to build.
    #[serde(with = "basename")]
    pub derivation: StorePath,
    /// The complete closure of what the build reads: sources and outputs of input derivations.
    pub inputs: Vec<Input>,
    /// Outputs wanted; all of them are built.
    pub outputs: Vec<String>,
    /// Whether an evaluation waits.
    pub kind: BuildKind,
    /// Where the outputs should go.
    pub desired_store: Option<DesiredStore>,
    /// What changes the build.
    pub options: BuildOptions,
    /// What bounds it.
    pub limits: BuildLimits,
    /// Higher goes first among requests of one requester.
    pub urgency: u8,
    /// Neither share this build with another request nor reuse a result.
    pub fresh: bool,
    /// Show the folder of the build to the requester, should it fail.
    pub keep_failed: bool,
    /// Never used twice by this requester.
    #[serde(with = "crate::bytes")]
    pub nonce: [u8; 16],
    /// Seconds since 1970.
    pub issued_at: u64,
    /// Seconds since 1970 after which the request is void.
    pub not_after: u64,
}

impl Statement for BuildRequest {
    const DOMAIN: &'static str = "build-request";
    const VERSION: u16 = 2;
}

/// Why a request or record does not hold together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StructureError {
    /// More of something than allowed.
    #[error("{count} {what}, more than the {limit} allowed")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// Inputs must be sorted by path and stand once.
    #[error("the inputs are not sorted by path, or one stands twice, at {0}")]
    InputsUnsorted(StorePath),
    /// The closure is not one.
    #[error("the input {path} refers to {reference}, which is not among the inputs")]
    ClosureIncomplete {
        /// The referring input.
        path: StorePath,
        /// What is missing.
        reference: StorePath,
    },
    /// Not a derivation.
    #[error("{0} is not a derivation")]
    NotADerivation(StorePath),
    /// No output wanted, or one twice.
    #[error("the outputs wanted are empty or not sorted and unique")]
    Outputs,
    /// Void before it is issued.
    #[error("not-after lies before issued-at")]
    Times,
}

impl BuildRequest {
    /// Checks what can be checked without knowing anything else.
    ///
    /// # Errors
    /// See [`StructureError`].
    pub fn check_structure(&self) -> Result<(), StructureError> {
        bounded("inputs", self.inputs.len(), CLOSURE_PATHS)?;
        bounded("outputs", self.outputs.len(), OUTPUTS)?;
        if !self.derivation.is_derivation() {
            return Err(StructureError::NotADerivation(self.derivation.clone()));
        }
        if self.outputs.is_empty() || !self.outputs.windows(2).all(|pair| pair[0] < pair[1]) {
            return Err(StructureError::Outputs);
        }
        if self.not_after < self.issued_at {
            return Err(StructureError::Times);
        }
        check_closure(&self.inputs)
    }

    /// Opens what its builder signed in answer. `hash`: that of this request as it was sent. Says that the record is
    /// the builder's, for this request, and of the same work; not that it is believed.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn answered_by(&self, hash: RequestHash, envelope: &Envelope) -> Result<BuildRecord, String> {
        let record: BuildRecord = envelope.open().map_err(|error| error.to_string())?;
        let key = self.build_key().map_err(|error| error.to_string())?;
        let mut outputs = self.outputs.iter();
        let wrong = if envelope.signer != self.builder || record.builder != self.builder {
            "it is another builder's"
        } else if record.request != Some(hash) {
            "it is for another request"
        } else if record.build_key != key || record.derivation != self.derivation {
            "it is of another build"
        } else if outputs.any(|output| !record.outputs.contains_key(output)) {
            "outputs that were wanted are missing"
        } else {
            return Ok(record);
        };
        Err(wrong.to_owned())
    }

    /// The name of the work asked for.
    ///
    /// # Errors
    /// [`CborError::Encode`], which a checked request does not cause.
    pub fn build_key(&self) -> Result<BuildKey, CborError> {
        build_key(&self.derivation, &self.inputs, &self.outputs, self.options)
    }
}

/// Checks that inputs are sorted, stand once, and refer to nothing outside themselves.
///
/// # Errors
/// See [`StructureError`].
pub fn check_closure(inputs: &[Input]) -> Result<(), StructureError> {
    if let Some(pair) = inputs.windows(2).find(|pair| pair[0].path >= pair[1].path) {
        return Err(StructureError::InputsUnsorted(pair[1].path.clone()));
    }
    for input in inputs {
        bounded("references", input.references.len(), REFERENCES)?;
        for reference in &input.references {
            if inputs
                .binary_search_by(|other| other.path.cmp(reference))
                .is_err()
            {
                let (path, reference) = (input.path.clone(), reference.clone());
                return Err(StructureError::ClosureIncomplete { path, reference });
            }
        }
    }
    Ok(())
}

/// The name of a build's work. `inputs` is the complete closure, sorted by path.
///
/// # Errors
/// [`CborError::Encode`], which sorted inputs do not cause.
pub fn build_key(
    derivation: &StorePath,
    inputs: &[Input],
    outputs: &[String],
    options: BuildOptions,
) -> Result<BuildKey, CborError> {
    let closure: Vec<(String, TreeDigest)> = inputs
        .iter()
        .map(|input| (input.path.to_basename(), input.tree))
        .collect();
    let bytes = cbor::to_vec(&("build-key", derivation.to_basename(), closure, outputs, options))?;
    Ok(BuildKey(*blake3::hash(&bytes).as_bytes()))
}

fn bounded(what: &'static str, count: usize, limit: usize) -> Result<(), StructureError> {
    if count > limit {
        Err(StructureError::TooMany { what, count, limit })
    } else {
        Ok(())
    }
}

/// One output, as built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuiltOutput {
    /// Its path.
    #[serde(with = "basename")]
    pub path: StorePath,
    /// Its content.
    pub tree: TreeDigest,
    /// Digest of its archive.
    pub nar_hash: NarHash,
    /// Bytes of its archive.
    pub nar_size: u64,
    /// Store paths that occur in it, sorted.
    #[serde(with = "basename")]
    pub references: Vec<StorePath>,
}

/// What a builder says it built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildRecord {
    /// The work that was done.
    pub build_key: BuildKey,
    /// BLAKE3 of the request's payload; none for a build that the builder started for itself.
    pub request: Option<RequestHash>,
    /// What was built.
    #[serde(with = "basename")]
    pub derivation: StorePath,
    /// The complete input closure as (path, content), sorted by path.
    pub inputs: Vec<RecordInput>,
    /// Output name to what was built.
    pub outputs: BTreeMap<String, BuiltOutput>,
    /// Who built. Must be the envelope's signer.
    pub builder: NodeKey,
    /// Seconds since 1970.
    pub started: u64,
    /// Seconds since 1970.
    pub finished: u64,
    /// What kept the build apart from the machine, in words.
    pub sandbox: String,
}

digest! {
    /// BLAKE3 of a request's payload.
    RequestHash
}

/// An input as a record names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordInput {
    /// Its name.
    #[serde(with = "basename")]
    pub path: StorePath,
    /// Its content.
    pub tree: TreeDigest,
}

impl Statement for BuildRecord {
    const DOMAIN: &'static str = "build-record";
    const VERSION: u16 = 1;
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
