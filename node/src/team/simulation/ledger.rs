//! What truly happened, and whether it was allowed to. Written down by the world as it happens, from its own knowledge:
//! what was built of what by whom, who holds what, who signed what, who heard whom. It knows the plan, and shares no
//! code with what it checks: keys are numbers of machines here, and whom a machine may believe is worked out from the
//! plan's roles and rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::tree::TreeDigest;

use super::plan::{Nature, Plan};
use super::rules::Rule;
use belief::Follows;
pub use belief::{Judged, Said};
pub use lost::Failing;
use lost::{Attempt, Failures};
use twice::{Asked, Build};
pub use twice::{End, Reason, Whose};

mod belief;
mod joining;
mod lost;
mod private;
mod silence;
mod twice;

/// How long after a machine has heard of a revocation what was decided before may still arrive: as long as a transfer
/// is waited for, and something more.
const LATE: u64 = 120_000;

pub type Content = (StorePath, TreeDigest);

/// What the holder of a key signed.
#[derive(Clone)]
struct Signed {
    by: usize,
    job: StorePath,
    inputs: Vec<Content>,
    outputs: Vec<Content>,
}

/// What a record says.
#[derive(Clone)]
pub struct Statement {
    /// Who built; none: nobody in the team.
    pub builder: Option<usize>,
    /// For which request.
    pub request: Option<[u8; 32]>,
    /// The name of the work.
    pub work: [u8; 32],
    pub job: StorePath,
    pub inputs: Vec<Content>,
    pub outputs: Vec<Content>,
}

/// What a request says.
pub struct Requested {
    pub by: usize,
    pub to: usize,
    /// Seconds since 1970 from which and to which it holds.
    pub issued: u64,
    pub until: u64,
    pub work: [u8; 32],
    pub job: StorePath,
    pub inputs: Vec<Content>,
}

pub struct Ledger {
    plan: Arc<Plan>,
    truth: BTreeSet<Content>,
    signed: BTreeMap<Content, Vec<Signed>>,
    /// By machine: what lies under its name, and since when.
    held: Vec<BTreeMap<StorePath, (TreeDigest, u64)>>,
    aside: Vec<BTreeSet<Content>>,
    /// Speaker, listener, what.
    said: BTreeMap<(usize, usize, StorePath, TreeDigest), Vec<Said>>,
    /// By machine: what follows from its rules.
    follows: Vec<Follows>,
    /// By machine and command: the jobs that it works on, and since when.
    works: BTreeMap<(usize, u64), BTreeMap<usize, u64>>,
    acknowledged: Vec<BTreeMap<StorePath, TreeDigest>>,
    /// When which request was taken by whom.
    admitted: BTreeMap<(usize, [u8; 32]), u64>,
    builds: Vec<Build>,
    attempts: Vec<BTreeMap<u64, Attempt>>,
    /// By machine: who has a free slot for it, as far as it knows, and since when. None: it has one itself.
    idle: Vec<BTreeMap<Option<usize>, u64>>,
    /// By machine: what its owner keeps from others.
    hidden: Vec<BTreeSet<StorePath>>,
    /// By machine: what others have offered, in slots that are free.
    offers: Vec<BTreeMap<usize, u32>>,
    asked: Vec<BTreeMap<StorePath, Asked>>,
    /// When one did not hear another, by who asked and whom.
    unheard: BTreeMap<(usize, usize), Vec<u64>>,
    unfetched: BTreeSet<(usize, StorePath)>,
    /// By machine and job: what it was told before it placed that last.
    looked: Vec<BTreeMap<usize, joining::Looked>>,
    /// How often a machine was told that builders could not get a path.
    lacking: BTreeMap<(usize, StorePath), usize>,
    /// What a machine has on the word of another, so that it has no record to show.
    on_a_word: BTreeSet<(usize, StorePath)>,
    /// By machine and derivation: who failed at it.
    failures: BTreeMap<(usize, usize), Failures>,
    /// How often a request was turned away from the build of another.
    turned_away: BTreeMap<[u8; 32], usize>,
    /// What holders have signed that they have.
    advertised: BTreeSet<(usize, [u8; 16])>,
    /// Since when each machine is up; none: it is down.
    up: Vec<Option<u64>>,
    /// Requests that were signed by whom they name: by payload.
    requests: BTreeMap<[u8; 32], Requested>,
    /// Records by their payloads, and with whose keys they were signed.
    statements: BTreeMap<[u8; 32], (Statement, BTreeSet<usize>)>,
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
            said: BTreeMap::new(),
            follows: belief::follows(plan),
            works: BTreeMap::new(),
            acknowledged: vec![BTreeMap::new(); count],
            admitted: BTreeMap::new(),
            builds: vec![],
            attempts: (0..count).map(|_| BTreeMap::new()).collect(),
            idle: vec![BTreeMap::new(); count],
            hidden: private::at_the_beginning(plan),
            offers: vec![BTreeMap::new(); count],
            asked: vec![BTreeMap::new(); count],
            unheard: BTreeMap::new(),
            unfetched: BTreeSet::new(),
            looked: (0..count).map(|_| BTreeMap::new()).collect(),
            lacking: BTreeMap::new(),
            on_a_word: BTreeSet::new(),
            failures: BTreeMap::new(),
            turned_away: BTreeMap::new(),
            advertised: BTreeSet::new(),
            up: vec![None; count],
            requests: BTreeMap::new(),
            statements: BTreeMap::new(),
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
        self.idle[machine].clear();
        self.offers[machine].clear();
        self.asked[machine].clear();
        self.looked[machine].clear();
        self.failures.retain(|(at, _), _| *at != machine);
        self.lacking.retain(|(at, _), _| *at != machine);
        self.open.retain(|(at, _), _| *at != machine);
        self.works.retain(|(at, _), _| *at != machine);
        for build in self.builds.iter_mut().filter(|build| build.machine == machine) {
            if build.end == End::Running {
                build.end = End::Failed;
            }
        }
    }

    /// A holder signs that it has what these keys stand for.
    pub fn advertised(&mut self, holder: usize, keys: impl Iterator<Item = [u8; 16]>) {
        let keys: Vec<[u8; 16]> = keys.collect();
        self.keys_told(holder, keys.iter().copied());
        self.advertised.extend(keys.into_iter().map(|key| (holder, key)));
    }

    /// A machine takes it from one who keeps records that a holder has said that it has something.
    pub fn handed_on(&mut self, machine: usize, holder: usize, key: [u8; 16]) {
        self.count("keys handed on");
        assert!(
            self.advertised.contains(&(holder, key)),
            "UNTRUSTED: machine {machine} believes that {holder} says that it has what it has never said"
        );
    }

    /// A machine has something on another's word. That it may, is checked when it is registered.
    pub fn taken_on_a_word(&mut self, machine: usize, path: &StorePath) {
        self.count("taken on a word");
        self.on_a_word.insert((machine, path.clone()));
    }

    /// A record has been signed with the key of a machine, or of nobody in the team. An honest one says what it did.
    pub fn signed(&mut self, payload: [u8; 32], by: Option<usize>, statement: Statement) {
        let (_, signers) = self
            .statements
            .entry(payload)
            .or_insert_with(|| (statement.clone(), BTreeSet::new()));
        signers.extend(by);
        // In the name of another it says nothing about anybody.
        let Some(by) = by.filter(|_| statement.builder == by) else {
            return;
        };
        let Statement {
            job, inputs, outputs, ..
        } = statement;
        let signed = Signed {
            by,
            job,
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

    pub fn requested(&mut self, payload: [u8; 32], request: Requested) {
        let inputs = request.inputs.iter().map(|(path, _)| path);
        let mut named = std::iter::once(&request.job).chain(inputs);
        let hidden = named.find(|path| self.hides(request.by, path));
        assert_eq!(
            hidden, None,
            "PRIVATE: machine {} names it in a request to {}",
            request.by, request.to
        );
        self.requests.insert(payload, request);
    }

    pub fn opened(&mut self, machine: usize, session: u64, targets: &[usize]) {
        self.count("sessions");
        self.open
            .insert((machine, session), targets.iter().copied().collect());
    }

    // Rules.

    /// Something now lies under its name on a machine, and is shown to others.
    pub fn registered(
        &mut self,
        machine: usize,
        path: &StorePath,
        tree: TreeDigest,
        judged: Judged,
        now: u64,
    ) {
        if self.plan.machines[machine].nature == Nature::Honest {
            self.check_believed(machine, &(path.clone(), tree), judged, now);
        }
        self.count("accepted");
        self.held[machine].insert(path.clone(), (tree, now));
    }

    pub fn kept_aside(&mut self, machine: usize, path: &StorePath, tree: TreeDigest) {
        self.count("kept aside");
        self.aside[machine].insert((path.clone(), tree));
    }

    fn holds(&self, machine: usize, content: &Content) -> bool {
        let held = self.held[machine].get(&content.0);
        held.is_some_and(|(tree, _)| *tree == content.1)
    }

    /// Whether the name has another tree.
    fn holds_another(&self, machine: usize, content: &Content) -> bool {
        let held = self.held[machine].get(&content.0);
        held.is_some_and(|(tree, _)| *tree != content.1)
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
        self.on_a_word.remove(&(machine, path.clone()));
    }

    /// A builder takes a request that came with these bytes from a sender.
    pub fn admitted(&mut self, builder: usize, payload: [u8; 32], sender: usize, (now, clock): (u64, u64)) {
        let Some(request) = self.requests.get(&payload) else {
            panic!("UNTRUSTED: machine {builder} takes a request that nobody has signed");
        };
        let (by, to) = (request.by, request.to);
        let (issued, until) = (request.issued, request.until);
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
            self.admitted.insert((builder, payload), now).is_none(),
            "UNTRUSTED: machine {builder} takes a request a second time"
        );
        assert!(
            self.plan.is_builder(builder),
            "UNTRUSTED: machine {builder} builds for others without the role"
        );
        let is_out = |at: usize| self.plan.revoked == Some(at) && self.plan.machines[builder].hears <= now;
        assert!(
            !is_out(by) && !is_out(builder),
            "UNTRUSTED: machine {builder} takes a request of {sender}, and knows that one of them is out"
        );
        self.count("requests taken");
    }

    /// A requester takes what came for the answer to its request: nothing but what its builder has signed, of its own
    /// build, for this request, of this work, from these inputs.
    pub fn answer_taken(&mut self, machine: usize, request: [u8; 32], answer: [u8; 32]) {
        let asked = &self.requests[&request];
        assert_eq!(asked.by, machine);
        let builder = asked.to;
        let Some((said, signers)) = self.statements.get(&answer) else {
            panic!("UNTRUSTED: machine {machine} takes an answer that nobody has signed");
        };
        assert!(
            signers.contains(&builder),
            "UNTRUSTED: machine {machine} takes an answer that {builder} has never signed, but {signers:?}"
        );
        assert_eq!(
            said.builder,
            Some(builder),
            "UNTRUSTED: machine {machine} takes the answer of {builder}, which is about what another built"
        );
        assert_eq!(
            said.request,
            Some(request),
            "UNTRUSTED: machine {machine} takes the answer to another request"
        );
        assert!(
            said.work == asked.work && said.job == asked.job,
            "UNTRUSTED: machine {machine} takes a build of {} for the answer to its request for {}",
            said.job,
            asked.job
        );
        assert_eq!(
            said.inputs, asked.inputs,
            "UNTRUSTED: machine {machine} takes what was made of other inputs than it named"
        );
        let job = self.plan.jobs.iter().find(|job| job.drv == asked.job);
        let names = job.map(|job| job.outputs.values().collect::<BTreeSet<_>>());
        let made: BTreeSet<&StorePath> = said.outputs.iter().map(|(path, _)| path).collect();
        assert_eq!(
            names,
            Some(made),
            "UNTRUSTED: machine {machine} takes other outputs than those of {}",
            asked.job
        );
        self.count("answers taken");
    }

    /// What an honest machine's build made.
    pub fn build_makes(&mut self, build: usize, outputs: &[Content]) {
        self.builds[build].made = outputs.to_vec();
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

    /// A builder answers that it has built something.
    pub fn delivered(&mut self, machine: usize, outputs: &[Content]) {
        for content in outputs {
            assert!(
                self.holds(machine, content) || self.aside[machine].contains(content),
                "LOST: machine {machine} says that it has built {}, and does not have it",
                content.0
            );
            assert!(
                !self.hides(machine, &content.0) || self.aside[machine].contains(content),
                "PRIVATE: machine {machine} says that it has {}",
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
        // Of what no command wants any more nothing is kept in mind.
        self.failures.retain(|(at, _), _| *at != machine);
        self.works.remove(&(machine, session));
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
                machine.nature == Nature::Honest
                    && machine.crashes.is_empty()
                    && machine.skew.abs() < 50
                    && machine.secrets.is_empty()
            });
        let troubled = plan.jobs.iter().any(|job| job.broken || job.restless);
        let mut needed: BTreeSet<usize> = BTreeSet::new();
        let mut frontier: Vec<usize> = targets.iter().copied().collect();
        while let Some(job) = frontier.pop() {
            if needed.insert(job) {
                frontier.extend(&plan.jobs[job].inputs);
            }
        }
        let can_all_be_built = needed.iter().all(|job| self.can_be_built(machine, *job));
        calm && !troubled && can_all_be_built && !targets.is_empty()
    }

    /// Whether there are those who build a job for a machine, and are believed.
    fn can_be_built(&self, machine: usize, job: usize) -> bool {
        let plan = &self.plan;
        let (wants, job) = (&plan.machines[machine], &plan.jobs[job]);
        let can_build = |at: &usize| {
            let is_asked = || plan.is_builder(*at) && wants.neighbours.contains(at);
            let mut outputs = job.outputs.values();
            plan.machines[*at].slots > 0
                && (*at == machine || is_asked())
                && !outputs.any(|path| wants.rules.distrusts(*at, path))
        };
        match wants.rules.binding(job)[..] {
            [] | [Rule::Roster | Rule::Sample(_)] => (0..plan.machines.len()).any(|at| can_build(&at)),
            [Rule::Own] => can_build(&machine),
            [Rule::Quorum { needed, of }] => of.iter().filter(|at| can_build(at)).count() >= *needed,
            // Who are asked for the one need not be those that the other wants.
            _ => false,
        }
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
