//! One build of this node's own coordinator on this node.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tvix_node_builder::{Cause, Chance};
use tvix_node_coordinator::{BuildFailure, BuildId, BuiltPath, Delivery, Event, FailureKind};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildKey, BuildKind, BuildLimits, BuildOptions, BuildRecord, Input};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages;
use tvix_node_store::Audience;

use super::depot::{BuildFacts, BuildNote, DepotError};
use super::engine::Message;
use super::perform::{JobError, Jobs, Listener, Performed, Plan, Work, as_input};
use crate::team::own_steps::{self, OwnWork};
use crate::team::policy::opened;
use crate::team::together::{Ended, Heard, Owned, SharedBuild, lines, work_key};
use crate::team::votes::{self, Side, Standing};

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
    /// The slot it has until it ends; none: it only takes part in what is built for another.
    pub slot: Option<u32>,
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
        // It may outlive its session, for others.
        let _work = self.depot.work();
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
        let mut listener = ToEngine {
            build: job.build,
            engine: engine.clone(),
        };
        let Some(key) = self.shared_key(job, &plan) else {
            if let Some(here) = self.here_meanwhile(&plan).await {
                listener.started().await;
                return Ok((here, Delivery::OwnStore));
            }
            let slot = job.slot.ok_or(JobError::NothingToJoin)?;
            let audience = self.audience(&plan).await?;
            let work = self.work(job, plan, slot);
            let performed = self.perform(&work, &mut listener, cancel).await?;
            return self.keep_built(job, performed, audience).await.map(Kept::result);
        };
        let audience = self.audience(&plan).await?;
        let shared = (key, job.limits, job.slot.map(|_| &audience));
        let own = OwnJob {
            jobs: self,
            job,
            plan,
            listener,
            audience: audience.clone(),
        };
        own_steps::build(own, &self.building, shared, cancel, &self.down).await
    }

    /// What a build would make, where all of it has come to lie here since it was decided to build it: it was built for
    /// another member, or a peer was late with it.
    async fn here_meanwhile(&self, plan: &Plan) -> Option<BTreeMap<String, BuiltPath>> {
        let sizes = self.depot.all_here(&plan.outputs).await?;
        let named = sizes.into_iter().map(|(name, nar_size)| {
            let path = plan.outputs.get(&name)?.clone();
            Some((name, BuiltPath { path, nar_size }))
        });
        named.collect()
    }

    /// Who may learn of a build: who may learn of everything that it reads.
    async fn audience(&self, plan: &Plan) -> Result<Audience, JobError> {
        let mut paths: Vec<StorePath> = plan.closure.iter().map(|info| info.path.clone()).collect();
        paths.push(plan.path.clone());
        let audience = self
            .depot
            .blocking(move |store| Ok(store.audience_of_all(&paths)?));
        Ok(audience.await?)
    }

    fn work(&self, job: &Job, plan: Plan, slot: u32) -> Work {
        Work {
            wanted: plan.outputs.keys().cloned().collect(),
            plan,
            cores: job.cores,
            limits: job.limits,
            slot,
            request: None,
            keep_failed: job.keep_failed,
            gives_way: false,
            signer: Arc::clone(&self.secret),
        }
    }

    /// By what the build is shared with those who ask for the same; none: with nobody. What reads the owner's
    /// environment or reaches the network for him is his alone, and so is what is private.
    fn shared_key(&self, job: &Job, plan: &Plan) -> Option<BuildKey> {
        let fixed = plan.derivation.is_fixed_output().unwrap_or(true);
        let private = plan
            .outputs
            .values()
            .any(|path| self.depot.private.is_private(path));
        if job.keep_failed || fixed || private || self.depot.private.is_private(&plan.path) {
            return None;
        }
        let inputs: Vec<Input> = plan.closure.iter().map(as_input).collect();
        let options = BuildOptions { cores: job.cores };
        work_key(&plan.path, &inputs, &plan.outputs, options)
    }

    /// Makes what was built part of the store, where the owner's rules let it count.
    async fn keep_built(
        &self,
        job: &Job,
        performed: Performed,
        audience: Audience,
    ) -> Result<Kept, JobError> {
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
        let record = opened(&performed.record).map_err(DepotError::Record)?;
        // A fixed output has been compared with what it must be.
        if !performed.fixed {
            let name = |node: NodeKey| node.to_string();
            let (grounds, side) = (self.trust.grounds(), Side::Own(audience.clone()));
            match votes::standing(&self.depot, (&grounds, side), &record, &performed.record, name).await? {
                Standing::Counts => {}
                Standing::Vote => return Ok(Kept::Vote(built)),
                Standing::Disagreed(why) => return Err(JobError::Disagreed(why)),
                Standing::Refused(why) => return Err(JobError::Untrusted(why)),
            }
        }
        let facts = BuildFacts {
            derivation: job.derivation.clone(),
            audience,
            record: performed.record,
            note,
        };
        let lies_here = self.depot.register(performed.outputs, facts).await?;
        drop(performed.leftover);
        Ok(Kept::Registered(built, lies_here.then(|| Box::new(record))))
    }
}

/// A build of the owner's command that others may take part in.
struct OwnJob<'a> {
    jobs: &'a Jobs,
    job: &'a Job,
    plan: Plan,
    listener: ToEngine,
    /// Who may learn of it.
    audience: Audience,
}

impl OwnWork for OwnJob<'_> {
    type Built = (BTreeMap<String, BuiltPath>, Delivery);
    type Failure = JobError;

    async fn follow(&mut self, other: &SharedBuild) -> Result<Option<Self::Built>, JobError> {
        self.listener.started().await;
        let mut following = other.follow();
        let ended = loop {
            match following.next().await {
                Heard::Log(log) => {
                    for line in lines(&log) {
                        self.listener.line(line).await;
                    }
                }
                Heard::Over(ended) => break ended,
            }
        };
        match &*ended {
            Ended::Built {
                record,
                accepted: true,
                ..
            } => {
                let built = record.outputs.iter().map(|(name, output)| {
                    let (path, nar_size) = (output.path.clone(), output.nar_size);
                    (name.clone(), BuiltPath { path, nar_size })
                });
                Ok(Some((built.collect(), Delivery::OwnStore)))
            }
            Ended::Failed(failure) if failure.kind == messages::FailureKind::Build => {
                Err(JobError::Joined(failure.clone()))
            }
            Ended::Built { .. } | Ended::Failed(_) | Ended::Refused(_) => Ok(None),
        }
    }

    async fn here_meanwhile(&mut self) -> Option<Self::Built> {
        let here = self.jobs.here_meanwhile(&self.plan).await?;
        self.listener.started().await;
        Some((here, Delivery::OwnStore))
    }

    async fn carry_out(self, owned: &Owned) -> Result<(Self::Built, Option<Box<BuildRecord>>), JobError> {
        let mut listener = ToOthersToo {
            engine: self.listener,
            build: Arc::clone(&owned.build),
        };
        let slot = self.job.slot.ok_or(JobError::NothingToJoin)?;
        let work = self.jobs.work(self.job, self.plan, slot);
        let stop = owned.build.cancel.child_token();
        let performed = self.jobs.perform(&work, &mut listener, stop).await?;
        let kept = self.jobs.keep_built(self.job, performed, self.audience).await?;
        Ok(match kept {
            Kept::Registered(built, record) => ((built, Delivery::OwnStore), record),
            Kept::Vote(built) => ((built, Delivery::Vote), None),
        })
    }

    fn nothing_to_join() -> JobError {
        JobError::NothingToJoin
    }

    fn cancelled() -> JobError {
        JobError::Cancelled
    }

    fn told(failure: &JobError) -> Option<messages::BuildFailure> {
        // It would fail for everybody. Of anything else others find out for themselves.
        (kind_of(failure) == FailureKind::Builder).then(|| told_failure(failure))
    }
}

/// What became of a build that succeeded.
enum Kept {
    /// It is in the store. Without the record: a name has had another tree already, and keeps that. What was built is
    /// nowhere, so nobody else is told of it.
    Registered(BTreeMap<String, BuiltPath>, Option<Box<BuildRecord>>),
    /// Others have to say the same.
    Vote(BTreeMap<String, BuiltPath>),
}

impl Kept {
    fn result(self) -> (BTreeMap<String, BuiltPath>, Delivery) {
        match self {
            Self::Registered(built, _) => (built, Delivery::OwnStore),
            Self::Vote(built) => (built, Delivery::Vote),
        }
    }
}

/// Tells those who wait for the same build, too.
struct ToOthersToo {
    engine: ToEngine,
    build: Arc<SharedBuild>,
}

impl Listener for ToOthersToo {
    async fn started(&mut self) {
        self.engine.started().await;
    }

    async fn line(&mut self, line: &[u8]) {
        self.build.line(line);
        self.engine.line(line).await;
    }
}

/// A failure as other members are told of it.
fn told_failure(error: &JobError) -> messages::BuildFailure {
    let failure = failure_of(error);
    messages::BuildFailure {
        kind: messages::FailureKind::Build,
        message: failure.error,
        tail: failure.log_tail.join("\n").into_bytes(),
        folder: None,
    }
}

pub(super) fn failure_of(error: &JobError) -> BuildFailure {
    let log_tail = match error {
        JobError::Build(error) => error.log_tail.clone(),
        JobError::Outputs { log_tail, .. } => log_tail.clone(),
        JobError::Joined(failure) => {
            let tail = String::from_utf8_lossy(&failure.tail);
            tail.lines().map(str::to_owned).collect()
        }
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
        JobError::Outputs { source, .. } => kind_of(source),
        JobError::Refused(_) | JobError::Untrusted(_) | JobError::NothingToCompare { .. } => {
            FailureKind::Refused
        }
        JobError::Disagreed(_) => FailureKind::Disagreed,
        JobError::Cancelled => FailureKind::Cancelled,
        JobError::NothingToJoin => FailureKind::Busy,
        // An output that cannot be what the derivation says is the derivation's fault.
        JobError::Check(_)
        | JobError::Circle(..)
        | JobError::Joined(_)
        | JobError::Depot(DepotError::Output(_) | DepotError::Derivation(_)) => FailureKind::Builder,
        JobError::Depot(_) => FailureKind::Transient,
    }
}

fn kind_of_cause(cause: &Cause) -> FailureKind {
    match cause {
        Cause::Cancelled => FailureKind::Cancelled,
        // Another builder may allow more.
        Cause::Fetch {
            chance: Chance::Elsewhere,
            ..
        }
        | Cause::Refused(_)
        | Cause::Sandbox(_)
        | Cause::DiskOfBuilder(_)
        | Cause::MemoryOfBuilder(_)
        | Cause::ProcessesOfBuilder(_) => FailureKind::Refused,
        Cause::TimedOut(_)
        | Cause::Silent(_)
        | Cause::LogTooLarge(_)
        | Cause::DiskTooLarge(_)
        | Cause::MemoryTooLarge(_)
        | Cause::TooManyProcesses(_) => FailureKind::Limit,
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

/// The answer to a request to a peer that has just been put out, or has left, or whose team this node has left.
pub fn no_peer() -> BuildFailure {
    BuildFailure {
        kind: FailureKind::Refused,
        error: "it is in no team of this node any more".to_owned(),
        log_tail: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_machine_may_not_fetch_another_one_is_asked_for_and_this_one_no_more() {
        let kind = |chance| {
            let (url, reason) = ("http://10.0.0.1/".to_owned(), "it is denied".to_owned());
            kind_of_cause(&Cause::Fetch { url, reason, chance })
        };
        assert_eq!(kind(Chance::Elsewhere), FailureKind::Refused);
        assert_eq!(kind(Chance::Later), FailureKind::Transient);
        assert_eq!(kind(Chance::None), FailureKind::Builder);
    }
}
