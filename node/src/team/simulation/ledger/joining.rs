//! What a machine could have known of others' builds when it placed its own.

use std::collections::BTreeSet;

use tvix_node_protocol::roster::Role;

use super::Ledger;
use super::lost::LOST;
use super::twice::Asked;
use crate::team::simulation::plan::Nature;

/// How long a placement waits for answers, in milliseconds.
const WAITS: u64 = 250;

/// How long they count.
const COUNTS: u64 = 50;

/// What a machine was told before it placed something.
pub(super) struct Looked {
    from: u64,
    to: u64,
    /// Who has answered.
    heard: BTreeSet<usize>,
    /// Who was said to build it, by whomever; none: the machine itself, for another.
    said: BTreeSet<Option<usize>>,
}

impl Ledger {
    /// A machine asks others what they build. What it knew before counts no more.
    pub fn looks(&mut self, machine: usize, job: usize) {
        self.looked[machine].remove(&job);
    }

    /// It has heard what these say.
    pub fn looked(
        &mut self,
        machine: usize,
        job: usize,
        (from, to): (u64, u64),
        heard: BTreeSet<usize>,
        said: BTreeSet<Option<usize>>,
    ) {
        let looked = Looked {
            from,
            to,
            heard,
            said,
        };
        self.looked[machine].insert(job, looked);
    }

    /// A machine has something built; not by itself, nor by just anybody, if one who builds it already has said so.
    pub(super) fn check_joined(&mut self, machine: usize, job: usize, builder: Option<usize>, now: u64) {
        let plan = &self.plan;
        let Some(looked) = self.looked[machine].get(&job) else {
            return;
        };
        let begun = |attempt: &&super::lost::Attempt| attempt.job == job && !attempt.over;
        let in_time = looked.to < looked.from + WAITS && now < looked.to + COUNTS;
        let alone = self.attempts[machine].values().find(begun).is_none();
        let may_join = !self.wants_more(machine, job) && !self.hides_job(machine, job);
        let lost = self.failures.get(&(machine, job));
        if !in_time || !alone || !may_join || lost.is_some_and(|failures| failures.lost >= LOST) {
            return;
        }
        // A liar says what it likes.
        if builder.is_some_and(|builder| plan.machines[builder].nature != Nature::Honest) {
            return;
        }
        let asked = Asked {
            from: looked.from,
            to: looked.to,
        };
        let builds = |other: usize| {
            let own = self.attempts[other].values();
            // One that was placed and waits for its inputs may have been taken back.
            own.filter(begun)
                .any(|attempt| attempt.begun && attempt.builder.is_none() && attempt.placed < looked.from)
        };
        let could_be_joined = |other: &usize| {
            let other = *other;
            let theirs = &plan.machines[other];
            let at_it = self.attempts[machine].values();
            let at_it = at_it.filter(|attempt| attempt.builder == Some(other) && !attempt.over);
            theirs.nature == Nature::Honest
                && theirs.roles.has(Role::Build)
                && !plan.machines[machine].rules.distrusts_wholly(other)
                && plan.machines[machine].roles.has(Role::Request)
                && looked.heard.contains(&other)
                && !self.did_not_hear(machine, other, asked)
                && !self.hides_job(other, job)
                && self.offers[machine].contains_key(&other)
                && !lost.is_some_and(|failures| failures.builders.contains(&other))
                && at_it.count() < theirs.slots as usize
        };
        let makers: Vec<usize> = looked
            .heard
            .iter()
            .copied()
            .filter(|other| builds(*other))
            .filter(could_be_joined)
            .collect();
        if makers.is_empty() {
            return;
        }
        assert!(
            looked.said.contains(&builder),
            "TWICE: machine {machine} has {} built at {now} by {builder:?}, and {makers:?} had begun it when it asked them from \
             {} to {}",
            plan.jobs[job].drv,
            looked.from,
            looked.to
        );
        self.count("builds of others joined");
    }

    /// Whether a machine builds something, for whomever.
    pub(super) fn is_at_it(&self, machine: usize, job: usize) -> bool {
        let mut builds = self.builds.iter();
        let running = builds.any(|build| {
            build.machine == machine && build.job == job && build.end == super::twice::End::Running
        });
        let mut attempts = self.attempts[machine].values();
        running || attempts.any(|attempt| attempt.job == job && !attempt.over)
    }
}
