//! What truly happened, and whether it was allowed to. Written down by the world as it happens, from its own knowledge:
//! what was built of what by whom, who holds what, who signed what, who heard whom. It knows the plan, and shares no
//! code with what it checks: keys are numbers of machines here, and whom a machine may believe is worked out from the
//! plan's roles and rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::tree::TreeDigest;

use super::plan::{Nature, Plan, Rule};

/// How long after a machine has heard of a revocation what was decided before may still arrive: as long as a transfer
/// is waited for, and something more.
const LATE: u64 = 120_000;

/// Silence after which a second builder may be asked.
const SILENCE: u64 = 2_000;

/// How long a peer has for a short build before it is raced here, in milliseconds.
const RACE: u64 = 1000;

/// Members that are asked what they know of one path.
const ASKED_FOR_A_PATH: usize = 4;

pub type Content = (StorePath, TreeDigest);

/// What the holder of a key signed.
#[derive(Clone)]
struct Signed {
    by: usize,
    job: StorePath,
    inputs: Vec<Content>,
    outputs: Vec<Content>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Several have to build it, or this machine alone, by the rule of the one who wants it.
    Rule,
    /// It is made of other inputs.
    OtherInputs,
    /// The earlier one failed, was cancelled, or ended with its machine.
    Failed,
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
    /// The own coordinator and another's request, side by side.
    OwnAndLent,
    /// It never makes the same twice, and the name has another tree already.
    Restless,
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

struct Build {
    machine: usize,
    job: usize,
    inputs: Vec<Content>,
    own: bool,
    for_one: bool,
    end: End,
}

/// What a coordinator wanted built, and how far that is.
struct Attempt {
    job: usize,
    builder: Option<usize>,
    /// One on the own machine begins when its inputs are here, and may come to nothing before.
    begun: bool,
    over: bool,
    heard: u64,
    placed: u64,
}

/// When a machine asked where a path is, and when it knew; never: it does not know yet.
#[derive(Clone, Copy)]
struct Asked {
    from: u64,
    to: u64,
}

pub struct Ledger {
    plan: Arc<Plan>,
    truth: BTreeSet<Content>,
    signed: BTreeMap<Content, Vec<Signed>>,
    /// By machine: what lies under its name, and since when.
    held: Vec<BTreeMap<StorePath, (TreeDigest, u64)>>,
    aside: Vec<BTreeSet<Content>>,
    /// Speaker, listener, what.
    said: BTreeSet<(usize, usize, StorePath, TreeDigest)>,
    acknowledged: Vec<BTreeMap<StorePath, TreeDigest>>,
    admitted: BTreeSet<(usize, [u8; 32])>,
    builds: Vec<Build>,
    attempts: Vec<BTreeMap<u64, Attempt>>,
    asked: Vec<BTreeMap<StorePath, Asked>>,
    /// When one did not hear another, by who asked and whom.
    unheard: BTreeMap<(usize, usize), Vec<u64>>,
    unfetched: BTreeSet<(usize, StorePath)>,
    /// Since when each machine is up; none: it is down.
    up: Vec<Option<u64>>,
    /// Requests that were signed by whom they name: by payload.
    requests: BTreeMap<[u8; 32], (usize, usize, u64, u64)>,
    open: BTreeMap<(usize, u64), BTreeSet<usize>>,
    pub reasons: BTreeMap<Reason, u64>,
    pub counts: BTreeMap<&'static str, u64>,
}

impl Ledger {
    pub fn new(plan: &Arc<Plan>) -> Self {
        let count = plan.machines.len();
        Self {
            truth: plan
                .sources
                .iter()
                .map(|source| (source.path.clone(), source.tree))
                .collect(),
            plan: Arc::clone(plan),
            signed: BTreeMap::new(),
            held: vec![BTreeMap::new(); count],
            aside: vec![BTreeSet::new(); count],
            said: BTreeSet::new(),
            acknowledged: vec![BTreeMap::new(); count],
            admitted: BTreeSet::new(),
            builds: vec![],
            attempts: (0..count).map(|_| BTreeMap::new()).collect(),
            asked: vec![BTreeMap::new(); count],
            unheard: BTreeMap::new(),
            unfetched: BTreeSet::new(),
            up: vec![None; count],
            requests: BTreeMap::new(),
            open: BTreeMap::new(),
            reasons: BTreeMap::new(),
            counts: BTreeMap::new(),
        }
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    // Facts.

    pub fn started(&mut self, machine: usize, now: u64) {
        self.up[machine] = Some(now);
        self.check_acknowledged(machine, "after a restart");
    }

    pub fn crashed(&mut self, machine: usize) {
        self.count("crashes");
        self.up[machine] = None;
        self.attempts[machine].clear();
        self.asked[machine].clear();
        self.open.retain(|(at, _), _| *at != machine);
        for build in self.builds.iter_mut().filter(|build| build.machine == machine) {
            if build.end == End::Running {
                build.end = End::Failed;
            }
        }
    }

    /// One did not get an answer of another.
    pub fn unheard(&mut self, from: usize, to: usize, now: u64) {
        self.unheard.entry((from, to)).or_default().push(now);
    }

    pub fn not_fetched(&mut self, machine: usize, path: &StorePath) {
        self.unfetched.insert((machine, path.clone()));
    }

    pub fn said(&mut self, speaker: usize, listener: usize, content: Content) {
        self.said.insert((speaker, listener, content.0, content.1));
    }

    /// A key's holder signed a record. An honest one says what it did.
    pub fn signed(&mut self, by: usize, job: &StorePath, inputs: Vec<Content>, outputs: Vec<Content>) {
        let signed = Signed {
            by,
            job: job.clone(),
            inputs,
            outputs,
        };
        for content in signed.outputs.clone() {
            let known = self.signed.entry(content).or_default();
            if !known
                .iter()
                .any(|other| other.by == by && other.inputs == signed.inputs && other.job == signed.job)
            {
                known.push(signed.clone());
            }
        }
    }

    pub fn requested(&mut self, payload: [u8; 32], by: usize, to: usize, issued: u64, until: u64) {
        self.requests.insert(payload, (by, to, issued, until));
    }

    pub fn presence_asked(&mut self, machine: usize, paths: &[StorePath], from: u64) {
        self.presence_answered(machine, paths, from, u64::MAX);
    }

    pub fn presence_answered(&mut self, machine: usize, paths: &[StorePath], from: u64, to: u64) {
        for path in paths {
            self.asked[machine].insert(path.clone(), Asked { from, to });
        }
    }

    pub fn opened(&mut self, machine: usize, session: u64, targets: &[usize]) {
        self.count("sessions");
        self.open
            .insert((machine, session), targets.iter().copied().collect());
    }

    // Rules.

    /// Something now lies under its name on a machine, and is shown to others.
    pub fn registered(&mut self, machine: usize, path: &StorePath, tree: TreeDigest, now: u64) {
        let honest = self.plan.machines[machine].nature == Nature::Honest;
        if honest {
            let content = (path.clone(), tree);
            if self.is_protected(machine) {
                assert!(
                    self.truth.contains(&content),
                    "UNTRUSTED: machine {machine} accepts a false {path}, which nobody honest made of true inputs"
                );
            }
            assert!(
                self.is_justified(machine, &content, now, &mut BTreeMap::new()),
                "UNTRUSTED: machine {machine} accepts {path} with {tree}, for which nobody it believes has spoken"
            );
        }
        self.count("accepted");
        self.held[machine].insert(path.clone(), (tree, now));
    }

    pub fn kept_aside(&mut self, machine: usize, path: &StorePath, tree: TreeDigest) {
        self.count("kept aside");
        self.aside[machine].insert((path.clone(), tree));
    }

    pub fn is_acknowledged(&self, machine: usize, path: &StorePath) -> bool {
        self.acknowledged[machine].contains_key(path)
    }

    /// What nobody needs has been collected.
    pub fn collected(&mut self, machine: usize, path: &StorePath) {
        assert!(
            !self.acknowledged[machine].contains_key(path),
            "LOST: machine {machine} had told somebody that it has {path}"
        );
        self.held[machine].remove(path);
    }

    /// No liar whose records count can make this machine believe anything.
    fn is_protected(&self, machine: usize) -> bool {
        let traitor = |at: &usize| self.plan.machines[*at].nature == Nature::Traitor;
        match &self.plan.machines[machine].rule {
            Rule::Own => true,
            Rule::Quorum(of) => of.iter().filter(|at| traitor(at)).count() < 2,
            Rule::Roster => !(0..self.plan.machines.len()).any(|at| traitor(&at)),
        }
    }

    fn counts_for(&self, machine: usize, builder: usize, now: u64) -> bool {
        let out = self.plan.revoked == Some(builder)
            && now > self.plan.machines[machine].hears.saturating_add(LATE);
        machine == builder || (self.plan.is_builder(builder) && !out)
    }

    fn is_justified(
        &self,
        machine: usize,
        content: &Content,
        now: u64,
        known: &mut BTreeMap<Content, bool>,
    ) -> bool {
        if let Some(source) = self.plan.sources.iter().find(|source| source.path == content.0) {
            return source.tree == content.1;
        }
        if self.held[machine]
            .get(&content.0)
            .is_some_and(|(tree, _)| *tree == content.1)
        {
            return true;
        }
        // What is looked at already counts as not justified until it is: nothing speaks for itself.
        if let Some(known) = known.get(content) {
            return *known;
        }
        known.insert(content.clone(), false);
        let signed = self.signed.get(content).map_or(&[][..], Vec::as_slice);
        let inputs_hold = |signed: &Signed, known: &mut BTreeMap<Content, bool>| {
            signed
                .inputs
                .iter()
                .all(|input| self.is_justified(machine, input, now, known))
        };
        let justified = match &self.plan.machines[machine].rule {
            Rule::Own => signed
                .iter()
                .any(|signed| signed.by == machine && inputs_hold(signed, known)),
            Rule::Roster => {
                let word = (0..self.plan.machines.len()).any(|speaker| {
                    self.plan.machines[speaker]
                        .roles
                        .has(tvix_node_protocol::roster::Role::Store)
                        && self
                            .said
                            .contains(&(speaker, machine, content.0.clone(), content.1))
                });
                word || signed
                    .iter()
                    .any(|signed| self.counts_for(machine, signed.by, now) && inputs_hold(signed, known))
            }
            Rule::Quorum(of) => signed.iter().any(|one| {
                let same = signed.iter().filter(|other| {
                    of.contains(&other.by)
                        && self.counts_for(machine, other.by, now)
                        && (&other.job, &other.inputs, &other.outputs)
                            == (&one.job, &one.inputs, &one.outputs)
                });
                let builders: BTreeSet<usize> = same.map(|signed| signed.by).collect();
                builders.len() >= 2 && inputs_hold(one, known)
            }),
        };
        known.insert(content.clone(), justified);
        justified
    }

    /// A builder takes a request that came with these bytes from a sender.
    pub fn admitted(&mut self, builder: usize, payload: [u8; 32], sender: usize, clock: u64) {
        let Some((by, to, issued, until)) = self.requests.get(&payload).copied() else {
            panic!("UNTRUSTED: machine {builder} takes a request that nobody has signed");
        };
        assert_eq!(
            (by, to),
            (sender, builder),
            "UNTRUSTED: a request for machine {to} by {by} is taken by {builder} from {sender}"
        );
        assert!(
            issued <= clock + 120 && clock <= until + 120,
            "UNTRUSTED: a request of {issued} to {until} is taken at {clock}"
        );
        assert!(
            self.admitted.insert((builder, payload)),
            "UNTRUSTED: machine {builder} takes a request a second time"
        );
        assert!(
            self.plan.is_builder(builder),
            "UNTRUSTED: machine {builder} builds for others without the role"
        );
        self.count("requests taken");
    }

    /// A requester takes what came for the answer to its request: `of` is the request that the answer names, `made` what
    /// it says it was made of and what it made.
    pub fn answer_taken(
        &mut self,
        machine: usize,
        request: [u8; 32],
        of: Option<[u8; 32]>,
        asked: &[Content],
        made: (&[Content], &[Content]),
    ) {
        let (by, builder, ..) = self.requests[&request];
        assert_eq!(by, machine);
        assert_eq!(
            of,
            Some(request),
            "UNTRUSTED: machine {machine} takes the answer to another request"
        );
        assert_eq!(
            asked, made.0,
            "UNTRUSTED: machine {machine} takes what was made of other inputs than it named"
        );
        for content in made.1 {
            let mut signed = self.signed.get(content).into_iter().flatten();
            assert!(
                signed.any(|signed| signed.by == builder && signed.inputs == made.0),
                "UNTRUSTED: machine {machine} takes an answer that {builder} never signed"
            );
        }
        self.count("answers taken");
    }

    /// A coordinator has a derivation built.
    pub fn placed(&mut self, machine: usize, build: u64, job: usize, builder: Option<usize>, now: u64) {
        let reason = self.why_again(machine, job, builder, now);
        if let Some(reason) = reason {
            *self.reasons.entry(reason).or_default() += 1;
        }
        self.attempts[machine].insert(
            build,
            Attempt {
                job,
                builder,
                begun: builder.is_some(),
                over: false,
                heard: now,
                placed: now,
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

    pub fn heard_of(&mut self, machine: usize, build: u64, now: u64) {
        if let Some(attempt) = self.attempts[machine].get_mut(&build) {
            attempt.heard = now;
        }
    }

    /// A machine sees that another is gone.
    pub fn builder_gone(&mut self, machine: usize, builder: usize) {
        for attempt in self.attempts[machine]
            .values_mut()
            .filter(|attempt| attempt.builder == Some(builder))
        {
            attempt.over = true;
        }
    }

    pub fn attempt_over(&mut self, machine: usize, build: u64) {
        if let Some(attempt) = self.attempts[machine].get_mut(&build) {
            attempt.over = true;
        }
    }

    /// Why a derivation may be built that somebody has or builds already; none: nobody does.
    fn why_again(&self, machine: usize, job: usize, builder: Option<usize>, now: u64) -> Option<Reason> {
        let plan = &self.plan;
        if plan.machines[machine].rule != Rule::Roster {
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
            reason = Some(Reason::Hedge);
        }
        for path in plan.jobs[job].outputs.values() {
            let Some(asked) = self.asked[machine].get(path).copied() else {
                panic!(
                    "TWICE: machine {machine} has {} built and has not asked for {path}",
                    plan.jobs[job].drv
                );
            };
            if let Some((_, since)) = self.held[machine].get(path) {
                // What a peer is late with may be on its way output by output.
                let mut outputs = plan.jobs[job].outputs.values();
                let raced = reason == Some(Reason::Race)
                    && outputs.any(|output| !self.held[machine].contains_key(output));
                assert!(
                    *since >= asked.from || raced,
                    "TWICE: machine {machine} has {path}, and has it built"
                );
            }
            let mut said_to_have = 0;
            for (holder, held) in self
                .held
                .iter()
                .enumerate()
                .filter(|(holder, _)| *holder != machine)
            {
                let liar = plan.machines[holder].nature != Nature::Honest;
                said_to_have += usize::from(liar || held.contains_key(path));
            }
            for holder in (0..plan.machines.len()).filter(|holder| *holder != machine) {
                if plan.machines[holder].nature != Nature::Honest {
                    continue;
                }
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
                } else if self.unfetched.contains(&(machine, path.clone())) {
                    Reason::NotFetched
                } else if !self.would_believe(machine, holder, &(path.clone(), tree), asked, now) {
                    Reason::NotBelieved
                } else {
                    panic!(
                        "TWICE: machine {machine} has {} built at {now}, and {holder} has {path} since {since}, which it would \
                         believe, and was asked from {} to {}",
                        plan.jobs[job].drv, asked.from, asked.to
                    );
                };
                reason = Some(reason.unwrap_or(why));
            }
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

    fn did_not_hear(&self, machine: usize, holder: usize, asked: Asked) -> bool {
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

    /// Whether what a holder can show of a path is enough for a machine by the roster's roles.
    fn would_believe(
        &self,
        machine: usize,
        holder: usize,
        content: &Content,
        asked: Asked,
        now: u64,
    ) -> bool {
        let plan = &self.plan;
        if plan.machines[holder]
            .roles
            .has(tvix_node_protocol::roster::Role::Store)
        {
            return true;
        }
        // Of several records the holder shows one, so all that could be it have to do.
        let signed = self.signed.get(content).map_or(&[][..], Vec::as_slice);
        !signed.is_empty()
            && signed.iter().all(|signed| {
                self.counts_for(machine, signed.by, now)
                    && plan.is_builder(signed.by)
                    && plan.revoked != Some(signed.by)
                    && signed
                        .inputs
                        .iter()
                        .all(|input| match self.held[machine].get(&input.0) {
                            Some((tree, since)) => *tree == input.1 && *since < asked.from,
                            None => {
                                let shows = |(tree, since): &(TreeDigest, u64)| {
                                    *tree == input.1 && *since < asked.from
                                };
                                let is_source = plan.sources.iter().any(|source| source.path == input.0);
                                self.held[holder].get(&input.0).is_some_and(shows)
                                    && (is_source || self.would_believe(machine, holder, input, asked, now))
                            }
                        })
            })
    }

    /// A builder begins. `own`: for its own coordinator.
    pub fn build_begins(
        &mut self,
        machine: usize,
        job: usize,
        inputs: Vec<Content>,
        own: bool,
        for_one: bool,
    ) -> usize {
        assert!(self.plan.machines[machine].nature == Nature::Honest);
        let restless = self.plan.jobs[job].restless;
        let rule = self.plan.machines[machine].rule != Rule::Roster;
        let mut reasons = vec![];
        for other in self
            .builds
            .iter()
            .filter(|build| build.machine == machine && build.job == job)
        {
            let reason = match other.end {
                _ if other.inputs != inputs => Reason::OtherInputs,
                End::Failed => Reason::Failed,
                End::Vote => Reason::Rule,
                _ if own || other.own => Reason::OwnAndLent,
                End::Running if other.for_one || for_one => Reason::ForOne,
                End::Aside if restless => Reason::Restless,
                End::Aside => Reason::ForOne,
                End::Kept
                    if self.plan.jobs[job]
                        .outputs
                        .values()
                        .any(|path| !self.held[machine].contains_key(path)) =>
                {
                    Reason::Failed
                }
                End::Kept | End::Running if rule => Reason::Rule,
                End::Kept => panic!(
                    "TWICE: machine {machine} builds {} again, and has it",
                    self.plan.jobs[job].drv
                ),
                End::Running => panic!(
                    "TWICE: machine {machine} runs two builds of {} of the same inputs for others",
                    self.plan.jobs[job].drv
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
            own,
            for_one,
            end: End::Running,
        });
        self.builds.len() - 1
    }

    /// What an honest machine's build made.
    pub fn build_makes(&mut self, build: usize, outputs: &[Content]) {
        let is_true = self.builds[build]
            .inputs
            .iter()
            .all(|input| self.truth.contains(input));
        if is_true {
            self.truth.extend(outputs.iter().cloned());
        } else {
            self.count("builds of false inputs");
        }
    }

    pub fn build_ends(&mut self, build: usize, end: End) {
        self.builds[build].end = end;
    }

    /// A builder answers that it has built something.
    pub fn delivered(&mut self, machine: usize, outputs: &[Content]) {
        for content in outputs {
            let named = self.held[machine]
                .get(&content.0)
                .is_some_and(|(tree, _)| *tree == content.1);
            assert!(
                named || self.aside[machine].contains(content),
                "LOST: machine {machine} says that it has built {}, and does not have it",
                content.0
            );
        }
    }

    /// A command is told that a target is complete.
    pub fn target_done(&mut self, machine: usize, session: u64, job: usize) {
        for path in self.plan.jobs[job].outputs.values() {
            let Some((tree, _)) = self.held[machine].get(path) else {
                panic!("LOST: machine {machine} tells a command that {path} is there, and it is not");
            };
            self.acknowledged[machine].insert(path.clone(), *tree);
        }
        self.count("targets done");
        if let Some(open) = self.open.get_mut(&(machine, session)) {
            open.remove(&job);
        }
    }

    /// A command is told the end.
    pub fn session_over(&mut self, machine: usize, session: u64, success: bool, interrupted: bool) {
        let Some(open) = self.open.remove(&(machine, session)) else {
            panic!("ENDLESS: a command of machine {machine} is told its end twice");
        };
        self.count(if success { "successes" } else { "failures" });
        if success {
            assert!(
                open.is_empty(),
                "LOST: a command of machine {machine} ends well without {open:?}"
            );
        } else if !interrupted && self.must_succeed(machine, &open) {
            panic!("a command of machine {machine} fails in a world where nothing goes wrong");
        }
    }

    /// Nothing goes wrong here, and there is somebody to build.
    fn must_succeed(&self, machine: usize, targets: &BTreeSet<usize>) -> bool {
        let plan = &self.plan;
        let calm = plan.loss == 0
            && plan.slow == 0
            && plan.partitions.is_empty()
            && plan.revoked.is_none()
            && plan.machines.iter().all(|machine| {
                machine.nature == Nature::Honest && machine.crashes.is_empty() && machine.skew.abs() < 50
            });
        let troubled = plan.jobs.iter().any(|job| job.broken || job.restless);
        let can_build = |at: &usize| {
            plan.machines[*at].slots > 0
                && (*at == machine
                    || (plan.is_builder(*at) && plan.machines[machine].neighbours.contains(at)))
        };
        let builders = match &plan.machines[machine].rule {
            Rule::Own => plan.machines[machine].slots > 0,
            Rule::Roster => (0..plan.machines.len()).any(|at| can_build(&at)),
            Rule::Quorum(of) => of.iter().filter(|at| can_build(at)).count() >= 2,
        };
        calm && !troubled && builders && !targets.is_empty()
    }

    fn check_acknowledged(&self, machine: usize, when: &str) {
        for (path, tree) in &self.acknowledged[machine] {
            let held = self.held[machine].get(path);
            assert!(
                held.is_some_and(|(held, _)| held == tree),
                "LOST: machine {machine} does not have {path} {when}, which it had told a command is there"
            );
        }
    }

    /// The disk of a machine is what it was written to be.
    pub fn compare(&self, machine: usize, disk: &BTreeMap<StorePath, TreeDigest>) {
        for (path, tree) in &self.acknowledged[machine] {
            assert_eq!(disk.get(path), Some(tree), "LOST: {path} at machine {machine}");
        }
    }

    /// Nothing happens any more.
    pub fn end(&self) {
        for machine in 0..self.plan.machines.len() {
            self.check_acknowledged(machine, "at the end");
        }
        assert!(
            self.open.is_empty(),
            "ENDLESS: commands that are never told their end: {:?}",
            self.open
        );
        let running = self.builds.iter().filter(|build| build.end == End::Running);
        let running: Vec<_> = running
            .map(|build| (build.machine, self.plan.jobs[build.job].drv.to_string()))
            .collect();
        assert!(running.is_empty(), "ENDLESS: builds that never end: {running:?}");
    }
}
