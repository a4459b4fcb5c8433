//! Founding a team, joining one, taking part in it, and leaving it.

mod failure;
mod founding;
mod leaving;
mod start;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tvix_node_coordinator::{Event, OwnBuilder};
use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::control::{RestingTeam, find_member};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_swarm::Machine;
use tvix_node_swarm::limits::{LEAVE_TIME, WITHDRAW_TIME};
use tvix_node_swarm::team::Team;
use tvix_node_swarm::underway::Underway;

pub use failure::TeamFailure;

use super::TeamNode;
use super::evidence::ShownPaths;
use super::first::FirstTeam;
use super::roll::Roll;
use super::served::{Considering, Served};
use super::share::ShareBook;
use super::traffic::{TrafficBook, caps};
use super::trust::TrustBook;
use crate::daemon::depot::Depot;
use crate::daemon::engine::Message;
use crate::daemon::perform::Jobs;

/// What a node in a team is made of.
pub struct Parts {
    /// Folder for the teams' files.
    pub teams: PathBuf,
    /// Folder for what arrives.
    pub spool: PathBuf,
    /// The store.
    pub depot: Arc<Depot>,
    /// The builder.
    pub jobs: Arc<Jobs>,
    /// The engine.
    pub engine: mpsc::Sender<Message>,
    /// What the own builder offers.
    pub own: OwnBuilder,
    /// How many of its slots are free.
    pub free: watch::Receiver<u32>,
    /// The owner's rules.
    pub trust: Arc<TrustBook>,
    /// The teams that are taken part in.
    pub roll: Arc<Roll>,
    /// On which terms slots are lent.
    pub share: Arc<ShareBook>,
    /// How much of the link is used.
    pub traffic: Arc<TrafficBook>,
    /// Where to listen; none: on all networks, on ports that the machine chooses.
    pub listen: Option<Vec<SocketAddr>>,
    /// Pass connections on between members that cannot reach each other.
    pub relay: bool,
}

/// A team that is taken part in.
struct Active {
    node: Arc<TeamNode>,
    tasks: JoinSet<()>,
}

/// The teams of a node.
pub struct Membership {
    parts: Parts,
    /// In the order of [`Roll`].
    active: Mutex<Vec<Active>>,
    /// Why the others that the node belongs to are not among them.
    idle: Mutex<BTreeMap<SwarmId, Idle>>,
    /// What they share.
    shared: Shared,
    /// One founds, joins, leaves or stops at a time.
    changing: tokio::sync::Mutex<()>,
}

/// Why a team that the node belongs to is not taken part in.
struct Idle {
    reason: String,
    /// See [`TeamFailure::is_loss`].
    lost: bool,
}

/// Bounds of the machine, which are the same however many teams there are.
#[derive(Default)]
struct Shared {
    machine: Machine,
    shown: Arc<ShownPaths>,
    served: Arc<Served>,
    considering: Arc<Considering>,
}

impl Membership {
    /// What is built at the moment, for members who ask.
    pub fn underway(&self) -> &Arc<Underway> {
        &self.shared.machine.underway
    }

    /// A node that takes part in nothing yet.
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            active: Mutex::default(),
            idle: Mutex::default(),
            shared: Shared::default(),
            changing: tokio::sync::Mutex::default(),
        }
    }

    fn active(&self) -> MutexGuard<'_, Vec<Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> MutexGuard<'_, BTreeMap<SwarmId, Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers why a team is not taken part in.
    fn rests(&self, team: SwarmId, error: &TeamFailure) {
        let (reason, lost) = (error.to_string(), error.is_loss());
        self.idle().insert(team, Idle { reason, lost });
    }

    /// The teams that this node belongs to and does not take part in.
    pub fn resting(&self) -> Vec<RestingTeam> {
        let idle = self.idle();
        let resting = idle.iter().map(|(team, idle)| RestingTeam {
            swarm: *team,
            reason: idle.reason.clone(),
        });
        resting.collect()
    }

    /// Why there is no team to be meant.
    pub fn none(&self) -> TeamFailure {
        let resting = self.resting();
        match resting.is_empty() {
            true => TeamFailure::None,
            false => TeamFailure::Resting(resting),
        }
    }

    /// The teams that are taken part in, in the order in which this node came to them.
    pub fn all(&self) -> Vec<Arc<TeamNode>> {
        self.active()
            .iter()
            .map(|active| Arc::clone(&active.node))
            .collect()
    }

    /// The team that a node is met in.
    pub fn of(&self, node: NodeKey) -> Option<Arc<TeamNode>> {
        let team = self.parts.roll.team_of(node)?;
        self.all().into_iter().find(|node| node.view.team() == team)
    }

    /// The team that is meant: the one with this name, or whose id is or begins with it; without that, the only one.
    ///
    /// # Errors
    /// [`TeamFailure::None`], [`TeamFailure::Resting`], [`TeamFailure::Which`], [`TeamFailure::NoSuch`]
    pub fn one(&self, named: Option<&str>) -> Result<Arc<TeamNode>, TeamFailure> {
        let mut all = self.all();
        if all.is_empty() {
            return Err(self.none());
        }
        let resting = self.resting();
        let teams = || {
            let resting = resting.iter().map(|team| (team.swarm, "not running".to_owned()));
            let running = all.iter().map(|node| (node.view.team(), node.team_name()));
            running.chain(resting).collect()
        };
        let Some(wanted) = named else {
            // One that is not running may be meant as well.
            return match all.len() + resting.len() {
                1 => Ok(all.remove(0)),
                _ => Err(TeamFailure::Which(teams())),
            };
        };
        let id = wanted.to_ascii_lowercase();
        let fits = |node: &&Arc<TeamNode>| {
            node.team_name() == wanted
                || id.len() >= ID_BEGINNING && node.view.team().to_string().starts_with(&id)
        };
        let found: Vec<&Arc<TeamNode>> = all.iter().filter(fits).collect();
        match found.as_slice() {
            [one] => Ok(Arc::clone(one)),
            [] => Err(TeamFailure::NoSuch {
                wanted: wanted.to_owned(),
                teams: teams(),
            }),
            _ => Err(TeamFailure::Which(teams())),
        }
    }

    /// The member of any team that is called this, or whose key is or begins with it.
    ///
    /// # Errors
    /// [`TeamFailure::None`], [`TeamFailure::Resting`], [`TeamFailure::Member`]
    pub fn member(&self, text: &str) -> Result<(Arc<TeamNode>, NodeKey), TeamFailure> {
        let all = self.all();
        if all.is_empty() {
            return Err(self.none());
        }
        let rosters: Vec<_> = all.iter().map(|node| node.swarm.members()).collect();
        let members = rosters.iter().flat_map(|members| members.iter());
        let named: Vec<(NodeKey, &str)> = members.map(|(key, member)| (key, member.name.as_str())).collect();
        let key = find_member(&named, text)?;
        let mut with = all
            .iter()
            .zip(&rosters)
            .filter(|(_, members)| members.contains(key));
        let (node, _) = with.next().ok_or_else(|| self.none())?;
        Ok((Arc::clone(node), key))
    }

    /// As [`Membership::member`], among all that can be renewed or put out: those who are no members any more, too.
    ///
    /// # Errors
    /// [`TeamFailure::None`], [`TeamFailure::Resting`], [`TeamFailure::Member`]
    pub fn somebody(&self, text: &str) -> Result<(Arc<TeamNode>, NodeKey), TeamFailure> {
        let all = self.all();
        if all.is_empty() {
            return Err(self.none());
        }
        let known: Vec<_> = all.iter().map(|node| node.everybody()).collect();
        let named: Vec<(NodeKey, &str)> = known
            .iter()
            .flatten()
            .map(|(key, name)| (*key, name.as_str()))
            .collect();
        let key = find_member(&named, text)?;
        let mut with = all
            .iter()
            .zip(&known)
            .filter(|(_, known)| known.iter().any(|(other, _)| *other == key));
        let (node, _) = with.next().ok_or_else(|| self.none())?;
        Ok((Arc::clone(node), key))
    }

    /// What a member of any team is called.
    pub fn name_of(&self, node: NodeKey) -> Option<String> {
        self.parts.roll.name_of(node)
    }

    /// The keys of this node: that of the home, and those that it has in its teams.
    pub fn own_keys(&self) -> Vec<NodeKey> {
        let mut keys = vec![self.parts.jobs.secret.key()];
        keys.extend(self.all().iter().map(|node| node.view.me()));
        keys
    }

    /// Takes part in the teams that this node belongs to.
    ///
    /// # Errors
    /// See [`TeamFailure`]: what is wrong with the first one that cannot be taken part in. It is taken part in the others.
    pub async fn resume(&self) -> Result<(), TeamFailure> {
        let _turn = self.changing.lock().await;
        let mut teams = Team::list(&self.parts.teams)?;
        let first = FirstTeam::new(&self.parts.teams, &teams).team();
        let first = first.inspect_err(|error| {
            for team in &teams {
                // Not this team's files may be what is wrong.
                let (reason, lost) = (error.to_string(), false);
                self.idle().insert(*team, Idle { reason, lost });
            }
        })?;
        self.tidy(&teams);
        teams.sort_by_key(|team| (Some(*team) != first, *team));
        let mut result = Ok(());
        for team in teams {
            let started = async {
                let secret = match self.own_secret(team)? {
                    Some(secret) => Arc::new(secret),
                    None if Some(team) == first => Arc::clone(&self.parts.jobs.secret),
                    // With the home's key its members would know this node by that of another team.
                    None => {
                        return Err(TeamFailure::KeyMissing {
                            file: self.folder(team).join("identity"),
                            team,
                        });
                    }
                };
                self.start(Team::open(&self.parts.teams, team)?, secret).await
            };
            if let Err(error) = started.await {
                tracing::error!(%team, %error, "a team cannot be taken part in");
                self.rests(team, &error);
                result = result.and(Err(error));
            }
        }
        // Where there is no team, nobody else says that nobody will turn up.
        let event = self.parts.roll.told(&self.parts.trust.policy());
        drop(self.parts.engine.send(Message::Happened(event)).await);
        result
    }

    fn folder(&self, team: SwarmId) -> PathBuf {
        self.parts.teams.join(team.to_string())
    }

    /// Takes back what was announced, closes all connections, and forgets the peers.
    pub async fn stop(&self) {
        // Who is leaving tells the others first: nobody else would.
        let leaving = self.changing.lock();
        let _turn = tokio::time::timeout(WITHDRAW_TIME + LEAVE_TIME, leaving).await;
        let all = std::mem::take(&mut *self.active());
        for active in all {
            let met = active.node.met();
            active.node.swarm.shutdown().await;
            self.end(active, met).await;
        }
    }

    /// Forgets a team whose connections are closed. `met`: who was connected.
    async fn end(&self, active: Active, met: Vec<NodeKey>) {
        let Active { node, mut tasks } = active;
        let team = node.view.team();
        self.parts.depot.announce_no_more(team);
        self.parts.roll.strike(team);
        for peer in met {
            node.tell(Event::PeerGone { node: peer }).await;
        }
        node.tell_members().await;
        tasks.shutdown().await;
        self.count_teams().await;
    }

    /// Tells what depends on how many teams there are: what members are called, and how much each has of the link and of
    /// what else a machine has so much of.
    async fn count_teams(&self) {
        self.share_caps();
        let all = self.all();
        let teams = u32::try_from(all.len()).unwrap_or(u32::MAX);
        for node in all {
            node.swarm.set_teams(teams).await;
            node.tell_offers().await;
        }
    }

    /// All teams together use no more of the link than the owner lets the node use.
    fn share_caps(&self) {
        let all = self.all();
        let teams = u64::try_from(all.len()).unwrap_or(u64::MAX);
        for node in all {
            node.swarm.set_caps(caps(self.parts.traffic.terms(), teams));
        }
    }

    /// What arrives from a team waits apart from what arrives from others: who has a part of it there has not got it from
    /// here.
    fn spool(&self, team: SwarmId) -> PathBuf {
        self.parts.spool.join(team.to_string())
    }
}

/// Letters of a team's id that name it at least: as many as of a key.
const ID_BEGINNING: usize = 8;
