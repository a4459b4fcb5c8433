//! What is built, and why again.

use std::collections::BTreeSet;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::tree::TreeDigest;

use super::lost::Attempt;
use super::{Content, LATE, Ledger};
use crate::team::simulation::plan::Nature;

/// Silence after which a second builder may be asked.
pub(super) const SILENCE: u64 = 2_000;

/// How long a peer has for a short build before it is raced here, in milliseconds.
const RACE: u64 = 1000;

/// Members that are asked what they know of one path.
const ASKED_FOR_A_PATH: usize = 4;

/// How often builders could not get an input before it counts as being nowhere.
const LACKING: usize = 3;

/// Builds that came to nothing for a request before it has one of its own.
const TURNED_AWAY: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Several have to build it, or this machine alone, by the rule of the one who wants it.
    Rule,
    /// It is made of other inputs.
    OtherInputs,
    /// The earlier one failed, was cancelled, was given up, or ended with its machine.
    Failed,
    /// Its builder is at it already, so that it is built once.
    Joined,
    /// Neither could know of the other when it was placed.
    Simultaneous,
    /// A peer takes long with a short build, and a slot here is free.
    Race,
    /// Who has it could not be heard, or was not there.
    Unreachable,
    /// Who has it is not connected with the one who wants it.
    NotConnected,
    /// What is there is not believed by the one who wants it.
    NotBelieved,
    /// More say that they have it than are asked.
    Crowded,
    /// It was there, and could not be fetched.
    NotFetched,
    /// The builder was silent, and a second one asked.
    Hedge,
    /// What its builder made is for its requester alone.
    ForOne,
    /// It had waited for builds that were for others alone, or lacked what others were to give.
    TurnedAway,
    /// It never makes the same twice, and the name has another tree already.
    Restless,
    /// When it had been built its name had another tree already, which came from elsewhere.
    NameTaken,
    /// It is private there, and shared with nobody.
    Private,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Running,
    /// Its outputs lie under their names.
    Kept,
    /// They lie under their digests.
    Aside,
    /// It waits for what others say.
    Vote,
    Failed,
}

/// Whose a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Its machine's own coordinator's.
    Own,
    /// That of one who asked for it first.
    Requester {
        by: usize,
        /// His request.
        request: [u8; 32],
        /// Its inputs are only his word.
        alone: bool,
    },
}

pub(super) struct Build {
    pub(super) machine: usize,
    pub(super) job: usize,
    pub(super) inputs: Vec<Content>,
    whose: Whose,
    /// Who has been told what it made.
    answered: BTreeSet<usize>,
    pub(super) made: Vec<Content>,
    pub(super) end: End,
    /// A name of it had another tree when it was done, which may have been collected since.
    name_taken: bool,
}

/// Whether something that is built could have been had.
enum Sought {
    Nowhere,
    /// It is somewhere, and why it is built all the same.
    Excused(Reason),
    /// It could, and from where.
    There(String),
}

/// When a machine asked where a path is, and when it knew; never: it does not know yet.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) from: u64,
    pub(super) to: u64,
}

impl Ledger {
    /// One did not get an answer of another.
    pub fn unheard(&mut self, from: usize, to: usize, now: u64) {
        self.unheard.entry((from, to)).or_default().push(now);
    }

    pub fn not_fetched(&mut self, machine: usize, path: &StorePath) {
        self.unfetched.insert((machine, path.clone()));
    }

    pub fn presence_asked(&mut self, machine: usize, paths: &[StorePath], from: u64) {
        self.presence_answered(machine, paths, from, u64::MAX);
    }

    pub fn presence_answered(&mut self, machine: usize, paths: &[StorePath], from: u64, to: u64) {
        for path in paths {
            self.asked[machine].insert(path.clone(), Asked { from, to });
        }
    }

    /// A coordinator has a derivation built.
    pub fn placed(&mut self, machine: usize, build: u64, job: usize, builder: Option<usize>, now: u64) {
        self.check_not_lost(machine, job, builder, now);
        self.check_joined(machine, job, builder, now);
        let reason = self.why_again(machine, job, builder, now);
        if let Some(reason) = reason {
            *self.reasons.entry(reason).or_default() += 1;
        }
        self.attempts[machine].insert(
            build,
            Attempt {
                job,
                builder,
                lacks_inputs: false,
                given_up: false,
                begun: builder.is_some(),
                over: false,
                cut_off: false,
                heard: now,
                placed: now,
                ended: None,
            },
        );
        self.count("placed");
    }

    /// A placement on the own machine becomes a build.
    pub fn begins_here(&mut self, machine: usize, build: u64) {
        let Some(job) = self.attempts[machine].get_mut(&build).map(|attempt| {
            attempt.begun = true;
            attempt.job
        }) else {
            panic!("TWICE: machine {machine} begins a build that was never placed");
        };
        let mut here = self.attempts[machine]
            .values()
            .filter(|attempt| attempt.builder.is_none() && attempt.begun && !attempt.over);
        assert!(
            here.by_ref().filter(|attempt| attempt.job == job).count() == 1,
            "TWICE: machine {machine} begins two builds of one derivation"
        );
    }

    /// Why a derivation may be built that somebody has or builds already; none: nobody does.
    fn why_again(&self, machine: usize, job: usize, builder: Option<usize>, now: u64) -> Option<Reason> {
        let plan = &self.plan;
        if self.hides_job(machine, job) {
            return Some(Reason::Private);
        }
        if self.wants_more(machine, job) {
            return Some(Reason::Rule);
        }
        let mut reason = None;
        // What is short is known from a build that is over.
        let seen_any = self.attempts[machine]
            .values()
            .any(|attempt| attempt.begun && attempt.over);
        for attempt in self.attempts[machine]
            .values()
            .filter(|attempt| attempt.job == job && attempt.begun && !attempt.over)
        {
            let races = builder.is_none() && attempt.builder.is_some() && seen_any;
            if races && attempt.placed + RACE <= now {
                reason = Some(Reason::Race);
                continue;
            }
            assert!(
                attempt.heard + SILENCE <= now,
                "TWICE: machine {machine} has {} built a second time though its builder was heard {} ms ago",
                plan.jobs[job].drv,
                now - attempt.heard
            );
            reason = Some(match attempt.given_up {
                true => Reason::Failed,
                false => Reason::Hedge,
            });
        }
        // A derivation is built for any of its outputs that is missing, though the others may be had: they come one by
        // one, and one of them may be nowhere else.
        let mut needless = vec![];
        for path in plan.jobs[job].outputs.values() {
            match self.sought(machine, job, path, now) {
                Sought::Nowhere => {}
                Sought::Excused(why) => reason = Some(reason.unwrap_or(why)),
                Sought::There(what) => needless.push(what),
            }
        }
        assert!(
            needless.len() < plan.jobs[job].outputs.len(),
            "TWICE: machine {machine} has {} built at {now}, and {}",
            plan.jobs[job].drv,
            needless.join(", ")
        );
        if builder.is_some_and(|builder| self.is_at_it(builder, job)) {
            return Some(reason.unwrap_or(Reason::Joined));
        }
        let mut others = self.builds.iter().filter(|build| build.job == job);
        reason.or_else(|| {
            others.next_back().map(|build| match build.end {
                End::Running => Reason::Simultaneous,
                End::Kept | End::Vote => Reason::Unreachable,
                End::Aside => Reason::ForOne,
                End::Failed => Reason::Failed,
            })
        })
    }

    /// Whether a machine could have had a path that it has built.
    fn sought(&self, machine: usize, job: usize, path: &StorePath, now: u64) -> Sought {
        let plan = &self.plan;
        let Some(asked) = self.asked[machine].get(path).copied() else {
            panic!(
                "TWICE: machine {machine} has {} built and has not asked for {path}",
                plan.jobs[job].drv
            );
        };
        if let Some((_, since)) = self.held[machine].get(path) {
            if *since >= asked.from {
                return Sought::Excused(Reason::Simultaneous);
            }
            return Sought::There(format!("has {path} since {since}"));
        }
        let others = || (0..plan.machines.len()).filter(|holder| *holder != machine);
        let is_liar = |holder: usize| plan.machines[holder].nature != Nature::Honest;
        let said_to_have = others()
            .filter(|holder| is_liar(*holder) || self.held[*holder].contains_key(path))
            .count();
        let mut sought = Sought::Nowhere;
        for holder in others().filter(|holder| !is_liar(*holder) && !self.hides(*holder, path)) {
            let Some((tree, since)) = self.held[holder].get(path).copied() else {
                continue;
            };
            let why = if since >= asked.from {
                Reason::Simultaneous
            } else if self.did_not_hear(machine, holder, asked) {
                Reason::Unreachable
            } else if !plan.machines[machine].neighbours.contains(&holder) {
                Reason::NotConnected
            } else if said_to_have > ASKED_FOR_A_PATH {
                Reason::Crowded
            } else if self.unfetched.contains(&(machine, path.clone()))
                || self.lacking.get(&(machine, path.clone())) >= Some(&LACKING)
            {
                Reason::NotFetched
            } else if !self.would_believe(machine, holder, &(path.clone(), tree), asked, now) {
                Reason::NotBelieved
            } else {
                let Asked { from, to } = asked;
                return Sought::There(format!(
                    "{holder} has {path} since {since}, which it would believe, and was asked from {from} to {to}"
                ));
            };
            if matches!(sought, Sought::Nowhere) {
                sought = Sought::Excused(why);
            }
        }
        sought
    }

    pub(super) fn did_not_hear(&self, machine: usize, holder: usize, asked: Asked) -> bool {
        let plan = &self.plan;
        let parted = plan.partitions.iter().any(|partition| {
            partition.from <= asked.to
                && asked.from < partition.to
                && partition.side.contains(&machine) != partition.side.contains(&holder)
        });
        let epochs = plan.revoked.is_some() && {
            // While one has heard of a revocation and the other has not, they do not understand each other.
            let hears = [plan.machines[machine].hears, plan.machines[holder].hears];
            (hears[0].min(hears[1])..=hears[0].max(hears[1]) + LATE).contains(&asked.to)
                || (hears[0].min(hears[1])..=hears[0].max(hears[1]) + LATE).contains(&asked.from)
        };
        let out = plan.revoked == Some(machine) || plan.revoked == Some(holder);
        parted
            || asked.to == u64::MAX
            || epochs
            || out
            || self.up[holder].is_none_or(|since| since >= asked.from)
            // Who has just come is not known to be there.
            || self.up[machine].is_none_or(|since| since + 5_000 >= asked.from)
            || self.up[holder].is_none_or(|since| since + 5_000 >= asked.from)
            || self.unheard.get(&(machine, holder)).is_some_and(|times| times.iter().any(|time| (asked.from..=asked.to).contains(time)))
    }

    /// A request that had joined another's build is turned away from it.
    pub fn turned_away(&mut self, request: [u8; 32]) {
        self.count("turned away from another's build");
        *self.turned_away.entry(request).or_default() += 1;
    }

    /// A builder has come to what it builds from for another. `accepted`: it takes all of that for true, for everybody.
    pub fn inputs_judged(&mut self, machine: usize, inputs: &[Content], accepted: bool) {
        let other = inputs.iter().find(|input| !self.holds(machine, input));
        assert_eq!(
            other.is_none(),
            accepted,
            "UNTRUSTED: machine {machine} takes the inputs of a build for {}, and {other:?} is not what it holds itself",
            if accepted {
                "true"
            } else {
                "one member's word alone"
            }
        );
    }

    /// A builder begins.
    pub fn build_begins(&mut self, machine: usize, job: usize, inputs: Vec<Content>, whose: Whose) -> usize {
        assert!(self.plan.machines[machine].nature == Nature::Honest);
        let (plan, drv) = (&self.plan, &self.plan.jobs[job].drv);
        let holds_all = plan.jobs[job]
            .outputs
            .values()
            .all(|path| self.held[machine].contains_key(path));
        assert!(
            whose != Whose::Own || !holds_all,
            "TWICE: machine {machine} builds {drv} for itself, and has it"
        );
        if let Whose::Requester { by, request, .. } = whose {
            // What has come for this is the requester's to name.
            let asked = self.admitted.get(&(machine, request)).copied().unwrap_or(0);
            let had = |input: &&Content| {
                let held = self.held[machine].get(&input.0);
                self.hides(machine, &input.0) && held.is_some_and(|(_, since)| *since < asked)
            };
            let had = inputs.iter().find(had);
            assert_eq!(had, None, "PRIVATE: machine {machine} builds from it for {by}");
        }
        let is_alone = |whose: Whose| matches!(whose, Whose::Requester { alone: true, .. });
        let was_turned_away = |whose: Whose| match whose {
            Whose::Own => false,
            Whose::Requester { request, .. } => self
                .turned_away
                .get(&request)
                .is_some_and(|times| *times >= TURNED_AWAY),
        };
        let mut reasons = vec![];
        for other in self
            .builds
            .iter()
            .filter(|build| build.machine == machine && build.job == job)
        {
            let reason = match other.end {
                _ if other.inputs != inputs => Reason::OtherInputs,
                _ if self.hides_job(machine, job) => Reason::Private,
                End::Failed => Reason::Failed,
                End::Vote => Reason::Rule,
                End::Running if is_alone(other.whose) || is_alone(whose) => {
                    assert!(
                        !self.is_honest_twice((machine, job), other.whose, whose),
                        "TWICE: machine {machine} runs two builds of {drv} for one: {:?} and {whose:?}",
                        other.whose
                    );
                    Reason::ForOne
                }
                End::Running if was_turned_away(other.whose) || was_turned_away(whose) => Reason::TurnedAway,
                End::Running => panic!(
                    "TWICE: machine {machine} runs two builds of {drv} of the same inputs: {:?} and {whose:?}",
                    other.whose
                ),
                End::Aside if is_alone(other.whose) => Reason::ForOne,
                End::Aside if plan.jobs[job].restless => Reason::Restless,
                // What it builds itself does not count by its own rule.
                End::Aside if self.wants_more(machine, job) => Reason::Rule,
                End::Aside if other.name_taken => Reason::NameTaken,
                End::Aside => panic!(
                    "TWICE: machine {machine} builds {drv} again, which it has kept for one alone: {:?} and {whose:?}",
                    other.whose
                ),
                End::Kept if !holds_all => Reason::Failed,
                // Of two trees the name keeps the first.
                End::Kept if !other.made.iter().all(|made| self.holds(machine, made)) => Reason::NameTaken,
                // By its requester's word alone it was begun when its inputs came, before they were accepted.
                End::Kept if is_alone(whose) => Reason::ForOne,
                End::Kept => panic!(
                    "TWICE: machine {machine} builds {drv} again, and has it: {:?} and {whose:?}",
                    other.whose
                ),
            };
            reasons.push(reason);
        }
        for reason in reasons {
            *self.reasons.entry(reason).or_default() += 1;
        }
        self.count("builds");
        self.builds.push(Build {
            machine,
            job,
            inputs,
            whose,
            answered: BTreeSet::new(),
            made: vec![],
            end: End::Running,
            name_taken: false,
        });
        self.builds.len() - 1
    }

    /// Whether both are for one and the same honest machine alone, which was not cut off from the builder meanwhile.
    fn is_honest_twice(&self, (machine, job): (usize, usize), one: Whose, other: Whose) -> bool {
        let alone = |whose: Whose| match whose {
            Whose::Requester { by, alone: true, .. } => Some(by),
            _ => None,
        };
        let honest = |by: usize| self.plan.machines[by].nature == Nature::Honest;
        let cut_off = |by: usize| {
            let mut attempts = self.attempts[by].values();
            attempts.any(|attempt| attempt.job == job && attempt.builder == Some(machine) && attempt.cut_off)
        };
        alone(one).is_some_and(|by| alone(other) == Some(by) && honest(by) && !cut_off(by))
    }

    /// What a build made is given to one who had asked for it.
    pub fn answers(&mut self, build: usize, requester: usize) {
        let Build { machine, whose, .. } = &self.builds[build];
        if let Whose::Requester { by, alone: true, .. } = whose {
            assert_eq!(
                *by, requester,
                "UNTRUSTED: machine {machine} gives {requester} what it built of what only {by} vouches for"
            );
        }
        self.builds[build].answered.insert(requester);
    }

    /// An honest machine gives a member a tree: one that has a name there is for everybody, any other for those alone for
    /// whom it was built.
    pub fn tree_given(&mut self, machine: usize, asker: usize, tree: TreeDigest) {
        if self.is_public(machine, tree) {
            return;
        }
        let mut builds = self.builds.iter().filter(|build| build.machine == machine);
        assert!(
            builds
                .any(|build| build.answered.contains(&asker)
                    && build.made.iter().any(|(_, made)| *made == tree)),
            "UNTRUSTED: machine {machine} gives {asker} the tree {tree}, which has no name there and was not built for it"
        );
        self.count("trees given to one alone");
    }

    /// A request is refused for what a build lacks that `by` had asked for first.
    pub fn refused_for(&mut self, machine: usize, requester: usize, by: usize) {
        assert_eq!(
            requester, by,
            "UNTRUSTED: machine {machine} refuses a request of {requester} for what that of {by} lacks"
        );
    }

    pub fn build_ends(&mut self, build: usize, end: End) {
        let Build { machine, made, .. } = &self.builds[build];
        let name_taken = made.iter().any(|made| self.holds_another(*machine, made));
        let build = &mut self.builds[build];
        (build.end, build.name_taken) = (end, name_taken);
    }
}
