//! Builds that other members ask this node for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::oneshot;
use tvix_node_builder::DerivationOptions;
use tvix_node_coordinator::FailureKind;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{
    BuildLimits, BuildRecord, BuildRequest, BuiltOutput, DesiredStore, RequestHash, SwarmId,
};
use tvix_node_protocol::envelope::{Envelope, EnvelopeError, seal};
use tvix_node_protocol::messages::{self, FailedFolder, Pushed, Refusal, RefusalReason};
use tvix_node_protocol::nix::derivation::Derivation;
use tvix_node_protocol::roster::Role;
use tvix_node_swarm::events::{IncomingBuild, Interest, RunningBuild, until_unwanted};
use tvix_node_swarm::underway::Underway;

use super::TeamNode;
use super::answer::made_out;
use super::inputs::{Inputs, refusal};
use super::left::kept_for_who_left;
use super::limits::{
    CONSIDERED_TIME, GRANT_TIME, SERVED_DISK, SERVED_LOG, SERVED_MEMORY, SERVED_SILENCE, SERVED_TIME,
    SLOT_PATIENCE,
};
use super::policy::opened;
use super::served::{EnteredPlace, ServedPlace};
use super::steps::{self, Order, Step, Workshop};
use super::together::{Ended, Heard, SharedBuild, SharedBuilds, Waiting};
use super::votes::{self, Side, Standing};
use crate::daemon::clock::now;
use crate::daemon::depot::{BuildFacts, BuildNote, DepotError};
use crate::daemon::engine::{LentSlot, LentTo, Message};
use crate::daemon::job::kind_of;
use crate::daemon::perform::{JobError, Listener, Performed, Plan, Work};

/// The log of a build on its way to all who wait for it.
struct ToAll<'a> {
    build: &'a SharedBuild,
    slot: &'a LentSlot,
}

impl Listener for ToAll<'_> {
    async fn started(&mut self) {}

    async fn line(&mut self, line: &[u8]) {
        self.build.line(line);
        self.slot.line(String::from_utf8_lossy(line).into_owned()).await;
    }
}

impl TeamNode {
    /// Takes a request that has passed the gate, and sees it through.
    ///
    /// What a build that was taken up has named here stays for a while afterwards: the requester has yet to fetch the
    /// outputs.
    pub async fn serve(self: Arc<Self>, incoming: IncomingBuild) {
        let work = self.depot.work();
        if !self.see_through(incoming).boxed().await {
            return;
        }
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(GRANT_TIME)).await;
            drop(work);
        });
    }

    /// Whether it was taken up.
    async fn see_through(self: Arc<Self>, mut incoming: IncomingBuild) -> bool {
        let request = incoming.request.clone();
        let (requester, derivation) = (request.requester, request.derivation.clone());
        tracing::info!(%derivation, %requester, "asked to build");
        let considering = self.consider(&request).boxed();
        let prepared = tokio::select! {
            prepared = considering => prepared,
            () = incoming.cancelled() => return false,
        };
        let (place, derivation, outputs, direct) = match prepared {
            Ok(prepared) => prepared,
            Err(refusal) => {
                tracing::info!(derivation = %request.derivation, %requester, %refusal, "a build is refused");
                incoming.refuse(refusal.reason, refusal.message).await;
                return false;
            }
        };
        let hash = incoming.hash;
        if let Some(record) = self.reuse(&request, &outputs, hash).await {
            // Whoever cancels at this very moment is gone.
            let Ok(running) = incoming.accept().await else {
                return true;
            };
            let pushed = self.deliver(&request, &record, true).boxed().await;
            running.finish(record, pushed).await.ok();
            return true;
        }
        let order = Order {
            limits: bounded(request.limits),
            request,
            hash,
            derivation,
            outputs,
            direct,
        };
        self.take_part(order, incoming, place).boxed().await;
        true
    }

    /// Sees a request through: joins the build of the same work that is under way, or begins one.
    async fn take_part(self: &Arc<Self>, order: Order, mut incoming: IncomingBuild, place: EnteredPlace) {
        let order = Arc::new(order);
        let joined = tokio::select! {
            joined = steps::join(self, &order) => joined,
            () = incoming.cancelled() => return,
        };
        let placed = joined.and_then(|waiting| Ok((place.joined(&waiting.build)?, waiting)));
        let (place, waiting) = match placed {
            Ok(placed) => placed,
            Err(refusal) => return incoming.refuse(refusal.reason, refusal.message).await,
        };
        let Ok(mut running) = incoming.accept().await else {
            return self.keep_for_who_left(&order, waiting, place);
        };
        let mut interest = running.interest();
        let ended = tokio::select! {
            ended = pass_on(&waiting.build, &mut running) => ended,
            why = until_unwanted(&mut interest) => {
                if why == Interest::Lost {
                    self.keep_for_who_left(&order, waiting, place);
                }
                return;
            }
        };
        self.answer(&order, &ended, running).await;
        // Only now: a build that nobody waits for is stopped.
        drop(waiting);
    }

    /// Keeps a build for a while whose requester was lost, where that one may join it again.
    fn keep_for_who_left(self: &Arc<Self>, order: &Order, waiting: Waiting, place: ServedPlace) {
        let Some(sought) = steps::sought(&order.request).filter(|_| waiting.can_be_joined()) else {
            return;
        };
        let (node, requester) = (Arc::clone(self), order.request.requester);
        let place = place.left(sought, Arc::clone(&waiting.build));
        self.begin(async move {
            let may_ask = || node.swarm.members().may(requester, Role::Request);
            kept_for_who_left(waiting, place, may_ask).await;
        });
    }

    /// Tells one who waited what came of a build.
    async fn answer(self: &Arc<Self>, order: &Order, ended: &Ended, running: RunningBuild) {
        let request = &order.request;
        // A requester that is gone has cancelled.
        match ended {
            Ended::Built {
                record,
                accepted,
                aside,
            } => {
                for tree in aside {
                    self.grants.give(request.requester, *tree, now());
                }
                // The build may have been the owner's own, or that of another who asks.
                let record = made_out((**record).clone(), self.view.me(), request, order.hash);
                match record
                    .map_err(EnvelopeError::from)
                    .and_then(|record| seal(&record, self.view.secret()))
                {
                    Ok(record) => {
                        let pushed = self.deliver(request, &record, *accepted).await;
                        running.finish(record, pushed).await.ok();
                    }
                    Err(error) => {
                        let failure = messages::BuildFailure {
                            kind: messages::FailureKind::Machine,
                            message: format!("the build record cannot be signed: {error}"),
                            tail: Vec::new(),
                            folder: None,
                        };
                        running.fail(failure).await.ok();
                    }
                }
            }
            Ended::Failed(failure) => drop(running.fail(failure.clone()).await),
            Ended::Refused(refusal) => {
                let failure = messages::BuildFailure {
                    kind: messages::FailureKind::Machine,
                    message: refusal.message.clone(),
                    tail: Vec::new(),
                    folder: None,
                };
                running.fail(failure).await.ok();
            }
        }
    }

    /// Everything that can be refused before anything is done.
    async fn consider(
        &self,
        request: &BuildRequest,
    ) -> Result<
        (
            EnteredPlace,
            Derivation,
            BTreeMap<String, StorePath>,
            BTreeSet<StorePath>,
        ),
        Refusal,
    > {
        let reason = self.share.withheld().borrow().clone();
        if let Some(reason) = reason {
            return Err(refusal(RefusalReason::Busy, withheld(&reason)));
        }
        let place = self.served.enter(request.requester, steps::sought(request))?;
        let unsupported = |message: String| refusal(RefusalReason::Unsupported, message);
        if self.slots == 0 {
            return Err(unsupported(
                "this node builds nothing: it has no slots".to_owned(),
            ));
        }
        let (derivation, checked, direct) = {
            // Each may hold many derivations in memory while it is looked at.
            let _place = self.considering.enter(request.requester).await;
            let looking = self.derivation(request.requester, &request.derivation);
            considered(&request.derivation, looking).await?
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
        if let Some(reason) = self.share.withholds_fixed_outputs().filter(|_| fixed) {
            return Err(refusal(RefusalReason::Policy, reason));
        }
        DerivationOptions::read(&derivation).map_err(|error| unsupported(error.to_string()))?;
        self.jobs
            .builder
            .check(&derivation, &request.derivation, true)
            .map_err(|error| unsupported(error.to_string()))?;
        Ok((place, derivation, (*checked.outputs).clone(), direct))
    }

    /// The record of an earlier build of the same work by this node, made out to this request.
    async fn reuse(
        &self,
        request: &BuildRequest,
        outputs: &BTreeMap<String, StorePath>,
        hash: RequestHash,
    ) -> Option<Envelope> {
        if request.fresh {
            return None;
        }
        let record = self.built_before(request, outputs).await?;
        let record = made_out(record, self.view.me(), request, hash).ok()?;
        seal(&record, self.view.secret()).ok()
    }

    async fn slot(&self, request: &BuildRequest) -> Option<Result<LentSlot, String>> {
        let (reply, slot) = oneshot::channel();
        let message = Message::LendSlot {
            derivation: request.derivation.clone(),
            to: LentTo::Member(self.name_of(request.requester)),
            urgency: request.urgency,
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
    ) -> Result<Ended, DepotError> {
        let envelope = performed.record;
        let record = opened(&envelope).map_err(DepotError::Record)?;
        // What is private here by its name, and made for another, is that one's.
        let private = |output: &BuiltOutput| self.depot.private.is_private(&output.path);
        let accepted = accepted
            && !record.outputs.values().any(private)
            && self.believes_itself(&record, &envelope).await?;
        let facts = BuildFacts {
            derivation: request.derivation.clone(),
            audience: self.view.audience(),
            record: envelope,
            note: BuildNote {
                reason: format!("{} asked for it", self.name_of(request.requester)),
                started: performed.started,
                finished: performed.finished,
            },
        };
        let aside = self
            .depot
            .register_for_another(accepted, performed.outputs, facts)
            .await?;
        Ok(Ended::Built {
            record: Box::new(record),
            accepted: aside.is_empty(),
            aside,
        })
    }

    /// Whether the owner's rules let the outputs of a build of this node count by its own word.
    async fn believes_itself(&self, record: &BuildRecord, envelope: &Envelope) -> Result<bool, DepotError> {
        let name = |node| self.name_of(node);
        let (grounds, side) = (self.trust.grounds_in(&self.swarm), Side::Team(&self.view));
        let standing = votes::standing(&self.depot, (&grounds, side), record, envelope, name);
        Ok(standing.await? == Standing::Counts)
    }

    /// Brings what was built to the desired store, if one is named and can be reached from here.
    async fn deliver(self: &Arc<Self>, request: &BuildRequest, record: &Envelope, accepted: bool) -> Pushed {
        let Some(store) = &request.desired_store else {
            return Pushed::NotAsked;
        };
        if !accepted {
            let reason = "the build used inputs that this builder does not accept, or has something else under the \
                          names of the outputs, so these are for the requester alone";
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

impl Workshop for TeamNode {
    type Ready = (Inputs, LentSlot);

    fn team(&self) -> SwarmId {
        self.view.team()
    }

    fn building(&self) -> &Arc<SharedBuilds> {
        &self.jobs.building
    }

    fn underway(&self) -> &Arc<Underway> {
        self.swarm.underway()
    }

    fn begin(&self, task: impl Future<Output = ()> + Send + 'static) {
        let work = self.depot.work();
        tokio::spawn(async move {
            task.await;
            drop(work);
        });
    }

    async fn built_before(
        &self,
        request: &BuildRequest,
        outputs: &BTreeMap<String, StorePath>,
    ) -> Option<BuildRecord> {
        let keys = Order::earlier_keys(request, outputs)?;
        let (view, lease) = (self.view.clone(), self.depot.lease());
        let private = Arc::clone(&self.depot.private);
        let record = self
            .depot
            .blocking(move |store| Ok(view.built_before((store, lease.as_ref()), &private, &keys)?));
        record.await.unwrap_or_else(|error| {
            tracing::warn!(%error, "earlier builds could not be looked up");
            None
        })
    }

    /// A slot that does not come for a while is for another builder to have.
    async fn gather(self: &Arc<Self>, order: &Order) -> Result<(Self::Ready, bool), Refusal> {
        let request = &order.request;
        let inputs = self.inputs(request, &order.direct).await?;
        let accepted = inputs.accepted;
        let busy = |message: &str| refusal(RefusalReason::Busy, message);
        match tokio::time::timeout(SLOT_PATIENCE, self.slot(request)).await {
            Ok(Some(Ok(slot))) => {
                self.still_open(&inputs)?;
                Ok(((inputs, slot), accepted))
            }
            Ok(Some(Err(reason))) => Err(busy(&withheld(&reason))),
            Ok(None) => Err(busy("this node is going down")),
            Err(_) => Err(busy("all slots of this builder are in use")),
        }
    }

    async fn carry_out(
        self: &Arc<Self>,
        build: &Arc<SharedBuild>,
        order: &Order,
        (inputs, slot): Self::Ready,
        accepted: bool,
    ) -> Ended {
        let request = &order.request;
        let Inputs {
            closure, physical, ..
        } = inputs;
        let plan = Plan {
            path: request.derivation.clone(),
            derivation: order.derivation.clone(),
            outputs: order.outputs.clone(),
            closure,
            physical,
        };
        let work = Work {
            plan,
            // Who asks for others of its outputs finds the record by these.
            wanted: order.outputs.keys().cloned().collect(),
            cores: request.options.cores,
            limits: order.limits,
            slot: slot.slot,
            request: Some(order.hash),
            keep_failed: request.keep_failed,
            gives_way: true,
            signer: Arc::clone(self.view.secret()),
        };
        let mut listener = ToAll { build, slot: &slot };
        let stop = build.cancel.child_token();
        let fixed = work.plan.derivation.is_fixed_output().unwrap_or(true);
        let stopped = async {
            tokio::select! {
                reason = slot.withdrawn() => withheld(&reason),
                reason = self.share.fixed_outputs_withdrawn(), if fixed => reason.to_owned(),
            }
        };
        let (performed, withdrawn) = {
            let performing = self.jobs.perform(&work, &mut listener, stop.clone());
            tokio::pin!(performing);
            let ended = tokio::select! {
                performed = &mut performing => (performed, None),
                reason = stopped => {
                    stop.cancel();
                    ((&mut performing).await, Some(reason))
                }
            };
            ended
        };
        if let (Err(_), Some(reason)) = (&performed, withdrawn) {
            return Ended::Failed(messages::BuildFailure {
                kind: messages::FailureKind::Owner,
                message: format!("stopped: {reason}"),
                tail: Vec::new(),
                folder: None,
            });
        }
        let kept = match performed {
            Ok(performed) => self
                .keep(request, performed, accepted)
                .await
                .map_err(JobError::from),
            Err(error) => Err(error),
        };
        drop(slot);
        match kept {
            Ok(ended) => ended,
            Err(mut error) => {
                // Where it lies here is nothing to the requester, who gets it.
                let folder = match &mut error {
                    JobError::Build(error) => error.kept.take(),
                    JobError::Outputs { kept, .. } => kept.take(),
                    _ => None,
                };
                tracing::info!(derivation = %request.derivation, %error, "a build for another member failed");
                let folder = match folder {
                    Some(folder) => Some(self.show_folder(request.requester, folder).await),
                    None => None,
                };
                Ended::Failed(failure_of(&error, folder))
            }
        }
    }

    fn noted(&self, order: &Order, _: &Arc<SharedBuild>, step: Step<'_>) {
        let (derivation, requester) = (&order.request.derivation, order.request.requester);
        match step {
            Step::Refused(refusal) => {
                tracing::info!(%derivation, %requester, %refusal, "a build is refused");
            }
            step => tracing::debug!(%derivation, %requester, ?step, "a build for another member"),
        }
    }
}

/// Why nothing is built for others, as a requester is told.
fn withheld(reason: &str) -> String {
    format!("this builder builds nothing for others now, because {reason}")
}

/// Passes on the log of a build until it is over, at the pace of who reads it.
async fn pass_on(build: &SharedBuild, running: &mut RunningBuild) -> Arc<Ended> {
    let mut following = build.follow();
    loop {
        match following.next().await {
            // A requester that is gone has cancelled.
            Heard::Log(log) => drop(running.log(&log).await),
            Heard::Over(ended) => return ended,
        }
    }
}

/// Looks at what a derivation is made of for as long as that may take: some of it comes from the requester itself.
async fn considered<T>(
    derivation: &StorePath,
    looking: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    let looked = tokio::time::timeout(CONSIDERED_TIME, looking).await;
    looked.unwrap_or_else(|_| {
        let seconds = CONSIDERED_TIME.as_secs();
        let message = format!("what {derivation} is made of did not come within {seconds} s");
        Err(refusal(RefusalReason::Busy, message))
    })
}

/// The narrower of what a request and this node allow.
fn bounded(limits: BuildLimits) -> BuildLimits {
    let narrower = |asked: Option<u64>, own: u64| Some(asked.map_or(own, |asked| asked.min(own)));
    BuildLimits {
        time: narrower(limits.time, SERVED_TIME),
        silence: narrower(limits.silence, SERVED_SILENCE),
        log: narrower(limits.log, SERVED_LOG),
        disk: narrower(limits.disk, SERVED_DISK),
        memory: narrower(limits.memory, served_memory()),
        processes: narrower(limits.processes, BuildLimits::PROCESSES),
    }
}

/// Bytes of memory that a build for another has.
fn served_memory() -> u64 {
    let machine = rustix::system::sysinfo();
    let unit = u128::from(machine.mem_unit.max(1));
    let bytes = u128::from(machine.totalram) * unit * u128::from(SERVED_MEMORY) / 100;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn failure_of(error: &JobError, folder: Option<FailedFolder>) -> messages::BuildFailure {
    let kind = match kind_of(error) {
        FailureKind::Builder | FailureKind::Disagreed => messages::FailureKind::Build,
        FailureKind::Limit => messages::FailureKind::Limit,
        FailureKind::Cancelled => messages::FailureKind::Cancelled,
        FailureKind::Transient | FailureKind::Gone | FailureKind::Refused | FailureKind::Busy => {
            messages::FailureKind::Machine
        }
    };
    let tail = match error {
        JobError::Build(error) => error.log_tail.join("\n").into_bytes(),
        JobError::Outputs { log_tail, .. } => log_tail.join("\n").into_bytes(),
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
#[path = "serve_tests.rs"]
mod tests;
