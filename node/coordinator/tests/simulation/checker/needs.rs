//! Who needs what, worked out from scratch each time.

use std::collections::BTreeSet;

use tvix_node_coordinator::limits;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::SessionMode;

use super::{Build, Checker, Session};

impl Checker {
    /// Derivations that a session needs built. Where it is not known yet whether a path can be had,
    /// it is taken to be `absent` or not. Only those that `imports` need, or all.
    pub(super) fn needs(&self, session: &Session, absent: bool, imports: bool) -> BTreeSet<StorePath> {
        let mut needed = BTreeSet::new();
        if !session.active() {
            return needed;
        }
        let mut paths: Vec<&StorePath> = vec![];
        for goal in session.goals.iter().filter(|goal| !imports || !goal.target) {
            for path in &goal.outputs {
                if let (true, Some(store)) = (goal.target, &session.options.to) {
                    let there = self.known.get(path).and_then(|known| known.desired.get(store));
                    if there == Some(&true) || (there.is_none() && !absent) {
                        continue;
                    }
                }
                paths.push(path);
            }
        }
        let mut seen: BTreeSet<&StorePath> = paths.iter().copied().collect();
        while let Some(path) = paths.pop() {
            if self.is_available(path) || (!absent && !self.is_answered(path)) {
                continue;
            }
            let Some(maker) = self.maker.get(path) else {
                continue;
            };
            if needed.insert(maker.clone()) && !session.failed.contains(maker) {
                for input in &self.jobs[maker].inputs {
                    if seen.insert(input) {
                        paths.push(input);
                    }
                }
            }
        }
        needed
    }

    pub(super) fn note_needs(&mut self) {
        let needs: Vec<_> = self
            .sessions
            .iter()
            .map(|(id, session)| (*id, self.needs(session, true, false)))
            .collect();
        for (id, needed) in needs {
            self.session(id).ever_needed.extend(needed);
        }
    }

    /// It failed, or something it needs did.
    pub(super) fn is_hopeless(&self, session: &Session, derivation: &StorePath) -> bool {
        session.failed.contains(derivation)
            || session.blocked.contains(derivation)
            || self.jobs[derivation].inputs.iter().any(|input| {
                !self.is_available(input)
                    && self
                        .maker
                        .get(input)
                        .is_none_or(|maker| self.is_hopeless(session, maker))
            })
    }

    /// Demanded derivations that could be built on this node now, were there a slot; only those that
    /// `imports` need, or all.
    pub(super) fn waiting_for_here(&self, imports: bool) -> Vec<StorePath> {
        let mut waiting = vec![];
        if self.slots == 0 {
            return waiting;
        }
        for session in self.sessions.values() {
            let here = |build: &&Build| build.node.is_none();
            let mine = self.builds.values().filter(here).filter(|build| {
                session.known.contains(&build.derivation) && session.options.cores == build.cores
            });
            let full = session
                .options
                .jobs
                .is_some_and(|jobs| mine.count() as u32 >= jobs);
            if full || !session.active() {
                continue;
            }
            let planning = session.options.mode != SessionMode::Build;
            for derivation in self.needs(session, false, imports) {
                let job = &self.jobs[&derivation];
                let weighing = self.weighing.get(&derivation);
                let weighed = weighing.is_none_or(|since| self.now >= since + 250);
                let ready = job.inputs.iter().all(|input| self.is_available(input))
                    && job
                        .outputs
                        .values()
                        .all(|output| self.is_answered(output) && !self.doubted.contains(output))
                    && !self.starting.contains(&derivation)
                    && !self.builds.values().any(|build| build.derivation == derivation);
                let well = self.unwell_here.get(&derivation).copied().unwrap_or(0) == 0
                    && self.starts.get(&derivation).copied().unwrap_or(0) < u32::from(limits::TRIES)
                    && (!job.kvm || self.own_kvm);
                let prepared = job
                    .inputs
                    .iter()
                    .all(|input| self.known.get(input).is_some_and(|known| known.own));
                if !planning
                    && ready
                    && weighed
                    && well
                    && prepared
                    && !self.is_hopeless(session, &derivation)
                {
                    waiting.push(derivation);
                }
            }
        }
        waiting
    }

    /// Nothing demanded waits for long while a guess holds a slot.
    pub(super) fn check_starvation(&mut self) {
        let needed: BTreeSet<&StorePath> = self
            .sessions
            .values()
            .flat_map(|session| &session.ever_needed)
            .collect();
        let guess =
            |build: &Build| build.node.is_none() && !build.dying && !needed.contains(&build.derivation);
        let guesses = self.builds.values().any(guess);
        let dying = self.builds.values().any(|build| build.dying);
        if !guesses || dying || self.waiting_for_here(false).is_empty() {
            self.starved_since = None;
            return;
        }
        let since = *self.starved_since.get_or_insert(self.now);
        let most = limits::PREEMPT_AFTER.as_millis() as u64 + 300;
        assert!(
            self.now <= since + most,
            "{}: {:?} starve",
            self.now,
            self.waiting_for_here(false)
        );
    }
}
