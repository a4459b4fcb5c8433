//! This node in its team: wires the swarm to the store, the coordinator and the builder.
//!
//! | module | what it has |
//! |---|---|
//! | [`membership`], [`roll`] | founding, joining, starting and leaving teams |
//! | `first` | in which team the node has the key of its home |
//! | [`every`] | what is asked of all teams together |
//! | [`view`] | what the members of one team may see of what this node knows |
//! | [`policy`] | whom this node believes about a path |
//! | [`trust`], [`votes`] | the owner's rules, and what follows from them for builds |
//! | [`sample`] | what others built, built here again to compare |
//! | [`evidence`], `surroundings` | what members know of paths, and whether it is believed |
//! | [`presence`] | where paths are |
//! | [`private`] | what stays on this node |
//! | [`owner_file`] | how rules of the owner are written down |
//! | [`fetch`], [`purpose`] | paths of others into this store, and which of them go first |
//! | [`repair`] | content of damaged paths from others |
//! | [`request`], `answer`, `calls`, `far_log` | builds that others do for this node |
//! | `own_steps` | the owner's builds among those of others |
//! | [`serve`], `steps`, [`served`], [`together`], [`inputs`] | builds that this node does for others |
//! | `kept` | folders of builds that failed |
//! | [`push`] | paths into the stores of others, and what they push here |
//! | [`share`], [`load`] | on which terms slots are lent, and how busy the machine is |
//! | [`shelf`], [`grants`] | what of this store others may see |
//! | [`lent`] | what stays here because others are fetching it |

mod answer;
mod breaks;
mod calls;
mod down;
pub mod every;
pub mod evidence;
mod far_log;
pub mod fetch;
mod first;
pub mod grants;
pub mod inputs;
mod kept;
mod left;
pub mod lent;
pub mod limits;
pub mod load;
pub mod membership;
pub(crate) mod own_steps;
pub mod owner_file;
pub mod policy;
pub mod presence;
pub mod private;
pub mod purpose;
pub mod push;
pub mod repair;
pub mod request;
pub mod roll;
pub mod sample;
pub mod serve;
pub mod served;
pub mod share;
pub mod shelf;
#[cfg(test)]
mod simulation;
mod steps;
mod surroundings;
pub mod together;
pub mod traffic;
pub mod trust;
pub mod view;
pub mod votes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tvix_node_coordinator::{Event, PeerOffer, placement::Link};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::find_member;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::Facts;
use tvix_node_protocol::roster::Role;
use tvix_node_swarm::events::{Notice, PeerStatus, SwarmEvents};
use tvix_node_swarm::team::StateError;
use tvix_node_swarm::{PeerOverview, SwarmHandle};

use crate::daemon::depot::Depot;
use crate::daemon::derivations::CheckedDerivations;
use crate::daemon::engine::Message;
use crate::daemon::perform::Jobs;
use calls::Calls;
use down::Down;
use evidence::ShownPaths;
use fetch::Arriving;
use grants::Grants;
use limits::{FACTS_PAUSE, LINKS_PAUSE, STRAYED};
use membership::TeamFailure;
use roll::Roll;
use sample::Sampling;
use served::{Considering, Served};
use share::ShareBook;
use traffic::TrafficBook;
use trust::TrustBook;
use view::TeamView;

/// Derivations that were remembered for a while.
#[derive(Debug, Default)]
struct Strayed(Mutex<BTreeSet<StorePath>>);

impl Strayed {
    /// Whether it was there before. It is from now on.
    fn add(&self, derivation: &StorePath) -> bool {
        let mut strayed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if strayed.len() >= STRAYED {
            strayed.clear();
        }
        !strayed.insert(derivation.clone())
    }
}

/// A node that takes part in a team.
pub struct TeamNode {
    /// The other members.
    pub swarm: SwarmHandle,
    /// What they may see.
    pub(crate) view: TeamView,
    /// All teams of this node.
    roll: Arc<Roll>,
    /// Derivations whose output paths have been checked for them: which ones are known here from elsewhere is nothing
    /// that they may learn.
    derivations: Arc<CheckedDerivations>,
    depot: Arc<Depot>,
    jobs: Arc<Jobs>,
    engine: mpsc::Sender<Message>,
    slots: u32,
    grants: Arc<Grants>,
    shown: Arc<ShownPaths>,
    /// Derivations of which an input was not to be had here once, where there are other teams that may have it.
    strayed: Strayed,
    /// Builds that others do for this node.
    calls: Arc<Calls>,
    /// Builders whose connection broke, of whom it is not told yet that they are gone.
    down: Mutex<BTreeSet<NodeKey>>,
    arriving: Arriving,
    intake: fetch::Intake,
    served: Arc<Served>,
    /// The owner's rules.
    pub trust: Arc<TrustBook>,
    /// On which terms slots are lent.
    pub share: Arc<ShareBook>,
    /// How much of the link is used, and for whom.
    traffic: Arc<TrafficBook>,
    sampling: Arc<Sampling>,
    considering: Arc<Considering>,
    /// Members that do not let this node in, and what they said why.
    refused: Mutex<BTreeMap<NodeKey, String>>,
}

impl TeamNode {
    /// Whether builds for others are under way, in whichever team, those that wait for their inputs included.
    pub fn is_serving(&self) -> bool {
        self.served.is_serving()
    }

    /// What people call the team.
    pub fn team_name(&self) -> String {
        self.swarm.team().genesis().name.clone()
    }

    /// Whether this team is the one that a node is met in.
    pub(crate) fn meets(&self, node: NodeKey) -> bool {
        self.roll.team_of(node) == Some(self.view.team())
    }

    /// The connected members that are met in this team, and those of whom it is not told yet that they are gone.
    pub(crate) fn met(&self) -> Vec<NodeKey> {
        let mut peers: BTreeSet<NodeKey> = self.swarm.peers().into_keys().collect();
        peers.extend(&*self.down.lock().unwrap_or_else(PoisonError::into_inner));
        peers.into_iter().filter(|peer| self.meets(*peer)).collect()
    }

    /// What people call a member.
    pub fn name_of(&self, node: NodeKey) -> String {
        match self.swarm.members().get(node) {
            Some(member) => member.name.clone(),
            None => node.to_string(),
        }
    }

    /// What the swarm says, which knows members by their keys, with their names.
    fn with_names(&self, said: &str) -> String {
        let members = self.swarm.members();
        let names = members.iter().map(|(key, member)| (key, member.name.as_str()));
        named(said, names)
    }

    /// Who is called this, or whose key is or begins with it, of [`TeamNode::everybody`].
    ///
    /// # Errors
    /// [`TeamFailure::Member`]
    pub fn somebody(&self, text: &str) -> Result<NodeKey, TeamFailure> {
        let everybody = self.everybody();
        let named: Vec<(NodeKey, &str)> = everybody
            .iter()
            .map(|(key, name)| (*key, name.as_str()))
            .collect();
        Ok(find_member(&named, text)?)
    }

    /// The other founder that is called this, or whose key is or begins with it, and who is not out.
    ///
    /// # Errors
    /// [`TeamFailure::Member`], or [`TeamFailure::State`] where that is no other founder.
    pub fn founder(&self, text: &str) -> Result<NodeKey, TeamFailure> {
        let members = self.swarm.members();
        let named: Vec<(NodeKey, &str)> = members
            .iter()
            .map(|(key, member)| (key, member.name.as_str()))
            .collect();
        let key = find_member(&named, text)?;
        if key == self.swarm.key() {
            return Err(StateError::HereAlready(self.name_of(key)).into());
        }
        match self.swarm.team().with_roster(|roster| roster.is_founder(key)) {
            true => Ok(key),
            false => Err(StateError::NoFounder(self.name_of(key)).into()),
        }
    }

    /// Members, and who can become one again by being renewed: all that there is something to say or do about.
    pub fn everybody(&self) -> Vec<(NodeKey, String)> {
        let members = self.swarm.members();
        let members = members.iter().map(|(key, member)| (key, member.name.clone()));
        let waiting = self.swarm.team().waiting().into_iter();
        members
            .chain(waiting.map(|(key, waits)| (key, waits.name)))
            .collect()
    }

    /// Whether the team began with this node, with others that hang on it, and nobody else is left of whom that is so.
    pub fn is_last_founder(&self) -> bool {
        let members = self.swarm.members();
        let mut founders = members.iter().filter(|(_, member)| member.issued_by.is_none());
        let is_last =
            founders.next().is_some_and(|(key, _)| key == self.swarm.key()) && founders.next().is_none();
        is_last && members.len() > 1
    }

    /// Members that do not let this node in, or that it cannot speak with, and why.
    pub fn refused_by(&self) -> Vec<(NodeKey, String)> {
        let (peers, members) = (self.swarm.peers(), self.swarm.members());
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = refused.iter();
        refused
            .filter(|(key, _)| members.contains(**key) && !peers.contains_key(key))
            .map(|(key, why)| (*key, why.clone()))
            .collect()
    }

    /// Remembers what a member says to this node, which it does not let in, or why the two cannot speak; none: they can.
    /// Whether that is new.
    fn note_refusal(&self, peer: NodeKey, why: Option<String>) -> bool {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match why.clone() {
            Some(why) => refused.insert(peer, why),
            None => refused.remove(&peer),
        };
        // Members alone are dialled, so there are no more than those.
        let members = self.swarm.members();
        refused.retain(|key, _| members.contains(*key));
        before != why
    }

    /// Reports to the coordinator. Where the engine has ended, nobody needs to know.
    pub(crate) async fn tell(&self, event: Event) {
        drop(self.engine.send(Message::Happened(event)).await);
    }

    /// Notes that inputs of a derivation are not to be had in this team. Whether that was so before, and another team may
    /// have them: then they are looked for, or made, in vain as far as this one is concerned.
    fn strays(&self, derivation: &StorePath) -> bool {
        if self.roll.count() < 2 {
            return false;
        }
        self.strayed.add(derivation)
    }

    /// Attends to what the swarm tells, until it is shut down.
    async fn attend(self: Arc<Self>, mut events: SwarmEvents) {
        self.tell_members().await;
        let mut measuring = tokio::time::interval(LINKS_PAUSE);
        let mut told = BTreeMap::new();
        let mut down = Down::default();
        loop {
            tokio::select! {
                () = until(down.next()) => {
                    for peer in down.take_due(Instant::now()) {
                        self.tell_gone(peer).await;
                    }
                }
                _ = measuring.tick() => self.tell_links(&mut told).await,
                notice = events.notices.recv() => match notice {
                    // Who builds for this node is given a moment to be back.
                    Some(Notice::PeerDown { peer })
                        if self.calls.has(peer) && self.swarm.members().contains(peer) =>
                    {
                        self.down.lock().unwrap_or_else(PoisonError::into_inner).insert(peer);
                        down.broke(peer, Instant::now());
                    }
                    Some(notice) => self.notice(notice).await,
                    None => return,
                },
                build = events.builds.recv() => match build {
                    Some(build) => drop(tokio::spawn(Arc::clone(&self).serve(build))),
                    None => return,
                },
                push = events.pushes.recv() => {
                    let Some(push) = push else { return };
                    tokio::spawn(Arc::clone(&self).take(push));
                }
            }
        }
    }

    /// Unless it is back. Who is no member of any team any more is met nowhere, and gone.
    async fn tell_gone(&self, peer: NodeKey) {
        self.down
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&peer);
        let elsewhere = self
            .roll
            .team_of(peer)
            .is_some_and(|team| team != self.view.team());
        if !elsewhere && !self.swarm.peers().contains_key(&peer) {
            self.tell(Event::PeerGone { node: peer }).await;
        }
    }

    async fn notice(&self, notice: Notice) {
        match notice {
            Notice::PeerUp { peer, status } | Notice::PeerChanged { peer, status } => {
                self.note_refusal(peer, None);
                if !self.meets(peer) {
                    return;
                }
                let offer = self.offer(peer, &status);
                self.tell(Event::Peer { node: peer, offer }).await;
            }
            Notice::PeerDown { peer } => self.tell_gone(peer).await,
            Notice::PeerUnusable { peer, message } => {
                let text = format!("{} cannot be used: {message}", self.name_of(peer));
                // A connected member is greeted again and again.
                if self.note_refusal(peer, Some(message)) {
                    drop(self.engine.send(Message::Warn { text }).await);
                }
            }
            // Roles may have come or gone.
            Notice::RosterChanged => self.tell_offers().await,
        }
    }

    /// Tells the coordinator anew what everybody offers: who may build for this node has changed.
    pub async fn tell_offers(&self) {
        self.tell_members().await;
        for (peer, status) in self.swarm.peers() {
            if !self.meets(peer) {
                continue;
            }
            let offer = self.offer(peer, &status);
            self.tell(Event::Peer { node: peer, offer }).await;
        }
    }

    /// Tells the coordinator who is in the teams.
    pub(crate) async fn tell_members(&self) {
        let event = self.roll.told(&self.trust.policy());
        self.tell(event).await;
    }

    fn offer(&self, peer: NodeKey, status: &PeerStatus) -> PeerOffer {
        let members = self.swarm.members();
        let barred = if !members.may(self.swarm.key(), Role::Request) {
            Some("this node has not the role 'request' in the team")
        } else if !members.may(peer, Role::Build) {
            Some("it has not the role 'build' in the team")
        } else if self.trust.policy().distrusts_wholly(peer) {
            Some("this node believes nothing that it builds ('tvix-node trust show')")
        } else {
            None
        };
        let builds = barred.is_none();
        let facts = &status.facts;
        PeerOffer {
            name: self.roll.name_of(peer).unwrap_or_else(|| peer.to_string()),
            slots_free: if builds { facts.free } else { 0 },
            slots: if builds { facts.slots } else { 0 },
            systems: facts.systems.clone(),
            features: facts.features.clone(),
            fixed_outputs: facts.fixed_outputs,
            link: self.swarm.overview().get(&peer).map(link).unwrap_or_default(),
            load: facts.load,
            cores: facts.cores,
            withheld: barred.map(str::to_owned).or_else(|| facts.withheld.clone()),
        }
    }

    /// Tells the coordinator what has been measured of the ways to peers, as far as that has changed. `told`: what it
    /// was told last.
    async fn tell_links(&self, told: &mut BTreeMap<NodeKey, Link>) {
        let measured = self.swarm.overview();
        told.retain(|peer, _| measured.contains_key(peer));
        for (peer, known) in &measured {
            let link = link(known);
            if known.status.is_some() && self.meets(*peer) && told.get(peer) != Some(&link) {
                told.insert(*peer, link);
                self.tell(Event::Linked { node: *peer, link }).await;
            }
        }
    }

    /// Tells the team how many slots are free, whenever that changes.
    async fn publish_facts(self: Arc<Self>, facts: Facts, mut free: watch::Receiver<u32>) {
        let (mut withheld, mut terms) = (self.share.withheld(), self.share.changes());
        loop {
            let (free_now, reason) = (*free.borrow_and_update(), withheld.borrow_and_update().clone());
            self.swarm.set_facts(Facts {
                free: if reason.is_some() { 0 } else { free_now },
                withheld: reason,
                fixed_outputs: terms.borrow_and_update().fixed_outputs,
                load: self.share.load(),
                ..facts.clone()
            });
            tokio::time::sleep(FACTS_PAUSE).await;
            let changed = tokio::select! {
                changed = free.changed() => changed,
                changed = withheld.changed() => changed,
                changed = terms.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }
}

/// What has been measured of the way to a peer, in milliseconds and bytes a second.
fn link(known: &PeerOverview) -> Link {
    let round_trip = known.round_trip;
    Link {
        round_trip: round_trip.map(|time| u32::try_from(time.as_millis()).unwrap_or(u32::MAX)),
        bandwidth: known.speed.filter(|speed| *speed > 0),
    }
}

/// A text in which these are named by their keys, with their names.
fn named<'a>(said: &str, names: impl Iterator<Item = (NodeKey, &'a str)>) -> String {
    let mut text = said.to_owned();
    for (key, name) in names {
        // Whose error it is, is said by who lists it and by who made it.
        let (key, twice) = (key.to_string(), format!("{key}: {key}: "));
        text = text.replace(&twice, &format!("{name}: ")).replace(&key, name);
    }
    text
}

/// Returns at that time; never, where there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_swarm_says_of_keys_is_said_of_names() {
        let [ann, bob] = [1, 2].map(|seed| NodeKey([seed; 32]));
        let names = || [(ann, "ann"), (bob, "bob@tower")].into_iter();
        let said = format!("from anyone: {ann}: {ann}: the connection failed; {bob}: not there");
        assert_eq!(
            named(&said, names()),
            "from anyone: ann: the connection failed; bob@tower: not there"
        );
        let stranger = NodeKey([3; 32]).to_string();
        assert_eq!(named(&stranger, names()), stranger);
    }

    #[test]
    fn so_many_derivations_are_remembered_whose_inputs_were_not_to_be_had() {
        let strayed = Strayed::default();
        let derivation = |number: usize| {
            let mut hash = [1; 20];
            hash[..8].copy_from_slice(&number.to_le_bytes());
            StorePath::from_parts(hash, "made.drv").unwrap()
        };
        for number in 0..STRAYED {
            assert!(!strayed.add(&derivation(number)));
        }
        assert!(!strayed.add(&derivation(STRAYED)));
        assert!(strayed.0.lock().unwrap().len() <= STRAYED);
        assert!(strayed.add(&derivation(STRAYED)));
    }
}
