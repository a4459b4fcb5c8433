//! This node's own builder.

use std::collections::BTreeMap;

use tvix_node_coordinator::{BuildId, BuiltPath, Delivery, Event, FailureKind};
use tvix_node_protocol::StorePath;

use crate::scenario::Fate;
use crate::world::{Happening, OwnBuild, World};

impl World {
    pub fn job(&self, derivation: &StorePath) -> usize {
        let found = self
            .scenario
            .jobs
            .iter()
            .position(|job| job.derivation.path == *derivation);
        found.expect("only known derivations are built")
    }

    /// What a derivation reads.
    pub fn inputs(&self, job: usize) -> Vec<StorePath> {
        let derivation = &self.scenario.jobs[job].derivation;
        let mut inputs = derivation.sources.clone();
        for input in &derivation.inputs {
            let made = &self.scenario.jobs[self.job(&input.derivation)].derivation.outputs;
            inputs.extend(input.outputs.iter().map(|name| made[name].clone()));
        }
        inputs
    }

    pub fn built(&self, job: usize) -> BTreeMap<String, BuiltPath> {
        let outputs = self.scenario.jobs[job].derivation.outputs.iter();
        outputs
            .map(|(name, path)| {
                (
                    name.clone(),
                    BuiltPath {
                        path: path.clone(),
                        nar_size: 10,
                    },
                )
            })
            .collect()
    }

    pub fn build_here(&mut self, build: BuildId, derivation: &StorePath, limit: Option<u64>) {
        let job = self.job(derivation);
        for input in self.inputs(job) {
            for path in self.scenario.closure(&input) {
                assert!(
                    self.own.contains(&path),
                    "{derivation} is built here without {path}"
                );
            }
        }
        let limit = limit.map(|seconds| seconds * 1_000);
        self.own_builds.insert(
            build,
            OwnBuild {
                job,
                limit,
                dying: false,
            },
        );
        self.report_after(1, Event::BuildStarted { build });
        let duration = self.scenario.jobs[job].duration;
        let duration = limit.map_or(duration, |limit| limit.min(duration));
        self.after(duration + 2, Happening::OwnBuildDone(build));
    }

    pub fn own_build_done(&mut self, build: BuildId) {
        let Some(OwnBuild { job, limit, dying }) = self.own_builds.remove(&build) else {
            return;
        };
        let fate = self.scenario.jobs[job].fate;
        let duration = self.scenario.jobs[job].duration;
        if limit.is_some_and(|limit| duration > limit) {
            self.fail(build, FailureKind::Limit, "too slow");
        } else if fate == Fate::Broken {
            self.fail(build, FailureKind::Builder, "exit code 1");
        } else if fate == Fate::Deadly || (!dying && self.lost(2)) {
            let kind = if self.rng.percent(50) {
                FailureKind::Transient
            } else {
                FailureKind::Refused
            };
            self.fail(build, kind, "the machine is unwell");
        } else {
            let outputs = self.built(job);
            self.own.extend(outputs.values().map(|built| built.path.clone()));
            self.hand_over(Event::BuildFinished {
                build,
                outputs,
                delivery: Delivery::OwnStore,
            });
        }
    }
}
