//! Results of builds: checked against the derivation, taken note of, told.

use std::collections::BTreeMap;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::EventKind;

use crate::action::Source;
use crate::build::{Attempt, Stage};
use crate::coordinator::Coordinator;
use crate::event::{BuildFailure, BuiltPath, Delivery, FailureKind};
use crate::graph::{Asked, Desired, DrvId, Own};
use crate::id::BuildId;
use crate::session_set::SessionSet;

impl Coordinator {
    pub(crate) fn build_finished(
        &mut self,
        build: BuildId,
        outputs: &BTreeMap<String, BuiltPath>,
        delivery: Delivery,
    ) {
        let attempt = self.attempts.get(&build).or_else(|| self.given_up.get(&build));
        let Some(attempt) = attempt else {
            self.unexpected_outputs(outputs, delivery);
            return;
        };
        let (drv, cores) = (attempt.drv, attempt.cores);
        if let Err(error) = self.check_outputs(drv, outputs) {
            let kind = if attempt.node.is_some() {
                FailureKind::Transient
            } else {
                FailureKind::Builder
            };
            self.build_failed(
                build,
                BuildFailure {
                    kind,
                    error,
                    log_tail: Vec::new(),
                },
            );
            self.unexpected_outputs(outputs, delivery);
            return;
        }
        let participants = self.wanted_by(drv, cores);
        let Some(attempt) = self.take_attempt(build).or_else(|| self.given_up.remove(&build)) else {
            return;
        };
        // One that was joined had run before.
        if let Stage::Running { since } = attempt.stage
            && !attempt.joins
        {
            let done = attempt.done.unwrap_or(self.now);
            let took = u64::try_from(done.since(since).as_millis()).unwrap_or(u64::MAX);
            self.history.note(&attempt.derivation, attempt.node, took);
        }
        if delivery == Delivery::Vote {
            self.take_vote(&attempt, participants);
            return;
        }
        self.graph.drvs[drv].votes.clear();
        self.deliver(&attempt, outputs, delivery);
        self.tell_finished(&attempt, participants);
        if delivery == Delivery::DesiredStore {
            // Only a claim so far: what else is at it goes on until it is confirmed.
            return;
        }
        for other in self.graph.drvs[drv].attempts.clone() {
            if self
                .attempts
                .get(&other)
                .is_some_and(|attempt| attempt.stage != Stage::Dying)
            {
                self.cancel(other, "another builder was done first");
            }
        }
    }

    /// Whether a result has exactly the outputs that the derivation says.
    fn check_outputs(&self, drv: DrvId, outputs: &BTreeMap<String, BuiltPath>) -> Result<(), String> {
        let wanted = &self.graph.drvs[drv].outputs;
        for (name, path) in wanted {
            let path = &self.graph.paths[*path].name;
            match outputs.get(name) {
                None => return Err(format!("the result lacks the output '{name}'")),
                Some(built) if built.path != *path => {
                    return Err(format!(
                        "the result's output '{name}' is {}, not {path}",
                        built.path
                    ));
                }
                Some(_) => {}
            }
        }
        let unknown = outputs
            .keys()
            .find(|name| !wanted.iter().any(|(known, _)| known == *name));
        match unknown {
            Some(name) => Err(format!(
                "the result has an output '{name}' that the derivation has not"
            )),
            None => Ok(()),
        }
    }

    /// Outputs of a build that is not known any more: they may be of use all the same, else they need
    /// not be kept.
    fn unexpected_outputs(&mut self, outputs: &BTreeMap<String, BuiltPath>, delivery: Delivery) {
        if delivery != Delivery::OwnStore {
            return;
        }
        for built in outputs.values() {
            match self.graph.path(&built.path) {
                Some(id) => self.path_arrived(id),
                None => self.released.push(built.path.clone()),
            }
        }
    }

    /// Takes note of where a build's outputs are.
    fn deliver(&mut self, attempt: &Attempt, outputs: &BTreeMap<String, BuiltPath>, delivery: Delivery) {
        let made = self.graph.drvs[attempt.drv].outputs.clone();
        for (name, id) in &made {
            let path = &mut self.graph.paths[*id];
            path.nar_size = outputs.get(name).map(|built| built.nar_size);
            path.fetch_tries = 0;
            path.ask_tries = 0;
            match (delivery, attempt.node) {
                (Delivery::AtBuilder, Some(node)) => {
                    if path.own == Own::Unknown {
                        path.own = Own::Absent;
                    }
                    self.graph.add_source(*id, &Source::Peer(node));
                }
                (Delivery::DesiredStore, Some(_)) => {
                    if path.own == Own::Absent {
                        path.own = Own::Unknown;
                    }
                    let store = attempt
                        .desired
                        .as_ref()
                        .map(|store| self.graph.desired.intern(store));
                    if let Some(store) = store {
                        let entry = self.graph.paths[*id].desired_mut(store);
                        if entry.state == Desired::Absent {
                            entry.state = Desired::Unknown(Asked::No);
                        }
                    }
                    self.ask(*id, store);
                }
                (Delivery::OwnStore, _) | (_, None) => path.own = Own::Here,
                // Nothing has been delivered.
                (Delivery::Vote, Some(_)) => {}
            }
            self.graph.touch_path(*id);
        }
        if delivery != Delivery::OwnStore {
            self.graph.drvs[attempt.drv].built_by = attempt.node;
        }
    }

    fn tell_finished(&mut self, attempt: &Attempt, participants: SessionSet) {
        let since = match attempt.stage {
            Stage::Running { since } => since,
            _ => attempt.placed,
        };
        let done = attempt.done.unwrap_or(self.now);
        let duration = u64::try_from(done.since(since).as_millis()).unwrap_or(u64::MAX);
        let made = &self.graph.drvs[attempt.drv].outputs;
        let outputs: BTreeMap<String, StorePath> = made
            .iter()
            .map(|(name, path)| (name.clone(), self.graph.paths[*path].name.clone()))
            .collect();
        let cancelled = attempt.stage == Stage::Dying;
        let told = if cancelled {
            participants
        } else {
            attempt.told.or(participants)
        };
        for slot in told.iter() {
            self.graph.drvs[attempt.drv].told_present.insert(slot);
            if let Some(session) = self.sessions.get_mut(slot) {
                session.built += 1;
            }
            let (derivation, node) = (attempt.derivation.clone(), attempt.node_name.clone());
            let outputs = outputs.clone();
            self.tell(
                slot,
                EventKind::BuildFinished {
                    derivation,
                    node,
                    outputs,
                    duration,
                },
            );
        }
    }
}
