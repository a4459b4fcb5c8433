//! Builds that this node asks others for: from the request to its end, over connections that break (`super::breaks`).

mod asked;
mod failure;
mod received;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tvix_node_coordinator::{BuildFailure, BuildId, BuiltPath, Delivery, Event, Urgency};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildKind, BuildLimits, DesiredStore};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::RefusalReason;
use tvix_node_swarm::{BuildCall, BuildCallError, BuildEvent};

use super::TeamNode;
use super::answer::Asked;
use super::breaks::{Breaks, is_told_to_stop};
use super::far_log::{Lines, Told};
use super::limits::{BUILDER_BACK, BUILDER_PAUSE, LAST_WORDS, SIGN_OF_LIFE};
use crate::daemon::engine::Message;
pub(super) use failure::RequestFailure;

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
