//! Builds that a node asks others for, and the way of their signs of life.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;
use tvix_node_coordinator::{BuildFailure, BuiltPath, Delivery, Event};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildOptions, BuildRequest, Input, RequestHash};
use tvix_node_protocol::envelope::{Envelope, seal};
use tvix_node_protocol::messages::RefusalReason;
use tvix_node_protocol::nix::derivation::read_derivation;
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_protocol::roster::Role;
use tvix_node_swarm::{BuildCallError, CallError, Door, WireError};

use super::super::answer::{Asked, described};
use super::super::evidence::Evidence as _;
use super::super::fetch::FetchFailure;
use super::super::limits::REQUEST_TIME;
use super::super::request::{Order, RequestFailure};
use super::super::votes::Standing;
use super::building::{Frame, contents};
use super::executor::WORLD;
use super::ledger::Requested;
use super::node::Node;
use super::plan::Nature;
use super::world::{World, lock};
use crate::daemon::perform::as_input;

/// How long a connection that says nothing is believed in, in milliseconds.
const CONNECTION: u64 = 15_000;

/// What a builder delivered.
type Delivered = (BTreeMap<String, BuiltPath>, Delivery);

impl World {
    /// Sends a signed request and gives what comes in answer. The stream ends when the builder's end does, or the
    /// connection; its builder sees it end when it is dropped.
    pub fn call(self: &Arc<Self>, from: usize, to: usize, bytes: Vec<u8>) -> UnboundedReceiver<Frame> {
        self.copy(from, to, &bytes);
        let (outer, receiver) = unbounded_channel();
        let world = Arc::clone(self);
        self.executor
            .spawn(WORLD, async move { world.carry(from, to, bytes, outer).await });
        receiver
    }

    /// Now and then a liar asks for the same work of the same builder at the same time.
    fn copy(self: &Arc<Self>, from: usize, to: usize, bytes: &[u8]) {
        let machines = &self.plan.machines;
        let neighbours = machines[to].neighbours.iter().copied();
        let liars: Vec<usize> = neighbours
            .filter(|at| machines[*at].nature != Nature::Honest)
            .collect();
        if machines[from].nature != Nature::Honest || liars.is_empty() || !self.dice().percent(20) {
            return;
        }
        let liar = liars[self.dice().below(liars.len())];
        if let Some(liar) = self.node(liar) {
            liar.copy(to, bytes);
        }
    }

    async fn carry(self: &Arc<Self>, from: usize, to: usize, bytes: Vec<u8>, outer: UnboundedSender<Frame>) {
        if !self.travel(from, to).await {
            return;
        }
        let Some(builder) = self.node(to) else { return };
        let (inner, mut frames) = unbounded_channel();
        builder.receive_request(bytes, from, inner);
        drop(builder);
        loop {
            tokio::select! {
                biased;
                () = outer.closed() => {
                    self.travel(from, to).await;
                    return;
                }
                frame = frames.recv() => {
                    if !self.travel(to, from).await {
                        return;
                    }
                    match frame {
                        Some(frame) => drop(outer.send(frame)),
                        None => return,
                    }
                }
            }
        }
    }

    /// Something travels on a connection, which sends again what is lost. False: the connection is given up.
    pub async fn travel(self: &Arc<Self>, from: usize, to: usize) -> bool {
        let until = self.now() + CONNECTION;
        loop {
            if let Some(way) = self.way(from, to) {
                self.executor.sleep(way).await;
                return true;
            }
            self.executor.sleep(200).await;
            if self.now() >= until {
                return false;
            }
        }
    }
}

impl Node {
    /// Asks a member to build; gives what came of it.
    pub async fn request(self: &Arc<Self>, order: Order, cancel: CancellationToken) -> Event {
        let build = order.build;
        match self.ask_builder(&order, &cancel).await {
            Ok((outputs, delivery)) => Event::BuildFinished {
                build,
                outputs,
                delivery,
            },
            Err(error) => {
                self.world
                    .say(|| format!("{:>3} gets nothing from {}: {error}", self.at, order.node));
                if let RequestFailure::Inputs { direct, .. } = &error {
                    let paths = direct.clone();
                    self.event(Event::InputsMissing { build, paths });
                }
                let failure = BuildFailure {
                    kind: error.kind(),
                    error: error.to_string(),
                    log_tail: vec![],
                };
                Event::BuildFailed { build, failure }
            }
        }
    }

    async fn ask_builder(
        self: &Arc<Self>,
        order: &Order,
        cancel: &CancellationToken,
    ) -> Result<Delivered, RequestFailure> {
        let asked = tokio::select! {
            biased;
            asked = self.own_part(order, self.what_is_asked(order)) => asked?,
            () = cancel.cancelled() => return Err(RequestFailure::Cancelled),
        };
        let request = self.signed_request(order, asked.inputs.clone());
        let envelope = self.sign_request(&request);
        let hash = RequestHash(envelope.payload_hash());
        let name = order.node.to_string();
        let Some(to) = self.world.number(order.node) else {
            return Err(RequestFailure::Call(BuildCallError::Over));
        };
        let mut call = self.world.call(self.at, to, envelope.to_bytes().unwrap());
        let (record, envelope) = loop {
            let frame = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(RequestFailure::Cancelled),
                frame = call.recv() => frame,
            };
            match frame {
                Some(Frame::Accepted) => self.event(Event::BuildStarted { build: order.build }),
                Some(Frame::Heartbeat) => self.event(Event::Heartbeat { build: order.build }),
                Some(Frame::Refused(refusal)) => {
                    if refusal.reason == RefusalReason::InputMissing {
                        let paths = asked.inputs.into_iter().map(|input| input.path).collect();
                        self.event(Event::InputsMissing {
                            build: order.build,
                            paths,
                        });
                    }
                    return Err(RequestFailure::Refused { name, refusal });
                }
                Some(Frame::Failed(failure)) => return Err(RequestFailure::Failed(failure)),
                Some(Frame::Finished(envelope)) => match request.answered_by(hash, &envelope) {
                    Ok(record) => break (record, envelope),
                    Err(what) => {
                        self.world.ledger().count("false answers found out");
                        let builder = order.node;
                        return Err(RequestFailure::Call(BuildCallError::WrongRecord {
                            builder,
                            what,
                        }));
                    }
                },
                None => {
                    let closed = CallError::Wire {
                        peer: order.node,
                        door: Door::Build,
                        source: WireError::Closed,
                    };
                    return Err(RequestFailure::WentAway(closed.into()));
                }
            }
        };
        let receiving = self.receive(order, hash, &asked, record, envelope);
        tokio::select! {
            biased;
            delivered = self.own_part(order, receiving) => delivered,
            () = cancel.cancelled() => Err(RequestFailure::Cancelled),
        }
    }

    /// While this node does its own part, its builder has nothing to say and is not silent.
    async fn own_part<T>(self: &Arc<Self>, order: &Order, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            self.event(Event::Heartbeat { build: order.build });
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = self.sleep(1_000) => {}
            }
        }
    }

    async fn what_is_asked(self: &Arc<Self>, order: &Order) -> Result<Asked, RequestFailure> {
        let plan = &self.world.plan;
        let job = &plan.jobs[self.world.jobs[&order.derivation]];
        let sources = job
            .sources
            .iter()
            .map(|source| plan.sources[*source].path.clone());
        let made = job
            .inputs
            .iter()
            .flat_map(|input| plan.jobs[*input].outputs.values().cloned());
        let direct: BTreeSet<StorePath> = sources.chain(made).collect();
        let direct: Vec<StorePath> = direct.into_iter().collect();
        let private = |path: &&StorePath| lock(&self.world.disks[self.at]).private.is_private(path);
        let mut named = std::iter::once(&order.derivation)
            .chain(job.outputs.values())
            .chain(&direct);
        if let Some(path) = named.find(private) {
            return Err(RequestFailure::Private(path.clone()));
        }
        let survey = match self.survey(&direct, &[order.node]).await {
            Ok(survey) => survey,
            Err(reason) => {
                let disk = lock(&self.world.disks[self.at]);
                let direct = direct
                    .into_iter()
                    .filter(|path| !disk.paths.contains_key(path))
                    .collect();
                return Err(RequestFailure::Inputs { direct, reason });
            }
        };
        let here = lock(&self.world.disks[self.at]).closure(survey.here.keys());
        if let Some(path) = here.keys().find(private) {
            return Err(RequestFailure::Private(path.clone()));
        }
        let mut inputs: BTreeMap<StorePath, Input> = survey
            .there
            .into_values()
            .map(|remote| (remote.shown.info.path.clone(), as_input(&remote.shown.info)))
            .collect();
        inputs.extend(here.values().map(|info| (info.path.clone(), as_input(info))));
        Ok(Asked {
            derivation: read_derivation(&job.drv, &job.text).unwrap(),
            outputs: job.outputs.clone(),
            inputs: inputs.into_values().collect(),
        })
    }

    pub fn signed_request(&self, order: &Order, inputs: Vec<Input>) -> BuildRequest {
        let mut outputs = order.outputs.clone();
        outputs.sort();
        let issued_at = self.clock();
        let (high, low) = {
            let mut dice = self.world.dice();
            (dice.next(), dice.next())
        };
        let nonce = (u128::from(high) << 64) | u128::from(low);
        BuildRequest {
            swarm: self.world.plan.swarm,
            requester: self.key,
            builder: order.node,
            derivation: order.derivation.clone(),
            inputs,
            outputs,
            kind: order.kind,
            desired_store: None,
            options: BuildOptions { cores: order.cores },
            limits: order.limits,
            urgency: order.urgency.to_wire(),
            fresh: false,
            keep_failed: false,
            nonce: nonce.to_le_bytes(),
            issued_at,
            not_after: issued_at + REQUEST_TIME,
        }
    }

    /// Every signature under a request is written down.
    pub fn sign_request(&self, request: &BuildRequest) -> Envelope {
        let envelope = seal(request, &self.world.plan.machines[self.at].secret).unwrap();
        let to = self.world.number(request.builder).unwrap_or(usize::MAX);
        let asked = Requested {
            by: self.at,
            to,
            issued: request.issued_at,
            until: request.not_after,
            work: request.build_key().unwrap().0,
            job: request.derivation.clone(),
            inputs: contents(&request.inputs),
        };
        self.world.ledger().requested(envelope.payload_hash(), asked);
        envelope
    }

    async fn receive(
        self: &Arc<Self>,
        order: &Order,
        hash: RequestHash,
        asked: &Asked,
        record: tvix_node_protocol::build::BuildRecord,
        envelope: Envelope,
    ) -> Result<Delivered, RequestFailure> {
        let name = order.node.to_string();
        let wrong = |reason: String| RequestFailure::Record {
            name: name.clone(),
            reason,
        };
        if !self.view().members.may(record.builder, Role::Build) {
            return Err(wrong("it does not have the role 'build' any more".to_owned()));
        }
        let infos = described(asked, &order.derivation, &record).map_err(|reason| {
            self.world.ledger().count("false records found out");
            wrong(reason)
        })?;
        self.world
            .ledger()
            .answer_taken(self.at, hash.0, envelope.payload_hash());
        let outputs = infos.iter().map(|(output, info)| {
            let (path, nar_size) = (info.path.clone(), info.nar_size);
            (output.clone(), BuiltPath { path, nar_size })
        });
        let outputs: BTreeMap<String, BuiltPath> = outputs.collect();
        match self.standing(&record, &envelope) {
            Standing::Counts => {}
            Standing::Vote => return Ok((outputs, Delivery::Vote)),
            Standing::Disagreed(reason) => return Err(RequestFailure::Disagreed(reason)),
            Standing::Refused(reason) => return Err(RequestFailure::Untrusted { name, reason }),
        }
        if !order.bring && self.are_at(order, &infos).await {
            lock(&self.world.disks[self.at]).put_record(&envelope);
            return Ok((outputs, Delivery::AtBuilder));
        }
        let failed = |source: FetchFailure| RequestFailure::Outputs {
            name: name.clone(),
            source,
        };
        let own: BTreeSet<&StorePath> = infos.values().map(|info| &info.path).collect();
        let references: BTreeSet<StorePath> = infos
            .values()
            .flat_map(|info| info.references.iter().cloned())
            .filter(|path| !own.contains(path))
            .collect();
        let references: Vec<StorePath> = references.into_iter().collect();
        self.ensure(&references, &[order.node]).await.map_err(failed)?;
        for info in infos.values() {
            self.bring(info, &[order.node]).await.map_err(failed)?;
        }
        self.register(infos.into_values().collect(), Some(&envelope))
            .await;
        Ok((outputs, Delivery::OwnStore))
    }

    async fn are_at(&self, order: &Order, infos: &BTreeMap<String, PathInfo>) -> bool {
        let paths: Vec<StorePath> = infos.values().map(|info| info.path.clone()).collect();
        let shown = self.shown_by(order.node, &paths).await;
        let mut both = infos.values().zip(shown);
        both.all(|(info, shown)| shown.is_some_and(|shown| shown.info.tree == info.tree))
    }
}
