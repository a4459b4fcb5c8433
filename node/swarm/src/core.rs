//! What all doors share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::Facts;

use crate::call::{self, CallError};
use crate::events::{IncomingBuild, IncomingPush, Notice};
use crate::fetch::Fetching;
use crate::gate::RequestGate;
use crate::limits::{OFFERS_PAUSE, OFFERS_TRIES, PROVIDER_BACK};
use crate::net::caps::Throttles;
use crate::net::contacts::SharedContacts;
use crate::net::network::Network;
use crate::net::relaying::Relaying;
use crate::net::wire::Wire;
use crate::net::{ConnectError, Door, Traffic};
use crate::places::Places;
use crate::presence::{Advertisement, Allowance, Keepers, PresenceTable};
use crate::protocols::hello;
use crate::protocols::publish::Telling;
use crate::protocols::serving::Serving;
use crate::shelf::{Shelf, ShelfError};
use crate::standing::Standing;
use crate::team::TeamState;
use crate::underway::Underway;

/// What is known of a connected member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// What it offers.
    pub facts: Facts,
    /// Seconds its clock is ahead of this node's.
    pub clock_ahead: i64,
}

pub(crate) struct Core {
    pub(crate) team: Arc<TeamState>,
    pub(crate) network: Network,
    pub(crate) contacts: SharedContacts,
    pub(crate) traffic: Traffic,
    /// Places for pushes that are taken: each may have a large offer in memory.
    pub(crate) pushes_taken: Arc<tokio::sync::Semaphore>,
    /// Of those, from each member.
    pub(crate) pushes_of_each: Arc<Places>,
    pub(crate) throttles: Throttles,
    pub(crate) underway: Arc<Underway>,
    /// What this node passes on between others.
    pub(crate) relaying: Arc<Relaying>,
    pub(crate) shelf: Arc<dyn Shelf>,
    pub(crate) own: Mutex<Advertisement>,
    pub(crate) table: Mutex<PresenceTable>,
    /// Keys that each member may still ask about.
    pub(crate) allowance: Mutex<Allowance>,
    /// Signed statements about presence that each member may still leave here.
    pub(crate) statements: Mutex<Allowance>,
    /// Statements about the team that each member may still bring.
    pub(crate) roster_statements: Mutex<Allowance>,
    /// How often each member may still ask to be dialled.
    pub(crate) dial_backs: Mutex<Allowance>,
    /// Who keeps which region, in a team too large to know all.
    pub(crate) keepers: Mutex<Keepers>,
    /// Whether all that this node had when it started, or when the secret changed, has been listed.
    pub(crate) listed: watch::Sender<bool>,
    pub(crate) standing: Mutex<Standing>,
    pub(crate) gate: Mutex<RequestGate>,
    pub(crate) serving: Arc<Serving>,
    pub(crate) fetching: Fetching,
    pub(crate) peers: Mutex<BTreeMap<NodeKey, PeerStatus>>,
    pub(crate) facts: watch::Sender<Facts>,
    pub(crate) notices: mpsc::Sender<Notice>,
    pub(crate) builds: mpsc::Sender<IncomingBuild>,
    pub(crate) pushes: mpsc::Sender<IncomingPush>,
    /// One at a time shows a peer that this node is a member.
    pub(crate) introductions: Mutex<BTreeMap<NodeKey, Arc<tokio::sync::Mutex<()>>>>,
    /// Members that are being told what has changed here, and whether it has changed again since.
    pub(crate) greeting: Mutex<BTreeMap<NodeKey, bool>>,
    /// Something has to be told to the members closest to a region.
    pub(crate) publish: tokio::sync::Notify,
    pub(crate) telling: Telling,
    /// True once the node is shutting down.
    pub(crate) stopping: watch::Sender<bool>,
}

/// Facts are numbered from the time in milliseconds at which a node starts, upward: what a node offers changes less than a
/// thousand times a second. So a node that was started again is believed over what it said before.
pub(crate) const fn first_serial_of_facts(now: u64) -> u64 {
    now.saturating_mul(1000)
}

/// Whether more lies between two facts than what is told in a second: the node was started again.
fn facts_begun_anew(old: &Facts, new: &Facts) -> bool {
    new.serial - old.serial >= first_serial_of_facts(1)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is inside is whole between two statements; a panic elsewhere does not change that.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    /// Opens a door at a member, which may have to be told first that this node is one.
    pub(crate) async fn open(&self, peer: NodeKey, door: Door) -> Result<Wire, CallError> {
        match self.try_open(peer, door).await {
            Err(error) if hello::is_not_offered(&error) => {
                hello::make_known(self, peer).await?;
                self.open_as_known(peer, door).await
            }
            opened => opened,
        }
    }

    /// Opens a door at a member that knows this node. Where it does not offer the door, it is about to say which it does.
    async fn open_as_known(&self, peer: NodeKey, door: Door) -> Result<Wire, CallError> {
        let mut left = OFFERS_TRIES;
        loop {
            left -= 1;
            match self.try_open(peer, door).await {
                Err(error) if left > 0 && hello::is_not_offered(&error) => {
                    tokio::time::sleep(OFFERS_PAUSE).await;
                }
                opened => return opened,
            }
        }
    }

    /// As [`Core::open`], at a member that is said to have something. One that was connected and is gone is back at once, or
    /// somebody else has to do: who wants what it has could have it built by then.
    pub(crate) async fn open_at_provider(&self, peer: NodeKey, door: Door) -> Result<Wire, CallError> {
        if self.connected().contains(&peer) || !self.network.is_lost(peer) {
            return self.open(peer, door).await;
        }
        let unreachable = |reason: &str| ConnectError::Unreachable {
            peer,
            reason: reason.to_owned(),
        };
        if self.network.dial_patience(peer).is_none() {
            return Err(unreachable("it has gone, and is not back yet").into());
        }
        match tokio::time::timeout(PROVIDER_BACK, self.open(peer, door)).await {
            Ok(opened) => opened,
            Err(_) => Err(unreachable("it has gone, and is not back within a second").into()),
        }
    }

    /// Makes a connection to a member, where there is none.
    pub(crate) async fn connect(&self, peer: NodeKey) -> Result<(), ConnectError> {
        if !self.team.members().contains(peer) {
            return Err(ConnectError::NotAMember(peer));
        }
        self.network.connect(peer).await
    }

    pub(crate) async fn try_open(&self, peer: NodeKey, door: Door) -> Result<Wire, CallError> {
        self.connect(peer).await?;
        call::open(&self.network, &self.traffic, peer, door).await
    }

    /// Members there is a connection to. Who is none any more may be connected for another moment.
    pub(crate) fn connected(&self) -> BTreeSet<NodeKey> {
        let (members, mut connected) = (self.team.members(), self.network.connected());
        connected.retain(|peer| members.contains(*peer));
        connected
    }

    /// Whether it is not connected and was just found to be out of reach: there is nobody to wait for.
    pub(crate) fn is_away(&self, peer: NodeKey) -> bool {
        !self.connected().contains(&peer) && self.network.dial_patience(peer).is_none()
    }

    /// Tells the node, which may be busy; what it misses it can read with `peers`.
    pub(crate) fn notify(&self, notice: Notice) {
        if self.notices.try_send(notice).is_err() {
            tracing::debug!("the node does not attend to notices; one is dropped");
        }
    }

    /// Notes what a peer says of itself; tells the node where that is new.
    pub(crate) fn met(&self, peer: NodeKey, facts: Facts, its_time: u64) {
        let ahead = i64::try_from(i128::from(its_time) - i128::from(self.team.now())).unwrap_or(i64::MAX);
        let status = PeerStatus {
            facts,
            clock_ahead: ahead,
        };
        // Held until the node is told: what happens to a peer is told in its order.
        let mut peers = lock(&self.peers);
        if let Some(old) = peers.get(&peer)
            && old.facts.serial > status.facts.serial
        {
            return;
        }
        let old = peers.insert(peer, status.clone());
        if old
            .as_ref()
            .is_none_or(|old| facts_begun_anew(&old.facts, &status.facts))
        {
            // It may have been restarted since it was told anything.
            lock(&self.own).forget_member(peer);
            self.publish.notify_one();
        }
        match old {
            None => self.notify(Notice::PeerUp { peer, status }),
            Some(old) if old.facts != status.facts => self.notify(Notice::PeerChanged { peer, status }),
            Some(_) => {}
        }
    }

    pub(crate) fn gone(&self, peer: NodeKey) {
        let mut peers = lock(&self.peers);
        if peers.remove(&peer).is_some() {
            self.notify(Notice::PeerDown { peer });
        }
    }

    /// Notes who is gone of whom nobody was told, because there was too much to tell.
    pub(crate) fn miss_nobody(&self) {
        let known: Vec<NodeKey> = lock(&self.peers).keys().copied().collect();
        let connected = self.network.connected();
        for peer in known.into_iter().filter(|peer| !connected.contains(peer)) {
            self.gone(peer);
        }
    }

    /// Asks the shelf, on a thread that may block.
    pub(crate) async fn ask_shelf<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&dyn Shelf) -> Result<T, ShelfError> + Send + 'static,
    ) -> Result<T, ShelfError> {
        let shelf = self.shelf.clone();
        blocking(move || ask(&*shelf)).await.map_err(ShelfError::new)?
    }
}

/// A thread that was to do something ended without doing it: it panicked, or the runtime is shut down.
#[derive(Debug, thiserror::Error)]
#[error("a task of the node was lost: {0}")]
pub struct Lost(#[from] tokio::task::JoinError);

/// Does something that blocks.
pub(crate) async fn blocking<T: Send + 'static>(
    action: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Lost> {
    Ok(tokio::task::spawn_blocking(action).await?)
}
