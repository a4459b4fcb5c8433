//! A build for other members, step by step: joined or begun, prepared, carried out, and ended for all who wait for it.
//!
//! What the steps need of network, store and sandbox is behind [`Workshop`], so that a team that is simulated goes the
//! same way as a node.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;

use futures::FutureExt as _;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{
    BuildKey, BuildLimits, BuildRecord, BuildRequest, BuildTerms, RequestHash, SwarmId,
};
use tvix_node_protocol::messages::{Refusal, RefusalReason};
use tvix_node_protocol::nix::derivation::Derivation;
use tvix_node_swarm::underway::{For, Stage, Underway};

use super::inputs::refusal;
use super::limits::TURNED_AWAY;
use super::together::{Ended, Key, Progress, SharedBuild, SharedBuilds, Waiting, share_key, work_key};

/// What a build for another member is begun with.
pub(super) struct Order {
    pub(super) request: BuildRequest,
    pub(super) hash: RequestHash,
    pub(super) derivation: Derivation,
    pub(super) outputs: BTreeMap<String, StorePath>,
    /// What it reads itself.
    pub(super) direct: BTreeSet<StorePath>,
    /// Where it is stopped: the narrower of what the request and this node allow.
    pub(super) limits: BuildLimits,
}

impl Order {
    /// By which it is shared with others; none: with nobody.
    fn key(&self) -> Option<BuildKey> {
        shared_work(&self.request, &self.outputs)
    }

    /// The names that an earlier build of the same work may have: all outputs were built, whichever were asked for.
    pub(super) fn earlier_keys(
        request: &BuildRequest,
        outputs: &BTreeMap<String, StorePath>,
    ) -> Option<[BuildKey; 2]> {
        let all = work_key(&request.derivation, &request.inputs, outputs, request.options)?;
        Some([request.build_key().ok()?, all])
    }
}

fn shared_work(request: &BuildRequest, outputs: &BTreeMap<String, StorePath>) -> Option<BuildKey> {
    if request.fresh || request.keep_failed {
        return None;
    }
    work_key(&request.derivation, &request.inputs, outputs, request.options)
}

/// What a request has in common with those that it shares a build with, before its derivation is looked at, from which the
/// outputs follow. None: it shares none.
pub(super) fn sought(request: &BuildRequest) -> Option<Key> {
    let work = shared_work(request, &BTreeMap::new())?;
    Some(share_key(request.swarm, work, request.limits))
}

/// What has happened to a request, or to the build that it waits for.
#[derive(Debug)]
pub(super) enum Step<'a> {
    /// It has begun a build that others may join.
    Begun,
    /// It has joined one.
    Joined,
    /// What it had joined is for another alone, or failed for what that one lacks.
    TurnedAway,
    /// It is not built.
    Refused(&'a Refusal),
    /// It takes part in the owner's own build.
    FollowsOwn,
    /// While inputs and a slot were waited for, the same was built.
    FoundDone,
}

/// What a node needs to build for others.
pub(super) trait Workshop: Send + Sync + 'static {
    /// What a build needs before it can begin: its inputs, and a slot.
    type Ready: Send;

    /// Whose members ask.
    fn team(&self) -> SwarmId;

    /// The builds that are under way.
    fn building(&self) -> &Arc<SharedBuilds>;

    /// What is under way, for members who ask.
    fn underway(&self) -> &Arc<Underway>;

    /// Begins a task that goes on by itself.
    fn begin(&self, task: impl Future<Output = ()> + Send + 'static);

    /// The record of an earlier build of this work by this node, whose outputs are here.
    fn built_before(
        &self,
        request: &BuildRequest,
        outputs: &BTreeMap<String, StorePath>,
    ) -> impl Future<Output = Option<BuildRecord>> + Send;

    /// Brings what a build needs, and waits for a slot. The second answer: whether this node accepts all that is built
    /// from; if not, what is built is for the requester alone.
    fn gather(
        self: &Arc<Self>,
        order: &Order,
    ) -> impl Future<Output = Result<(Self::Ready, bool), Refusal>> + Send;

    /// Builds, and keeps what was built.
    fn carry_out(
        self: &Arc<Self>,
        build: &Arc<SharedBuild>,
        order: &Order,
        ready: Self::Ready,
        accepted: bool,
    ) -> impl Future<Output = Ended> + Send;

    /// Something has happened.
    fn noted(&self, order: &Order, build: &Arc<SharedBuild>, step: Step<'_>);
}

/// Joins the build of the same work that is under way, or begins one, and waits until it runs, or is over, for this
/// request too.
///
/// # Errors
/// Why it is not built.
pub(super) async fn join<W: Workshop>(node: &Arc<W>, order: &Arc<Order>) -> Result<Waiting, Refusal> {
    let (team, limits) = (node.team(), order.request.limits);
    let key = order.key();
    let (mut waiting, mut begun) = node.building().join(team, key, limits);
    let mut turned_away = 0;
    loop {
        if begun {
            node.noted(order, &waiting.build, Step::Begun);
            let (node, build, order) = (Arc::clone(node), Arc::clone(&waiting.build), Arc::clone(order));
            node.clone().begin(build_for_all(node, build, order).boxed());
        } else {
            node.noted(order, &waiting.build, Step::Joined);
        }
        let progress = prepared(&waiting.build).await;
        if !begun && progress.is_for_another() {
            node.noted(order, &waiting.build, Step::TurnedAway);
            // The others who were turned away want the same.
            turned_away += 1;
            let key = key.filter(|_| turned_away < TURNED_AWAY);
            (waiting, begun) = node.building().join(team, key, limits);
            continue;
        }
        if let Progress::Over(ended) = &progress
            && let Ended::Refused(refusal) = &**ended
        {
            node.noted(order, &waiting.build, Step::Refused(refusal));
            return Err(refusal.clone());
        }
        return Ok(waiting);
    }
}

/// Waits until a build runs, or is over before that.
async fn prepared(build: &SharedBuild) -> Progress {
    let mut changes = build.changes();
    loop {
        changes.mark_unchanged();
        match build.progress() {
            // The build is held by who waits here, so its sender is there.
            Progress::Preparing => drop(changes.changed().await),
            progress => return progress,
        }
    }
}

/// Builds, for as long as anybody waits for it.
async fn build_for_all<W: Workshop>(node: Arc<W>, build: Arc<SharedBuild>, order: Arc<Order>) {
    let undertaken = node.building().undertake(build);
    let ended = build_and_keep(&node, &undertaken.build, &order).boxed().await;
    undertaken.end(ended);
}

async fn build_and_keep<W: Workshop>(node: &Arc<W>, build: &Arc<SharedBuild>, order: &Order) -> Ended {
    let (team, limits) = (node.team(), order.request.limits);
    // What is for one alone nobody else can have.
    let under_way = order.key().map(|_| {
        let derivation = order.request.derivation.clone();
        let terms = BuildTerms {
            options: order.request.options,
            limits,
        };
        node.underway()
            .note(derivation, terms, For::Team(team), Stage::Waits)
    });
    // Of equal inputs, which count here: the owner's command has them built from.
    if let Some(own) = order
        .key()
        .and_then(|key| node.building().join_own(team, key, limits))
    {
        node.noted(order, build, Step::FollowsOwn);
        if let Some(ended) = build.follow_own(&own.build).await {
            return ended;
        }
    }
    let gathered = loop {
        let own = tokio::select! {
            biased;
            gathered = node.gather(order) => break gathered,
            // The owner's command has begun it meanwhile, in a slot that this waits for.
            own = node.building().own_begun(team, order.key(), limits) => own,
            () = build.cancel.cancelled() => {
                break Err(refusal(RefusalReason::Busy, "nobody waits for it any more"));
            }
        };
        node.noted(order, build, Step::FollowsOwn);
        if let Some(ended) = build.follow_own(&own.build).await {
            return ended;
        }
    };
    let (ready, accepted) = match gathered {
        Ok(gathered) => gathered,
        Err(refusal) => return Ended::Refused(refusal),
    };
    let key = if accepted { order.key() } else { None };
    let under_way = under_way.filter(|_| accepted);
    // The owner may begin it again after that.
    while let Some(own) = node
        .building()
        .join_own_or_run(team, key, limits, build, !accepted)
    {
        node.noted(order, build, Step::FollowsOwn);
        if let Some(ended) = build.follow_own(&own.build).await {
            return ended;
        }
    }
    // The owner's command may have had it built while the inputs or a slot were waited for.
    if key.is_some()
        && let Some(record) = node.built_before(&order.request, &order.outputs).await
    {
        node.noted(order, build, Step::FoundDone);
        return Ended::Built {
            record: Box::new(record),
            accepted: true,
            aside: Vec::new(),
        };
    }
    if let Some(under_way) = &under_way {
        under_way.set(Stage::Here);
    }
    node.carry_out(build, order, ready, accepted).await
}

#[cfg(test)]
#[path = "steps_tests.rs"]
mod tests;
