//! What stays where it is: what an owner keeps private, and what is built from it.

use std::collections::BTreeSet;
use std::sync::Arc;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::presence::PresenceKey;
use tvix_node_protocol::tree::TreeDigest;

use super::Ledger;
use crate::team::simulation::plan::{Nature, Plan};

/// What is private on each machine before anything happens.
pub(super) fn at_the_beginning(plan: &Arc<Plan>) -> Vec<BTreeSet<StorePath>> {
    let machines = plan.machines.iter();
    let of = |secrets: &BTreeSet<usize>| {
        let paths = secrets.iter().map(|source| plan.sources[*source].path.clone());
        paths.collect()
    };
    machines.map(|machine| of(&machine.secrets)).collect()
}

impl Ledger {
    /// Whether others must not learn of a path from a machine. Liars hide nothing.
    pub(super) fn hides(&self, machine: usize, path: &StorePath) -> bool {
        self.plan.machines[machine].nature == Nature::Honest && self.hidden[machine].contains(path)
    }

    pub(super) fn hides_job(&self, machine: usize, job: usize) -> bool {
        self.hides(machine, &self.plan.jobs[job].drv)
    }

    /// A command on a machine comes to a job. It is private from now on if anything is that it reads.
    pub fn instantiated(&mut self, machine: usize, job: usize) {
        let plan = Arc::clone(&self.plan);
        let of = &plan.jobs[job];
        let mut sources = of.sources.iter().map(|source| &plan.sources[*source].path);
        let mut inputs = of.inputs.iter();
        if sources.any(|path| self.hides(machine, path))
            || inputs.any(|input| self.hides_job(machine, *input))
        {
            self.hidden[machine].insert(of.drv.clone());
            self.hidden[machine].extend(of.outputs.values().cloned());
        }
    }

    /// A machine says that it has what these keys stand for.
    pub fn keys_told(&self, machine: usize, keys: impl Iterator<Item = [u8; 16]>) {
        let hidden = &self.hidden[machine];
        if hidden.is_empty() || self.plan.machines[machine].nature != Nature::Honest {
            return;
        }
        let keys: Vec<[u8; 16]> = keys.collect();
        for view in &self.plan.views {
            let told = hidden.iter().find(|path| {
                let PresenceKey(key) = view.secret.key(path);
                keys.contains(&key)
            });
            assert_eq!(told, None, "PRIVATE: machine {machine} says that it has it");
        }
    }

    /// A machine gives others texts of derivations.
    pub fn texts_given<'a>(&self, machine: usize, mut paths: impl Iterator<Item = &'a StorePath>) {
        let told = paths.find(|path| self.hides(machine, path));
        assert_eq!(told, None, "PRIVATE: machine {machine} gives its text");
    }

    /// Whether a tree lies under a name that others may know of.
    pub(super) fn is_public(&self, machine: usize, tree: TreeDigest) -> bool {
        let mut held = self.held[machine].iter();
        held.any(|(path, (held, _))| *held == tree && !self.hides(machine, path))
    }
}
