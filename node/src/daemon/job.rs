//! One build of this node's own coordinator on this node.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tvix_node_builder::Cause;
use tvix_node_coordinator::{BuildFailure, BuildId, BuiltPath, Delivery, Event, FailureKind};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildKind, BuildLimits};
use tvix_node_protocol::envelope::NodeKey;

use super::depot::{BuildNote, DepotError};
use super::engine::Message;
use super::perform::{JobError, Jobs, Listener, Work};
use crate::team::policy::opened;
use crate::team::votes::{self, Standing};

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
    /// Keep its folder if it fails.
    pub keep_failed: bool,
}

/// Tells the engine of one build. Where the engine has ended, nobody listens.
pub struct ToEngine {
    /// Which build.
    pub build: BuildId,
    /// The engine.
    pub engine: mpsc::Sender<Message>,
}

impl Listener for ToEngine {
    async fn started(&mut self) {
        let event = Event::BuildStarted { build: self.build };
        drop(self.engine.send(Message::Happened(event)).await);
    }

    async fn line(&mut self, line: &[u8]) {
        let message = Message::Line {
            build: self.build,
            line: String::from_utf8_lossy(line).into_owned(),
        };
        drop(self.engine.send(message).await);
    }
}

impl Jobs {
    /// Builds, and tells the engine how it went.
    pub async fn run(self: Arc<Self>, job: Job, engine: mpsc::Sender<Message>, cancel: CancellationToken) {
        let build = job.build;
        tracing::debug!(derivation = %job.derivation, demanded = job.demanded, kind = ?job.kind, "building");
        let event = match self.build(&job, &engine, cancel).await {
            Ok((outputs, delivery)) => Event::BuildFinished {
                build,
                outputs,
                delivery,
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
    ) -> Result<(BTreeMap<String, BuiltPath>, Delivery), JobError> {
        let plan = self.depot.plan(job.derivation.clone()).await?;
        let fixed = plan.derivation.is_fixed_output().unwrap_or(false);
        let work = Work {
            wanted: plan.outputs.keys().cloned().collect(),
            plan,
            cores: job.cores,
            limits: job.limits,
            slot: job.slot,
            request: None,
            keep_failed: job.keep_failed,
        };
        let mut listener = ToEngine {
            build: job.build,
            engine: engine.clone(),
        };
        let performed = self.perform(&work, &mut listener, cancel).await?;
        let note = BuildNote {
            reason: job.reason.clone(),
            started: performed.started,
            finished: performed.finished,
        };
        let built = performed.described.into_iter().map(|(name, info)| {
            let (path, nar_size) = (info.path, info.nar_size);
            (name, BuiltPath { path, nar_size })
        });
        let built = built.collect();
        // A fixed output has been compared with what it must be.
        if !fixed {
            let record = opened(&performed.record).map_err(DepotError::Record)?;
            let name = |node: NodeKey| node.to_string();
            match votes::standing(&self.depot, &self.trust, &record, &performed.record, name).await? {
                Standing::Counts => {}
                Standing::Vote => return Ok((built, Delivery::Vote)),
                Standing::Disagreed(why) => return Err(JobError::Disagreed(why)),
                Standing::Refused(why) => return Err(JobError::Untrusted(why)),
            }
        }
        self.depot
            .register(job.derivation.clone(), performed.outputs, performed.record, note)
            .await?;
        drop(performed.leftover);
        Ok((built, Delivery::OwnStore))
    }
}

pub(super) fn failure_of(error: &JobError) -> BuildFailure {
    let log_tail = match error {
        JobError::Build(error) => error.log_tail.clone(),
        _ => Vec::new(),
    };
    BuildFailure {
        kind: kind_of(error),
        error: error.to_string(),
        log_tail,
    }
}

/// What follows from a failure.
pub fn kind_of(error: &JobError) -> FailureKind {
    match error {
        JobError::Build(error) => kind_of_cause(&error.cause),
        JobError::Refused(_) | JobError::Untrusted(_) => FailureKind::Refused,
        JobError::Disagreed(_) => FailureKind::Disagreed,
        // An output that cannot be what the derivation says is the derivation's fault.
        JobError::Check(_)
        | JobError::Circle(..)
        | JobError::Depot(DepotError::Output(_) | DepotError::Derivation(_)) => FailureKind::Builder,
        JobError::Depot(_) => FailureKind::Transient,
    }
}

fn kind_of_cause(cause: &Cause) -> FailureKind {
    match cause {
        Cause::Cancelled => FailureKind::Cancelled,
        // Another builder may allow more.
        Cause::Refused(_) | Cause::Sandbox(_) | Cause::MemoryOfBuilder(_) => FailureKind::Refused,
        Cause::TimedOut(_)
        | Cause::Silent(_)
        | Cause::LogTooLarge(_)
        | Cause::DiskTooLarge(_)
        | Cause::MemoryTooLarge(_) => FailureKind::Limit,
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
        error: "this node takes part in no team, so it has no peers".to_owned(),
        log_tail: Vec::new(),
    }
}
