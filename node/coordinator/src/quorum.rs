//! Derivations that several builders have to agree on before their outputs are believed.

use tvix_node_protocol::control::EventKind;
use tvix_node_protocol::envelope::NodeKey;

use crate::build::Attempt;
use crate::coordinator::Coordinator;
use crate::event::Quorum;
use crate::graph::DrvId;
use crate::session_set::SessionSet;

impl Coordinator {
    pub(crate) fn quorum(&self, id: DrvId) -> Option<&Quorum> {
        let requirement = self.graph.drvs[id].requirement;
        self.graph.requirements.get(requirement).quorum.as_ref()
    }

    /// Builders that have built a derivation of a quorum or are at it. Nobody speaks twice.
    pub(crate) fn in_quorum(&self, id: DrvId) -> Vec<Option<NodeKey>> {
        if self.quorum(id).is_none() {
            return Vec::new();
        }
        let drv = &self.graph.drvs[id];
        let attempts = drv.attempts.iter().filter_map(|build| self.attempts.get(build));
        let building = attempts.map(|attempt| attempt.node);
        drv.votes.iter().copied().chain(building).collect()
    }

    /// Whether another builder should be found for a derivation: none is at it, or fewer than have to agree
    /// have built it or are at it. Where as many as needed have built it and that was not enough, one more is
    /// asked.
    pub(crate) fn wants_builder(&self, id: DrvId) -> bool {
        let drv = &self.graph.drvs[id];
        match self.quorum(id) {
            None => drv.attempts.is_empty(),
            Some(quorum) => {
                let needed = quorum.needed.max(1) as usize;
                drv.attempts.len() + drv.votes.len().min(needed - 1) < needed
            }
        }
    }

    /// Whether enough builders have built a derivation of a quorum, are at it, or might build it.
    pub(crate) fn quorum_is_possible(&mut self, id: DrvId, here: bool) -> bool {
        let taken = self.in_quorum(id);
        let peers = self.peers_for(id);
        let left = peers.iter().filter(|node| !taken.contains(&Some(**node)));
        let left = left.count() + usize::from(here && !taken.contains(&None));
        let votes = self.graph.drvs[id].votes.len();
        let building = taken.len() - votes;
        self.quorum(id).is_none_or(|quorum| {
            let needed = quorum.needed.max(1) as usize;
            votes.min(needed - 1) + building + left >= needed
        })
    }

    /// A builder of a quorum has built a derivation; others have to say the same.
    pub(crate) fn take_vote(&mut self, attempt: &Attempt, participants: SessionSet) {
        let drv = &mut self.graph.drvs[attempt.drv];
        if !drv.votes.contains(&attempt.node) {
            drv.votes.push(attempt.node);
        }
        let votes = drv.votes.len();
        let needed = self.quorum(attempt.drv).map_or(0, |quorum| quorum.needed);
        self.graph.touch_drv(attempt.drv);
        for slot in attempt.told.or(participants).iter() {
            let text = format!(
                "{} has been built by {}: {votes} of the {needed} builders that have to agree",
                attempt.derivation, attempt.node_name
            );
            let level = "info".to_owned();
            self.tell(slot, EventKind::Message { level, text });
        }
    }

    /// Why a derivation of a quorum cannot be built, in words.
    pub(crate) fn too_few(&self, id: DrvId) -> Option<String> {
        let quorum = self.quorum(id)?;
        if quorum.here && quorum.of.is_empty() {
            let why = "only this node may build it, as its owner has decided, and it cannot now: a rule ('tvix-node trust') says so, or it is \
                       private, or made from something that is ('tvix-node private list')";
            return Some(why.to_owned());
        }
        let mut names: Vec<String> = quorum.of.iter().map(|node| self.builders.name(node)).collect();
        if quorum.here {
            names.insert(0, "this node".to_owned());
        }
        let built = self.graph.drvs[id].votes.iter();
        let built: Vec<String> = built.map(|node| self.node_name(node.as_ref())).collect();
        let built = match built.as_slice() {
            [] => "none of them has built it".to_owned(),
            built => format!("so far {} agree on it", built.join(", ")),
        };
        Some(format!(
            "too few builders: {} of {} have to agree on it, {built}, and not enough of the others can build it now",
            quorum.needed,
            names.join(", ")
        ))
    }
}
