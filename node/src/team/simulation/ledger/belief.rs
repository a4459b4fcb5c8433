//! Whom a machine may believe about which path, by the rules of its owner as they are documented: each path by the first
//! rule that is for it, and what is made of a path for which several or the machine itself have to speak by no word.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::roster::Role;
use tvix_node_protocol::tree::TreeDigest;

use super::twice::Asked;
use super::{Content, LATE, Ledger, Signed};
use crate::team::simulation::plan::{Nature, Plan};
use crate::team::simulation::rules::Rule;

/// What a member says beside what lies under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The payload of the record that it shows, and whose signature is said to be under it.
    pub record: Option<([u8; 32], usize)>,
    /// From whom it says that it has it.
    pub from: Option<usize>,
}

/// For whom, and since when, a machine judges what it then accepts.
#[derive(Debug, Clone, Copy)]
pub struct Judged {
    /// Who has asked it to build from that, so that his word does not count for it.
    pub asked_by: Option<usize>,
    pub since: u64,
}

impl Judged {
    /// For its own commands.
    pub fn own(since: u64) -> Self {
        let asked_by = None;
        Self { asked_by, since }
    }
}

/// What follows from a machine's rules for what the jobs make, by their numbers.
pub(super) struct Follows {
    /// It is made, in however many steps, of something for which somebody's word is not enough.
    made_of_bound: Vec<bool>,
    /// No liar whose records count can make the machine believe anything of what it is made of.
    made_of_safe: Vec<bool>,
}

pub(super) fn follows(plan: &Plan) -> Vec<Follows> {
    let all = 0..plan.machines.len();
    all.map(|machine| {
        let rules = &plan.machines[machine].rules;
        let mut follows = Follows {
            made_of_bound: vec![],
            made_of_safe: vec![],
        };
        // Inputs have lower numbers than what uses them.
        for job in &plan.jobs {
            let binds = |input: &usize| {
                follows.made_of_bound[*input] || !rules.binding(&plan.jobs[*input]).is_empty()
            };
            let bound = job.inputs.iter().any(binds);
            let is_safe = |input: &usize| {
                let mut outputs = plan.jobs[*input].outputs.values();
                follows.made_of_safe[*input] && outputs.all(|path| is_safe_by_rule(plan, machine, path))
            };
            let safe = job.inputs.iter().all(is_safe);
            follows.made_of_bound.push(bound);
            follows.made_of_safe.push(safe);
        }
        follows
    })
    .collect()
}

fn is_safe_by_rule(plan: &Plan, machine: usize, path: &StorePath) -> bool {
    let is_traitor = |at: &usize| plan.machines[*at].nature == Nature::Traitor;
    match plan.machines[machine].rules.of(path) {
        Rule::Own => true,
        Rule::Quorum { needed, of } => of.iter().filter(|at| is_traitor(at)).count() < *needed,
        Rule::Roster | Rule::Sample(_) => !(0..plan.machines.len()).any(|at| is_traitor(&at)),
    }
}

impl Ledger {
    /// A command works on a job from now on, so that the machine knows what that is made of.
    pub fn works_on(&mut self, command: (usize, u64), job: usize, now: u64) {
        let jobs = self.works.entry(command).or_default();
        jobs.entry(job).or_insert(now);
    }

    /// A speaker says to a listener what lies under a name.
    pub fn said(&mut self, (speaker, listener): (usize, usize), content: Content, said: Said) {
        assert!(
            !self.hides(speaker, &content.0),
            "PRIVATE: machine {speaker} shows {listener} {}",
            content.0
        );
        let key = (speaker, listener, content.0, content.1);
        let all = self.said.entry(key).or_default();
        if !all.contains(&said) {
            all.push(said);
        }
    }

    /// A machine takes something for what its name stands for.
    pub(super) fn check_believed(&mut self, machine: usize, content: &Content, judged: Judged, now: u64) {
        let (path, tree) = content;
        if self.is_protected(machine, path) {
            assert!(
                self.truth.contains(content),
                "UNTRUSTED: machine {machine} accepts a false {path}, which nobody honest made of true inputs"
            );
        }
        assert!(
            self.is_justified(machine, content, (judged, now), &mut BTreeMap::new()),
            "UNTRUSTED: machine {machine} accepts {path} with {tree}, for which nobody it believes has spoken ({judged:?}; its \
             rules: {:?})",
            self.plan.machines[machine].rules
        );
        let Some(job) = self.maker(path) else { return };
        let rules = &self.plan.machines[machine].rules;
        let by_pattern = rules.paths.len() > 1 && rules.of(path).binds();
        let made_of_bound = !rules.of(path).binds() && self.follows[machine].made_of_bound[job];
        let reached = made_of_bound && self.knows(machine, job, judged.since);
        let somebody_says = (0..self.plan.machines.len())
            .any(|speaker| self.is_a_store_that_said(machine, speaker, content, judged));
        if by_pattern {
            self.count("accepted by a stricter rule for some paths");
        }
        if reached {
            self.count("accepted of what a stricter rule reaches");
        }
        if reached && somebody_says {
            self.count("accepted where words are not enough");
        }
    }

    fn maker(&self, path: &StorePath) -> Option<usize> {
        let mut jobs = self.plan.jobs.iter();
        jobs.position(|job| job.outputs.values().any(|output| output == path))
    }

    /// Whether a rule of a machine wants several builders for a job, or its own build.
    pub(super) fn wants_more(&self, machine: usize, job: usize) -> bool {
        let rules = &self.plan.machines[machine].rules;
        !rules.binding(&self.plan.jobs[job]).is_empty()
    }

    /// No liar whose records count can make this machine believe anything about a path.
    fn is_protected(&self, machine: usize, path: &StorePath) -> bool {
        let made_of_safe = |job: usize| self.follows[machine].made_of_safe[job];
        self.maker(path).is_none_or(made_of_safe) && is_safe_by_rule(&self.plan, machine, path)
    }

    fn counts_for(&self, machine: usize, (builder, path): (usize, &StorePath), now: u64) -> bool {
        let plan = &self.plan;
        let out = plan.revoked == Some(builder) && now > plan.machines[machine].hears.saturating_add(LATE);
        let distrusted = plan.machines[machine].rules.distrusts(builder, path);
        machine == builder || (plan.is_builder(builder) && !out && !distrusted)
    }

    fn is_justified(
        &self,
        machine: usize,
        content: &Content,
        (judged, now): (Judged, u64),
        known: &mut BTreeMap<Content, bool>,
    ) -> bool {
        if let Some(source) = self.plan.sources.iter().find(|source| source.path == content.0) {
            return source.tree == content.1;
        }
        if self.holds(machine, content) {
            return true;
        }
        // What is looked at already counts as not justified until it is: nothing speaks for itself.
        if let Some(known) = known.get(content) {
            return *known;
        }
        known.insert(content.clone(), false);
        let path = &content.0;
        let signed = self.signed.get(content).map_or(&[][..], Vec::as_slice);
        let inputs_hold = |signed: &Signed, known: &mut BTreeMap<Content, bool>| {
            let mut inputs = signed.inputs.iter();
            inputs.all(|input| self.is_justified(machine, input, (judged, now), known))
        };
        let justified = match self.plan.machines[machine].rules.of(path) {
            Rule::Own => signed
                .iter()
                .any(|signed| signed.by == machine && inputs_hold(signed, known)),
            Rule::Roster | Rule::Sample(_) => {
                self.is_enough_said(machine, content, judged)
                    || signed.iter().any(|signed| {
                        self.counts_for(machine, (signed.by, path), now) && inputs_hold(signed, known)
                    })
            }
            Rule::Quorum { needed, of } => signed.iter().any(|one| {
                let same = signed.iter().filter(|other| {
                    of.contains(&other.by)
                        && self.counts_for(machine, (other.by, path), now)
                        && (&other.job, &other.inputs, &other.outputs)
                            == (&one.job, &one.inputs, &one.outputs)
                });
                let builders: BTreeSet<usize> = same.map(|signed| signed.by).collect();
                builders.len() >= *needed && inputs_hold(one, known)
            }),
        };
        known.insert(content.clone(), justified);
        justified
    }

    /// Whether one whose word counts, and is enough for this path, has given it.
    fn is_enough_said(&self, machine: usize, content: &Content, judged: Judged) -> bool {
        let path = &content.0;
        if let Some(job) = self.maker(path)
            && self.follows[machine].made_of_bound[job]
            && self.knows(machine, job, judged.since)
        {
            return false;
        }
        let rules = &self.plan.machines[machine].rules;
        let comes_from_one_believed = |said: &Said| {
            let signed_by = self.record_of(said, path).map(|(builder, _)| builder);
            let mut makers = said.from.into_iter().chain(signed_by);
            !makers.any(|maker| maker != machine && rules.distrusts(maker, path))
        };
        (0..self.plan.machines.len()).any(|speaker| {
            let key = (speaker, machine, path.clone(), content.1);
            self.is_a_store_that_said(machine, speaker, content, judged)
                && !rules.distrusts(speaker, path)
                && self.said[&key]
                    .iter()
                    .any(|said| comes_from_one_believed(said) && !self.tells_of_bound(machine, said, path))
        })
    }

    fn is_a_store_that_said(
        &self,
        machine: usize,
        speaker: usize,
        content: &Content,
        judged: Judged,
    ) -> bool {
        judged.asked_by != Some(speaker)
            && self.plan.machines[speaker].roles.has(Role::Store)
            && self
                .said
                .contains_key(&(speaker, machine, content.0.clone(), content.1))
    }

    /// Whether a machine has known all the time what a job's outputs are made of: a command works on it.
    fn knows(&self, machine: usize, job: usize, since: u64) -> bool {
        let mut commands = self.works.range((machine, 0)..=(machine, u64::MAX));
        commands.any(|(_, jobs)| jobs.get(&job).is_some_and(|told| *told < since))
    }

    /// Who signed the record that was shown, and what it is made of, where that holds.
    fn record_of(&self, said: &Said, path: &StorePath) -> Option<(usize, &[Content])> {
        let (payload, signer) = said.record?;
        let (statement, signers) = self.statements.get(&payload)?;
        let holds = statement.builder == Some(signer) && signers.contains(&signer);
        let of_path = statement.outputs.iter().any(|(output, _)| output == path);
        let inputs = if of_path { &statement.inputs[..] } else { &[] };
        holds.then_some((signer, inputs))
    }

    /// Whether a record that is shown with a path says that it is made of something for which a word is not enough.
    fn tells_of_bound(&self, machine: usize, said: &Said, path: &StorePath) -> bool {
        let inputs = self.record_of(said, path).map_or(&[][..], |(_, inputs)| inputs);
        inputs.iter().any(|(input, _)| self.is_bound(machine, input))
    }

    /// What names itself needs nobody, whatever the rules say.
    fn is_bound(&self, machine: usize, path: &StorePath) -> bool {
        let names_itself = self.plan.sources.iter().any(|source| source.path == *path);
        !names_itself && self.plan.machines[machine].rules.of(path).binds()
    }

    /// Whether what a holder can show of a path is enough for a machine that works on it. Where several have to speak for
    /// it, or the machine itself, nothing that one holder shows has to be.
    pub(super) fn would_believe(
        &self,
        machine: usize,
        holder: usize,
        content: &Content,
        asked: Asked,
        now: u64,
    ) -> bool {
        let plan = &self.plan;
        let (path, rules) = (&content.0, &plan.machines[machine].rules);
        if rules.of(path).binds() {
            return false;
        }
        let signed = self.signed.get(content).map_or(&[][..], Vec::as_slice);
        let made_of_bound = self
            .maker(path)
            .is_none_or(|job| self.follows[machine].made_of_bound[job]);
        let tells_of_bound = || {
            let mut inputs = signed.iter().flat_map(|signed| &signed.inputs);
            inputs.any(|(input, _)| self.is_bound(machine, input))
        };
        // Who is not believed may have said it first.
        let none_is_distrusted = || {
            let mut all = 0..plan.machines.len();
            !all.any(|maker| rules.distrusts(maker, path))
        };
        if plan.machines[holder].roles.has(Role::Store)
            && !made_of_bound
            && none_is_distrusted()
            && !tells_of_bound()
        {
            return true;
        }
        if self.on_a_word.contains(&(holder, path.clone())) {
            return false;
        }
        let has_input = |input: &Content| match self.held[machine].get(&input.0) {
            Some((tree, since)) => *tree == input.1 && *since < asked.from,
            None => {
                let shows = |(tree, since): &(TreeDigest, u64)| *tree == input.1 && *since < asked.from;
                let is_source = plan.sources.iter().any(|source| source.path == input.0);
                !self.hides(holder, &input.0)
                    && self.held[holder].get(&input.0).is_some_and(shows)
                    && (is_source || self.would_believe(machine, holder, input, asked, now))
            }
        };
        // Of several records the holder shows one, so all that could be it have to do.
        !signed.is_empty()
            && signed.iter().all(|signed| {
                self.counts_for(machine, (signed.by, path), now)
                    && plan.is_builder(signed.by)
                    && plan.revoked != Some(signed.by)
                    && signed.inputs.iter().all(has_input)
            })
    }
}
