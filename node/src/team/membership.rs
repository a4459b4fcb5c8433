//! Founding a team, joining one, taking part in it, and leaving it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tvix_node_coordinator::{Event, OwnBuilder};
use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::control::MemberError;
use tvix_node_protocol::envelope::{NodeKey, NodeSecret};
use tvix_node_protocol::messages::Facts;
use tvix_node_protocol::roster::Founder;
use tvix_node_protocol::ticket::Ticket;
use tvix_node_store::IndexError;
use tvix_node_swarm::team::{JoinError, StateError, Team, TeamError, join};
use tvix_node_swarm::{Clock, Config, StartError, SwarmHandle};

use super::TeamNode;
use super::evidence::ShownPaths;
use super::fetch::Arriving;
use super::grants::Grants;
use super::limits::{CONSIDERED, SPOOL_IDLE, TAKEN_PUSHES};
use super::sample::Sampling;
use super::served::Served;
use super::share::ShareBook;
use super::shelf::{StoreShelf, public_after};
use super::traffic::{TrafficBook, caps};
use super::trust::TrustBook;
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
    /// One team at a time.
    #[error(
        "this node takes part in the team {0} already, and in one at a time: 'tvix-node leave' ends that, or use another \
         home (TVIX_NODE_HOME)"
    )]
    InAnother(SwarmId),
    /// There is none.
    #[error(
        "this node takes part in no team: 'tvix-node join TICKET' makes it a member of one, 'tvix-node invite' founds one"
    )]
    None,
    /// A name or key that is no member's, or several members'.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// A file of the team.
    #[error("the team's folder '{}' cannot be removed: {source}", .folder.display())]
    Folder {
        /// Which.
        folder: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
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
    /// On which terms slots are lent.
    pub share: Arc<ShareBook>,
    /// How much of the link is used.
    pub traffic: Arc<TrafficBook>,
    /// Where to listen; none: on all networks, on ports that the machine chooses.
    pub listen: Option<Vec<SocketAddr>>,
    /// Pass connections on between members that cannot reach each other.
    pub relay: bool,
}

/// The team of a node, if it has one.
pub struct Membership {
    parts: Parts,
    current: Mutex<Option<Arc<TeamNode>>>,
    /// One founds, joins, leaves or stops at a time.
    changing: tokio::sync::Mutex<()>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

impl Membership {
    /// A node that takes part in nothing yet.
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            current: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            tasks: tokio::sync::Mutex::default(),
        }
    }

    /// The team that is taken part in.
    pub fn current(&self) -> Option<Arc<TeamNode>> {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// As [`Membership::current`].
    ///
    /// # Errors
    /// [`TeamFailure::None`]
    pub fn required(&self) -> Result<Arc<TeamNode>, TeamFailure> {
        self.current().ok_or(TeamFailure::None)
    }

    /// Takes part in the team that this node belongs to, if it belongs to one.
    ///
    /// # Errors
    /// See [`TeamFailure`].
    pub async fn resume(&self) -> Result<(), TeamFailure> {
        let _turn = self.changing.lock().await;
        let teams = Team::list(&self.parts.teams)?;
        let Some(swarm) = teams.first() else {
            return Ok(());
        };
        self.start(Team::open(&self.parts.teams, *swarm)?).await.map(drop)
    }

    /// The team, founded where there is none. `name`: what this node calls itself in it.
    ///
    /// # Errors
    /// See [`TeamFailure`].
    pub async fn found(&self, name: &str) -> Result<(Arc<TeamNode>, bool), TeamFailure> {
        let _turn = self.changing.lock().await;
        if let Some(node) = self.current() {
            return Ok((node, false));
        }
        let me = Founder {
            key: self.secret().key(),
            name: name.to_owned(),
        };
        let team = Team::found(&self.parts.teams, &format!("{name}'s team"), me, Vec::new(), 1)?;
        Ok((self.start(team).await?, true))
    }

    /// Becomes a member of the team that a ticket is for.
    ///
    /// # Errors
    /// See [`TeamFailure`].
    pub async fn join(&self, ticket: &Ticket, name: &str) -> Result<Arc<TeamNode>, TeamFailure> {
        let _turn = self.changing.lock().await;
        if let Some(node) = self.current() {
            let swarm = node.swarm.swarm();
            return Err(if swarm == ticket.swarm {
                JoinError::AlreadyIn(swarm).into()
            } else {
                TeamFailure::InAnother(swarm)
            });
        }
        let team = join(&self.parts.teams, self.secret(), ticket, name, &Clock::system()).await?;
        self.start(team).await
    }

    /// Takes part no more, and forgets the team.
    ///
    /// # Errors
    /// See [`TeamFailure`].
    pub async fn leave(&self) -> Result<(), TeamFailure> {
        let _turn = self.changing.lock().await;
        let node = self.required()?;
        let (me, swarm) = (node.swarm.key(), node.swarm.swarm());
        node.swarm.revoke(me).await?;
        self.stop().await;
        let folder = self.parts.teams.join(swarm.to_string());
        std::fs::remove_dir_all(&folder).map_err(|source| TeamFailure::Folder { folder, source })
    }

    /// Takes back what was announced, closes all connections, and forgets the peers.
    pub async fn stop(&self) {
        let node = self.current.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(node) = node else { return };
        self.parts.depot.announce_with(None);
        self.parts.trust.take_part(None);
        let peers: Vec<NodeKey> = node.swarm.peers().into_keys().collect();
        node.swarm.shutdown().await;
        for peer in peers {
            node.tell(Event::PeerGone { node: peer }).await;
        }
        self.tasks.lock().await.shutdown().await;
    }

    fn secret(&self) -> &NodeSecret {
        &self.parts.jobs.secret
    }

    async fn start(&self, team: Team) -> Result<Arc<TeamNode>, TeamFailure> {
        let parts = &self.parts;
        let secret = NodeSecret::from_bytes(&self.secret().to_bytes());
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
            caps: caps(parts.traffic.terms()),
            ..Config::new(parts.spool.clone())
        };
        if let Some(listen) = &parts.listen {
            config.listen = listen.iter().flat_map(multiaddresses).collect();
            // Who listens on the loopback interface alone wants to be found by nobody else.
            config.mdns = listen.iter().any(|address| !address.ip().is_loopback());
        }
        let grants = Arc::new(Grants::default());
        let (store, private) = (parts.depot.store().clone(), Arc::clone(&parts.depot.private));
        let shelf = StoreShelf::new(
            store,
            private,
            (Arc::clone(&grants), Arc::clone(&parts.traffic)),
            secret.key(),
        );
        let (swarm, events) = tvix_node_swarm::start(config, team, secret, Arc::new(shelf)).await?;
        let announcer = swarm.clone();
        let node = Arc::new(TeamNode {
            swarm,
            depot: Arc::clone(&parts.depot),
            jobs: Arc::clone(&parts.jobs),
            engine: parts.engine.clone(),
            slots: parts.own.slots,
            grants,
            shown: ShownPaths::default(),
            arriving: Arriving::default(),
            served: Arc::new(Served::default()),
            trust: Arc::clone(&parts.trust),
            share: Arc::clone(&parts.share),
            traffic: Arc::clone(&parts.traffic),
            sampling: Arc::new(Sampling::default()),
            considering: Semaphore::new(CONSIDERED),
            pushes: Arc::new(Semaphore::new(TAKEN_PUSHES)),
        });
        parts.trust.take_part(Some(node.swarm.clone()));
        parts
            .depot
            .announce_with(Some(Arc::new(move |paths| announcer.announce(paths))));
        let mut tasks = self.tasks.lock().await;
        tasks.spawn(Arc::clone(&node).attend(events));
        tasks.spawn(Arc::clone(&node).publish_facts(facts, parts.free.clone()));
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&node));
        let (capped, mut terms) = (node.swarm.clone(), parts.traffic.watch());
        tasks.spawn(async move {
            while terms.changed().await.is_ok() {
                capped.set_caps(caps(*terms.borrow_and_update()));
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
        tracing::info!(swarm = %node.swarm.swarm(), addresses = ?node.swarm.addresses(), "takes part in its team");
        Ok(node)
    }
}

/// Announces every path that is not private, once more.
fn announce_all(swarm: &SwarmHandle, depot: &Depot) -> Result<(), IndexError> {
    let mut after = None;
    loop {
        let page = public_after(depot.store(), &depot.private, after.as_ref(), ANNOUNCED_PAGE)?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = Some(last.clone());
        swarm.announce(&page);
    }
}

/// Paths listed at once.
const ANNOUNCED_PAGE: usize = 4096;

/// TCP and QUIC at the same address.
fn multiaddresses(address: &SocketAddr) -> [String; 2] {
    let (ip, port) = (address.ip(), address.port());
    let kind = if ip.is_ipv4() { "ip4" } else { "ip6" };
    [
        format!("/{kind}/{ip}/tcp/{port}"),
        format!("/{kind}/{ip}/udp/{port}/quic-v1"),
    ]
}
