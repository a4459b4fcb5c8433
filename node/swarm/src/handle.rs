//! The swarm as the node sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tvix_node_protocol::build::{BuildRequest, BuildTerms, SwarmId};
use tvix_node_protocol::envelope::{NodeKey, NodeSecret};
use tvix_node_protocol::limits::TICKET_ADDRESSES;
use tvix_node_protocol::messages::{Facts, Shown};
use tvix_node_protocol::nix::store_path::StorePath;
use tvix_node_protocol::roster::Roles;
use tvix_node_protocol::ticket::Ticket;
use tvix_node_protocol::tree::TreeDigest;

use crate::call::CallError;
use crate::config::Config;
use crate::core::{Core, Lost, PeerStatus, blocking, first_serial_of_facts, lock};
use crate::disk::DiskError;
use crate::events::SwarmEvents;
use crate::fetch::{Arrival, FetchError, FetchOrder, Fetching, fetch_tree, fetch_while};
use crate::gate::{NonceError, NonceStore, RequestGate};
use crate::housekeeping;
use crate::limits::{
    DIAL_BACKS_PER_MINUTE, EVENTS, KEPT_FACTOR, LEAVE_TIME, PRESENCE_QUESTIONS_PER_MINUTE,
    PRESENCE_STATEMENTS_PER_MINUTE, ROSTER_STATEMENTS_PER_MINUTE,
};
use crate::net::caps::{Caps, Throttles};
use crate::net::contacts::SharedContacts;
use crate::net::door::Names;
use crate::net::driver::Driver;
use crate::net::listening::listen;
use crate::net::network::Command;
use crate::net::relaying::Relaying;
use crate::net::transport::{Setup, build as build_transport};
use crate::net::{ConnectError, PeerTraffic, Reached, Traffic, TransportError};
use crate::overview::{PeerOverview, overview};
use crate::presence::{Advertisement, Allowance, PresenceTable};
use crate::protocols::build::{self, BuildCall, BuildCallError};
use crate::protocols::find::{self, FindScope, Holders, Through};
use crate::protocols::paths::{self, PathsError};
use crate::protocols::publish::{self, Serial};
use crate::protocols::push::{self, PushError};
use crate::protocols::reachability;
use crate::protocols::roster;
use crate::protocols::texts;
use crate::protocols::{Serve, honestly, serve_all};
use crate::roster::Members;
use crate::shelf::{Shelf, ShelfError};
use crate::standing::Standing;
use crate::team::{StateError, Team, TeamState};
use crate::underway::{Turn, Underway};

/// Why a node cannot take part in its team.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file of the team.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The nonces.
    #[error(transparent)]
    Nonces(#[from] NonceError),
    /// The network.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The folder for what arrives.
    #[error("cannot create the folder {} for what arrives: {source}", .path.display())]
    Spool {
        /// The folder.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What this node has could not be listed.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// The runtime is shutting down.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// The swarm as the node sees it. Clones speak for the same node.
#[derive(Clone)]
pub struct SwarmHandle {
    core: Arc<Core>,
    serial: Arc<Serial>,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

impl std::fmt::Debug for SwarmHandle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "SwarmHandle({} in {})", self.key(), self.swarm())
    }
}

/// Takes part in a team. Returns when this node listens everywhere it should.
///
/// # Errors
/// See [`StartError`].
pub async fn start(
    config: Config,
    team: Team,
    secret: NodeSecret,
    shelf: Arc<dyn Shelf>,
) -> Result<(SwarmHandle, SwarmEvents), StartError> {
    start_serving(config, team, secret, shelf, honestly).await
}

/// As [`start`], with a way to serve.
pub(crate) async fn start_serving(
    config: Config,
    team: Team,
    secret: NodeSecret,
    shelf: Arc<dyn Shelf>,
    serve: Serve,
) -> Result<(SwarmHandle, SwarmEvents), StartError> {
    let spool = config.spool.clone();
    std::fs::create_dir_all(&spool).map_err(|source| StartError::Spool { path: spool, source })?;
    let swarm_id = team.swarm();
    let folder = team.folder().to_owned();
    let nonces = NonceStore::open(&folder)?;
    let contacts = SharedContacts::open(&folder)?;
    let team = TeamState::new(team, secret, config.clock.clone(), config.distrusted.clone())?;
    let (mut swarm, inbound) = build_transport(Setup {
        secret: team.secret(),
        names: Names::of(swarm_id),
        gatekeeper: team.gatekeeper(),
        contacts: contacts.clone(),
        mdns: config.mdns,
        streams: Arc::clone(&config.machine.streams),
        kept: config.keep_peers.saturating_mul(KEPT_FACTOR),
    })?;
    let addresses = listen(&mut swarm, &config.listen, &folder).await?;
    let (driver, network, net_events) = Driver::new(
        swarm,
        team.gatekeeper(),
        contacts.clone(),
        config.keep_peers,
        addresses,
    );
    let (notices, notice_receiver) = mpsc::channel(EVENTS);
    let (builds, build_receiver) = mpsc::channel(EVENTS);
    let (pushes, push_receiver) = mpsc::channel(EVENTS);
    let own = Advertisement::new(team.presence_secret(), team.members().len());
    let core = Arc::new(Core {
        table: Mutex::new(PresenceTable::new(swarm_id)),
        allowance: Mutex::new(Allowance::new(PRESENCE_QUESTIONS_PER_MINUTE)),
        statements: Mutex::new(Allowance::new(PRESENCE_STATEMENTS_PER_MINUTE)),
        roster_statements: Mutex::new(Allowance::new(ROSTER_STATEMENTS_PER_MINUTE)),
        dial_backs: Mutex::new(Allowance::new(DIAL_BACKS_PER_MINUTE)),
        keepers: Mutex::default(),
        listed: watch::channel(false).0,
        standing: Mutex::new(Standing::default()),
        gate: Mutex::new(RequestGate::new(swarm_id, team.me(), nonces)),
        serving: config.machine.serving,
        fetching: Fetching::new(config.spool, config.machine.fetches, config.machine.coming),
        peers: Mutex::default(),
        introductions: Mutex::default(),
        greeting: Mutex::default(),
        facts: watch::Sender::new(Facts {
            serial: first_serial_of_facts(team.now()),
            ..config.facts
        }),
        publish: tokio::sync::Notify::new(),
        telling: publish::Telling::new(),
        stopping: watch::channel(false).0,
        traffic: Traffic::default(),
        pushes_taken: config.machine.pushes,
        underway: config.machine.underway,
        pushes_of_each: config.machine.pushes_of_each,
        throttles: Throttles::default(),
        relaying: Arc::new(Relaying::new(config.relay)),
        own: Mutex::new(own),
        team: Arc::new(team),
        network,
        contacts,
        shelf,
        notices,
        builds,
        pushes,
    });
    core.throttles.set(config.caps);
    housekeeping::list_own(&core).await?;
    let serial = Arc::new(Serial::new(core.team.now()));
    let mut tasks = JoinSet::new();
    tasks.spawn(driver.run());
    tasks.spawn(serve_all(core.clone(), inbound, serve));
    tasks.spawn(housekeeping::attend(core.clone(), net_events));
    tasks.spawn(housekeeping::follow_roster(core.clone(), core.team.changes()));
    tasks.spawn(housekeeping::follow_facts(core.clone(), core.facts.subscribe()));
    tasks.spawn(housekeeping::tidy(core.clone()));
    tasks.spawn(housekeeping::save_contacts(core.clone()));
    tasks.spawn(reachability::watch(core.clone()));
    tasks.spawn(publish::publish(core.clone(), serial.clone()));
    let handle = SwarmHandle {
        core,
        serial,
        tasks: Arc::new(Mutex::new(tasks)),
    };
    let events = SwarmEvents {
        notices: notice_receiver,
        builds: build_receiver,
        pushes: push_receiver,
    };
    Ok((handle, events))
}

impl SwarmHandle {
    /// This node.
    #[must_use]
    pub fn key(&self) -> NodeKey {
        self.core.team.me()
    }

    /// The team.
    #[must_use]
    pub fn swarm(&self) -> SwarmId {
        self.core.team.swarm()
    }

    /// The team's state: statements, tickets, who is a member.
    #[must_use]
    pub fn team(&self) -> &Arc<TeamState> {
        &self.core.team
    }

    /// Who is a member now.
    #[must_use]
    pub fn members(&self) -> Arc<Members> {
        self.core.team.members()
    }

    /// Where this node can be reached, as multiaddresses.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.core
            .network
            .addresses()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    /// Whether members can dial this node: what those who were asked to try it came to.
    #[must_use]
    pub fn reached(&self) -> Reached {
        self.core
            .network
            .reachability()
            .with(|known| known.verdict(Instant::now()))
    }

    /// Of the members that were asked to dial this node lately, who reached it.
    #[must_use]
    pub fn reached_by(&self) -> BTreeMap<NodeKey, bool> {
        let reachability = self.core.network.reachability();
        reachability.with(|known| known.by(Instant::now()).collect())
    }

    /// Connected members that have said what they offer.
    #[must_use]
    pub fn peers(&self) -> BTreeMap<NodeKey, PeerStatus> {
        lock(&self.core.peers).clone()
    }

    /// Members there is a connection to at the moment.
    #[must_use]
    pub fn connected(&self) -> BTreeSet<NodeKey> {
        self.core.connected()
    }

    /// Whether a member that is connected did not answer lately, and gave no sign of life since: waiting for it is in vain.
    #[must_use]
    pub fn is_silent(&self, peer: NodeKey) -> bool {
        self.core.network.link(peer).is_silent(Instant::now())
    }

    /// As [`SwarmHandle::connected`], to be waited on.
    #[must_use]
    pub fn watch_connected(&self) -> watch::Receiver<BTreeSet<NodeKey>> {
        self.core.network.watch_connected()
    }

    /// Bytes to and from each peer since the start.
    #[must_use]
    pub fn traffic(&self) -> BTreeMap<NodeKey, PeerTraffic> {
        self.core.traffic.read()
    }

    /// All that is known of each member but this node: where it is, how far and how fast, what it offers.
    #[must_use]
    pub fn overview(&self) -> BTreeMap<NodeKey, PeerOverview> {
        overview(&self.core)
    }

    /// What this node keeps for others: cells of presence, and keys in them.
    #[must_use]
    pub fn kept_presence(&self) -> (usize, usize) {
        lock(&self.core.table).size()
    }

    /// Makes a ticket for one new member; see [`TeamState::invite`].
    ///
    /// # Errors
    /// See [`StateError`].
    pub async fn invite(&self, roles: Roles, not_after: u64, lasts: u64) -> Result<Ticket, StateError> {
        let (team, addresses) = (self.core.team.clone(), self.ticket_addresses());
        blocking(move || team.invite(roles, not_after, lasts, addresses)).await?
    }

    /// Makes a ticket with which a founder takes its place; see [`TeamState::invite_founder`].
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn invite_founder(&self, key: NodeKey, not_after: u64) -> Result<Ticket, StateError> {
        let addresses = self.ticket_addresses();
        self.core.team.invite_founder(key, not_after, addresses)
    }

    fn ticket_addresses(&self) -> Vec<String> {
        // Members alone pass connections on, and only to members.
        let mut addresses = self.addresses();
        addresses.retain(|address| !address.contains("/p2p-circuit"));
        addresses.truncate(TICKET_ADDRESSES);
        addresses
    }

    /// Puts a key out of the team, or leaves it; see [`TeamState::revoke`].
    ///
    /// # Errors
    /// See [`StateError`].
    pub async fn revoke(&self, key: NodeKey) -> Result<(), StateError> {
        let team = self.core.team.clone();
        blocking(move || team.revoke(key)).await?
    }

    /// Leaves the team for good: takes back what was advertised, says that this node's key is out, tells it
    /// to all connected members, and shuts down. Who is away hears it from them. The key can never come
    /// back; the team's folder stays.
    ///
    /// # Errors
    /// See [`StateError`]; this node is then still a member, and goes on.
    pub async fn leave(&self) -> Result<(), StateError> {
        publish::withdraw(&self.core, &self.serial).await;
        let team = self.core.team.clone();
        // Who has left speaks to nobody: it is written down now, and heeded here once the others know.
        let said = blocking(move || team.bid_farewell()).await;
        if let Err(error) = said.map_err(StateError::from).flatten() {
            publish::resume(&self.core);
            return Err(error);
        }
        if tokio::time::timeout(LEAVE_TIME, self.tell_everyone())
            .await
            .is_err()
        {
            tracing::warn!(
                "not everyone could be told in time that this node leaves; they hear it from others"
            );
        }
        self.core.team.depart();
        self.shutdown().await;
        Ok(())
    }

    /// Tells all connected members what the roster says.
    async fn tell_everyone(&self) {
        let mut telling = tokio::task::JoinSet::new();
        for peer in self.core.connected() {
            let core = self.core.clone();
            telling.spawn(async move {
                // One that has heard it closes the connection, perhaps before it has answered.
                if let Err(error) = roster::synchronise(&core, peer).await {
                    tracing::debug!(%peer, %error, "a member may not have heard that this node leaves");
                }
            });
        }
        telling.join_all().await;
    }

    /// Vouches for a member anew; see [`TeamState::renew`].
    ///
    /// # Errors
    /// See [`StateError`].
    pub async fn renew(&self, key: NodeKey, roles: Roles, lasts: u64) -> Result<(), StateError> {
        let team = self.core.team.clone();
        blocking(move || team.renew(key, roles, lasts)).await?
    }

    /// Makes a connection to a member, where there is none.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(&self, peer: NodeKey) -> Result<(), ConnectError> {
        self.core.connect(peer).await
    }

    /// Closes all connections to a peer, and returns when they are closed. It, or this node, may make new
    /// ones.
    pub async fn disconnect(&self, peer: NodeKey) {
        self.core.network.disconnect(peer).await;
    }

    /// Says anew what this node offers. The serial is taken care of.
    pub fn set_facts(&self, facts: Facts) {
        self.core.facts.send_modify(|current| {
            let serial = current.serial + 1;
            *current = Facts { serial, ..facts };
        });
    }

    /// Lets members that cannot reach each other do so through this node, or does not any more; then connections that it
    /// passes on end.
    pub fn set_relaying(&self, relaying: bool) {
        self.core.relaying.allow(relaying);
    }

    /// The node takes part in so many teams: this one has its part of what there may be of connections and of others'
    /// presence.
    pub async fn set_teams(&self, teams: u32) {
        lock(&self.core.table).set_teams(usize::try_from(teams).unwrap_or(usize::MAX));
        self.core.network.send(Command::Teams(teams)).await;
    }

    /// Sets how fast content may go out and come in from now on, transfers that are going on included.
    pub fn set_caps(&self, caps: Caps) {
        self.core.throttles.set(caps);
    }

    /// This node has these paths now, and all members may know: they are advertised.
    pub fn announce(&self, paths: &[StorePath]) {
        lock(&self.core.own).add(paths);
        self.core.publish.notify_one();
    }

    /// This node does not have these paths any more, or not for members.
    pub fn withdraw(&self, paths: &[StorePath]) {
        lock(&self.core.own).remove(paths);
        self.core.publish.notify_one();
    }

    /// Whether everything has been told to those closest to it who are connected.
    pub async fn is_published(&self) -> bool {
        publish::is_published(&self.core).await
    }

    /// Finds who has these paths: connected members in one round trip, then the records.
    pub async fn find(&self, paths: &[StorePath], scope: FindScope) -> Holders {
        find::find(&self.core, paths, scope).await
    }

    /// Of the holders of a path, those to ask for it: the best first.
    #[must_use]
    pub fn providers(&self, holders: &BTreeMap<NodeKey, Through>) -> Vec<NodeKey> {
        find::providers(&self.core, holders)
    }

    /// Which of these paths a peer has, in their order.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn have(&self, peer: NodeKey, paths: &[StorePath]) -> Result<Vec<bool>, CallError> {
        find::have(&self.core, peer, paths).await
    }

    /// What is built at the moment, for the owner and for members of any team.
    #[must_use]
    pub fn underway(&self) -> &Arc<Underway> {
        &self.core.underway
    }

    /// Which of these paths a peer has, in their order, and where this derivation is built, as far as it knows. `wanted`: since
    /// when (see [`Underway::decide`]), and on which terms.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn have_and_underway(
        &self,
        peer: NodeKey,
        paths: &[StorePath],
        derivation: &StorePath,
        wanted: (Turn, BuildTerms),
    ) -> Result<(Vec<bool>, Option<NodeKey>), CallError> {
        find::have_and_underway(&self.core, peer, paths, derivation, wanted).await
    }

    /// What a peer knows of these paths, in their order. Whether it is believed is for the policy.
    ///
    /// # Errors
    /// See [`PathsError`].
    pub async fn path_infos(
        &self,
        peer: NodeKey,
        paths: &[StorePath],
    ) -> Result<Vec<Option<Shown>>, PathsError> {
        paths::ask(&self.core, peer, paths).await
    }

    /// The files that these paths are at a peer, in their order: derivations and other texts, many in each
    /// round trip. None: the peer does not have the path, or not for us; or it is not a plain file, or one
    /// of more than [`TEXT_BYTES`](tvix_node_protocol::limits::TEXT_BYTES), which is to be fetched as a tree.
    ///
    /// Nothing is verified: whether the bytes are those of the path is for the caller to see, who knows
    /// what the path's name is made of.
    ///
    /// # Errors
    /// See [`PathsError`].
    pub async fn texts(
        &self,
        peer: NodeKey,
        paths: &[StorePath],
    ) -> Result<Vec<Option<Vec<u8>>>, PathsError> {
        texts::ask(&self.core, peer, paths).await
    }

    /// Fetches a tree from these providers, the first ones first, as far as it is not here. Files that
    /// the [`Shelf`] says it has are left out: the caller sees to it that they stay there meanwhile.
    /// `max_bytes`: what may be fetched at most.
    ///
    /// # Errors
    /// See [`FetchError`]. What has arrived stays and is not fetched again.
    pub async fn fetch_tree(
        &self,
        root: TreeDigest,
        providers: Vec<NodeKey>,
        max_bytes: Option<u64>,
    ) -> Result<Arc<Arrival>, FetchError> {
        let order = FetchOrder {
            max_bytes,
            ..FetchOrder::new(root, providers)
        };
        self.fetch(order).await
    }

    /// As [`SwarmHandle::fetch_tree`], with everything that can be said about it; who wants to see how far
    /// it is may watch.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn fetch(&self, order: FetchOrder) -> Result<Arc<Arrival>, FetchError> {
        fetch_tree(&self.core, order).await
    }

    /// As [`SwarmHandle::fetch`], while `take` takes what arrives: reading a file of the arrival waits until it has come,
    /// so `take` reads on a thread that may block.
    ///
    /// # Errors
    /// See [`FetchError`]; those of `take` lie within.
    pub async fn fetch_while<T, E, F>(
        &self,
        order: FetchOrder,
        take: impl FnOnce(Arc<Arrival>) -> F,
    ) -> Result<Result<T, E>, FetchError>
    where
        F: Future<Output = Result<T, E>>,
    {
        fetch_while(&self.core, order, take).await
    }

    /// Removes what broken transfers left that nobody has gone on with for so long, and gives the bytes of
    /// it. What is fetched at the moment stays.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn tidy_spool(&self, idle: Duration) -> Result<u64, FetchError> {
        let core = self.core.clone();
        Ok(blocking(move || core.fetching.tidy(idle)).await??)
    }

    /// Asks another node to build. It signs the request, which must name this node and the builder.
    ///
    /// # Errors
    /// See [`BuildCallError`].
    pub async fn request_build(&self, request: BuildRequest) -> Result<BuildCall, BuildCallError> {
        build::request(&self.core, request).await
    }

    /// Offers paths to a desired store; returns once it has confirmed every one with its tree digest.
    ///
    /// # Errors
    /// See [`PushError`].
    pub async fn push(&self, store: NodeKey, paths: Vec<Shown>) -> Result<(), PushError> {
        push::push(&self.core, store, paths).await
    }

    /// Takes back what was advertised, closes everything and returns when that is done. Builds and
    /// transfers that are going on break off.
    pub async fn shutdown(&self) {
        publish::withdraw(&self.core, &self.serial).await;
        self.core.stopping.send_replace(true);
        self.core.network.send(Command::Shutdown).await;
        let contacts = self.core.contacts.clone();
        match blocking(move || contacts.save()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "where members can be reached is not saved"),
            Err(error) => tracing::warn!(%error, "where members can be reached is not saved"),
        }
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        tasks.shutdown().await;
    }

    #[cfg(test)]
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    #[cfg(test)]
    pub(crate) fn serial(&self) -> &Serial {
        &self.serial
    }
}
