//! Who was asked to build, and the builders that were lost over it.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_protocol::StorePath;

use super::Ledger;

/// Silence after which a builder is not waited for any more, in milliseconds, and what may pass until that is noticed.
const GIVEN_UP: u64 = 30_000 + 1_000;

/// Builders that are lost over one derivation before no further one is asked.
pub(super) const LOST: usize = 3;

/// For how long nothing is asked of one who went away and has not offered anything since, in milliseconds.
const AWAY: u64 = 3_000;

/// What has gone wrong with a derivation at the builders that one machine has asked.
#[derive(Default)]
pub(super) struct Failures {
    pub(super) builders: BTreeSet<usize>,
    /// When they were seen to be away, which have offered nothing since.
    pub(super) away: BTreeMap<usize, u64>,
    pub(super) lost: usize,
    /// When the last one was seen to be away.
    last_away: Option<u64>,
}

/// How a build that was asked of another came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failing {
    /// Nobody is to blame: it was busy, or lacked what it was to be given.
    Blameless,
    /// It will not.
    Refused,
    /// It broke down, or its answer is not one.
    Lost,
    /// It went away, and may come back.
    Gone,
    /// The derivation fails.
    ItsOwnFault,
}

/// What a coordinator wanted built, and how far that is.
pub(super) struct Attempt {
    pub(super) job: usize,
    pub(super) builder: Option<usize>,
    /// Its builder could not get what it reads.
    pub(super) lacks_inputs: bool,
    /// It is not waited for any more.
    pub(super) given_up: bool,
    /// One on the own machine begins when its inputs are here, and may come to nothing before.
    pub(super) begun: bool,
    pub(super) over: bool,
    /// Its builder was seen to be gone, which need not have noticed, and builds on.
    pub(super) cut_off: bool,
    pub(super) heard: u64,
    pub(super) placed: u64,
    /// When it was seen to be over or given up.
    pub(super) ended: Option<u64>,
}

impl Ledger {
    /// A derivation is not placed where it failed, nor at one who is away, nor anywhere after so many losses.
    pub(super) fn check_not_lost(&self, machine: usize, job: usize, builder: Option<usize>, now: u64) {
        if let Some(builder) = builder
            && let Some(failures) = self.failures.get(&(machine, job))
        {
            assert!(
                !failures.builders.contains(&builder),
                "ENDLESS: machine {machine} asks {builder} again for {}, which failed there",
                self.plan.jobs[job].drv
            );
            assert!(
                failures
                    .away
                    .get(&builder)
                    .is_none_or(|since| now >= since + AWAY),
                "ENDLESS: machine {machine} asks {builder} again for {}, and knows that it is away",
                self.plan.jobs[job].drv
            );
            assert!(
                failures.lost < LOST,
                "ENDLESS: machine {machine} asks {builder} for {}, over which it has lost {} builders",
                self.plan.jobs[job].drv,
                failures.lost
            );
        }
    }

    pub fn heard_of(&mut self, machine: usize, build: u64, now: u64) {
        if let Some(attempt) = self.attempts[machine].get_mut(&build) {
            attempt.heard = now;
        }
    }

    /// A machine sees that another is gone.
    pub fn builder_gone(&mut self, machine: usize, builder: usize, now: u64) {
        self.offers_nothing(machine, builder);
        let attempts = self.attempts[machine].values_mut();
        let there = attempts.filter(|attempt| attempt.builder == Some(builder) && !attempt.over);
        let mut lost = vec![];
        for attempt in there {
            attempt.over = true;
            attempt.cut_off = true;
            if !attempt.given_up && !attempt.lacks_inputs {
                lost.push((attempt.job, attempt.placed));
            }
        }
        for (job, placed) in lost {
            self.failed_there((machine, job, builder), Failing::Gone, (placed, now));
        }
    }

    /// A builder could not get what a build reads.
    pub fn inputs_missing(&mut self, machine: usize, build: u64, paths: &[StorePath]) {
        for path in paths {
            *self.lacking.entry((machine, path.clone())).or_default() += 1;
        }
        if let Some(attempt) = self.attempts[machine].get_mut(&build) {
            attempt.lacks_inputs = true;
        }
    }

    /// A build that a machine asked for has come to nothing.
    pub fn attempt_failed(&mut self, machine: usize, build: u64, how: Failing, now: u64) {
        let Some(attempt) = self.attempts[machine].get_mut(&build) else {
            return;
        };
        let expected = !std::mem::replace(&mut attempt.over, true) && !attempt.given_up;
        let (builder, job, placed) = (attempt.builder, attempt.job, attempt.placed);
        let lacks_inputs = attempt.lacks_inputs;
        if let Some(builder) = builder
            && matches!(how, Failing::Refused | Failing::Blameless | Failing::Gone)
        {
            self.offers_nothing(machine, builder);
        }
        if let Some(builder) = builder
            && expected
            && !lacks_inputs
        {
            self.failed_there((machine, job, builder), how, (placed, now));
        }
    }

    fn failed_there(
        &mut self,
        (machine, job, builder): (usize, usize, usize),
        how: Failing,
        (placed, now): (u64, u64),
    ) {
        if matches!(how, Failing::Blameless | Failing::ItsOwnFault) {
            return;
        }
        self.count("builders that failed");
        let failures = self.failures.entry((machine, job)).or_default();
        match how {
            Failing::Gone => drop(failures.away.insert(builder, now)),
            _ => drop(failures.builders.insert(builder)),
        }
        // Several that were at it together and are gone together are one loss.
        let together = how == Failing::Gone && failures.last_away.is_some_and(|last| placed < last);
        failures.lost += usize::from(how != Failing::Refused && !together);
        if how == Failing::Gone {
            failures.last_away = Some(now);
        }
    }

    /// Those who wanted a derivation are told that it has failed: who wants it next begins anew.
    pub fn told_failed(&mut self, machine: usize, job: usize) {
        self.failures.remove(&(machine, job));
    }

    /// What a coordinator still has others build. What is not among it, and not over, it has given up; what is must have
    /// been heard of.
    pub fn still_waited_for(&mut self, machine: usize, builds: &BTreeSet<u64>, now: u64) {
        let mut lost = vec![];
        for (build, attempt) in &mut self.attempts[machine] {
            let Some(builder) = attempt.builder.filter(|_| !attempt.over && !attempt.given_up) else {
                continue;
            };
            if builds.contains(build) {
                assert!(
                    now <= attempt.heard + GIVEN_UP,
                    "ENDLESS: machine {machine} waits for {builder}, which it has not heard of for {} ms",
                    now - attempt.heard
                );
            } else {
                attempt.given_up = true;
                if !attempt.lacks_inputs {
                    lost.push((attempt.job, builder));
                }
            }
        }
        for (job, builder) in lost {
            self.count("builders given up");
            self.failed_there((machine, job, builder), Failing::Lost, (now, now));
        }
    }

    pub fn attempt_over(&mut self, machine: usize, build: u64) {
        if let Some(attempt) = self.attempts[machine].get_mut(&build) {
            attempt.over = true;
        }
    }
}
