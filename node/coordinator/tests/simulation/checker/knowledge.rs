//! What events tell.

use std::collections::BTreeSet;

use tvix_node_coordinator::{Delivery, Event, FailureKind, SessionId, Source, limits};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::SessionMode;
use tvix_node_protocol::envelope::NodeKey;

use super::{Checker, Goal, Known, Session};

impl Checker {
    pub(super) fn path(&mut self, path: &StorePath) -> &mut Known {
        self.known.entry(path.clone()).or_default()
    }

    pub(super) fn is_available(&self, path: &StorePath) -> bool {
        self.known.get(path).is_some_and(Known::available)
    }

    pub(super) fn is_answered(&self, path: &StorePath) -> bool {
        self.known
            .get(path)
            .is_some_and(|known| known.answered || known.available())
    }

    pub(super) fn lose(&mut self, gone: impl Fn(&StorePath, &Source) -> bool) {
        for (path, known) in &mut self.known {
            let before = known.sources.len();
            known.sources.retain(|source| !gone(path, source));
            if known.sources.len() < before && !known.available() {
                known.answered = false;
            }
        }
    }

    /// Takes note of what happened.
    pub(super) fn learn(&mut self, event: &Event) {
        match event {
            Event::SessionOpened { session, options } => {
                let fresh = Session {
                    options: options.clone(),
                    known: BTreeSet::new(),
                    goals: vec![],
                    named: 0,
                    evaluating: true,
                    evaluation_failed: false,
                    interrupted: false,
                    stopped: false,
                    failed: BTreeSet::new(),
                    blocked: BTreeSet::new(),
                    ever_needed: BTreeSet::new(),
                    ended: None,
                };
                assert!(self.sessions.insert(*session, fresh).is_none());
            }
            Event::SessionInterrupted { session } => self.session(*session).interrupted = true,
            Event::Instantiated { session, derivations } => {
                let paths = derivations.iter().map(|derivation| derivation.path.clone());
                self.session(*session).known.extend(paths);
            }
            Event::TargetNamed {
                session,
                target,
                derivation,
                outputs,
                ..
            } => {
                let session_state = self.session(*session);
                session_state.named += 1;
                if session_state.options.mode == SessionMode::Build {
                    self.add_goal(*session, true, *target, derivation, outputs);
                }
            }
            Event::ImportRequested {
                session,
                import,
                derivation,
                outputs,
            } => {
                self.add_goal(*session, false, *import, derivation, outputs);
            }
            Event::EnsureRequested {
                session,
                import,
                path,
            } => {
                let goal = Goal {
                    target: false,
                    number: *import,
                    outputs: vec![path.clone()],
                    answered: false,
                };
                self.session(*session).goals.push(goal);
            }
            Event::TargetFailed { session, .. } => {
                let session = self.session(*session);
                if session.active() {
                    session.evaluation_failed = true;
                    session.stopped = !session.options.keep_going;
                }
            }
            Event::EvaluationEnded { session } => self.session(*session).evaluating = false,
            // Nobody borrows slots in these worlds.
            Event::SlotsLent { .. } => {}
            // What people call members decides nothing.
            Event::Team { .. } => {}
            Event::OwnBuilder(own) => {
                self.slots = own.slots;
                self.own_kvm = own.features.contains(&"kvm".to_owned());
            }
            Event::Peer { node, offer } => drop(self.peers.insert(*node, offer.clone())),
            Event::PeerGone { node } => {
                self.peers.remove(node);
                self.lose(|_, source| *source == Source::Peer(*node));
                let there = self.builds.extract_if(.., |_, build| build.node == Some(*node));
                let lost: Vec<_> = there.collect();
                self.forgotten.extend(lost);
            }
            Event::Presence { question, paths } => {
                let desired = self
                    .questions
                    .get(question)
                    .and_then(|question| question.desired.clone());
                for presence in paths {
                    self.doubted.remove(&presence.path);
                    let known = self.path(&presence.path);
                    known.own |= presence.own;
                    known.answered = true;
                    if known.failed_fetches < u32::from(limits::FETCH_TRIES) {
                        known
                            .sources
                            .extend(presence.sources.iter().take(limits::SOURCES).cloned());
                    }
                    if let Some(store) = &desired {
                        let there = known.desired.entry(store.clone()).or_default();
                        *there |= presence.desired;
                    }
                    if let Some(question) = self.questions.get_mut(question) {
                        question.paths.remove(&presence.path);
                    }
                }
                if self
                    .questions
                    .get(question)
                    .is_some_and(|question| question.paths.is_empty())
                {
                    self.questions.remove(question);
                }
            }
            Event::InputsWeighed { derivation, made, .. } => {
                self.weighing.remove(derivation);
                if *made {
                    // It may be asked anew where its outputs are.
                    self.doubted
                        .extend(self.jobs[derivation].outputs.values().cloned());
                }
            }
            Event::FetchStarted { .. } => {}
            Event::FetchArrived { path, .. } => self.path(path).own = true,
            Event::FetchFinished { fetch } => {
                if let Some((path, _)) = self.fetches.remove(fetch) {
                    self.path(&path).own = true;
                }
            }
            Event::FetchFailed { fetch, .. } | Event::NoRoom { fetch, .. } => {
                if let Some((path, from)) = self.fetches.remove(fetch) {
                    self.path(&path).failed_fetches += 1;
                    self.lose(|other, source| *other == path && from.contains(source));
                }
            }
            Event::PushFinished { push } => {
                if let Some((path, to)) = self.pushes.remove(push) {
                    self.path(&path).desired.insert(to, true);
                }
            }
            Event::PushFailed { push, .. } => drop(self.pushes.remove(push)),
            Event::BuildStarted { build } | Event::BuildDone { build } | Event::Heartbeat { build } => {
                let now = self.now;
                if let Some(build) = self.builds.get_mut(build) {
                    build.heard = now;
                }
            }
            Event::InputsMissing { paths, build } => {
                // Of a build that it does not wait for any more it need not take note.
                if !self.builds.contains_key(build) {
                    return;
                }
                self.excused.insert(*build);
                for path in paths {
                    self.path(path).failed_fetches += 1;
                }
                self.lose(|path, _| paths.contains(path));
            }
            Event::BuildFinished {
                build,
                outputs,
                delivery,
            } => {
                let running = self.builds.remove(build);
                let known = running.or_else(|| self.forgotten.remove(build));
                let Some(known) = known else {
                    return self.learn_outputs(outputs.values().map(|built| &built.path), *delivery, None);
                };
                let expected: Vec<&StorePath> = self.jobs[&known.derivation].outputs.values().collect();
                let made: Vec<&StorePath> = outputs.values().map(|built| &built.path).collect();
                if expected == made {
                    for path in &made {
                        self.path(path).failed_fetches = 0;
                    }
                    self.learn_outputs(made.into_iter(), *delivery, known.node);
                }
            }
            Event::BuildFailed { build, failure } => {
                self.forgotten.remove(build);
                if let Some(over) = self.builds.remove(build) {
                    if self.excused.contains(build) {
                        return;
                    }
                    match (over.node, failure.kind) {
                        (Some(node), FailureKind::Refused | FailureKind::Transient) => {
                            self.refused.insert((over.derivation, node));
                        }
                        (None, FailureKind::Refused) if !over.dying => {
                            *self.unwell_here.entry(over.derivation).or_default() += 10;
                        }
                        (None, FailureKind::Transient) if !over.dying => {
                            *self.unwell_here.entry(over.derivation).or_default() += 1;
                        }
                        _ => {}
                    }
                }
            }
            Event::Checked { .. } => panic!("no session of the simulation checks"),
            Event::Linked { .. } | Event::Remembered { .. } | Event::Metered(_) | Event::Tick => {}
        }
    }

    pub(super) fn learn_outputs<'a>(
        &mut self,
        outputs: impl Iterator<Item = &'a StorePath>,
        delivery: Delivery,
        node: Option<NodeKey>,
    ) {
        for path in outputs {
            let known = self.path(path);
            match (delivery, node) {
                (Delivery::OwnStore, _) => known.own = true,
                (Delivery::AtBuilder, Some(node)) => drop(known.sources.insert(Source::Peer(node))),
                (Delivery::DesiredStore, _) => known.answered = known.available(),
                (Delivery::Vote, _) => panic!("no derivation here needs a quorum"),
                (Delivery::AtBuilder, None) => {}
            }
        }
    }

    pub(super) fn add_goal(
        &mut self,
        session: SessionId,
        target: bool,
        number: u64,
        derivation: &StorePath,
        outputs: &[String],
    ) {
        let made = &self.jobs[derivation].outputs;
        let outputs = outputs.iter().map(|name| made[name].clone()).collect();
        self.session(session).goals.push(Goal {
            target,
            number,
            outputs,
            answered: false,
        });
    }
}
