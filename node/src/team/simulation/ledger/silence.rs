//! Whether somebody else is asked where a builder says nothing.

use super::Ledger;
use super::lost::LOST;
use super::twice::SILENCE;

/// What may pass, after a builder has been silent for so long, until a second one is asked, in milliseconds.
const NOTICED: u64 = 1_000;

impl Ledger {
    /// A machine is told by another how many slots are free there.
    pub fn offered(&mut self, machine: usize, builder: usize, free: u32) {
        self.offers[machine].insert(builder, free);
        for (_, failures) in self.failures.iter_mut().filter(|((at, _), _)| *at == machine) {
            failures.away.remove(&builder);
        }
        if free == 0 {
            self.idle[machine].remove(&Some(builder));
        }
    }

    /// A machine is told no more, or has been told to go elsewhere; then what was offered counts when it is offered anew.
    pub(super) fn offers_nothing(&mut self, machine: usize, builder: usize) {
        self.offers[machine].remove(&builder);
        self.idle[machine].remove(&Some(builder));
    }

    /// What has happened at a machine has been dealt with. `free`: slots of its own that nothing uses.
    pub fn looked_around(&mut self, machine: usize, free: u32, now: u64) {
        for attempt in self.attempts[machine].values_mut() {
            if attempt.over || attempt.given_up {
                attempt.ended.get_or_insert(now);
            }
        }
        let used = |builder: usize| {
            let attempts = self.attempts[machine].values();
            attempts
                .filter(|attempt| attempt.builder == Some(builder) && !attempt.over)
                .count()
        };
        let offers = self.offers[machine].iter();
        let free_there = offers.filter(|(builder, free)| **free as usize > used(**builder));
        let mut idle: Vec<Option<usize>> = free_there.map(|(builder, _)| Some(*builder)).collect();
        idle.extend((free > 0).then_some(None));
        let known = &mut self.idle[machine];
        known.retain(|builder, _| idle.contains(builder));
        for builder in idle {
            known.entry(builder).or_insert(now);
        }
    }

    /// Something happens at a machine. Beside each builder from whom it has heard nothing for a while another one must have
    /// been asked, where there is one that has been free all the time.
    pub fn check_silence(&self, machine: usize, now: u64) {
        let attempts = &self.attempts[machine];
        for (build, attempt) in attempts {
            if self.wants_more(machine, attempt.job) {
                continue;
            }
            let waits = !attempt.over && !attempt.given_up && !attempt.lacks_inputs;
            let late = attempt.heard + SILENCE;
            let Some(silent) = attempt.builder.filter(|_| waits && late + NOTICED < now) else {
                continue;
            };
            let before = || {
                let others = attempts.iter().filter(move |(other, _)| *other != build);
                others
                    .map(|(_, other)| other)
                    .filter(|other| other.job == attempt.job)
            };
            // Since when nobody else is at it. One that was asked later was the second one.
            let ends = before().map(|other| other.ended.filter(|_| other.placed < attempt.placed));
            let Some(late) = ends.into_iter().try_fold(late, |late, end| Some(late.max(end?))) else {
                continue;
            };
            if now <= late + NOTICED || !self.has_inputs(machine, attempt.job, late) {
                continue;
            }
            // Who has been asked before is not asked again where it failed, and nobody is after some were lost.
            let asked = |builder: Option<usize>| before().any(|other| other.builder == builder);
            let lost = before().filter(|other| other.builder.is_some() && (other.over || other.given_up));
            let worn_out = lost.count() >= LOST;
            let may = |builder: Option<usize>| {
                builder != Some(silent) && !asked(builder) && (builder.is_none() || !worn_out)
            };
            let mut idle = self.idle[machine].iter();
            let free = idle.find(|(builder, since)| may(**builder) && **since <= late);
            assert!(
                free.is_none(),
                "ENDLESS: machine {machine} has not heard of {silent}, which builds {}, for {} ms, and asks nobody else, though \
                 {free:?} is free",
                self.plan.jobs[attempt.job].drv,
                now - attempt.heard
            );
        }
    }

    /// Whether a machine has had all that a job reads since then.
    fn has_inputs(&self, machine: usize, job: usize, since: u64) -> bool {
        let (plan, held) = (&self.plan, &self.held[machine]);
        let job = &plan.jobs[job];
        let made = job
            .inputs
            .iter()
            .flat_map(|input| plan.jobs[*input].outputs.values());
        let sources = job.sources.iter().map(|source| &plan.sources[*source].path);
        let mut all = made.chain(sources);
        all.all(|path| held.get(path).is_some_and(|(_, came)| *came <= since))
    }
}
