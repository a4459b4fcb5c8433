//! What is wanted done.

use tvix_node_coordinator::{Action, BuildId, limits};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildKind;
use tvix_node_protocol::control::SessionMode;
use tvix_node_protocol::envelope::NodeKey;

use super::{Build, Checker, Paths, Question, Session};

impl Checker {
    pub(super) fn check_action(&mut self, action: &Action) {
        let now = self.now;
        match action {
            Action::AskPresence {
                question,
                desired_store,
                paths,
            } => {
                self.fresh(question.0);
                assert!(!paths.is_empty() && paths.len() <= limits::PRESENCE_BATCH);
                let set: Paths = paths.iter().cloned().collect();
                assert_eq!(
                    set.len(),
                    paths.len(),
                    "a path is asked for twice in one question"
                );
                let known = |path: &StorePath| {
                    let of = |session: &Session| {
                        session.ended.is_none()
                            && (session.goals.iter().any(|goal| goal.outputs.contains(path))
                                || session.known.iter().any(|derivation| {
                                    let job = &self.jobs[derivation];
                                    job.inputs.contains(path)
                                        || job.outputs.values().any(|other| other == path)
                                }))
                    };
                    self.sessions.values().any(of)
                };
                assert!(paths.iter().all(known), "{now}: asks for what nobody has named");
                self.questions.insert(
                    *question,
                    Question {
                        desired: desired_store.clone(),
                        paths: set,
                    },
                );
            }
            Action::WeighInputs {
                derivation, nodes, ..
            } => {
                assert!(self.jobs.contains_key(derivation));
                assert!(nodes.iter().all(|node| self.peers.contains_key(node)));
                self.weighing.insert(derivation.clone(), now);
            }
            Action::Announce {
                build,
                derivation,
                node,
                ..
            } => {
                let wanted = self
                    .sessions
                    .values()
                    .any(|session| session.known.contains(derivation));
                assert!(wanted, "{now}: {derivation} is announced, and nobody wants it");
                let announced = (derivation.clone(), *node);
                let before = self.announced.insert(*build, announced);
                assert_eq!(before, None, "{now}: {build} is announced twice");
            }
            Action::Retract { build } => {
                assert!(
                    self.announced.remove(build).is_some(),
                    "{now}: {build} was not announced"
                );
            }
            Action::Fetch {
                fetch, path, from, ..
            } => {
                self.fresh(fetch.0);
                let known = self.path(path).clone();
                assert!(!known.own, "{now}: fetches {path}, which is here");
                assert!(!from.is_empty() && from.iter().all(|source| known.sources.contains(source)));
                self.check_fetch_is_wanted(path);
                self.fetches.insert(*fetch, (path.clone(), from.clone()));
            }
            Action::HurryFetch { fetch, .. } => {
                assert!(
                    self.fetches.contains_key(fetch),
                    "{now}: hurries an unknown {fetch}"
                );
            }
            Action::CancelFetch { fetch } => {
                assert!(
                    self.fetches.remove(fetch).is_some(),
                    "{now}: cancels an unknown {fetch}"
                );
            }
            Action::Push { push, path, to } => {
                self.fresh(push.0);
                assert!(self.path(path).own);
                let wanted = self.sessions.values().any(|session| {
                    session.active()
                        && session.options.to.as_ref() == Some(to)
                        && session
                            .goals
                            .iter()
                            .any(|goal| goal.target && goal.outputs.contains(path))
                });
                assert!(wanted, "{now}: pushes {path}, which nobody wants at {to:?}");
                self.pushes.insert(*push, (path.clone(), to.clone()));
            }
            Action::CancelPush { push } => {
                assert!(
                    self.pushes.remove(push).is_some(),
                    "{now}: cancels an unknown {push}"
                );
            }
            Action::BuildHere {
                build,
                derivation,
                demanded,
                kind,
                cores,
                joins,
                ..
            } => {
                self.fresh(build.0);
                let job = &self.jobs[derivation];
                assert!(
                    !job.kvm || self.own_kvm,
                    "{now}: {derivation} cannot be built here"
                );
                for input in &job.inputs {
                    assert!(
                        self.known[input].own,
                        "{now}: {derivation} is built here without {input}"
                    );
                }
                if *joins {
                    self.joined.insert(*build);
                } else {
                    let in_slot =
                        |(id, build): &(&BuildId, &Build)| build.node.is_none() && !self.joined.contains(id);
                    let running = self.builds.iter().filter(in_slot).count();
                    assert!((running as u32) < self.slots, "{now}: more builds than slots");
                }
                self.check_start(derivation, None, *demanded, *cores);
                self.placed.remove(derivation);
                // What takes no slot keeps nobody waiting.
                if *kind == BuildKind::Regular && !joins && self.just_placed.contains(derivation) {
                    let waiting = self.waiting_for_here(true);
                    assert!(
                        waiting.is_empty(),
                        "{now}: {derivation} goes before the imports {waiting:?}"
                    );
                }
                if !demanded && !joins {
                    let waiting = self.waiting_for_here(false);
                    assert!(
                        waiting.is_empty(),
                        "{now}: {derivation} is a guess, and {waiting:?} waits for the slot"
                    );
                }
                self.start(*build, derivation, None, *demanded, *cores);
            }
            Action::Request {
                build,
                node,
                derivation,
                outputs,
                cores,
                ..
            } => {
                self.fresh(build.0);
                let job = &self.jobs[derivation];
                for input in &job.inputs {
                    assert!(
                        self.is_available(input),
                        "{now}: {derivation} is requested without {input}"
                    );
                }
                assert!(!outputs.is_empty() && outputs.iter().all(|name| job.outputs.contains_key(name)));
                let offer = self.peers.get(node).expect("only connected peers are asked");
                assert!(!job.kvm || offer.features.contains(&"kvm".to_owned()));
                assert!(offer.systems.contains(&job.system));
                let refused = self.refused.contains(&(derivation.clone(), *node));
                assert!(
                    !refused || self.sessions.len() > 1,
                    "{now}: {node} has refused {derivation}"
                );
                self.check_start(derivation, Some(*node), true, *cores);
                self.start(*build, derivation, Some(*node), true, *cores);
            }
            Action::Check { .. } | Action::CancelChecks { .. } => {
                panic!("no session of the simulation checks")
            }
            Action::RenewLease { build, node } => {
                let running = self
                    .builds
                    .get_mut(build)
                    .expect("only running builds are renewed");
                assert_eq!(running.node, Some(*node));
                running.renewed = now;
            }
            Action::CancelBuild { build, node } => {
                let cancelled = self
                    .builds
                    .get_mut(build)
                    .unwrap_or_else(|| panic!("{now}: unknown {build}"));
                assert_eq!(cancelled.node, *node);
                assert!(!cancelled.dying, "{now}: {build} is cancelled twice");
                cancelled.dying = true;
                let cancelled = cancelled.clone();
                if node.is_some() {
                    self.builds.remove(build);
                    self.forgotten.insert(*build, cancelled.clone());
                }
                self.check_cancelled(&cancelled);
            }
            Action::Release { paths } => {
                for path in paths {
                    self.known.remove(path);
                }
            }
            Action::Tell { .. } => {}
            Action::Refuse { session, refusal } => panic!("{now}: {session} is refused: {refusal}"),
        }
    }

    pub(super) fn check_fetch_is_wanted(&self, path: &StorePath) {
        let wanted = self.sessions.values().any(|session| {
            let goal = session.goals.iter().any(|goal| goal.outputs.contains(path));
            // What a build reads is fetched when it is placed; placements are told before.
            let read = session
                .known
                .iter()
                .any(|derivation| self.jobs[derivation].inputs.contains(path));
            session.active() && (goal || (read && self.slots > 0))
        });
        assert!(wanted, "{}: {path} is fetched for nobody", self.now);
    }

    pub(super) fn start(
        &mut self,
        id: BuildId,
        derivation: &StorePath,
        node: Option<NodeKey>,
        demanded: bool,
        cores: u32,
    ) {
        *self.starts.entry(derivation.clone()).or_default() += 1;
        let most = u32::from(limits::TRIES + limits::BUILDERS_LOST) * (self.sessions.len() as u32 + 1) + 20;
        assert!(self.starts[derivation] <= most, "{derivation} is built for ever");
        let (heard, placed, renewed) = (self.now, self.now, self.now);
        let derivation = derivation.clone();
        self.builds.insert(
            id,
            Build {
                derivation,
                node,
                demanded,
                cores,
                dying: false,
                heard,
                renewed,
                placed,
            },
        );
    }

    /// A build may start if somebody wants it, who has not seen it fail, and it is not present, and
    /// nobody is at it already but a builder that is silent, or a peer that takes long, beside whom this node may race.
    pub(super) fn check_start(
        &self,
        derivation: &StorePath,
        node: Option<NodeKey>,
        demanded: bool,
        cores: u32,
    ) {
        let now = self.now;
        // It had been placed while the evaluation ran, and waited for its inputs since.
        let begun_to = self.placed.contains(derivation) && !self.just_placed.contains(derivation);
        let wanting = self.sessions.values().filter(|session| {
            session.active()
                && session.options.cores == cores
                && session.known.contains(derivation)
                && !session.failed.contains(derivation)
                && (self.needs(session, true, false).contains(derivation)
                    || (!demanded
                        && (session.evaluating || begun_to)
                        && session.options.mode == SessionMode::Build))
        });
        assert!(wanting.count() > 0, "{now}: {derivation} is built for nobody");
        let job = &self.jobs[derivation];
        let read = |output: &StorePath| {
            self.sessions
                .values()
                .filter(|session| session.ended.is_none())
                .any(|session| {
                    session.goals.iter().any(|goal| goal.outputs.contains(output))
                        || session
                            .known
                            .iter()
                            .any(|reader| self.jobs[reader].inputs.contains(output))
                })
        };
        let outputs: Vec<&StorePath> = job.outputs.values().collect();
        let read: Vec<&StorePath> = outputs.iter().copied().filter(|output| read(output)).collect();
        let deciding = if read.is_empty() { outputs } else { read };
        assert!(
            deciding.iter().any(|output| !self.is_available(output)),
            "{now}: {derivation} is built and present"
        );
        let same = self
            .builds
            .values()
            .filter(|build| build.derivation == *derivation);
        for other in same {
            let silent = other.node.is_some() && now >= other.heard + limits::HEDGE_AFTER.as_millis() as u64;
            let races = node.is_none()
                && other.node.is_some()
                && now >= other.placed + limits::RACE_PATIENCE.as_millis() as u64;
            assert!(silent || races, "{now}: {derivation} is built twice at once");
        }
    }

    /// A build that is needed is cancelled only where its outputs are there, it failed, another one is
    /// at it, or it is a guess that gives way.
    pub(super) fn check_cancelled(&self, cancelled: &Build) {
        let now = self.now;
        let derivation = &cancelled.derivation;
        let needed = self.sessions.iter().find(|(_, session)| {
            session.options.cores == cancelled.cores
                && (session.options.mode == SessionMode::Build)
                && !session.failed.contains(derivation)
                && !self.is_hopeless(session, derivation)
                && self.needs(session, false, false).contains(derivation)
        });
        let beside = self
            .builds
            .values()
            .any(|build| build.derivation == *derivation && !build.dying);
        if let Some((id, _)) = needed {
            assert!(beside, "{now}: {derivation} is cancelled and {id} needs it");
        }
    }

    /// What is announced is under way where it is said to be, or about to begin here.
    pub(super) fn check_announced(&self) {
        for (id, (derivation, node)) in &self.announced {
            let running = self.builds.get(id);
            let holds = match running {
                Some(build) => !build.dying && build.derivation == *derivation && build.node == *node,
                // Its inputs are brought.
                None => node.is_none() && !self.numbers.contains(&id.0),
            };
            assert!(
                holds,
                "{}: {id} is announced for {derivation}, and is {running:?}",
                self.now
            );
        }
    }

    /// Builders that are not given up are told that their builds are wanted.
    pub(super) fn check_leases(&self) {
        for (id, build) in self.builds.iter().filter(|(_, build)| build.node.is_some()) {
            let given_up = self.now >= build.heard + limits::GIVE_UP_AFTER.as_millis() as u64;
            let renewed = self.now <= build.renewed + limits::LEASE_RENEWAL.as_millis() as u64;
            assert!(given_up || renewed, "{}: {id} is not renewed", self.now);
        }
    }
}
