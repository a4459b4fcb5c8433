//! Builds of a node's own coordinator on that node, in the daemon's own order of steps.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tvix_node_coordinator::{BuildFailure, BuildId, BuiltPath, Delivery, Event, FailureKind};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildLimits, BuildOptions, BuildRecord};
use tvix_node_protocol::messages;
use tvix_node_store::Audience;

use super::super::own_steps::{self, OwnWork};
use super::super::together::{Ended, Heard, Owned, SharedBuild, work_key};
use super::super::votes::Standing;
use super::building::contents;
use super::ledger::{Content, End, Whose};
use super::node::Node;
use super::plan::Job;
use super::world::lock;

/// One build of a command.
struct OwnJob<'a> {
    node: &'a Arc<Node>,
    build: BuildId,
    number: usize,
}

impl OwnWork for OwnJob<'_> {
    type Built = (BTreeMap<String, BuiltPath>, Delivery);
    type Failure = BuildFailure;

    async fn follow(&mut self, other: &SharedBuild) -> Result<Option<Self::Built>, BuildFailure> {
        self.node.world.ledger().count("own builds joined");
        self.node.event(Event::BuildStarted { build: self.build });
        let mut following = other.follow();
        let ended = loop {
            if let Heard::Over(ended) = following.next().await {
                break ended;
            }
        };
        match &*ended {
            Ended::Built { accepted: true, .. } => Ok(Some((self.built(), Delivery::OwnStore))),
            Ended::Failed(failure) if failure.kind == messages::FailureKind::Build => {
                Err(failed(FailureKind::Builder, &failure.message))
            }
            Ended::Built { .. } | Ended::Failed(_) | Ended::Refused(_) => Ok(None),
        }
    }

    async fn here_meanwhile(&mut self) -> Option<Self::Built> {
        if !self.node.has_all(self.job()) {
            return None;
        }
        self.node.world.ledger().count("own builds found done");
        self.node.event(Event::BuildStarted { build: self.build });
        Some((self.built(), Delivery::OwnStore))
    }

    async fn carry_out(self, owned: &Owned) -> Result<(Self::Built, Option<Box<BuildRecord>>), BuildFailure> {
        let (delivery, record) = self.node.perform_own(self.build, self.number, owned).await?;
        Ok(((self.built(), delivery), record))
    }

    fn nothing_to_join() -> BuildFailure {
        failed(FailureKind::Busy, "there is nothing to take part in any more")
    }

    fn cancelled() -> BuildFailure {
        failed(FailureKind::Cancelled, "cancelled")
    }

    fn told(failure: &BuildFailure) -> Option<messages::BuildFailure> {
        let told = || super::building::failure(messages::FailureKind::Build, &failure.error);
        (failure.kind == FailureKind::Builder).then(told)
    }
}

impl OwnJob<'_> {
    fn job(&self) -> &Job {
        &self.node.world.plan.jobs[self.number]
    }

    /// What a coordinator is told of a job that is built.
    fn built(&self) -> BTreeMap<String, BuiltPath> {
        let job = self.job();
        let built = job.outputs.iter().map(|(name, path)| {
            let (path, nar_size) = (path.clone(), job.size);
            (name.clone(), BuiltPath { path, nar_size })
        });
        built.collect()
    }
}

impl Node {
    pub async fn build_here(
        self: &Arc<Self>,
        build: BuildId,
        (derivation, joins): (StorePath, bool),
        cancel: CancellationToken,
    ) -> Event {
        match self.build_own(build, (&derivation, joins), cancel).await {
            Ok((outputs, delivery)) => Event::BuildFinished {
                build,
                outputs,
                delivery,
            },
            Err(failure) => Event::BuildFailed { build, failure },
        }
    }

    async fn build_own(
        self: &Arc<Self>,
        build: BuildId,
        (derivation, joins): (&StorePath, bool),
        cancel: CancellationToken,
    ) -> Result<(BTreeMap<String, BuiltPath>, Delivery), BuildFailure> {
        let number = self.world.jobs[derivation];
        let job = &self.world.plan.jobs[number];
        let inputs = self.inputs_here(number);
        let key = work_key(derivation, &inputs, &job.outputs, BuildOptions { cores: 0 }).unwrap();
        let own = OwnJob {
            node: self,
            build,
            number,
        };
        let audience = (!joins).then_some(&Audience::Everyone);
        let shared = (key, BuildLimits::NONE, audience);
        let private = lock(&self.world.disks[self.at]).private.is_private(derivation);
        // What is private is shared with nobody.
        let building = if private {
            self.world.ledger().count("private builds");
            Arc::default()
        } else {
            Arc::clone(&self.building)
        };
        own_steps::build(own, &building, shared, cancel, &CancellationToken::new()).await
    }

    async fn perform_own(
        self: &Arc<Self>,
        build: BuildId,
        number: usize,
        owned: &Owned,
    ) -> Result<(Delivery, Option<Box<BuildRecord>>), BuildFailure> {
        let job = &self.world.plan.jobs[number];
        let inputs = self.inputs_here(number);
        let noted = self
            .world
            .ledger()
            .build_begins(self.at, number, contents(&inputs), Whose::Own);
        self.event(Event::BuildStarted { build });
        let stopped = &owned.build.cancel;
        if stopped
            .run_until_cancelled(self.sleep(job.duration))
            .await
            .is_none()
        {
            self.world.ledger().build_ends(noted, End::Failed);
            return Err(failed(FailureKind::Cancelled, "cancelled"));
        }
        if job.broken {
            self.world.ledger().build_ends(noted, End::Failed);
            return Err(failed(FailureKind::Builder, "exit code 1"));
        }
        let infos = self.make(number, &contents(&inputs));
        let key = work_key(&job.drv, &inputs, &job.outputs, BuildOptions { cores: 0 }).unwrap();
        let record = self.record_of(key, &job.drv, &contents(&inputs), &infos, None);
        let envelope = self.sign(&record);
        let made: Vec<Content> = infos
            .values()
            .map(|info| (info.path.clone(), info.tree))
            .collect();
        self.world.ledger().build_makes(noted, &made);
        match self.standing(&record, &envelope) {
            Standing::Counts => {
                self.register(infos.into_values().collect(), Some(&envelope))
                    .await;
                self.world.ledger().build_ends(noted, End::Kept);
                let lies_here = {
                    let disk = lock(&self.world.disks[self.at]);
                    let mut outputs = record.outputs.values();
                    outputs.all(|output| {
                        disk.paths
                            .get(&output.path)
                            .is_some_and(|info| info.tree == output.tree)
                    })
                };
                Ok((Delivery::OwnStore, lies_here.then(|| Box::new(record))))
            }
            Standing::Vote => {
                self.world.ledger().build_ends(noted, End::Vote);
                Ok((Delivery::Vote, None))
            }
            Standing::Disagreed(why) => {
                self.world.ledger().build_ends(noted, End::Failed);
                Err(failed(FailureKind::Disagreed, &why))
            }
            Standing::Refused(why) => {
                self.world.ledger().build_ends(noted, End::Failed);
                Err(failed(FailureKind::Refused, &why))
            }
        }
    }

    fn has_all(&self, job: &Job) -> bool {
        let disk = lock(&self.world.disks[self.at]);
        job.outputs.values().all(|path| disk.paths.contains_key(path))
    }
}

fn failed(kind: FailureKind, error: &str) -> BuildFailure {
    BuildFailure {
        kind,
        error: error.to_owned(),
        log_tail: vec![],
    }
}
