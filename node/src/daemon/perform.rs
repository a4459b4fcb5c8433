//! Building: from a plan to outputs that are ready to be registered, and a signed record. The same for
//! this node's own builds and for those of others.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tvix_node_builder::{
    BuildError, BuildEvent, BuildInput, BuildSpec, Builder, Built, DerivationOptions, GraphPath,
    OutputCheckError, PathFacts, Refused,
};
use tvix_node_coordinator::FailureKind;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{
    BuildLimits, BuildOptions, BuildRecord, BuiltOutput, Input, RecordInput, RequestHash, build_key,
};
use tvix_node_protocol::envelope::{Envelope, NodeSecret, seal};
use tvix_node_protocol::messages;
use tvix_node_protocol::nix::derivation::Derivation;
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_store::{AddError, Prepared, ScratchOutput};

use super::clock::now;
use super::depot::{Depot, DepotError, Log};
use super::engine::build_channel;
use super::job::kind_of;
use super::limits::EARLY_LINES;
use crate::team::together::SharedBuilds;
use crate::team::trust::TrustBook;

/// A derivation that can be built: its outputs checked, its inputs here.
pub struct Plan {
    /// Its path.
    pub path: StorePath,
    /// The derivation.
    pub derivation: Derivation,
    /// Output name to path, recomputed from the derivation's content.
    pub outputs: BTreeMap<String, StorePath>,
    /// The complete closure of what it reads, sorted by path.
    pub closure: Vec<PathInfo>,
    /// Where each of these lies.
    pub physical: Vec<PathBuf>,
}

/// What one build is told.
pub struct Work {
    /// What to build.
    pub plan: Plan,
    /// Outputs that were asked for, sorted; all are built.
    pub wanted: Vec<String>,
    /// `NIX_BUILD_CORES`; 0: all.
    pub cores: u32,
    /// Bounds.
    pub limits: BuildLimits,
    /// The slot it has until it ends.
    pub slot: u32,
    /// The request it is built for; none: this node's own build.
    pub request: Option<RequestHash>,
    /// Keep its folder if it fails.
    pub keep_failed: bool,
    /// It gives way to what the owner of the machine does.
    pub gives_way: bool,
    /// What its record is signed with: the key of the home, or that in the team it is built for.
    pub signer: Arc<NodeSecret>,
}

/// Who watches a build.
pub trait Listener: Send {
    /// It has started.
    fn started(&mut self) -> impl Future<Output = ()> + Send;
    /// It wrote a line.
    fn line(&mut self, line: &[u8]) -> impl Future<Output = ()> + Send;
}

/// A build that succeeded. Nothing is registered yet.
pub struct Performed {
    /// Its outputs.
    pub outputs: Vec<Prepared>,
    /// Output name to what is known of it.
    pub described: BTreeMap<String, PathInfo>,
    /// When it started, in seconds since 1970.
    pub started: u64,
    /// When it ended.
    pub finished: u64,
    /// What this node says of it.
    pub record: Envelope,
    /// Whether its output is fixed, and has been compared with what it must be.
    pub fixed: bool,
    /// What is left of it, which goes when this is dropped: removing it while the outputs are being
    /// registered would make the disk do both at once, and somebody waits for one of them.
    pub leftover: Leftover,
}

/// The folder of a build that is done with. Dropping it has it removed, and does not wait for that.
pub struct Leftover(Option<Built>);

impl Drop for Leftover {
    fn drop(&mut self) {
        if let (Some(built), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(built.discard());
        }
    }
}

/// What builds have in common.
pub struct Jobs {
    /// The store.
    pub depot: Arc<Depot>,
    /// The sandbox.
    pub builder: Builder,
    /// The key of the home. Signs the records of the owner's own builds.
    pub secret: Arc<NodeSecret>,
    /// The owner's rules.
    pub trust: Arc<TrustBook>,
    /// The builds that are under way and may be joined.
    pub building: Arc<SharedBuilds>,
    /// The node goes down: nothing is built to its end for anybody.
    pub down: CancellationToken,
}

/// Why a build came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The store.
    #[error(transparent)]
    Depot(#[from] DepotError),
    /// The build.
    #[error("{}{}", .0.cause, kept_as(.0.kept.as_deref()))]
    Build(#[from] BuildError),
    /// It was not begun.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It ran to its end, and its outputs cannot be taken.
    #[error("{source}{}", kept_as(.kept.as_deref()))]
    Outputs {
        /// Why not.
        source: Box<JobError>,
        /// The last lines of its log.
        log_tail: Vec<String>,
        /// Its folder, where it was to be kept and could be.
        kept: Option<PathBuf>,
    },
    /// Outputs that refer to each other in a circle, as Nix refuses them.
    #[error("the outputs {0} and {1} refer to each other, directly or not; such a circle is not allowed")]
    Circle(String, String),
    /// What the derivation says of its outputs does not hold.
    #[error(transparent)]
    Check(#[from] OutputCheckError),
    /// There is less of an earlier build than a check compares.
    #[error(
        "it cannot be checked: of its outputs, {} {} not in the store; build it first, all outputs of it ('-A NAME.OUTPUT')",
        .missing.join(", "), if .missing.len() == 1 { "is" } else { "are" }
    )]
    NothingToCompare {
        /// Names of outputs.
        missing: Vec<String>,
    },
    /// Another builder that has to agree made something else of the same inputs.
    #[error("the builders that have to agree {0}")]
    Disagreed(String),
    /// The owner's rules do not let this node's own build count.
    #[error("{0}")]
    Untrusted(String),
    /// The build of the same work for another member, which this one had joined, failed.
    #[error("{}", .0.message)]
    Joined(messages::BuildFailure),
    /// Nobody wants it any more.
    #[error("it was cancelled")]
    Cancelled,
    /// There is no build any more that it could have taken part in.
    #[error("what this node built of it for another is over")]
    NothingToJoin,
}

/// Where the folder of a failed build is, where it was to be kept.
fn kept_as(kept: Option<&Path>) -> String {
    match kept {
        Some(path) => format!("; its folder is kept as '{}'", path.display()),
        None => String::new(),
    }
}

impl Jobs {
    /// Builds, and prepares the outputs for the store. The log is kept in any case.
    pub async fn perform(
        &self,
        work: &Work,
        listener: &mut impl Listener,
        cancel: CancellationToken,
    ) -> Result<Performed, JobError> {
        let started = now();
        let (built, log) = self.logged(work, listener, cancel).await?;
        match built {
            Ok(built) => {
                // Neither waits for the other.
                let preparing = self.prepare(work, built, started);
                let (ended, performed) = tokio::join!(self.depot.end_log(log), preparing);
                ended?;
                performed
            }
            Err(error) => {
                self.depot.end_log(log).await?;
                Err(error.into())
            }
        }
    }

    /// Builds. The log is kept in any case.
    pub(super) async fn execute(
        &self,
        work: &Work,
        listener: &mut impl Listener,
        cancel: CancellationToken,
    ) -> Result<Built, JobError> {
        let (built, log) = self.logged(work, listener, cancel).await?;
        self.depot.end_log(log).await?;
        Ok(built?)
    }

    /// Builds, and gives the log, which has to be ended. Where there can be none the build does not go on.
    async fn logged(
        &self,
        work: &Work,
        listener: &mut impl Listener,
        cancel: CancellationToken,
    ) -> Result<(Result<Built, BuildError>, Log), JobError> {
        let spec = spec(work)?;
        let (sender, mut events) = build_channel();
        let cancel = cancel.child_token();
        let building = self.builder.build(spec, sender, cancel.clone());
        let listening = async {
            // The sandbox is being set up meanwhile.
            let mut log = match self.depot.begin_log(work.plan.path.clone()).await {
                Ok(log) => log,
                Err(error) => {
                    cancel.cancel();
                    return Err(error);
                }
            };
            // The two come over different ways: what is told of a build begins with its start.
            let mut started = false;
            let mut early: Vec<Vec<u8>> = Vec::new();
            while let Some(event) = events.recv().await {
                match event {
                    BuildEvent::Started => {
                        started = true;
                        listener.started().await;
                    }
                    BuildEvent::Log(line) => {
                        log.line(&line);
                        early.push(line);
                    }
                    _ => {}
                }
                if events.is_empty() {
                    log.flush();
                }
                if started || early.len() > EARLY_LINES {
                    for line in early.drain(..) {
                        listener.line(&line).await;
                    }
                }
            }
            for line in early {
                listener.line(&line).await;
            }
            Ok(log)
        };
        let (built, log) = tokio::join!(building, listening);
        Ok((built, log?))
    }

    /// Copies the outputs to the side of the store, and signs a record.
    async fn prepare(&self, work: &Work, built: Built, started: u64) -> Result<Performed, JobError> {
        match self.take_outputs(work, &built, started).await {
            Ok((outputs, described, finished, record)) => Ok(Performed {
                outputs,
                described,
                started,
                finished,
                record,
                fixed: work.plan.derivation.is_fixed_output().unwrap_or(false),
                leftover: Leftover(Some(built)),
            }),
            Err(error) => Err(self.refused(work, built, error)),
        }
    }

    /// What the user is told where the outputs are what is wrong.
    fn refused(&self, work: &Work, mut built: Built, error: JobError) -> JobError {
        if kind_of(&error) != FailureKind::Builder {
            // Nothing is wrong with them.
            return error;
        }
        let log_tail = std::mem::take(&mut built.log_tail);
        let leftover = Leftover(Some(built));
        let kept = match &leftover.0 {
            Some(built) if work.keep_failed => {
                let kept = built.keep_folder(self.builder.config());
                kept.inspect_err(
                    |error| tracing::warn!(%error, "the folder of a failed build could not be kept"),
                )
                .ok()
            }
            _ => None,
        };
        JobError::Outputs {
            source: Box::new(error),
            log_tail,
            kept,
        }
    }

    /// What kept a build apart from the machine, and did not, in words.
    fn sandbox(&self) -> String {
        let seen = self.builder.config().sandbox_paths.keys();
        let seen: Vec<String> = seen.map(|path| path.display().to_string()).collect();
        match seen.is_empty() {
            true => SANDBOX.to_owned(),
            false => format!("{SANDBOX}; saw {} of the machine", seen.join(", ")),
        }
    }

    async fn take_outputs(
        &self,
        work: &Work,
        built: &Built,
        started: u64,
    ) -> Result<(Vec<Prepared>, BTreeMap<String, PathInfo>, u64, Envelope), JobError> {
        let plan = &work.plan;
        let unscanned = DerivationOptions::read(&plan.derivation)?.discard_references;
        let candidates: BTreeSet<StorePath> = plan.closure.iter().map(|info| info.path.clone()).collect();
        let outputs: Vec<(String, StorePath, PathBuf)> = built
            .outputs
            .iter()
            .map(|(name, scratch)| (name.clone(), plan.outputs[name].clone(), scratch.clone()))
            .collect();
        let cas: BTreeMap<String, _> = plan
            .derivation
            .outputs()
            .iter()
            .filter_map(|(name, output)| Some((name.clone(), output.fixed_content_address()?.clone())))
            .collect();
        let names: Vec<String> = outputs.iter().map(|(name, _, _)| name.clone()).collect();
        let deriver = plan.path.clone();
        let prepared = self
            .depot
            .blocking(move |store| {
                let scratch: Vec<ScratchOutput<'_>> = outputs
                    .iter()
                    .map(|(name, path, scratch)| ScratchOutput {
                        path: path.clone(),
                        scratch,
                        ca: cas.get(name).cloned(),
                        scanned: !unscanned.contains(name),
                    })
                    .collect();
                store
                    .prepare_built(&scratch, &candidates, &deriver, &Origin::Built)
                    .map_err(|error| match error {
                        AddError::Source(_) | AddError::Naming(_) | AddError::Nar(_) => {
                            DepotError::Output(error)
                        }
                        // The disk is full, or the index is broken: no fault of the derivation.
                        error => DepotError::Add(error),
                    })
            })
            .await?;
        let described: BTreeMap<String, PathInfo> = names
            .into_iter()
            .zip(prepared.iter().map(|prepared| prepared.info().clone()))
            .collect();
        check_outputs(plan, &described)?;
        let finished = now();
        let record = record(work, &described, (started, finished), self.sandbox())?;
        Ok((prepared, described, finished, record))
    }
}

/// What kept a build apart from the machine, in words.
const SANDBOX: &str = "Linux namespaces (user, mount, pid, network, ipc, uts), seccomp";

fn record(
    work: &Work,
    outputs: &BTreeMap<String, PathInfo>,
    (started, finished): (u64, u64),
    sandbox: String,
) -> Result<Envelope, DepotError> {
    let failed = |error: &dyn std::fmt::Display| DepotError::Record(error.to_string());
    let inputs: Vec<Input> = work.plan.closure.iter().map(as_input).collect();
    let options = BuildOptions { cores: work.cores };
    let build_key =
        build_key(&work.plan.path, &inputs, &work.wanted, options).map_err(|error| failed(&error))?;
    let built = |info: &PathInfo| BuiltOutput {
        path: info.path.clone(),
        tree: info.tree,
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: info.references.iter().cloned().collect(),
    };
    let inputs = inputs.into_iter().map(|input| RecordInput {
        path: input.path,
        tree: input.tree,
    });
    let record = BuildRecord {
        build_key,
        request: work.request,
        derivation: work.plan.path.clone(),
        inputs: inputs.collect(),
        outputs: outputs
            .iter()
            .map(|(name, info)| (name.clone(), built(info)))
            .collect(),
        builder: work.signer.key(),
        started,
        finished,
        sandbox,
    };
    seal(&record, &work.signer).map_err(|error| failed(&error))
}

/// A path info as a build request names an input.
pub fn as_input(info: &PathInfo) -> Input {
    Input {
        path: info.path.clone(),
        tree: info.tree,
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: info.references.iter().cloned().collect(),
    }
}

/// Applies what the derivation says of its outputs' sizes and references (`allowedReferences` and
/// the like). Nothing has been registered yet.
fn check_outputs(plan: &Plan, described: &BTreeMap<String, PathInfo>) -> Result<(), JobError> {
    if let Some((one, other)) = circle(described) {
        return Err(JobError::Circle(one.to_string(), other.to_string()));
    }
    fn facts(info: &PathInfo) -> PathFacts<'_> {
        PathFacts {
            nar_size: info.nar_size,
            references: &info.references,
        }
    }
    let checks = DerivationOptions::read(&plan.derivation)?.output_checks;
    if checks.is_empty() {
        return Ok(());
    }
    let outputs = described
        .iter()
        .map(|(name, info)| (name.clone(), (info.path.clone(), facts(info))))
        .collect();
    let find = |path: &StorePath| {
        let input = plan.closure.binary_search_by(|info| info.path.cmp(path)).ok();
        input.map(|at| facts(&plan.closure[at]))
    };
    Ok(checks.apply(&outputs, find)?)
}

/// Two outputs that reach each other by references, if there are such.
fn circle(outputs: &BTreeMap<String, PathInfo>) -> Option<(&StorePath, &StorePath)> {
    let own: BTreeMap<&StorePath, &PathInfo> = outputs.values().map(|info| (&info.path, info)).collect();
    let reaches = |from: &StorePath, to: &StorePath| {
        let (mut seen, mut frontier) = (BTreeSet::new(), vec![from]);
        while let Some(path) = frontier.pop() {
            let references = own.get(path).into_iter().flat_map(|info| &info.references);
            for reference in references.filter(|reference| own.contains_key(*reference)) {
                if reference == to {
                    return true;
                }
                if seen.insert(reference) {
                    frontier.push(reference);
                }
            }
        }
        false
    };
    let pairs = own
        .keys()
        .flat_map(|one| own.keys().map(move |other| (*one, *other)));
    let mut pairs = pairs.filter(|(one, other)| one < other);
    pairs.find(|(one, other)| reaches(one, other) && reaches(other, one))
}

fn spec(work: &Work) -> Result<BuildSpec, JobError> {
    let plan = &work.plan;
    let inputs = plan
        .closure
        .iter()
        .zip(&plan.physical)
        .map(|(info, physical)| BuildInput {
            path: info.path.clone(),
            physical: physical.clone(),
        })
        .collect();
    let options = DerivationOptions::read(&plan.derivation)?;
    let mut spec = BuildSpec::new(plan.derivation.clone(), plan.path.clone(), inputs);
    if !options.export_references_graph.is_empty() {
        spec.graph = plan
            .closure
            .iter()
            .map(|info| GraphPath {
                path: info.path.clone(),
                nar_hash: info.nar_hash,
                nar_size: info.nar_size,
                references: info.references.clone(),
                ca: info.ca.clone(),
            })
            .collect();
    }
    // What this node's environment says is for builds of its own user alone.
    if work.request.is_none() {
        for name in &options.impure_environment {
            if let Some(value) = std::env::var_os(name) {
                let value = std::os::unix::ffi::OsStringExt::into_vec(value);
                spec.impure_environment.insert(name.clone(), value);
            }
        }
    }
    spec.slot = work.slot;
    spec.cores = work.cores;
    spec.limits = work.limits;
    spec.keep_failed = work.keep_failed;
    spec.for_another = work.request.is_some();
    spec.gives_way = work.gives_way;
    Ok(spec)
}
