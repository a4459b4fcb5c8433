//! What is found out about a derivation just before it is placed: who has its inputs, who builds it already, and
//! whether somebody has made it since it was asked for.
//!
//! Questions about presence are put while an evaluation runs, long before their answers are needed. What others do at
//! the same time can only be seen at the last moment.

use tvix_node_protocol::StorePath;
use tvix_node_protocol::envelope::NodeKey;

use crate::action::Action;
use crate::build::Placement;
use crate::coordinator::Coordinator;
use crate::graph::{DrvId, Own, PathId, Weighing, Weights};
use crate::id::BuildId;
use crate::limits;
use crate::placement::Candidate;
use crate::session_set::Slot;

/// The answer to [`Action::WeighInputs`].
pub(crate) struct Weighed {
    pub(crate) total: u64,
    pub(crate) there: Vec<(Option<NodeKey>, u64)>,
    pub(crate) makers: Vec<Option<NodeKey>>,
    pub(crate) promised: bool,
    pub(crate) made: bool,
}

/// Whether a derivation can be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weigh {
    /// All is known that may decide.
    Done,
    /// Others have been asked.
    Asked,
    /// Too many are asked about others.
    Later,
}

impl Coordinator {
    /// Has it found out what may decide where a derivation is built.
    pub(crate) fn weigh(&mut self, id: DrvId, payer: Slot, candidates: &[Candidate]) -> Weigh {
        let drv = &self.graph.drvs[id];
        let stale = match &drv.weighing {
            Weighing::No => true,
            Weighing::Asked(_) => return Weigh::Asked,
            Weighing::Done(None) => false,
            Weighing::Done(Some(weights)) => weights.heard.after(limits::WEIGHTS_KEPT) <= self.now,
        };
        if !stale {
            return Weigh::Done;
        }
        let mut nodes: Vec<NodeKey> = candidates.iter().filter_map(|candidate| candidate.node).collect();
        if self.may_join(id) {
            // Also who has no free slot: it may be this that takes them.
            let busy = self.peers_for(id);
            nodes.extend(busy.into_iter().filter(|node| {
                let candidate = candidates.iter().any(|other| other.node == Some(*node));
                !candidate
            }));
        } else if self.graph.drvs[id].inputs.is_empty() {
            return Weigh::Done;
        }
        nodes.truncate(limits::ASKED_BEFORE_PLACING);
        // Also where only another one has a free slot: it may be at it, or have asked this one to be.
        let here = self.builders.slots_here() > 0;
        if nodes.is_empty() || nodes.len() + usize::from(here) < 2 {
            return Weigh::Done;
        }
        if self.queues.weighing.len() >= limits::WEIGHING {
            return Weigh::Later;
        }
        let drv = &self.graph.drvs[id];
        let name = |path: &PathId| self.graph.paths[*path].name.clone();
        let missing = drv.outputs.iter().map(|(_, path)| path);
        let missing = missing.filter(|path| !self.graph.paths[**path].available());
        self.actions.push(Action::WeighInputs {
            derivation: drv.name.clone(),
            inputs: drv.inputs.iter().map(name).collect(),
            outputs: missing.map(name).collect(),
            terms: self.terms_for(id, payer),
            nodes,
        });
        self.graph.drvs[id].weighing = Weighing::Asked(self.now);
        self.queues.weighing.insert(id);
        self.queues.set(&mut self.graph.drvs, id, None);
        Weigh::Asked
    }

    pub(crate) fn weighed(&mut self, name: &StorePath, weighed: Weighed) {
        let Some(id) = self.graph.drv(name) else { return };
        if !self.queues.weighing.remove(&id) {
            return;
        }
        let Weighed {
            total,
            there,
            makers,
            promised,
            made,
        } = weighed;
        let drv = &mut self.graph.drvs[id];
        drv.weighing = Weighing::Done(Some(Weights {
            total,
            there,
            makers,
            promised,
            heard: self.now,
        }));
        self.graph.touch_drv(id);
        if made && self.may_join(id) {
            self.ask_anew(id);
        }
    }

    /// Somebody says that the outputs of a derivation are there by now. Whether that counts is for an answer about
    /// presence to say; once for each placement, because that may be no.
    fn ask_anew(&mut self, id: DrvId) {
        if std::mem::replace(&mut self.graph.drvs[id].asked_anew, true) {
            return;
        }
        for (_, output) in self.graph.drvs[id].outputs.clone() {
            let path = &mut self.graph.paths[output];
            if path.own == Own::Absent && path.sources.is_empty() && path.fetch_tries < limits::FETCH_TRIES {
                path.own = Own::Unknown;
                path.ask_tries = 0;
                self.graph.touch_path(output);
            }
        }
    }

    pub(crate) fn expire_weighing(&mut self) {
        for id in self.queues.weighing.clone() {
            let drv = &mut self.graph.drvs[id];
            if let Weighing::Asked(since) = drv.weighing
                && since.after(limits::WEIGH_PATIENCE) <= self.now
            {
                drv.weighing = Weighing::Done(None);
                self.queues.weighing.remove(&id);
                self.graph.touch_drv(id);
            }
        }
    }

    /// Whether a derivation may be had from a build that another node has begun: not where several have to build it
    /// each for itself, nor what is not worth the way.
    fn may_join(&self, id: DrvId) -> bool {
        let requirement = self.graph.requirements.get(self.graph.drvs[id].requirement);
        !requirement.prefer_local && !self.metered && self.quorum(id).is_none()
    }

    /// Whether this node is about to build a derivation for another, so that it is placed nowhere else.
    pub(crate) fn is_promised(&self, id: DrvId) -> bool {
        let drv = &self.graph.drvs[id];
        let promised = matches!(&drv.weighing, Weighing::Done(Some(weights)) if weights.promised);
        promised && !drv.not_joined_here && self.may_join(id) && self.may_build_here(id)
    }

    /// A node that builds a derivation already, and may build it for this one, but for these; none: this one.
    pub(crate) fn maker(&mut self, id: DrvId, not: &[Option<NodeKey>]) -> Option<Option<NodeKey>> {
        if !self.may_join(id) {
            return None;
        }
        let mut makers = match &self.graph.drvs[id].weighing {
            Weighing::Done(Some(weights)) => weights.makers.clone(),
            Weighing::Done(None) | Weighing::No | Weighing::Asked(_) => return None,
        };
        makers.retain(|maker| !not.contains(maker));
        if makers.contains(&None) && !self.graph.drvs[id].not_joined_here && self.may_build_here(id) {
            return Some(None);
        }
        let capable = self.peers_for(id);
        makers.into_iter().flatten().map(Some).find(|maker| {
            let Some(node) = maker else { return false };
            let joined = self
                .attempts
                .values()
                .filter(|attempt| attempt.joins && attempt.node == *maker);
            let peer = self.builders.peer(node);
            let open = peer.is_some_and(|peer| !peer.is_paused()) && joined.count() < limits::JOINED;
            open && capable.contains(node)
        })
    }

    /// Takes part in what another node builds, or this one for another, which needs no slot.
    pub(crate) fn join(&mut self, id: DrvId, payer: Slot, node: Option<NodeKey>, hedges: Option<BuildId>) {
        let reason = match &node {
            Some(node) => format!("{}: builds it already", self.builders.name(node)),
            None => "this node: builds it already, for another".to_owned(),
        };
        let placement = Placement {
            node,
            reason,
            hedges,
            joins: true,
        };
        self.place(id, payer, placement);
    }

    /// Takes part in what was left to others as a guess, and is demanded now. Who was at it then may be done by now; it is
    /// had from there all the same.
    pub(crate) fn join_left(&mut self) {
        let wanted = self.queues.left.iter().filter_map(|id| {
            let queued = self.graph.drvs[*id].queued.as_ref()?;
            Some((*id, queued.import.or(queued.demanded).iter().next()?))
        });
        for (id, payer) in wanted.collect::<Vec<_>>() {
            self.queues.left.remove(&id);
            if let Some(node) = self.maker(id, &[]) {
                self.join(id, payer, node, None);
            }
        }
    }

    /// Has it said to whoever asks that a build is under way; a guess, too, or two nodes that evaluate the same would
    /// guess the same.
    pub(crate) fn announce(&mut self, build: BuildId) {
        let Some(attempt) = self.attempts.get_mut(&build) else {
            return;
        };
        let requirement = self
            .graph
            .requirements
            .get(self.graph.drvs[attempt.drv].requirement);
        // Nobody takes part in what this node downloads itself.
        let alone = attempt.node.is_none() && requirement.fixed_output;
        if alone || attempt.announced {
            return;
        }
        attempt.announced = true;
        let (derivation, node, terms) = (attempt.derivation.clone(), attempt.node, attempt.terms());
        self.actions.push(Action::Announce {
            build,
            derivation,
            terms,
            node,
        });
    }

    /// Takes that back.
    pub(crate) fn retract(&mut self, build: BuildId) {
        if let Some(attempt) = self.attempts.get_mut(&build)
            && std::mem::take(&mut attempt.announced)
        {
            self.actions.push(Action::Retract { build });
        }
    }
}
