//! Builds that this node asks others for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tvix_node_coordinator::{BuildFailure, BuildId, BuiltPath, Delivery, Event, FailureKind, Urgency};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{
    BuildKind, BuildLimits, BuildOptions, BuildRecord, BuildRequest, DesiredStore, Input,
};
use tvix_node_protocol::envelope::{Envelope, NodeKey};
use tvix_node_protocol::messages::{self, Pushed, Refusal, RefusalReason};
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_protocol::roster::Role;
use tvix_node_store::Prepared;
use tvix_node_swarm::{BuildCall, BuildCallError, BuildEvent, CallError};

use super::TeamNode;
use super::answer::{Asked, described};
use super::breaks::{Breaks, is_told_to_stop};
use super::evidence::Evidence as _;
use super::far_log::{Lines, Told};
use super::fetch::FetchFailure;
use super::limits::{BUILDER_BACK, BUILDER_PAUSE, LAST_WORDS, REQUEST_TIME, SIGN_OF_LIFE};
use super::purpose::{Purpose, priority};
use super::votes::{self, Side, Standing};
use crate::daemon::clock::now;
use crate::daemon::depot::{BuildFacts, BuildNote, DepotError};
use crate::daemon::engine::Message;
use crate::daemon::perform::as_input;

/// A request as the coordinator wants it.
pub struct Order {
    /// Its name.
    pub build: BuildId,
    /// Who builds.
    pub node: NodeKey,
    /// What.
    pub derivation: StorePath,
    /// Outputs wanted.
    pub outputs: Vec<String>,
    /// Whether an evaluation waits.
    pub kind: BuildKind,
    /// Where the outputs should go.
    pub desired_store: Option<DesiredStore>,
    /// Whether the outputs are wanted here where they do not get there.
    pub bring: bool,
    /// `NIX_BUILD_CORES`; 0: all.
    pub cores: u32,
    /// Bounds.
    pub limits: BuildLimits,
    /// How urgent it is.
    pub urgency: Urgency,
    /// Why it was placed there.
    pub reason: String,
    /// Bring its folder here if it fails.
    pub keep_failed: bool,
}

/// Why a far build came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestFailure {
    /// The store of this node.
    #[error(transparent)]
    Depot(#[from] DepotError),
    /// An input that can be had from nobody.
    #[error("the inputs cannot all be had: {reason}")]
    Inputs {
        /// What the build reads itself; some of it, or of what that refers to, is gone.
        direct: Vec<StorePath>,
        /// Which, and why.
        reason: String,
    },
    /// Something that nobody may know of.
    #[error("{0} is private ('tvix-node private'), so nobody else is asked to build with it")]
    Private(StorePath),
    /// Something that came from another team.
    #[error(
        "{0} came from another team, so nobody in this one is asked to build with it; what is made of both is built on this \
         node alone, if it has slots and '--jobs 0' is not given"
    )]
    OtherTeam(StorePath),
    /// Inputs that another team may have.
    #[error("its inputs are not to be had in the team of that builder: {0}")]
    Elsewhere(String),
    /// Somebody in one team is not told of anybody in another.
    #[error("{0} is not in the team of the store where the outputs should go")]
    OtherStore(String),
    /// No random numbers for the nonce.
    #[error("the machine gives no random numbers: {0}")]
    Random(getrandom::Error),
    /// The builder cannot be reached.
    #[error(transparent)]
    Call(#[from] BuildCallError),
    /// It was reached, and is gone.
    #[error("it went away during the build: {}", without_who(.0))]
    WentAway(BuildCallError),
    /// It is there, and breaks off again and again.
    #[error("it breaks off without a word: {}", without_who(.0))]
    BreaksOff(BuildCallError),
    /// The builder says no.
    #[error("{name} does not build it: {refusal}")]
    Refused {
        /// Who.
        name: String,
        /// Why.
        refusal: Refusal,
    },
    /// The build failed.
    #[error("{}", .0.message)]
    Failed(messages::BuildFailure),
    /// The record does not fit what was asked.
    #[error("{name}'s record is not accepted: {reason}")]
    Record {
        /// Who.
        name: String,
        /// Why.
        reason: String,
    },
    /// The outputs did not come.
    #[error("the outputs could not be fetched from {name}: {source}")]
    Outputs {
        /// Who.
        name: String,
        /// Why.
        source: FetchFailure,
    },
    /// The owner's rules let it not count.
    #[error("what {name} built does not count here: {reason}")]
    Untrusted {
        /// Who.
        name: String,
        /// Why.
        reason: String,
    },
    /// Another builder made something else of the same.
    #[error("the builders that have to agree {0}")]
    Disagreed(String),
    /// It was cancelled here.
    #[error("it was cancelled")]
    Cancelled,
}

impl RequestFailure {
    pub(super) fn kind(&self) -> FailureKind {
        match self {
            Self::Depot(DepotError::Derivation(_)) => FailureKind::Builder,
            Self::Cancelled => FailureKind::Cancelled,
            Self::Untrusted { .. }
            | Self::Private(_)
            | Self::OtherTeam(_)
            | Self::OtherStore(_)
            | Self::Elsewhere(_) => FailureKind::Refused,
            Self::Disagreed(_) => FailureKind::Disagreed,
            Self::Refused { refusal, .. } => match refusal.reason {
                // Neither says anything about the builder.
                RefusalReason::Busy | RefusalReason::InputMissing => FailureKind::Busy,
                _ => FailureKind::Refused,
            },
            Self::Failed(failure) => match failure.kind {
                messages::FailureKind::Build | messages::FailureKind::Output => FailureKind::Builder,
                messages::FailureKind::Limit => FailureKind::Limit,
                messages::FailureKind::Owner => FailureKind::Busy,
                messages::FailureKind::Cancelled
                | messages::FailureKind::Machine
                | messages::FailureKind::Input => FailureKind::Transient,
            },
            Self::Inputs { .. } => FailureKind::Busy,
            Self::Call(BuildCallError::Call(error)) | Self::WentAway(BuildCallError::Call(error))
                if error.is_away() =>
            {
                FailureKind::Gone
            }
            Self::Outputs { source, .. } if source.is_away() => FailureKind::Gone,
            Self::Depot(_)
            | Self::Random(_)
            | Self::Call(_)
            | Self::WentAway(_)
            | Self::BreaksOff(_)
            | Self::Record { .. }
            | Self::Outputs { .. } => FailureKind::Transient,
        }
    }

    fn log_tail(&self) -> Vec<String> {
        match self {
            Self::Failed(failure) => {
                let tail = String::from_utf8_lossy(&failure.tail);
                tail.lines().map(str::to_owned).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// Who it is about is said already.
fn without_who(error: &BuildCallError) -> String {
    match error {
        BuildCallError::Call(CallError::Wire { source, .. }) => source.to_string(),
        error => error.to_string(),
    }
}

/// What a builder delivered.
struct Delivered {
    outputs: BTreeMap<String, BuiltPath>,
    delivery: Delivery,
}

impl TeamNode {
    /// Asks a member to build, and reports how it went.
    pub async fn request(self: Arc<Self>, order: Order, cancel: CancellationToken) {
        let build = order.build;
        let name = self.name_of(order.node);
        let _working = self.traffic.works(order.node);
        let result = self.ask(&order, &name, &cancel).await;
        let event = match result {
            Ok(delivered) => Event::BuildFinished {
                build,
                outputs: delivered.outputs,
                delivery: delivered.delivery,
            },
            Err(error) => {
                tracing::info!(derivation = %order.derivation, builder = name, %error, "a far build came to nothing");
                if let RequestFailure::Inputs { direct, .. } = &error {
                    // They are looked for, or made, anew.
                    let paths = direct.clone();
                    self.tell(Event::InputsMissing { build, paths }).await;
                }
                Event::BuildFailed {
                    build,
                    failure: BuildFailure {
                        kind: error.kind(),
                        error: error.to_string(),
                        log_tail: error.log_tail(),
                    },
                }
            }
        };
        self.tell(event).await;
    }

    async fn ask(
        self: &Arc<Self>,
        order: &Order,
        name: &str,
        cancel: &CancellationToken,
    ) -> Result<Delivered, RequestFailure> {
        if let Some(DesiredStore::Node(store)) = order.desired_store
            && !self.swarm.members().contains(store)
        {
            return Err(RequestFailure::OtherStore(name.to_owned()));
        }
        let asked = tokio::select! {
            asked = self.own_part(order.build, self.what_is_asked(order)) => asked?,
            () = cancel.cancelled() => return Err(RequestFailure::Cancelled),
        };
        let request = self.signed_request(order, asked.inputs.clone())?;
        let calling = self.swarm.request_build(request);
        let mut call = tokio::select! {
            call = calling => call?,
            () = cancel.cancelled() => return Err(RequestFailure::Cancelled),
        };
        let _calling = self.calls.begin(order.node);
        let mut log = self.depot.begin_log(order.derivation.clone()).await?;
        let (mut lines, mut told) = (Lines::default(), Told::default());
        let mut breaks = Breaks::default();
        let ended = loop {
            let event = tokio::select! {
                event = call.next() => event,
                () = cancel.cancelled() => {
                    stop(call).await;
                    self.depot.discard_log(log).await?;
                    return Err(RequestFailure::Cancelled);
                }
            };
            match event {
                Ok(BuildEvent::Accepted) => {
                    if breaks.is_accepted() {
                        self.tell(Event::BuildStarted { build: order.build }).await;
                    }
                }
                Ok(BuildEvent::Heartbeat) => self.tell(Event::Heartbeat { build: order.build }).await,
                Ok(BuildEvent::Log(bytes)) => {
                    for line in lines.take(&bytes) {
                        if told.is_new(&line) {
                            log.line(&line);
                            self.line(order.build, &line).await;
                        }
                    }
                    log.flush();
                }
                Ok(BuildEvent::Refused(refusal)) => break Err(breaks.refusal(name, refusal)),
                Ok(BuildEvent::Failed(failure)) => break Err(RequestFailure::Failed(failure)),
                Ok(BuildEvent::Finished {
                    record,
                    envelope,
                    pushed,
                }) => break Ok((record, envelope, pushed)),
                Err(error) => {
                    let again = async {
                        match &error {
                            BuildCallError::Call(error) if breaks.may_go_on(error) => {
                                self.own_part(order.build, self.ask_again(order, &asked)).await
                            }
                            _ => None,
                        }
                    };
                    let again = tokio::select! {
                        again = again => again,
                        () = cancel.cancelled() => {
                            self.depot.discard_log(log).await?;
                            return Err(RequestFailure::Cancelled);
                        }
                    };
                    let Some(mut again) = again else {
                        if is_told_to_stop(&error) {
                            stop(call).await;
                        }
                        let is_there = self.swarm.peers().contains_key(&order.node);
                        break Err(breaks.failure(error, is_there));
                    };
                    tracing::info!(derivation = %order.derivation, builder = name, %error, "a far build is gone on with");
                    again.goes_on_with(&call);
                    call = again;
                    breaks.went_on(error);
                    lines = Lines::default();
                    told.begin_again();
                }
            }
        };
        if let Some(line) = lines.rest()
            && told.is_new(&line)
        {
            log.line(&line);
            self.line(order.build, &line).await;
        }
        match ended {
            // What was begun, and broke, has a log.
            Err(RequestFailure::Refused { .. }) if !breaks.was_accepted() => {
                self.depot.discard_log(log).await?
            }
            _ => self.depot.end_log(log).await?,
        }
        let (record, envelope, pushed) = match ended {
            Ok(ended) => ended,
            Err(RequestFailure::Refused { name, refusal }) => {
                if refusal.reason == RefusalReason::InputMissing {
                    let paths = asked.inputs.into_iter().map(|input| input.path).collect();
                    self.tell(Event::InputsMissing {
                        build: order.build,
                        paths,
                    })
                    .await;
                }
                return Err(RequestFailure::Refused { name, refusal });
            }
            Err(RequestFailure::Failed(failure)) => {
                let failed = self.with_folder(order, name, failure);
                return tokio::select! {
                    failure = self.own_part(order.build, failed) => Err(RequestFailure::Failed(failure)),
                    () = cancel.cancelled() => Err(RequestFailure::Cancelled),
                };
            }
            Err(error) => return Err(error),
        };
        self.tell(Event::BuildDone { build: order.build }).await;
        let receiving = self.receive(order, name, &asked, &record, &envelope, pushed);
        tokio::select! {
            delivered = self.own_part(order.build, receiving) => delivered,
            () = cancel.cancelled() => Err(RequestFailure::Cancelled),
        }
    }

    /// Asks a builder whose connection broke for the same once more: it has kept the build for a while, whose log comes from the
    /// beginning. None: it cannot be reached within a moment.
    async fn ask_again(&self, order: &Order, asked: &Asked) -> Option<BuildCall> {
        let asking = async {
            while self.swarm.members().contains(order.node) {
                let request = self.signed_request(order, asked.inputs.clone()).ok()?;
                match self.swarm.request_build(request).await {
                    Ok(call) => return Some(call),
                    Err(error) => tracing::debug!(%error, "a builder is not back yet"),
                }
                tokio::time::sleep(BUILDER_PAUSE).await;
            }
            None
        };
        tokio::time::timeout(BUILDER_BACK, asking).await.ok().flatten()
    }

    /// Brings the folder of a build that failed here where that was asked for, and says in the failure where
    /// it is.
    async fn with_folder(
        &self,
        order: &Order,
        name: &str,
        mut failure: messages::BuildFailure,
    ) -> messages::BuildFailure {
        let folder = failure.folder.take().filter(|_| order.keep_failed);
        if let Some(folder) = folder {
            let brought = self.bring_folder(order.node, &order.derivation, folder).await;
            failure.message.push_str(&match brought {
                Ok(place) => format!("; its folder is kept as '{}'", place.display()),
                Err(error) => format!("; its folder could not be brought here from {name}: {error}"),
            });
        }
        failure
    }

    /// Does what this node itself has to do for a far build, however long it takes: its builder has nothing
    /// to say meanwhile, and is not silent.
    async fn own_part<T>(&self, build: BuildId, work: impl Future<Output = T>) -> T {
        let mut signs = tokio::time::interval(SIGN_OF_LIFE);
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = signs.tick() => self.tell(Event::Heartbeat { build }).await,
            }
        }
    }

    async fn what_is_asked(&self, order: &Order) -> Result<Asked, RequestFailure> {
        let (derivation, checked, wanted) = self.depot.checked(order.derivation.clone()).await?;
        let wanted: Vec<StorePath> = wanted.into_iter().collect();
        // Before anybody is asked for what it reads.
        let of_order = self.hidden_among(vec![order.derivation.clone()]).await?;
        if let Some(path) = of_order.into_iter().next() {
            return Err(RequestFailure::OtherTeam(path));
        }
        let private = |path: &&StorePath| self.depot.private.is_private(path);
        let named = std::iter::once(&order.derivation).chain(checked.outputs.values());
        if let Some(path) = named.chain(&wanted).find(private) {
            return Err(RequestFailure::Private(path.clone()));
        }
        let mut surveyed = self.survey(&wanted, &[order.node]).await;
        if surveyed.is_err() && !self.depot.upstreams.is_empty() {
            // What only a binary cache has is named by its tree, so it has to come here first.
            match self.depot.upstreams.bring(&self.depot, &[], &wanted, None).await {
                Ok(()) => surveyed = self.survey(&wanted, &[order.node]).await,
                Err(error) => tracing::info!(%error, "inputs of a far build do not come from a binary cache"),
            }
        }
        let survey = match surveyed {
            Ok(survey) => survey,
            Err(reason) => {
                let here: BTreeSet<StorePath> = self
                    .depot
                    .infos(wanted.clone())
                    .await?
                    .into_iter()
                    .map(|info| info.path)
                    .collect();
                // All is here, and not for this team: nothing is to be looked for or made anew.
                if let Some(path) = self.hidden_among(wanted.clone()).await?.into_iter().next() {
                    return Err(RequestFailure::OtherTeam(path));
                }
                if self.strays(&order.derivation) {
                    return Err(RequestFailure::Elsewhere(reason));
                }
                let direct = wanted.into_iter().filter(|path| !here.contains(path)).collect();
                return Err(RequestFailure::Inputs { direct, reason });
            }
        };
        let here: Vec<StorePath> = survey.here.into_keys().collect();
        let closure = self
            .depot
            .blocking(move |store| Ok(store.closure(here.iter())?))
            .await?;
        let mut inputs: BTreeMap<StorePath, Input> = survey
            .there
            .into_values()
            .map(|remote| (remote.shown.info.path.clone(), as_input(&remote.shown.info)))
            .collect();
        let mut read = closure.iter().map(|info| &info.path);
        if let Some(path) = read.find(private) {
            return Err(RequestFailure::Private(path.clone()));
        }
        if let Some(path) = self.first_hidden(&closure).await? {
            return Err(RequestFailure::OtherTeam(path));
        }
        // What is here counts, whatever others have under the same name.
        inputs.extend(closure.iter().map(|info| (info.path.clone(), as_input(info))));
        Ok(Asked {
            derivation,
            outputs: (*checked.outputs).clone(),
            inputs: inputs.into_values().collect(),
        })
    }

    fn signed_request(&self, order: &Order, inputs: Vec<Input>) -> Result<BuildRequest, RequestFailure> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(RequestFailure::Random)?;
        let mut outputs = order.outputs.clone();
        outputs.sort();
        let issued_at = now();
        Ok(BuildRequest {
            swarm: self.swarm.swarm(),
            requester: self.swarm.key(),
            builder: order.node,
            derivation: order.derivation.clone(),
            inputs,
            outputs,
            kind: order.kind,
            desired_store: order.desired_store.clone(),
            options: BuildOptions { cores: order.cores },
            limits: order.limits,
            urgency: order.urgency.to_wire(),
            fresh: false,
            keep_failed: order.keep_failed,
            nonce,
            issued_at,
            not_after: issued_at + REQUEST_TIME,
        })
    }

    /// Checks what a builder says it built, and brings it here unless it is where it should be.
    async fn receive(
        self: &Arc<Self>,
        order: &Order,
        name: &str,
        asked: &Asked,
        record: &BuildRecord,
        envelope: &Envelope,
        pushed: Pushed,
    ) -> Result<Delivered, RequestFailure> {
        let wrong = |reason: String| RequestFailure::Record {
            name: name.to_owned(),
            reason,
        };
        let members = self.swarm.members();
        if !members.may(record.builder, Role::Build) {
            return Err(wrong("it does not have the role 'build' any more".to_owned()));
        }
        let infos = described(asked, &order.derivation, record).map_err(wrong)?;
        let facts = BuildFacts {
            derivation: order.derivation.clone(),
            audience: self.view.audience(),
            record: envelope.clone(),
            note: BuildNote {
                reason: order.reason.clone(),
                started: record.started,
                finished: record.finished,
            },
        };
        let outputs = infos.iter().map(|(output, info)| {
            let (path, nar_size) = (info.path.clone(), info.nar_size);
            (output.clone(), BuiltPath { path, nar_size })
        });
        let outputs: BTreeMap<String, BuiltPath> = outputs.collect();
        let (grounds, side) = (self.trust.grounds_in(&self.swarm), Side::Team(&self.view));
        let name_of = |node| self.name_of(node);
        match votes::standing(&self.depot, (&grounds, side), record, envelope, name_of).await? {
            Standing::Counts => {}
            Standing::Vote => {
                let delivery = Delivery::Vote;
                return Ok(Delivered { outputs, delivery });
            }
            Standing::Disagreed(reason) => return Err(RequestFailure::Disagreed(reason)),
            Standing::Refused(reason) => {
                let name = name.to_owned();
                return Err(RequestFailure::Untrusted { name, reason });
            }
        }
        let elsewhere = if pushed == Pushed::Pushed {
            Some(Delivery::DesiredStore)
        } else if !order.bring && self.are_at(order.node, &infos).await {
            Some(Delivery::AtBuilder)
        } else {
            None
        };
        if let Some(delivery) = elsewhere {
            self.depot.keep_record(facts).await?;
            return Ok(Delivered { outputs, delivery });
        }
        if let Pushed::NotPushed { reason } = &pushed {
            tracing::info!(derivation = %order.derivation, builder = name, reason, "the builder did not push");
        }
        let failed = |source| RequestFailure::Outputs {
            name: name.to_owned(),
            source,
        };
        let prepared = self.bring_outputs(order, infos).await.map_err(failed)?;
        self.depot.register(prepared, facts).await?;
        self.sample(envelope);
        let delivery = Delivery::OwnStore;
        Ok(Delivered { outputs, delivery })
    }

    /// Whether a builder shows everybody what it has built, under its name. What it built from inputs that it
    /// does not accept itself is for the requester alone, and can only be had now.
    async fn are_at(&self, builder: NodeKey, infos: &BTreeMap<String, PathInfo>) -> bool {
        let paths: Vec<StorePath> = infos.values().map(|info| info.path.clone()).collect();
        let shown = self.shown_by(builder, &paths).await;
        let mut both = infos.values().zip(shown);
        both.all(|(info, shown)| shown.is_some_and(|shown| shown.info.tree == info.tree))
    }

    /// The outputs of a build from its builder, after what they refer to.
    async fn bring_outputs(
        self: &Arc<Self>,
        order: &Order,
        infos: BTreeMap<String, PathInfo>,
    ) -> Result<Vec<Prepared>, FetchFailure> {
        let (builder, purpose) = (order.node, Purpose::own(priority(order.urgency, false)));
        let own: BTreeSet<StorePath> = infos.values().map(|info| info.path.clone()).collect();
        let references: BTreeSet<StorePath> = infos
            .values()
            .flat_map(|info| info.references.iter().cloned())
            .filter(|path| !own.contains(path))
            .collect();
        let references: Vec<StorePath> = references.into_iter().collect();
        let bringing: Vec<_> = infos
            .into_values()
            .map(|info| self.bring(info, vec![builder], purpose))
            .collect();
        let providers = [builder];
        let (ensured, brought) = tokio::join!(
            self.ensure(&references, &providers, purpose.priority, None),
            futures::future::try_join_all(bringing)
        );
        ensured?;
        brought
    }

    async fn line(&self, build: BuildId, line: &[u8]) {
        let line = String::from_utf8_lossy(line).into_owned();
        // Where the engine has ended, nobody listens.
        drop(self.engine.send(Message::Line { build, line }).await);
    }
}

/// Tells a builder that its build is not wanted. Should this be slow, the end of the stream says so in the end: who does not come
/// back in time wants nothing.
async fn stop(call: BuildCall) {
    match tokio::time::timeout(LAST_WORDS, call.cancel()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a builder could not be told to stop"),
        Err(_) => tracing::debug!("a builder did not take the word to stop in time"),
    }
}
