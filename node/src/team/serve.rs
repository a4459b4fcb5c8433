//! Builds that other members ask this node for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tvix_node_builder::DerivationOptions;
use tvix_node_coordinator::FailureKind;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildLimits, BuildRecord, BuildRequest, DesiredStore, RequestHash};
use tvix_node_protocol::envelope::{Envelope, NodeKey, seal};
use tvix_node_protocol::messages::{self, FailedFolder, Pushed, Refusal, RefusalReason};
use tvix_node_protocol::nix::derivation::Derivation;
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_swarm::events::{IncomingBuild, RunningBuild};

use super::TeamNode;
use super::inputs::{Inputs, refusal};
use super::limits::{
    SERVED_BUILDS, SERVED_BUILDS_PER_REQUESTER, SERVED_DISK, SERVED_LOG, SERVED_SILENCE, SERVED_TIME,
    SLOT_PATIENCE,
};
use super::policy::opened;
use super::votes::{self, Standing};
use crate::daemon::clock::now;
use crate::daemon::depot::{BuildNote, DepotError};
use crate::daemon::engine::{LentSlot, LentTo, Message};
use crate::daemon::job::kind_of;
use crate::daemon::perform::{JobError, Listener, Performed, Plan, Work};

/// How many builds for whom are under way.
#[derive(Debug, Default)]
pub struct Served(Mutex<HashMap<NodeKey, usize>>);

impl Served {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<NodeKey, usize>> {
        // A count is changed in one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any is.
    pub fn is_serving(&self) -> bool {
        !self.lock().is_empty()
    }

    /// Counts one in, if there is room for it.
    fn enter(self: &Arc<Self>, requester: NodeKey) -> Result<ServedPlace, Refusal> {
        let mut counts = self.lock();
        let all: usize = counts.values().sum();
        let own = counts.get(&requester).copied().unwrap_or(0);
        if all >= SERVED_BUILDS || own >= SERVED_BUILDS_PER_REQUESTER {
            let message =
                format!("this builder has {all} builds for others under way, {own} of them for you");
            return Err(refusal(RefusalReason::Busy, message));
        }
        counts.insert(requester, own + 1);
        let served = Arc::clone(self);
        Ok(ServedPlace { served, requester })
    }
}

/// One build for another member, for as long as it is under way.
#[derive(Debug)]
struct ServedPlace {
    served: Arc<Served>,
    requester: NodeKey,
}

impl Drop for ServedPlace {
    fn drop(&mut self) {
        let mut counts = self.served.lock();
        if let Some(count) = counts.get_mut(&self.requester) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.requester);
            }
        }
    }
}

/// The log of a build on its way to the requester. One that is gone cancels the build.
struct ToRequester<'a> {
    running: &'a RunningBuild,
    slot: &'a LentSlot,
}

impl Listener for ToRequester<'_> {
    async fn started(&mut self) {}

    async fn line(&mut self, line: &[u8]) {
        let mut bytes = Vec::with_capacity(line.len() + 1);
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
        // A requester that is gone has cancelled.
        self.running.log(&bytes).await.ok();
        self.slot.line(String::from_utf8_lossy(line).into_owned()).await;
    }
}

impl TeamNode {
    /// Takes a request that has passed the gate, and sees it through.
    pub async fn serve(self: Arc<Self>, mut incoming: IncomingBuild) {
        let request = incoming.request.clone();
        let (requester, derivation) = (request.requester, request.derivation.clone());
        tracing::info!(%derivation, %requester, "asked to build");
        let considering = self.consider(&request).boxed();
        let prepared = tokio::select! {
            prepared = considering => prepared,
            () = incoming.cancelled() => return,
        };
        let (place, derivation, outputs, direct) = match prepared {
            Ok(prepared) => prepared,
            Err(refusal) => {
                tracing::info!(derivation = %request.derivation, %requester, %refusal, "a build is refused");
                return incoming.refuse(refusal.reason, refusal.message).await;
            }
        };
        let hash = incoming.hash;
        if let Some(record) = self.reuse(&request, hash).await {
            // Whoever cancels at this very moment is gone.
            let Ok(running) = incoming.accept().await else {
                return;
            };
            let pushed = self.deliver(&request, &record, true).boxed().await;
            running.finish(record, pushed).await.ok();
            return;
        }
        let gathering = self.gather(&request, &direct).boxed();
        let gathered = tokio::select! {
            gathered = gathering => gathered,
            () = incoming.cancelled() => return,
        };
        let (inputs, slot) = match gathered {
            Ok(gathered) => gathered,
            Err(refusal) => {
                tracing::info!(derivation = %request.derivation, %requester, %refusal, "a build is refused");
                return incoming.refuse(refusal.reason, refusal.message).await;
            }
        };
        let Ok(running) = incoming.accept().await else {
            return;
        };
        let Inputs {
            closure,
            physical,
            accepted,
        } = inputs;
        let plan = Plan {
            path: request.derivation.clone(),
            derivation,
            outputs,
            closure,
            physical,
        };
        let building = self.build_for(&request, hash, (plan, accepted), slot, running);
        building.boxed().await;
        drop(place);
    }

    /// What a build needs before it can begin: its inputs, and a slot. A slot that does not come for a while
    /// is for another builder to have.
    async fn gather(
        self: &Arc<Self>,
        request: &BuildRequest,
        direct: &BTreeSet<StorePath>,
    ) -> Result<(Inputs, LentSlot), Refusal> {
        let inputs = self.inputs(request, direct).await?;
        let busy = |message: &str| refusal(RefusalReason::Busy, message);
        match tokio::time::timeout(SLOT_PATIENCE, self.slot(request)).await {
            Ok(Some(slot)) => Ok((inputs, slot)),
            Ok(None) => Err(busy("this node is going down")),
            Err(_) => Err(busy("all slots of this builder are in use")),
        }
    }

    /// Everything that can be refused before anything is done.
    async fn consider(
        &self,
        request: &BuildRequest,
    ) -> Result<
        (
            ServedPlace,
            Derivation,
            BTreeMap<String, StorePath>,
            BTreeSet<StorePath>,
        ),
        Refusal,
    > {
        let place = self.served.enter(request.requester)?;
        let unsupported = |message: String| refusal(RefusalReason::Unsupported, message);
        if self.slots == 0 {
            return Err(unsupported(
                "this node builds nothing: it has no slots".to_owned(),
            ));
        }
        let (derivation, checked, direct) = {
            // Each may hold many derivations in memory while it is looked at.
            let _place = self.considering.acquire().await;
            self.derivation(request.requester, &request.derivation).await?
        };
        for output in &request.outputs {
            if !checked.outputs.contains_key(output) {
                let message = format!("{} has no output '{output}'", request.derivation);
                return Err(refusal(RefusalReason::Structure, message));
            }
        }
        let fixed = derivation
            .is_fixed_output()
            .map_err(|error| refusal(RefusalReason::Structure, error.to_string()))?;
        if fixed {
            return Err(refusal(
                RefusalReason::Policy,
                "this builder does not build fixed outputs for others: they reach the network from its machine",
            ));
        }
        DerivationOptions::read(&derivation).map_err(|error| unsupported(error.to_string()))?;
        self.jobs
            .builder
            .check(&derivation)
            .map_err(|error| unsupported(error.to_string()))?;
        Ok((place, derivation, (*checked.outputs).clone(), direct))
    }

    /// The record of an earlier build of the same work by this node, made out to this request.
    async fn reuse(&self, request: &BuildRequest, hash: RequestHash) -> Option<Envelope> {
        if request.fresh {
            return None;
        }
        let key = request.build_key().ok()?;
        let (me, lease) = (self.swarm.key(), self.depot.lease());
        let record = self.depot.blocking(move |store| {
            for envelope in store.records(&key)? {
                let Ok(record) = envelope.open::<BuildRecord>() else {
                    continue;
                };
                if record.builder != me || envelope.signer != me {
                    continue;
                }
                let paths: Vec<_> = record
                    .outputs
                    .values()
                    .map(|output| output.path.clone())
                    .collect();
                let infos = lease.hold(paths.iter())?;
                let there = infos
                    .iter()
                    .zip(record.outputs.values())
                    .all(|(info, output)| info.as_ref().is_some_and(|info| info.tree == output.tree));
                if there {
                    return Ok(Some(record));
                }
            }
            Ok(None)
        });
        let record = record.await.unwrap_or_else(|error| {
            tracing::warn!(%error, "earlier builds could not be looked up");
            None
        })?;
        let record = BuildRecord {
            request: Some(hash),
            ..record
        };
        seal(&record, &self.jobs.secret).ok()
    }

    async fn build_for(
        self: &Arc<Self>,
        request: &BuildRequest,
        hash: RequestHash,
        (plan, accepted): (Plan, bool),
        slot: LentSlot,
        running: RunningBuild,
    ) {
        let cancel = CancellationToken::new();
        let mut gone = running.cancellation();
        let watching = async {
            // An error says that the stream is gone, which is the same.
            drop(gone.wait_for(|gone| *gone).await);
            cancel.cancel();
            std::future::pending::<()>().await;
        };
        let work = Work {
            plan,
            wanted: request.outputs.clone(),
            cores: request.options.cores,
            limits: bounded(request.limits),
            slot: slot.slot,
            request: Some(hash),
            keep_failed: request.keep_failed,
        };
        let working = async {
            let mut listener = ToRequester {
                running: &running,
                slot: &slot,
            };
            let performed = self.jobs.perform(&work, &mut listener, cancel.clone()).await?;
            Ok(self.keep(request, performed, accepted).await?)
        };
        let result: Result<Envelope, JobError> = tokio::select! {
            result = working => result,
            () = watching => return,
        };
        drop(slot);
        // A requester that is gone has cancelled.
        match result {
            Ok(record) => {
                let pushed = self.deliver(request, &record, accepted).await;
                running.finish(record, pushed).await.ok();
            }
            Err(mut error) => {
                // Where it lies here is nothing to the requester, who gets it.
                let folder = match &mut error {
                    JobError::Build(error) => error.kept.take(),
                    _ => None,
                };
                tracing::info!(derivation = %request.derivation, %error, "a build for another member failed");
                let folder = match folder {
                    Some(folder) => Some(self.show_folder(request.requester, folder).await),
                    None => None,
                };
                running.fail(failure_of(&error, folder)).await.ok();
            }
        }
    }

    async fn slot(&self, request: &BuildRequest) -> Option<LentSlot> {
        let (reply, slot) = oneshot::channel();
        let message = Message::LendSlot {
            derivation: request.derivation.clone(),
            to: LentTo::Member(self.name_of(request.requester)),
            reply,
        };
        self.engine.send(message).await.ok()?;
        slot.await.ok()
    }

    /// Registers what was built: under its name where every input is accepted, else for the requester
    /// alone, under its digest.
    async fn keep(
        &self,
        request: &BuildRequest,
        performed: Performed,
        accepted: bool,
    ) -> Result<Envelope, DepotError> {
        let record = performed.record;
        let accepted = accepted && self.believes_itself(&record).await?;
        let names: Vec<StorePath> = performed
            .outputs
            .iter()
            .map(|output| output.info().path.clone())
            .collect();
        let present = self.depot.infos(names).await?;
        // Not every package is reproducible: a name that has another tree keeps it, and the requester gets
        // what was built for it.
        let differs = performed
            .outputs
            .iter()
            .map(|output| output.info())
            .any(|output| {
                let mut present = present.iter();
                present.any(|info| info.path == output.path && info.tree != output.tree)
            });
        if accepted && !differs {
            let note = BuildNote {
                reason: format!("{} asked for it", self.name_of(request.requester)),
                started: performed.started,
                finished: performed.finished,
            };
            self.depot
                .register(
                    request.derivation.clone(),
                    performed.outputs,
                    record.clone(),
                    note,
                )
                .await?;
            return Ok(record);
        }
        let lease = self.depot.lease();
        let outputs = performed.outputs;
        let infos: Vec<PathInfo> = self
            .depot
            .blocking(move |store| Ok(store.register_unaccepted(outputs, &lease)?))
            .await?;
        for info in infos {
            self.grants.give(request.requester, info.tree, now());
        }
        Ok(record)
    }

    /// Whether the owner's rules let the outputs of a build of this node count by its own word.
    async fn believes_itself(&self, envelope: &Envelope) -> Result<bool, DepotError> {
        let record = opened(envelope).map_err(DepotError::Record)?;
        let standing = votes::standing(&self.depot, &self.trust, &record, envelope, |node| {
            self.name_of(node)
        });
        Ok(standing.await? == Standing::Counts)
    }

    /// Brings what was built to the desired store, if one is named and can be reached from here.
    async fn deliver(self: &Arc<Self>, request: &BuildRequest, record: &Envelope, accepted: bool) -> Pushed {
        let Some(store) = &request.desired_store else {
            return Pushed::NotAsked;
        };
        if !accepted {
            let reason = "the build used inputs that this builder does not accept, so its outputs are for the \
                          requester alone";
            let reason = reason.to_owned();
            return Pushed::NotPushed { reason };
        }
        let Ok(record) = record.open::<BuildRecord>() else {
            let reason = "the record cannot be read back".to_owned();
            return Pushed::NotPushed { reason };
        };
        let outputs = record
            .outputs
            .values()
            .map(|output| output.path.clone())
            .collect();
        let pushed = match store {
            DesiredStore::Node(node) => self.push_to_node(*node, outputs).await,
            DesiredStore::Folder(folder) => {
                crate::daemon::folder::put_for_other(&self.depot, folder.clone(), outputs)
                    .await
                    .map_err(super::push::PushFailure::from)
            }
        };
        match pushed {
            Ok(()) => Pushed::Pushed,
            Err(error) => Pushed::NotPushed {
                reason: error.to_string(),
            },
        }
    }
}

/// The narrower of what a request and this node allow.
fn bounded(limits: BuildLimits) -> BuildLimits {
    let narrower = |asked: Option<u64>, own: u64| Some(asked.map_or(own, |asked| asked.min(own)));
    BuildLimits {
        time: narrower(limits.time, SERVED_TIME),
        silence: narrower(limits.silence, SERVED_SILENCE),
        log: narrower(limits.log, SERVED_LOG),
        disk: narrower(limits.disk, SERVED_DISK),
        // Bounded by the builder for everybody's builds.
        memory: limits.memory,
    }
}

fn failure_of(error: &JobError, folder: Option<FailedFolder>) -> messages::BuildFailure {
    let kind = match kind_of(error) {
        FailureKind::Builder | FailureKind::Disagreed => messages::FailureKind::Build,
        FailureKind::Limit => messages::FailureKind::Limit,
        FailureKind::Cancelled => messages::FailureKind::Cancelled,
        FailureKind::Transient | FailureKind::Refused | FailureKind::Busy => messages::FailureKind::Machine,
    };
    let tail = match error {
        JobError::Build(error) => error.log_tail.join("\n").into_bytes(),
        _ => Vec::new(),
    };
    messages::BuildFailure {
        kind,
        message: error.to_string(),
        tail,
        folder,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_requester_cannot_fill_the_queue_alone() {
        let served = Arc::new(Served::default());
        let (ann, bob) = (NodeKey([1; 32]), NodeKey([2; 32]));
        let mut places: Vec<ServedPlace> = (0..SERVED_BUILDS_PER_REQUESTER)
            .map(|_| served.enter(ann).unwrap())
            .collect();
        assert_eq!(served.enter(ann).unwrap_err().reason, RefusalReason::Busy);
        places.push(served.enter(bob).unwrap());
        places.remove(0);
        assert!(served.enter(ann).is_ok());
    }

    #[test]
    fn all_requesters_together_have_a_bound() {
        let served = Arc::new(Served::default());
        let requester = |number: usize| NodeKey([u8::try_from(number % 200).unwrap(); 32]);
        let places: Vec<ServedPlace> = (0..SERVED_BUILDS)
            .map(|number| served.enter(requester(number)).unwrap())
            .collect();
        assert!(served.enter(NodeKey([250; 32])).is_err());
        drop(places);
        assert!(served.lock().is_empty());
    }
}
