//! What one build is told, what it tells, and what it leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use tvix_node_protocol::build::BuildLimits;
use tvix_node_protocol::nix::derivation::Derivation;
use tvix_node_protocol::path_info::NarHash;

use crate::StorePath;
use crate::compare::{self, Difference};
use crate::config::Config;
use crate::error::Cause;
use crate::limits::NICENESS;
use crate::scratch::{self, Scratch};

/// One path of a build's input closure, and where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildInput {
    /// Its name.
    pub path: StorePath,
    /// Where its content is on this machine, absolute. It must not change while the build runs.
    pub physical: PathBuf,
}

/// What `exportReferencesGraph` tells a build about one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphPath {
    /// The path.
    pub path: StorePath,
    /// Digest of its archive.
    pub nar_hash: NarHash,
    /// Bytes of its archive.
    pub nar_size: u64,
    /// What it refers to, itself included where it does.
    pub references: BTreeSet<StorePath>,
    /// Its content address in Nix's notation, where it has one.
    pub ca: Option<String>,
}

/// Everything about one build.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BuildSpec {
    /// What to build. Its output paths must have been checked: the builder takes them as they are.
    pub derivation: Derivation,
    /// Its path, for messages and names.
    pub drv_path: StorePath,
    /// The complete closure of what the build may read. Nothing else of the store is visible to it.
    pub inputs: Vec<BuildInput>,
    /// Facts about the inputs, needed where [`crate::DerivationOptions::export_references_graph`] is
    /// not empty.
    pub graph: Vec<GraphPath>,
    /// Which of the node's build slots this is. No two builds that run at once may have the same.
    pub slot: u32,
    /// `NIX_BUILD_CORES`; 0 means all.
    pub cores: u32,
    /// Bounds on time, silence, log, disk, memory and processes. What of memory is bound by a control group where this
    /// user may make one ([`Config::control_groups`]), else watched.
    pub limits: BuildLimits,
    /// Values for variables that a fixed-output derivation names in `impureEnvVars`. A name that is
    /// not here is set to the empty string, as Nix does.
    pub impure_environment: BTreeMap<String, Vec<u8>>,
    /// Keep the build folder of a failed build, see [`crate::Config::kept`].
    pub keep_failed: bool,
    /// Somebody else asked for it. A fixed-output build then gets no more of the network than
    /// [`Network`](crate::Network) gives to others.
    pub for_another: bool,
    /// It gives way to what the owner of the machine does ([`crate::limits::NICENESS`]).
    pub gives_way: bool,
}

impl BuildSpec {
    /// A build in slot 0 on all cores without bounds.
    #[must_use]
    pub fn new(derivation: Derivation, drv_path: StorePath, inputs: Vec<BuildInput>) -> Self {
        Self {
            derivation,
            drv_path,
            inputs,
            graph: Vec::new(),
            slot: 0,
            cores: 0,
            limits: BuildLimits::NONE,
            impure_environment: BTreeMap::new(),
            keep_failed: false,
            for_another: false,
            gives_way: false,
        }
    }

    /// What it is worth beside the owner's own work.
    pub(crate) fn niceness(&self) -> i32 {
        if self.gives_way { NICENESS } else { 0 }
    }
}

/// What a build tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildEvent {
    /// The sandbox stands, the builder program is about to run.
    Started,
    /// A line that the build wrote to its standard output or error, without its end of line.
    /// Lines longer than [`crate::limits::LOG_LINE_BYTES`] come in pieces.
    Log(Vec<u8>),
}

/// How long a build took and what it used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// From the call to the start of the builder program.
    pub setup: Duration,
    /// From the start of the builder program to the end of all processes.
    pub run: Duration,
    /// Processor time of the build's processes that were waited for, in user mode.
    pub user: Duration,
    /// The same, in the kernel.
    pub system: Duration,
    /// Largest resident set of one process, in bytes.
    pub peak_memory: u64,
}

/// A build that succeeded. All of its processes are dead.
///
/// Its folder lives as long as this value: take the outputs out, then call [`Built::discard`].
#[derive(Debug)]
pub struct Built {
    /// Output name to where the output lies now. Whoever takes it must not follow links in it: a
    /// build wrote it. Its owner and modes are as the build left them.
    pub outputs: BTreeMap<String, PathBuf>,
    /// How long it took.
    pub timings: Timings,
    /// The last lines of the log, at most [`crate::limits::LOG_TAIL_LINES`]: its outputs may be refused after all.
    pub log_tail: Vec<String>,
    pub(crate) drv_path: StorePath,
    pub(crate) scratch: Scratch,
}

impl Built {
    /// Where its outputs differ from those of an earlier build, by output: nothing where they are equal.
    /// `before` says where those lie. At most [`crate::limits::DIFFERENCES`] places of each.
    ///
    /// Outputs of other names are not compared.
    ///
    /// # Errors
    /// [`Cause::Cancelled`] where the runtime ends meanwhile.
    pub async fn differences(
        &self,
        before: &BTreeMap<String, PathBuf>,
    ) -> Result<BTreeMap<String, Vec<Difference>>, Cause> {
        let pairs: Vec<(String, PathBuf, PathBuf)> = self
            .outputs
            .iter()
            .filter_map(|(name, after)| Some((name.clone(), before.get(name)?.clone(), after.clone())))
            .collect();
        let compare = move || {
            let compared = pairs
                .into_iter()
                .map(|(name, before, after)| (name, compare::differences(&before, &after)));
            compared.filter(|(_, found)| !found.is_empty()).collect()
        };
        match tokio::task::spawn_blocking(compare).await {
            Ok(differences) => Ok(differences),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Cause::Cancelled),
            },
        }
    }

    /// Moves an output to a place where it stays, as the build left it: beside the folders of failed
    /// builds, see [`crate::Config::kept`].
    ///
    /// # Errors
    /// [`Cause::Scratch`] where it cannot be moved, or has been already.
    pub fn keep(&mut self, output: &str, config: &Config) -> Result<PathBuf, Cause> {
        let physical = self.outputs.remove(output).ok_or_else(|| Cause::Scratch {
            path: output.into(),
            action: "kept",
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        scratch::keep_output(&physical, &config.kept)
    }

    /// Moves the build folder to a place where it stays, as that of a failed build: its outputs were refused.
    ///
    /// # Errors
    /// [`Cause::Scratch`] where it cannot be moved, or has been already.
    pub fn keep_folder(&self, config: &Config) -> Result<PathBuf, Cause> {
        self.scratch.keep(&config.kept, &self.drv_path)
    }

    /// Removes what is left of the build. Dropping does the same, but blocks the thread for it.
    pub async fn discard(self) {
        self.scratch.discard().await;
    }
}
