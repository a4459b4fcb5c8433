//! Who can build what, and who has room.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_protocol::envelope::NodeKey;

use crate::action::Urgency;
use crate::coordinator::Coordinator;
use crate::event::{OwnBuilder, PeerOffer};
use crate::graph::{Requirement, RequirementId};
use crate::id::Time;
use crate::limits;
use crate::placement::Link;

/// This node and its peers, as builders.
#[derive(Default)]
pub(crate) struct Builders {
    own: Option<OwnBuilder>,
    /// Builds placed here and not over.
    pub(crate) used_here: u32,
    /// Slots that build for others, or check.
    lent: u32,
    /// Of these, the ones whose builds give way to what is demanded here.
    giving_way: u32,
    peers: BTreeMap<NodeKey, Peer>,
    /// What people call members, connected or not. Bounded by the team.
    names: BTreeMap<NodeKey, String>,
    /// Members that may build for this node, connected or not; unknown at first.
    expected: Option<BTreeSet<NodeKey>>,
    /// Peers that could build what requires this, were they free. Emptied when an offer changes.
    capable: BTreeMap<RequirementId, Vec<NodeKey>>,
}

/// A peer.
pub(crate) struct Peer {
    pub(crate) offer: PeerOffer,
    /// Slots that are free by what it said and what it was sent since.
    free: u32,
    /// It has refused something: nothing is asked of it until then, or until it offers anew.
    paused: Option<Time>,
}

impl Peer {
    /// Slots that may be used now.
    pub(crate) fn free(&self) -> u32 {
        if self.is_paused() { 0 } else { self.free }
    }

    /// Whether nothing is asked of it for a while.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.is_some()
    }
}

/// Whether a node is one of those that have to agree, where several have to. None: this node.
fn is_named(requirement: &Requirement, node: Option<&NodeKey>) -> bool {
    requirement.quorum.as_ref().is_none_or(|quorum| match node {
        None => quorum.here,
        Some(node) => quorum.of.contains(node),
    })
}

fn offers(requirement: &Requirement, systems: &[String], features: &[String]) -> bool {
    (requirement.system == "builtin" || systems.contains(&requirement.system))
        && requirement
            .features
            .iter()
            .all(|feature| features.contains(feature))
}

impl Builders {
    pub(crate) fn set_own(&mut self, own: OwnBuilder) {
        self.own = Some(own);
    }

    pub(crate) fn set_team(&mut self, names: BTreeMap<NodeKey, String>, builders: BTreeSet<NodeKey>) {
        self.names = names;
        self.expected = Some(builders);
    }

    /// Whether a builder might turn up that cannot be used now: this node's own, which has not said yet what it can do,
    /// or a member's that is not connected or keeps its slots to itself for a while.
    pub(crate) fn may_turn_up(&self) -> bool {
        let is_settled = |node: &NodeKey| {
            let peer = self.peers.get(node);
            peer.is_some_and(|peer| peer.offer.slots > 0 && peer.offer.withheld.is_none())
        };
        let expected = self.expected.as_ref();
        self.own.is_none() || expected.is_none_or(|expected| !expected.iter().all(is_settled))
    }

    /// Slots of this node that nothing uses and nobody has been lent.
    pub(crate) fn free_here(&self) -> u32 {
        self.slots_here()
            .saturating_sub(self.used_here)
            .saturating_sub(self.lent)
    }

    pub(crate) fn set_lent(&mut self, count: u32, giving_way: u32) {
        (self.lent, self.giving_way) = (count, giving_way.min(count));
    }

    /// Slots of this node for something so urgent. What others build here gets what the owner's builds leave of the machine, so
    /// nothing that is demanded waits for it.
    pub(crate) fn room_here(&self, urgency: Urgency) -> u32 {
        match urgency {
            Urgency::Speculative => self.free_here(),
            _ => self
                .slots_here()
                .saturating_sub(self.used_here)
                .saturating_sub(self.lent - self.giving_way),
        }
    }

    pub(crate) fn slots_here(&self) -> u32 {
        self.own.as_ref().map_or(0, |own| own.slots)
    }

    /// Whether this node could build it, were there room.
    pub(crate) fn capable_here(&self, requirement: &Requirement) -> bool {
        let own = self.own.as_ref().filter(|own| own.slots > 0);
        own.is_some_and(|own| offers(requirement, &own.systems, &own.features)) && is_named(requirement, None)
    }

    /// Peers that could build it, were there room.
    pub(crate) fn capable(&mut self, id: RequirementId, requirement: &Requirement) -> &[NodeKey] {
        let peers = &self.peers;
        self.capable.entry(id).or_insert_with(|| {
            let capable = peers.iter().filter(|(node, peer)| {
                peer.offer.slots > 0
                    && peer.offer.withheld.is_none()
                    && is_named(requirement, Some(*node))
                    && (peer.offer.fixed_outputs || !requirement.fixed_output)
                    && offers(requirement, &peer.offer.systems, &peer.offer.features)
            });
            capable.map(|(node, _)| *node).collect()
        })
    }

    pub(crate) fn peer(&self, node: &NodeKey) -> Option<&Peer> {
        self.peers.get(node)
    }

    /// Slots that are free on all peers together.
    pub(crate) fn free_at_peers(&self) -> u32 {
        self.peers
            .values()
            .map(|peer| peer.free)
            .fold(0, u32::saturating_add)
    }

    pub(crate) fn set_link(&mut self, node: &NodeKey, link: Link) {
        if let Some(peer) = self.peers.get_mut(node) {
            peer.offer.link = link;
        }
    }

    /// The fastest that anything came from a peer lately, in bytes a second.
    pub(crate) fn best_bandwidth(&self) -> Option<u64> {
        self.peers
            .values()
            .filter_map(|peer| peer.offer.link.bandwidth)
            .max()
    }

    /// A build was placed at a peer.
    pub(crate) fn take_slot(&mut self, node: &NodeKey) {
        if let Some(peer) = self.peers.get_mut(node) {
            peer.free = peer.free.saturating_sub(1);
        }
    }

    /// A build at a peer is over.
    pub(crate) fn give_slot(&mut self, node: &NodeKey) {
        if let Some(peer) = self.peers.get_mut(node) {
            peer.free = (peer.free + 1).min(peer.offer.slots);
        }
    }

    /// A peer has refused something; it may well refuse the next thing.
    pub(crate) fn pause(&mut self, node: &NodeKey, until: Time) {
        if let Some(peer) = self.peers.get_mut(node) {
            peer.paused = peer.paused.max(Some(until));
        }
    }

    pub(crate) fn end_pauses(&mut self, now: Time) {
        for peer in self.peers.values_mut() {
            peer.paused = peer.paused.filter(|until| *until > now);
        }
    }

    pub(crate) fn pauses_due(&self) -> Option<Time> {
        self.peers.values().filter_map(|peer| peer.paused).min()
    }

    pub(crate) fn name(&self, node: &NodeKey) -> String {
        let offered = self.peers.get(node).map(|peer| &peer.offer.name);
        match offered.or_else(|| self.names.get(node)) {
            Some(name) => name.clone(),
            None => node.to_string().chars().take(12).collect(),
        }
    }

    /// What builders there are, in words, to somebody who wants what may be a fixed output.
    pub(crate) fn describe(&self, own_name: &str, fixed_output: bool) -> String {
        let mut all = Vec::new();
        let describe = |name: &str, slots: u32, systems: &[String], features: &[String]| {
            let mut text = format!("{name}: {slots} slots, {}", systems.join(" "));
            if !features.is_empty() {
                text.push_str(&format!(", features {}", features.join(" ")));
            }
            text
        };
        if let Some(own) = &self.own {
            all.push(describe(own_name, own.slots, &own.systems, &own.features));
        }
        let withheld = self.peers.values().filter_map(|peer| {
            let why = peer.offer.withheld.as_ref()?;
            Some(format!(
                "{}: builds nothing for this node now, because {why}",
                peer.offer.name
            ))
        });
        let withheld: Vec<String> = withheld.take(8).collect();
        for peer in self
            .peers
            .values()
            .filter(|peer| peer.offer.withheld.is_none())
            .take(8)
        {
            let offer = &peer.offer;
            let mut text = describe(&offer.name, offer.slots, &offer.systems, &offer.features);
            if fixed_output && !offer.fixed_outputs {
                text.push_str(
                    ", no fixed outputs of others (its owner allows them with 'tvix-node share on --fixed-outputs')",
                );
            }
            all.push(text);
        }
        all.extend(withheld);
        if self.peers.len() > 8 {
            all.push(format!("and {} more", self.peers.len() - 8));
        }
        if all.is_empty() {
            "none".to_owned()
        } else {
            all.join("; ")
        }
    }

    /// Forgets who is capable of what, because requirements get new numbers.
    pub(crate) fn forget_requirements(&mut self) {
        self.capable.clear();
    }
}

impl Coordinator {
    pub(crate) fn peer_offers(&mut self, node: NodeKey, offer: PeerOffer) {
        let builders = &mut self.builders;
        if !builders.peers.contains_key(&node) && builders.peers.len() >= limits::PEERS {
            return;
        }
        // Requests on their way to it are not counted in what it says.
        let sent = self
            .attempts
            .values()
            .filter(|attempt| attempt.is_unanswered_by(&node))
            .count();
        let free = offer.slots_free.saturating_sub(sent as u32);
        builders.peers.insert(
            node,
            Peer {
                offer,
                free,
                paused: None,
            },
        );
        builders.capable.clear();
    }

    pub(crate) fn peer_gone(&mut self, node: NodeKey) {
        let name = self.builders.name(&node);
        self.builders.peers.remove(&node);
        self.builders.capable.clear();
        self.lose_builder(node, &name);
        self.forget_store(node);
    }
}
