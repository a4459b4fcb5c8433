//! Founding a team, joining one, taking part in it, and leaving it.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tvix_node_coordinator::{Event, OwnBuilder};
use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::control::{MemberError, find_member};
use tvix_node_protocol::envelope::{NodeKey, NodeSecret};
use tvix_node_protocol::messages::Facts;
use tvix_node_protocol::roster::Founder;
use tvix_node_protocol::ticket::Ticket;
use tvix_node_store::IndexError;
use tvix_node_swarm::gate::NonceError;
use tvix_node_swarm::roster::RosterFileError;
use tvix_node_swarm::team::{
    JoinError, StateError, Team, TeamError, asked_is_kept, asked_secret, join, keep_asked, kept_secret,
    new_secret,
};
use tvix_node_swarm::{Clock, Config, DiskError, Machine, StartError, SwarmHandle};

use super::TeamNode;
use super::evidence::ShownPaths;
use super::fetch::Arriving;
use super::first::FirstTeam;
use super::grants::Grants;
use super::limits::{SPOOL_IDLE, TEAMS};
use super::roll::{Roll, short};
use super::sample::Sampling;
use super::served::{Considering, Served};
use super::share::ShareBook;
use super::shelf::{StoreShelf, public_after};
use super::traffic::{TrafficBook, caps};
use super::trust::TrustBook;
use super::view::TeamView;
use crate::daemon::depot::Depot;
use crate::daemon::engine::Message;
use crate::daemon::perform::Jobs;

/// Why a team cannot be taken part in.
#[derive(Debug, thiserror::Error)]
pub enum TeamFailure {
    /// Its files.
    #[error(transparent)]
    Team(#[from] TeamError),
    /// The network.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The ticket.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The roster.
    #[error(transparent)]
    State(#[from] StateError),
    /// Several, and none was named.
    #[error("this node takes part in several teams: say which one with '--team', {}", listed(.0))]
    Which(Vec<(SwarmId, String)>),
    /// None is called so.
    #[error(
        "this node takes part in no team that is called '{}' or whose id begins so; its teams are {}",
        .wanted.escape_debug(), listed(.teams)
    )]
    NoSuch {
        /// What was asked for.
        wanted: String,
        /// Which there are.
        teams: Vec<(SwarmId, String)>,
    },
    /// More than a node keeps up with.
    #[error(
        "this node takes part in {TEAMS} teams already, which is as many as one may: leave one first ('tvix-node leave')"
    )]
    TooMany,
    /// There is none.
    #[error(
        "this node takes part in no team: 'tvix-node join TICKET' makes it a member of one, 'tvix-node invite' founds one"
    )]
    None,
    /// A name or key that is no member's, or several members'.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// A file of the teams.
    #[error("'{}' cannot be {action}: {source}", .file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The note of the first team.
    #[error("'{}' should hold the id of the first team of this node: {reason}", .file.display())]
    First {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A team in which the node has another key than that of its home, which is not there.
    #[error(
        "this node's key in the team {} is missing: restore '{}' from a backup, or give the team up with \
         'tvix-node leave --team {}'",
        short(*.team), .file.display(), short(*.team)
    )]
    KeyMissing {
        /// Where the key should be.
        file: PathBuf,
        /// Which team.
        team: SwarmId,
    },
    /// The node belongs to the team, and is no member any more.
    #[error(
        "this node's membership of the team {} is over: it has ended, or the node's key was put out. 'tvix-node leave --team \
         {}' gives it up; then the ticket can be redeemed, by another key",
        short(*.0), short(*.0)
    )]
    Over(SwarmId),
    /// The node belongs to the team, and does not take part in it, though it could.
    #[error(
        "this node belongs to the team {}, which is not running: {reason}. Its members cannot be told now that the node \
         leaves. Mend that, start the node again ('tvix-node down', 'tvix-node up'), then 'tvix-node leave --team {}'",
        short(*.team), short(*.team)
    )]
    NotRunning {
        /// Which team.
        team: SwarmId,
        /// Why it was not started.
        reason: String,
    },
    /// A folder of the team.
    #[error("the team's folder '{}' cannot be removed: {source}", .folder.display())]
    Folder {
        /// Which.
        folder: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl TeamFailure {
    /// Whether the team can never be taken part in with what is here of it: its key or roster is missing, or what is in a
    /// file of it is not what was written there. What may pass, as a port that is in use, is not.
    fn is_loss(&self) -> bool {
        let damaged = |error: &DiskError| matches!(error, DiskError::Damaged { .. });
        match self {
            Self::KeyMissing { .. } => true,
            Self::Team(error) => match error {
                TeamError::Secret { .. } | TeamError::Roster(RosterFileError::Genesis { .. }) => true,
                TeamError::Roster(RosterFileError::Disk(error)) | TeamError::Disk(error) => damaged(error),
                _ => false,
            },
            Self::Start(StartError::Disk(error)) => damaged(error),
            Self::Start(StartError::Nonces(error)) => matches!(error, NonceError::Damaged { .. }),
            _ => false,
        }
    }
}

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

/// Teams as an error lists them.
fn listed(teams: &[(SwarmId, String)]) -> String {
    let teams = teams
        .iter()
        .map(|(team, name)| format!("{} ({name})", short(*team)));
    teams.collect::<Vec<_>>().join(", ")
}

/// Whether there is room for one more team beside so many.
fn room_beside(teams: usize) -> Result<(), TeamFailure> {
    match teams < TEAMS {
        true => Ok(()),
        false => Err(TeamFailure::TooMany),
    }
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
    /// [`TeamFailure::None`], [`TeamFailure::Which`], [`TeamFailure::NoSuch`]
    pub fn one(&self, named: Option<&str>) -> Result<Arc<TeamNode>, TeamFailure> {
        let mut all = self.all();
        if all.is_empty() {
            return Err(TeamFailure::None);
        }
        let teams = || {
            all.iter()
                .map(|node| (node.view.team(), node.team_name()))
                .collect()
        };
        let Some(wanted) = named else {
            return match all.len() {
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
    /// [`TeamFailure::None`], [`TeamFailure::Member`]
    pub fn member(&self, text: &str) -> Result<(Arc<TeamNode>, NodeKey), TeamFailure> {
        let all = self.all();
        if all.is_empty() {
            return Err(TeamFailure::None);
        }
        let rosters: Vec<_> = all.iter().map(|node| node.swarm.members()).collect();
        let members = rosters.iter().flat_map(|members| members.iter());
        let named: Vec<(NodeKey, &str)> = members.map(|(key, member)| (key, member.name.as_str())).collect();
        let key = find_member(&named, text)?;
        let mut with = all
            .iter()
            .zip(&rosters)
            .filter(|(_, members)| members.contains(key));
        let (node, _) = with.next().ok_or(TeamFailure::None)?;
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

    /// The key that this node has in a team and nowhere else.
    fn own_secret(&self, team: SwarmId) -> Result<Option<NodeSecret>, TeamFailure> {
        let teams = &self.parts.teams;
        if let Some(secret) = kept_secret(teams, team)? {
            return Ok(Some(secret));
        }
        let Some(asked) = asked_secret(teams, team)? else {
            return Ok(None);
        };
        // The team has taken it in, and the node ended before it wrote that down.
        let roster = Team::open(teams, team)?;
        let taken = roster
            .roster()
            .members(Clock::system().now())
            .contains(asked.key());
        if taken {
            asked_is_kept(teams, team)?;
        }
        Ok(taken.then_some(asked))
    }

    /// The team that is meant; where there is none, or `new`, one is founded. `name`: what this node calls itself in it.
    ///
    /// # Errors
    /// See [`TeamFailure`].
    pub async fn found(
        &self,
        (named, new): (Option<&str>, bool),
        name: &str,
    ) -> Result<(Arc<TeamNode>, bool), TeamFailure> {
        let _turn = self.changing.lock().await;
        if !new {
            match self.one(named) {
                Err(TeamFailure::None) => {}
                found => return Ok((found?, false)),
            }
        }
        self.check_room()?;
        let (teams, title) = (&self.parts.teams, format!("{name}'s team"));
        let known = Team::list(teams)?;
        let first = FirstTeam::new(teams, &known);
        if first.is_unseen()? {
            let secret = Arc::clone(&self.parts.jobs.secret);
            let me = Founder {
                key: secret.key(),
                name: name.to_owned(),
            };
            let team = Team::found(teams, &title, me, Vec::new(), 1)?;
            first.note(team.swarm())?;
            return Ok((self.begin(team, secret).await?, true));
        }
        let secret = new_secret().map_err(TeamError::from)?;
        let team = Team::found_apart(teams, &title, (name, &secret))?;
        Ok((self.begin(team, Arc::new(secret)).await?, true))
    }

    fn check_room(&self) -> Result<(), TeamFailure> {
        room_beside(self.active().len())
    }

    /// Becomes a member of the team that a ticket is for, beside those that this node is in.
    ///
    /// # Errors
    /// See [`TeamFailure`].
    pub async fn join(&self, ticket: &Ticket, name: &str) -> Result<Arc<TeamNode>, TeamFailure> {
        let _turn = self.changing.lock().await;
        let all = self.all();
        if let Some(node) = all.iter().find(|node| node.view.team() == ticket.swarm) {
            return Err(match node.swarm.members().contains(node.view.me()) {
                true => JoinError::AlreadyIn(ticket.swarm).into(),
                false => TeamFailure::Over(ticket.swarm),
            });
        }
        self.check_room()?;
        let teams = &self.parts.teams;
        let known = Team::list(teams)?;
        let first = FirstTeam::new(teams, &known);
        let unseen = first.is_unseen()?;
        let (mut by_home, mut anew) = (false, false);
        let secret = match kept_secret(teams, ticket.swarm)? {
            Some(secret) => Arc::new(secret),
            None if first.ask(ticket.swarm)? => {
                by_home = true;
                Arc::clone(&self.parts.jobs.secret)
            }
            None => {
                anew = true;
                Arc::new(match asked_secret(teams, ticket.swarm)? {
                    // The ticket was perhaps redeemed with it already, and the answer did not come.
                    Some(secret) => secret,
                    None => {
                        let secret = new_secret().map_err(TeamError::from)?;
                        keep_asked(teams, ticket.swarm, &secret)?;
                        secret
                    }
                })
            }
        };
        let team = match join(teams, &secret, ticket, name, &Clock::system()).await {
            Ok(team) => team,
            Err(error) => {
                if by_home && unseen && error.is_before_anybody_was_asked() {
                    first.take_back()?;
                }
                return Err(error.into());
            }
        };
        if by_home {
            first.note(ticket.swarm)?;
        }
        if anew {
            asked_is_kept(teams, ticket.swarm)?;
        }
        self.begin(team, secret).await
    }

    /// Takes part in a team no more, and forgets it. The others stay as they are. One that cannot be taken part in, because
    /// its key or roster is missing or damaged, is only forgotten: there is nothing to tell the others with. One that is not
    /// taken part in for another reason stays, until the others can be told.
    ///
    /// # Errors
    /// See [`TeamFailure`].
    pub async fn leave(&self, named: Option<&str>) -> Result<(), TeamFailure> {
        let _turn = self.changing.lock().await;
        let node = match self.one(named) {
            Ok(node) => node,
            Err(error) => {
                let lost = self.lost(named)?.ok_or(error)?;
                return self.forget(lost);
            }
        };
        let (swarm, met) = (node.view.team(), node.met());
        node.swarm.leave().await?;
        drop(node);
        let active = {
            let mut all = self.active();
            let at = all.iter().position(|active| active.node.view.team() == swarm);
            at.map(|at| all.remove(at))
        };
        if let Some(active) = active {
            self.end(active, met).await;
        }
        self.forget(swarm)
    }

    /// The team that is meant, among those that the node belongs to and cannot take part in any more; none: none of those
    /// that it does not take part in is meant.
    ///
    /// # Errors
    /// [`TeamFailure::NotRunning`]: it could; [`TeamFailure::Which`], [`TeamFailure::Team`]
    fn lost(&self, named: Option<&str>) -> Result<Option<SwarmId>, TeamFailure> {
        let active: Vec<SwarmId> = self.all().iter().map(|node| node.view.team()).collect();
        let mut resting = Team::list(&self.parts.teams)?;
        resting.retain(|team| !active.contains(team));
        match named {
            Some(wanted) => {
                let id = wanted.to_ascii_lowercase();
                resting.retain(|team| id.len() >= ID_BEGINNING && team.to_string().starts_with(&id));
            }
            None if active.is_empty() => {}
            None => return Ok(None),
        }
        let team = match resting.as_slice() {
            [] => return Ok(None),
            [team] => *team,
            several => {
                let several = several.iter().map(|team| (*team, "not running".to_owned()));
                return Err(TeamFailure::Which(several.collect()));
            }
        };
        match self.idle().get(&team) {
            Some(Idle { lost: true, .. }) => Ok(Some(team)),
            Some(Idle { reason, .. }) => Err(TeamFailure::NotRunning {
                team,
                reason: reason.clone(),
            }),
            None => Err(TeamFailure::NotRunning {
                team,
                reason: "its folder was not there when the node started".to_owned(),
            }),
        }
    }

    /// Removes what the node has of a team, its key among it.
    fn forget(&self, team: SwarmId) -> Result<(), TeamFailure> {
        // At once, for the start after a crash: a folder without its key would be one of a team still.
        let (folder, left) = (self.folder(team), self.parts.teams.join(format!("{LEFT}{team}")));
        remove(&left)?;
        if let Err(source) = std::fs::rename(&folder, &left)
            && source.kind() != ErrorKind::NotFound
        {
            return Err(TeamFailure::Folder { folder, source });
        }
        self.idle().remove(&team);
        remove(&left)?;
        remove(&self.spool(team))
    }

    /// Removes what leaving left behind where it was cut short. `teams`: those that the node belongs to.
    fn tidy(&self, teams: &[SwarmId]) {
        let names = |folder: &Path| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries
                .filter_map(|entry| entry.file_name().into_string().ok())
                .collect::<Vec<_>>()
        };
        let left = names(&self.parts.teams)
            .into_iter()
            .filter(|name| name.starts_with(LEFT));
        let left = left.map(|name| self.parts.teams.join(name));
        let arriving = names(&self.parts.spool).into_iter().filter(|name| {
            let team = name.parse::<SwarmId>();
            team.is_ok_and(|team| !teams.contains(&team))
        });
        let arriving = arriving.map(|name| self.parts.spool.join(name));
        for folder in left.chain(arriving) {
            if let Err(error) = remove(&folder) {
                tracing::warn!(%error, "what is left of a team that this node has left stays");
            }
        }
    }

    fn folder(&self, team: SwarmId) -> PathBuf {
        self.parts.teams.join(team.to_string())
    }

    /// Takes back what was announced, closes all connections, and forgets the peers.
    pub async fn stop(&self) {
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

    /// Takes part in a team that the node has just come to.
    async fn begin(&self, team: Team, secret: Arc<NodeSecret>) -> Result<Arc<TeamNode>, TeamFailure> {
        let id = team.swarm();
        let started = self.start(team, secret).await;
        started.inspect_err(|error| self.rests(id, error))
    }

    async fn start(&self, team: Team, secret: Arc<NodeSecret>) -> Result<Arc<TeamNode>, TeamFailure> {
        let (parts, shared) = (&self.parts, &self.shared);
        let (id, teams) = (team.swarm(), self.active().len() as u64 + 1);
        let view = TeamView::new(id, Arc::clone(&secret), parts.jobs.secret.key());
        let facts = Facts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            systems: parts.own.systems.clone(),
            features: parts.own.features.clone(),
            slots: parts.own.slots,
            free: *parts.free.borrow(),
            cores: std::thread::available_parallelism()
                .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1)),
            ..Facts::default()
        };
        let mut config = Config {
            facts: facts.clone(),
            distrusted: BTreeMap::new(),
            mdns: true,
            relay: parts.relay && !parts.traffic.terms().metered,
            caps: caps(parts.traffic.terms(), teams),
            machine: shared.machine.clone(),
            ..Config::new(self.spool(id))
        };
        if let Some(listen) = &parts.listen {
            // A port is one team's: the next ones get a free one each.
            let place = |address: &SocketAddr| match teams {
                1 => *address,
                _ => SocketAddr::new(address.ip(), 0),
            };
            config.listen = listen
                .iter()
                .map(place)
                .flat_map(|address| multiaddresses(&address))
                .collect();
            // Who listens on the loopback interface alone wants to be found by nobody else.
            config.mdns = listen.iter().any(|address| !address.ip().is_loopback());
        }
        let grants = Arc::new(Grants::default());
        let (store, private) = (parts.depot.store().clone(), Arc::clone(&parts.depot.private));
        let shelf = StoreShelf::new(
            store,
            private,
            (Arc::clone(&grants), Arc::clone(&parts.traffic)),
            view.clone(),
        );
        let secret = NodeSecret::from_bytes(&secret.to_bytes());
        let (swarm, events) = tvix_node_swarm::start(config, team, secret, Arc::new(shelf)).await?;
        let announcer = swarm.clone();
        let node = Arc::new(TeamNode {
            swarm,
            view,
            roll: Arc::clone(&parts.roll),
            derivations: Arc::default(),
            depot: Arc::clone(&parts.depot),
            jobs: Arc::clone(&parts.jobs),
            engine: parts.engine.clone(),
            slots: parts.own.slots,
            grants,
            shown: Arc::clone(&shared.shown),
            strayed: super::Strayed::default(),
            arriving: Arriving::default(),
            served: Arc::clone(&shared.served),
            trust: Arc::clone(&parts.trust),
            share: Arc::clone(&parts.share),
            traffic: Arc::clone(&parts.traffic),
            sampling: Arc::new(Sampling::default()),
            considering: Arc::clone(&shared.considering),
        });
        parts.roll.enter(node.swarm.clone());
        parts
            .depot
            .announce_with(id, Arc::new(move |paths| announcer.announce(paths)));
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&node).attend(events));
        tasks.spawn(Arc::clone(&node).publish_facts(facts, parts.free.clone()));
        let (capped, roll, mut terms) = (node.swarm.clone(), Arc::clone(&parts.roll), parts.traffic.watch());
        let relay = parts.relay;
        tasks.spawn(async move {
            while terms.changed().await.is_ok() {
                let (teams, terms) = (roll.count() as u64, *terms.borrow_and_update());
                capped.set_caps(caps(terms, teams));
                capped.set_relaying(relay && !terms.metered);
            }
        });
        let tidied = node.swarm.clone();
        tasks.spawn(async move {
            match tidied.tidy_spool(SPOOL_IDLE).await {
                Ok(0) => {}
                Ok(bytes) => tracing::info!(bytes, "what broken transfers left long ago is removed"),
                Err(error) => tracing::warn!(%error, "what broken transfers left could not be removed"),
            }
        });
        // What was added between the listing at the start and the announcer.
        let (announcer, depot) = (node.swarm.clone(), Arc::clone(&parts.depot));
        tasks.spawn(async move {
            let listing = tokio::task::spawn_blocking(move || announce_all(&announcer, &depot));
            match listing.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "not everything here could be announced"),
                Err(error) => tracing::error!(%error, "not everything here could be announced"),
            }
        });
        let started = Arc::clone(&node);
        self.idle().remove(&id);
        self.active().push(Active { node, tasks });
        self.count_teams().await;
        tracing::info!(swarm = %id, addresses = ?started.swarm.addresses(), "takes part in a team");
        Ok(started)
    }
}

/// Announces every path that members of the team may learn of, once more.
fn announce_all(swarm: &SwarmHandle, depot: &Depot) -> Result<(), IndexError> {
    let mut after = None;
    loop {
        let page = public_after(
            depot.store(),
            &depot.private,
            swarm.swarm(),
            after.as_ref(),
            ANNOUNCED_PAGE,
        )?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = Some(last.clone());
        swarm.announce(&page);
    }
}

/// How the folder of a team that was left is called until it is gone. Nothing that is called so is a team's.
const LEFT: &str = ".left-";

/// Letters of a team's id that name it at least: as many as of a key.
const ID_BEGINNING: usize = 8;

/// Paths listed at once.
const ANNOUNCED_PAGE: usize = 4096;

/// Removes a folder with all that is in it, where there is one.
fn remove(folder: &Path) -> Result<(), TeamFailure> {
    match std::fs::remove_dir_all(folder) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(TeamFailure::Folder {
            folder: folder.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// TCP and QUIC at the same address.
fn multiaddresses(address: &SocketAddr) -> [String; 2] {
    let (ip, port) = (address.ip(), address.port());
    let kind = if ip.is_ipv4() { "ip4" } else { "ip6" };
    [
        format!("/{kind}/{ip}/tcp/{port}"),
        format!("/{kind}/{ip}/udp/{port}/quic-v1"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_takes_part_in_so_many_teams() {
        assert!(room_beside(TEAMS - 1).is_ok());
        assert!(matches!(room_beside(TEAMS), Err(TeamFailure::TooMany)));
    }
}
