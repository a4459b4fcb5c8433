//! Carrying out what the coordinator wants.

use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;
use tvix_node_coordinator::{Action, BuildId, Event, FetchId, PushId, QuestionId};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildTerms, DesiredStore};
use tvix_node_protocol::control::EventKind;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_swarm::Rising;
use tvix_node_swarm::underway::{For, Stage, Turn};

use super::{Engine, Message, Running, THIS_NODE};
use crate::daemon::check::Check;
use crate::daemon::job::{Job, no_peer, no_slot};
use crate::daemon::limits::PRESENCE_PART;
use crate::daemon::{fetching, folder};
use crate::team::every;
use crate::team::presence::About;
use crate::team::purpose::priority;
use crate::team::request::Order;

/// Something that moves paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Transfer {
    Fetch(FetchId),
    Push(PushId),
}

impl Engine {
    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::AskPresence {
                question,
                desired_store,
                paths,
            } => self.ask_presence(question, desired_store, paths),
            Action::BuildHere {
                build,
                derivation,
                kind,
                demanded,
                cores,
                limits,
                joins,
            } => {
                let slot = if joins { None } else { self.free_slots.pop_first() };
                if slot.is_none() && !joins {
                    // The coordinator counts the slots too; if it ever disagrees, the build is placed anew.
                    self.later(Event::BuildFailed {
                        build,
                        failure: no_slot(),
                    });
                    return;
                }
                let (cancel, reason) = self.begin(build, &derivation, true, slot);
                let keep_failed = self.keeps_failed();
                let job = Job {
                    build,
                    derivation,
                    kind,
                    demanded,
                    cores,
                    limits,
                    slot,
                    reason,
                    keep_failed,
                };
                tokio::spawn(Arc::clone(&self.jobs).run(job, self.outbox.clone(), cancel));
            }
            Action::Check {
                session,
                derivation,
                cores,
                limits,
            } => {
                let Some(state) = self.sessions.get(&session.0) else {
                    // Its command is gone, and so is what would hear of it.
                    return;
                };
                let check = Check {
                    session: session.0,
                    derivation,
                    cores,
                    limits,
                    keep_failed: state.keep_failed,
                };
                let cancel = state.checks.child_token();
                tokio::spawn(Arc::clone(&self.jobs).check(check, self.outbox.clone(), cancel));
            }
            Action::CancelChecks { session } => {
                if let Some(state) = self.sessions.get(&session.0) {
                    state.checks.cancel();
                }
            }
            Action::CancelBuild { build, node } => {
                if let Some(running) = self.running.get(&build) {
                    running.cancel.cancel();
                    // One on a peer is over at once.
                    if node.is_some() {
                        self.running.remove(&build);
                    }
                }
            }
            Action::Release { paths } => self.depot.release(&paths),
            Action::Tell { session, event } => self.tell(session.0, event),
            Action::Refuse { session, refusal } => {
                let text = refusal.to_string();
                tracing::warn!(session = session.0, refusal = text, "a session was refused");
                self.tell(
                    session.0,
                    EventKind::Message {
                        level: "error".to_owned(),
                        text,
                    },
                );
                self.end_refused(session.0);
            }
            Action::WeighInputs {
                derivation,
                inputs,
                outputs,
                terms,
                nodes,
            } => {
                let (teams, outbox) = (self.team.all(), self.outbox.clone());
                let underway = Arc::clone(self.team.underway());
                // The folder of a build that fails is for the one alone who wants it.
                let joins = (!self.keeps_failed()).then(|| self.decide(&derivation, terms));
                let about = About {
                    derivation,
                    inputs,
                    outputs,
                    terms,
                    joins,
                };
                tokio::spawn(async move {
                    let event = every::weigh(&teams, &underway, about, nodes).await;
                    // Where the engine has ended, nobody needs to know.
                    drop(outbox.send(Message::Happened(event)).await);
                });
            }
            Action::Announce {
                build,
                derivation,
                terms,
                node,
            } => self.announce(build, (derivation, terms), node),
            Action::Retract { build } => drop(self.announced.remove(&build)),
            Action::Fetch {
                fetch,
                path,
                from,
                urgency,
                awaited,
            } => {
                let cancel = self.transfer(Transfer::Fetch(fetch));
                let priority = Rising::from(priority(urgency, awaited));
                self.rising.insert(fetch, priority.clone());
                let node = (Arc::clone(&self.depot), self.team.all(), self.outbox.clone());
                tokio::spawn(async move {
                    let fetching = fetching::fetch(node, fetch, path, (from, priority));
                    cancel.run_until_cancelled(fetching).await;
                });
            }
            Action::Push { push, path, to } => self.push(push, path, to),
            Action::HurryFetch {
                fetch,
                urgency,
                awaited,
            } => {
                if let Some(rising) = self.rising.get(&fetch) {
                    rising.raise(priority(urgency, awaited));
                }
            }
            Action::CancelFetch { fetch } => {
                self.rising.remove(&fetch);
                self.stop_transfer(Transfer::Fetch(fetch));
            }
            Action::CancelPush { push } => self.stop_transfer(Transfer::Push(push)),
            Action::Request {
                build,
                node,
                derivation,
                outputs,
                kind,
                desired_store,
                bring,
                cores,
                limits,
                urgency,
            } => {
                let Some(team) = self.team.of(node) else {
                    let failure = no_peer();
                    self.later(Event::BuildFailed { build, failure });
                    return;
                };
                let (cancel, reason) = self.begin(build, &derivation, false, None);
                let order = Order {
                    build,
                    node,
                    derivation,
                    outputs,
                    kind,
                    desired_store,
                    bring,
                    cores,
                    limits,
                    urgency,
                    reason,
                    keep_failed: self.keeps_failed(),
                };
                tokio::spawn(team.request(order, cancel));
            }
            // The stream of the request is the lease: a builder whose requester is gone sees it end, and
            // one whose requester's machine is gone sees the connection time out.
            Action::RenewLease { .. } => {}
        }
    }

    /// Has members wait who are about to place the same, where this node goes first.
    fn decide(&mut self, derivation: &StorePath, terms: BuildTerms) -> Turn {
        let underway = self.team.underway();
        let (noted, turn) = underway.decide(derivation.clone(), terms, For::Owner);
        self.deciding.insert(derivation.clone(), noted);
        turn
    }

    /// Has members told of a build, but for one that they could not take part in.
    fn announce(
        &mut self,
        build: BuildId,
        (derivation, terms): (StorePath, BuildTerms),
        node: Option<NodeKey>,
    ) {
        if !self.keeps_failed() {
            let stage = node.map_or(Stage::Here, Stage::At);
            let underway = self.team.underway();
            let noted = underway.note(derivation.clone(), terms, For::Owner, stage);
            self.announced.insert(build, noted);
        }
        // Only now, so that whoever waits sees what was decided.
        self.deciding.remove(&derivation);
    }

    /// Takes note of a build that begins on this node, in a slot or in one that it has for another, or on another node.
    /// Gives what cancels it, and why it was placed there.
    fn begin(
        &mut self,
        build: BuildId,
        derivation: &StorePath,
        here: bool,
        slot: Option<u32>,
    ) -> (CancellationToken, String) {
        let (node, reason) = self.placements.remove(derivation).unwrap_or_default();
        let cancel = CancellationToken::new();
        let running = Running {
            derivation: derivation.clone(),
            started: Instant::now(),
            node: if here { THIS_NODE.to_owned() } else { node },
            slot,
            cancel: cancel.clone(),
            last_line: String::new(),
        };
        self.running.insert(build, running);
        (cancel, reason)
    }

    /// Several sessions may wait for one build, so that its folder is kept where any of them wants that.
    fn keeps_failed(&self) -> bool {
        self.sessions.values().any(|session| session.keep_failed)
    }

    pub(super) fn transfer(&mut self, transfer: Transfer) -> CancellationToken {
        let cancel = CancellationToken::new();
        self.transfers.insert(transfer, cancel.clone());
        cancel
    }

    pub(super) fn stop_transfer(&mut self, transfer: Transfer) {
        if let Some(cancel) = self.transfers.remove(&transfer) {
            cancel.cancel();
        }
    }

    pub(super) fn push(&mut self, push: PushId, path: StorePath, to: DesiredStore) {
        let cancel = self.transfer(Transfer::Push(push));
        match to {
            DesiredStore::Folder(folder) => {
                let (depot, outbox) = (Arc::clone(&self.depot), self.outbox.clone());
                tokio::spawn(async move {
                    let pushing = folder::put(&depot, folder, vec![path]);
                    let event = match cancel.run_until_cancelled(pushing).await {
                        None => return,
                        Some(Ok(())) => Event::PushFinished { push },
                        Some(Err(error)) => Event::PushFailed {
                            push,
                            error: error.to_string(),
                            transient: false,
                        },
                    };
                    drop(outbox.send(Message::Happened(event)).await);
                });
            }
            DesiredStore::Node(node) => match self.team.of(node) {
                Some(team) => {
                    tokio::spawn(async move {
                        cancel.run_until_cancelled(team.push(push, path, node)).await;
                    });
                }
                None => {
                    let error = format!(
                        "{path} cannot be pushed to {node}: this node takes part in no team of which that is a member"
                    );
                    self.later(Event::PushFailed {
                        push,
                        error,
                        transient: false,
                    });
                }
            },
        }
    }

    /// Reports something to the coordinator after the current event.
    pub(super) fn later(&self, event: Event) {
        let outbox = self.outbox.clone();
        tokio::spawn(async move {
            // Where the engine has ended, nobody needs to know.
            drop(outbox.send(Message::Happened(event)).await);
        });
    }

    pub(super) fn ask_presence(
        &self,
        question: QuestionId,
        desired: Option<DesiredStore>,
        paths: Vec<StorePath>,
    ) {
        // Caches answer path by path, so that a part of the answer need not wait for all of it.
        let part = match self.depot.upstreams.is_empty() {
            true => paths.len().max(1),
            false => PRESENCE_PART,
        };
        for paths in paths.chunks(part) {
            let (depot, outbox, teams) = (Arc::clone(&self.depot), self.outbox.clone(), self.team.all());
            let (desired, paths) = (desired.clone(), paths.to_vec());
            tokio::spawn(async move {
                let presences = every::presences(&depot, &teams, desired, paths).await;
                let (paths, complaints) = depot.upstreams.complete(presences).await;
                if !complaints.is_empty() {
                    // Before the answer, with which a session may end.
                    drop(outbox.send(Message::Complaints(complaints)).await);
                }
                let event = Event::Presence { question, paths };
                drop(outbox.send(Message::Happened(event)).await);
            });
        }
    }
}

#[cfg(test)]
#[path = "actions_tests.rs"]
mod tests;
