//! One build on this node: from a derivation in the store to registered outputs and a signed record.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tvix_node_builder::{
    BuildError, BuildEvent, BuildInput, BuildSpec, Builder, Built, Cause, DerivationOptions, GraphPath,
    OutputCheckError, PathFacts, Refused,
};
use tvix_node_coordinator::{BuildFailure, BuildId, BuiltPath, Delivery, Event, FailureKind};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{
    BuildKind, BuildLimits, BuildOptions, BuildRecord, BuiltOutput, Input, RecordInput, build_key,
};
use tvix_node_protocol::envelope::{NodeSecret, seal};
use tvix_node_protocol::nix::derivation::Derivation;
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_store::ScratchOutput;

use super::depot::{BuildNote, Depot, DepotError};
use super::engine::{Message, build_channel};
use super::limits::EARLY_LINES;

/// What one build is told.
pub struct Job {
    /// Its name.
    pub build: BuildId,
    /// What to build.
    pub derivation: StorePath,
    /// Whether an evaluation waits.
    pub kind: BuildKind,
    /// Whether it is known to be needed.
    pub demanded: bool,
    /// `NIX_BUILD_CORES`; 0: all.
    pub cores: u32,
    /// Bounds.
    pub limits: BuildLimits,
    /// The slot it has until it ends.
    pub slot: u32,
    /// Why it was placed here.
    pub reason: String,
}

/// What builds have in common.
pub struct Jobs {
    /// The store.
    pub depot: Arc<Depot>,
    /// The sandbox.
    pub builder: Builder,
    /// Signs the records.
    pub secret: NodeSecret,
}

/// Why a build came to nothing.
#[derive(Debug, thiserror::Error)]
enum JobError {
    #[error(transparent)]
    Depot(#[from] DepotError),
    #[error("{}", .0.cause)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Check(#[from] OutputCheckError),
}

impl Jobs {
    /// Builds, and tells the engine how it went.
    pub async fn run(self: Arc<Self>, job: Job, engine: mpsc::Sender<Message>, cancel: CancellationToken) {
        let build = job.build;
        tracing::debug!(derivation = %job.derivation, demanded = job.demanded, kind = ?job.kind, "building");
        let event = match self.build(&job, &engine, cancel).await {
            Ok(outputs) => Event::BuildFinished {
                build,
                outputs,
                delivery: Delivery::OwnStore,
            },
            Err(error) => {
                tracing::debug!(derivation = %job.derivation, %error, "a build failed");
                Event::BuildFailed {
                    build,
                    failure: failure_of(&error),
                }
            }
        };
        // Where the engine has ended, nobody needs to know.
        drop(engine.send(Message::Happened(event)).await);
    }

    async fn build(
        &self,
        job: &Job,
        engine: &mpsc::Sender<Message>,
        cancel: CancellationToken,
    ) -> Result<BTreeMap<String, BuiltPath>, JobError> {
        let plan = self.depot.plan(job.derivation.clone()).await?;
        let spec = spec(job, &self.depot, &plan)?;
        let started = now();
        let (sender, mut events) = build_channel();
        let mut log = self.depot.begin_log(job.derivation.clone()).await?;
        let building = self.builder.build(spec, sender, cancel);
        let listening = async {
            // The two come over different ways: what is told of a build begins with its start.
            let mut started = false;
            let mut early = Vec::new();
            while let Some(event) = events.recv().await {
                match event {
                    BuildEvent::Started => {
                        started = true;
                        let event = Event::BuildStarted { build: job.build };
                        drop(engine.send(Message::Happened(event)).await);
                    }
                    BuildEvent::Log(line) => {
                        log.line(&line);
                        early.push(String::from_utf8_lossy(&line).into_owned());
                    }
                    _ => {}
                }
                if started || early.len() > EARLY_LINES {
                    for line in early.drain(..) {
                        // Where the engine has ended, nobody listens.
                        drop(
                            engine
                                .send(Message::Line {
                                    build: job.build,
                                    line,
                                })
                                .await,
                        );
                    }
                }
            }
            for line in early {
                drop(
                    engine
                        .send(Message::Line {
                            build: job.build,
                            line,
                        })
                        .await,
                );
            }
            log
        };
        let (built, log) = tokio::join!(building, listening);
        self.depot.end_log(log).await?;
        let built = built?;
        let registered = self.register(job, &plan, &built, started).await;
        built.discard().await;
        let outputs = registered?.into_iter();
        Ok(outputs
            .map(|(name, info)| {
                (
                    name,
                    BuiltPath {
                        path: info.path,
                        nar_size: info.nar_size,
                    },
                )
            })
            .collect())
    }

    /// Copies the outputs into the store and registers them with a signed record.
    async fn register(
        &self,
        job: &Job,
        plan: &Plan,
        built: &Built,
        started: u64,
    ) -> Result<BTreeMap<String, PathInfo>, JobError> {
        let candidates: BTreeSet<StorePath> = plan.closure.iter().map(|info| info.path.clone()).collect();
        let outputs: Vec<(String, StorePath, std::path::PathBuf)> = built
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
        let deriver = job.derivation.clone();
        let prepared = self
            .depot
            .blocking(move |store| {
                let scratch: Vec<ScratchOutput<'_>> = outputs
                    .iter()
                    .map(|(name, path, scratch)| ScratchOutput {
                        path: path.clone(),
                        scratch,
                        ca: cas.get(name).cloned(),
                    })
                    .collect();
                store
                    .prepare_built(&scratch, &candidates, &deriver, &Origin::Built)
                    .map_err(DepotError::Output)
            })
            .await?;
        let mut described: BTreeMap<String, PathInfo> = BTreeMap::new();
        for (name, prepared) in names.iter().zip(&prepared) {
            described.insert(name.clone(), prepared.info().clone());
        }
        check_outputs(plan, &described)?;
        let record = self.record(job, plan, &described, started)?;
        let envelope = seal(&record, &self.secret).map_err(|error| DepotError::Record(error.to_string()))?;
        let note = BuildNote {
            reason: job.reason.clone(),
            started,
            finished: record.finished,
        };
        self.depot
            .register(job.derivation.clone(), prepared, envelope, note)
            .await?;
        Ok(described)
    }

    fn record(
        &self,
        job: &Job,
        plan: &Plan,
        outputs: &BTreeMap<String, PathInfo>,
        started: u64,
    ) -> Result<BuildRecord, JobError> {
        let inputs: Vec<Input> = plan.closure.iter().map(as_input).collect();
        let names: Vec<String> = outputs.keys().cloned().collect();
        let options = BuildOptions { cores: job.cores };
        let key = build_key(&job.derivation, &inputs, &names, options)
            .map_err(|error| DepotError::Record(error.to_string()))?;
        let built = |info: &PathInfo| BuiltOutput {
            path: info.path.clone(),
            tree: info.tree,
            nar_hash: info.nar_hash,
            nar_size: info.nar_size,
            references: info.references.iter().cloned().collect(),
        };
        Ok(BuildRecord {
            build_key: key,
            request: None,
            derivation: job.derivation.clone(),
            inputs: inputs
                .into_iter()
                .map(|input| RecordInput {
                    path: input.path,
                    tree: input.tree,
                })
                .collect(),
            outputs: outputs
                .iter()
                .map(|(name, info)| (name.clone(), built(info)))
                .collect(),
            builder: self.secret.key(),
            started,
            finished: now(),
            sandbox: "Linux namespaces (user, mount, pid, network, ipc, uts), seccomp".to_owned(),
        })
    }
}

/// A derivation that can be built: its outputs checked, its inputs known.
pub struct Plan {
    /// The derivation.
    pub derivation: Derivation,
    /// Output name to path, recomputed from the derivation's content.
    pub outputs: BTreeMap<String, StorePath>,
    /// The complete closure of what it reads, sorted by path.
    pub closure: Vec<PathInfo>,
}

/// Applies what the derivation says of its outputs' sizes and references (`allowedReferences` and
/// the like). Nothing has been registered yet.
fn check_outputs(plan: &Plan, described: &BTreeMap<String, PathInfo>) -> Result<(), JobError> {
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

fn as_input(info: &PathInfo) -> Input {
    Input {
        path: info.path.clone(),
        tree: info.tree,
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: info.references.iter().cloned().collect(),
    }
}

fn spec(job: &Job, depot: &Depot, plan: &Plan) -> Result<BuildSpec, JobError> {
    let inputs = plan
        .closure
        .iter()
        .map(|info| BuildInput {
            path: info.path.clone(),
            physical: depot.physical(&info.path),
        })
        .collect();
    let options = DerivationOptions::read(&plan.derivation)?;
    let mut spec = BuildSpec::new(plan.derivation.clone(), job.derivation.clone(), inputs);
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
    for name in &options.impure_environment {
        if let Some(value) = std::env::var_os(name) {
            let value = std::os::unix::ffi::OsStringExt::into_vec(value);
            spec.impure_environment.insert(name.clone(), value);
        }
    }
    spec.slot = job.slot;
    spec.cores = job.cores;
    spec.limits = job.limits;
    Ok(spec)
}

fn failure_of(error: &JobError) -> BuildFailure {
    let (kind, log_tail) = match error {
        JobError::Build(error) => (kind_of(&error.cause), error.log_tail.clone()),
        JobError::Refused(_) => (FailureKind::Refused, Vec::new()),
        JobError::Check(_) => (FailureKind::Builder, Vec::new()),
        // An output that cannot be what the derivation says is the derivation's fault.
        JobError::Depot(DepotError::Output(_)) => (FailureKind::Builder, Vec::new()),
        JobError::Depot(DepotError::Derivation(_)) => (FailureKind::Builder, Vec::new()),
        JobError::Depot(_) => (FailureKind::Transient, Vec::new()),
    };
    BuildFailure {
        kind,
        error: error.to_string(),
        log_tail,
    }
}

fn kind_of(cause: &Cause) -> FailureKind {
    match cause {
        Cause::Cancelled => FailureKind::Cancelled,
        Cause::Refused(_) | Cause::Sandbox(_) => FailureKind::Refused,
        Cause::TimedOut(_) | Cause::Silent(_) | Cause::LogTooLarge(_) | Cause::DiskTooLarge(_) => {
            FailureKind::Limit
        }
        cause if cause.is_transient() => FailureKind::Transient,
        _ => FailureKind::Builder,
    }
}

/// The answer to a build that came while every slot was taken.
pub fn no_slot() -> BuildFailure {
    BuildFailure {
        kind: FailureKind::Transient,
        error: "no slot was free".to_owned(),
        log_tail: Vec::new(),
    }
}

/// The answer to a request to a peer while there are none.
pub fn no_peer() -> BuildFailure {
    BuildFailure {
        kind: FailureKind::Refused,
        error: "this node has no peers".to_owned(),
        log_tail: Vec::new(),
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}
