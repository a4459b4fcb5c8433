//! Builds of a node's own coordinator on that node, step by step as `daemon/job` does them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tvix_node_coordinator::{BuildFailure, BuildId, BuiltPath, Delivery, Event, FailureKind};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildLimits, BuildOptions, BuildRecord};
use tvix_node_protocol::messages;
use tvix_node_store::Audience;

use super::super::together::{Ended, Heard, OwnBegin, Owned, SharedBuild, work_key};
use super::super::votes::Standing;
use super::building::{contents, failure};
use super::ledger::{Content, End, Whose};
use super::node::Node;
use super::plan::Job;
use super::world::lock;

/// What came of a build that succeeded.
enum Kept {
    /// It is in the store. Without the record: a name has had another tree already.
    Registered(Option<Box<BuildRecord>>),
    /// Others have to say the same.
    Vote,
}

impl Node {
    pub async fn build_here(
        self: &Arc<Self>,
        build: BuildId,
        derivation: StorePath,
        cancel: CancellationToken,
    ) -> Event {
        match self.build_own(build, &derivation, cancel).await {
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
        derivation: &StorePath,
        cancel: CancellationToken,
    ) -> Result<(BTreeMap<String, BuiltPath>, Delivery), BuildFailure> {
        let number = self.world.jobs[derivation];
        let job = &self.world.plan.jobs[number];
        let inputs = self.inputs_here(number);
        let key = work_key(derivation, &inputs, &job.outputs, BuildOptions { cores: 0 }).unwrap();
        let owned = loop {
            match self
                .building
                .begin_own(key, BuildLimits::NONE, &Audience::Everyone)
            {
                OwnBegin::Begun(owned) => break owned,
                OwnBegin::Joined(other) => {
                    self.world.ledger().count("own builds joined");
                    let joined = self.join(build, &other.build);
                    let Some(joined) = cancel.run_until_cancelled(joined).await else {
                        return Err(failed(FailureKind::Cancelled, "cancelled"));
                    };
                    if joined? {
                        return Ok((self.built(job), Delivery::OwnStore));
                    }
                }
            }
        };
        if self.has_all(job) {
            self.world.ledger().count("own builds found done");
            self.event(Event::BuildStarted { build });
            return Ok((self.built(job), Delivery::OwnStore));
        }
        let kept = {
            let performing = self.perform_own(build, number, &owned);
            tokio::pin!(performing);
            tokio::select! {
                biased;
                kept = &mut performing => kept,
                () = cancel.cancelled() => {
                    owned.abandon();
                    performing.await
                }
            }
        };
        match kept {
            Ok(Kept::Registered(record)) => {
                if let Some(record) = record {
                    owned.end(Ended::Built {
                        record,
                        accepted: true,
                        aside: vec![],
                    });
                }
                Ok((self.built(job), Delivery::OwnStore))
            }
            Ok(Kept::Vote) => Ok((self.built(job), Delivery::Vote)),
            Err(error) => {
                // It would fail for everybody. Of anything else others find out for themselves.
                if error.kind == FailureKind::Builder {
                    let told = failure(messages::FailureKind::Build, &error.error);
                    owned.end(Ended::Failed(told));
                }
                Err(error)
            }
        }
    }

    /// Waits for the build of the same work for another, or for an earlier command. Whether it has made what is wanted;
    /// if not, it says nothing about this one.
    async fn join(self: &Arc<Self>, build: BuildId, other: &SharedBuild) -> Result<bool, BuildFailure> {
        self.event(Event::BuildStarted { build });
        let mut following = other.follow();
        let ended = loop {
            if let Heard::Over(ended) = following.next().await {
                break ended;
            }
        };
        match &*ended {
            Ended::Built { accepted: true, .. } => Ok(true),
            Ended::Failed(failure) if failure.kind == messages::FailureKind::Build => {
                Err(failed(FailureKind::Builder, &failure.message))
            }
            Ended::Built { .. } | Ended::Failed(_) | Ended::Refused(_) => Ok(false),
        }
    }

    async fn perform_own(
        self: &Arc<Self>,
        build: BuildId,
        number: usize,
        owned: &Owned,
    ) -> Result<Kept, BuildFailure> {
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
                Ok(Kept::Registered(lies_here.then(|| Box::new(record))))
            }
            Standing::Vote => {
                self.world.ledger().build_ends(noted, End::Vote);
                Ok(Kept::Vote)
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

    /// What a coordinator is told of a job that is built.
    fn built(&self, job: &Job) -> BTreeMap<String, BuiltPath> {
        let built = job.outputs.iter().map(|(name, path)| {
            let (path, nar_size) = (path.clone(), job.size);
            (name.clone(), BuiltPath { path, nar_size })
        });
        built.collect()
    }
}

fn failed(kind: FailureKind, error: &str) -> BuildFailure {
    BuildFailure {
        kind,
        error: error.to_owned(),
        log_tail: vec![],
    }
}
