//! Commands at a machine: what each of them evaluates, and what it is told.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use tvix_node_coordinator::{Derivation, Event, InputDerivation, Quorum, SessionId, SessionOptions};
use tvix_node_protocol::build::BuildLimits;
use tvix_node_protocol::control::{EventKind, Outcome, SessionMode};
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_protocol::trust::Requirement;

use super::ledger::Judged;
use super::node::Node;
use super::world::lock;

impl Node {
    /// What the coordinator tells a command.
    pub fn told(self: &Arc<Self>, session: u64, event: &EventKind) {
        match event {
            EventKind::TargetDone { target, .. } => {
                let number = lock(&self.core).sessions.get(&session).map(|(number, _)| *number);
                let number = number.expect("only open commands are told something");
                let job = self.world.plan.sessions[number].targets[usize::try_from(*target).unwrap()];
                self.world.ledger().target_done(self.at, session, job);
            }
            EventKind::BuildFailed { derivation, .. } => {
                let job = self.world.jobs[derivation];
                self.world.ledger().told_failed(self.at, job);
            }
            EventKind::Ended { outcome, .. } => {
                let success = *outcome == Outcome::Success;
                let interrupted = *outcome == Outcome::Interrupted;
                self.world
                    .ledger()
                    .session_over(self.at, session, success, interrupted);
                self.told.end(session);
                let over = lock(&self.core).sessions.remove(&session);
                over.expect("a command is told its end once").1.send_replace(true);
            }
            _ => {}
        }
    }

    /// A command opens a session; what it waits for becomes true when it is told the end.
    pub fn open(self: &Arc<Self>, id: u64, number: usize) -> watch::Receiver<bool> {
        let plan = Arc::clone(&self.world.plan);
        let session = &plan.sessions[number];
        let (over, receiver) = watch::channel(false);
        lock(&self.core).sessions.insert(id, (number, over));
        self.world.ledger().opened(self.at, id, &session.targets);
        self.told.begin(id);
        let options = SessionOptions {
            mode: SessionMode::Build,
            keep_going: session.keep_going,
            jobs: None,
            cores: 0,
            limits: BuildLimits::NONE,
            to: None,
        };
        self.event(Event::SessionOpened {
            session: SessionId(id),
            options,
        });
        let mut wanted = BTreeSet::new();
        let mut frontier = session.targets.clone();
        while let Some(job) = frontier.pop() {
            if wanted.insert(job) {
                frontier.extend(&plan.jobs[job].inputs);
            }
        }
        let node = Arc::clone(self);
        let interrupted = session.interrupted;
        if let Some(after) = interrupted {
            let node = Arc::clone(self);
            self.spawn(async move {
                node.sleep(after).await;
                if lock(&node.core).sessions.contains_key(&id) {
                    node.event(Event::SessionInterrupted {
                        session: SessionId(id),
                    });
                }
            });
        }
        self.spawn(async move { node.evaluate(SessionId(id), number, wanted).await });
        receiver
    }

    async fn evaluate(self: &Arc<Self>, session: SessionId, number: usize, wanted: BTreeSet<usize>) {
        let plan = Arc::clone(&self.world.plan);
        let is_open = || lock(&self.core).sessions.contains_key(&session.0);
        // Inputs have lower numbers than what uses them.
        for job in wanted {
            if !is_open() {
                return;
            }
            for source in &plan.jobs[job].sources {
                self.add_source(*source);
            }
            let mut derivation = self.derivation_of(job);
            self.hide_if_private(job, &mut derivation);
            lock(&self.world.disks[self.at])
                .texts
                .insert(plan.jobs[job].drv.clone(), plan.jobs[job].text.clone());
            let derivations = vec![derivation];
            self.told.tell(session.0, &derivations[0]);
            let now = self.world.now();
            self.world.ledger().works_on((self.at, session.0), job, now);
            self.event(Event::Instantiated { session, derivations });
            let pause = self.world.dice().between(0, 20);
            self.sleep(pause).await;
        }
        for (target, job) in plan.sessions[number].targets.iter().enumerate() {
            if !is_open() {
                return;
            }
            self.event(Event::TargetNamed {
                session,
                target: target as u64,
                name: format!("job-{job}"),
                derivation: plan.jobs[*job].drv.clone(),
                outputs: plan.jobs[*job].outputs.keys().cloned().collect(),
            });
            self.sleep(1).await;
        }
        if is_open() {
            self.event(Event::EvaluationEnded { session });
        }
    }

    /// Marks a derivation that reads something private before anything of it is here, and takes back what was announced.
    fn hide_if_private(self: &Arc<Self>, job: usize, derivation: &mut Derivation) {
        let (new, private) = {
            let mut disk = lock(&self.world.disks[self.at]);
            let new = disk.private.reached([&*derivation], BTreeSet::new());
            disk.private.mark(new.clone());
            (new, disk.private.is_private(&derivation.path))
        };
        self.world.ledger().instantiated(self.at, job);
        if !new.is_empty() {
            lock(&self.core).own.remove(&new);
            self.publish_soon();
        }
        if private {
            derivation.quorum = Some(Quorum {
                needed: 1,
                here: true,
                of: vec![],
            });
        }
    }

    fn derivation_of(&self, job: usize) -> Derivation {
        let plan = &self.world.plan;
        let job = &plan.jobs[job];
        let policy = &plan.machines[self.at].policy;
        let quorum = match policy.for_paths(job.outputs.values()) {
            Requirement::Roster | Requirement::Sample { .. } => None,
            Requirement::Own => Some(Quorum {
                needed: 1,
                here: true,
                of: vec![],
            }),
            Requirement::Quorum { needed, of } => Some(Quorum {
                needed: *needed,
                here: of.contains(&self.key),
                of: of.iter().filter(|node| **node != self.key).copied().collect(),
            }),
        };
        Derivation {
            path: job.drv.clone(),
            outputs: job.outputs.clone(),
            inputs: job
                .inputs
                .iter()
                .map(|input| InputDerivation {
                    derivation: plan.jobs[*input].drv.clone(),
                    outputs: plan.jobs[*input].outputs.keys().cloned().collect(),
                })
                .collect(),
            sources: job
                .sources
                .iter()
                .map(|source| plan.sources[*source].path.clone())
                .collect(),
            system: "x86_64-linux".to_owned(),
            required_features: vec![],
            prefer_local: false,
            fixed_output: false,
            quorum,
        }
    }

    /// A command adds a source to the store.
    pub fn add_source(self: &Arc<Self>, number: usize) {
        let source = &self.world.plan.sources[number];
        let info = PathInfo {
            path: source.path.clone(),
            tree: source.tree,
            nar_hash: source.nar_hash,
            nar_size: 1_000,
            references: BTreeSet::new(),
            deriver: None,
            ca: Some(source.ca.clone()),
            origin: Origin::Content,
            registered: self.clock(),
            signatures: vec![],
        };
        self.commit(vec![info], None, Judged::own(self.world.now()));
    }
}
