//! The behaviour that opens and accepts streams for our own protocols.
//!
//! A stranger's connection offers `join` and nothing else. Streams that come in are counted before they
//! are handed on; one too many is closed unread. Streams that go out are opened many at a time, so two
//! hundred requests to one peer cost one round trip and not two hundred.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use libp2p::core::transport::PortUse;
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::swarm::behaviour::FromSwarm;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, NetworkBehaviour, NotifyHandler, Stream, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm,
};
use libp2p::{PeerId, StreamProtocol};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tvix_node_protocol::envelope::NodeKey;

use super::contacts::SharedContacts;
use super::door::{Door, Names};
use super::gatekeeper::Gatekeeper;
use super::handler::{Handler, Over};
use super::relays::is_relayed;
use crate::identity::key_of;
use crate::limits::{STREAMS, STREAMS_PER_PEER, STREAMS_PER_STRANGER};
use crate::places::Places;

/// Why a stream could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no connection.
    #[error("not connected")]
    NotConnected,
    /// The peer does not offer the door, and does not say what it does: it does not take us for a member, as a rule.
    #[error(
        "the peer does not offer '{}' (version {}): it does not know this node as a member, or its program is none that knows it",
        .0.name(), .0.version()
    )]
    NotOffered(Door),
    /// The peer offers the door in other versions.
    #[error("{}", other_version(*.door, .theirs))]
    OtherVersion {
        /// Which, in the version that this program speaks.
        door: Door,
        /// The versions that the peer speaks; none: it offers others of the team's doors, and not this one.
        theirs: BTreeSet<u32>,
    },
    /// The connection broke, or took too long.
    #[error("the connection failed: {0}")]
    Failed(String),
    /// Too many are being opened.
    #[error("too many streams are being opened at once")]
    TooMany,
    /// The node is shutting down.
    #[error("this node is shutting down")]
    ShuttingDown,
}

/// What there is to say where a peer speaks these versions of a door.
fn other_version(door: Door, theirs: &BTreeSet<u32>) -> String {
    let (name, ours) = (door.name(), door.version());
    let (Some(least), Some(most)) = (theirs.first(), theirs.last()) else {
        return format!(
            "the peer does not offer '{name}', of which this node speaks version {ours}, in any version: update the node with the \
             older program"
        );
    };
    let spoken: Vec<String> = theirs.iter().map(ToString::to_string).collect();
    let whom = if *least > ours {
        "update this node"
    } else if *most < ours {
        "update the peer"
    } else {
        "update the node with the older program"
    };
    format!(
        "the peer speaks '{name}' in version {}, and this node in version {ours}: {whom}",
        spoken.join(" and ")
    )
}

/// Why a dial is not made.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not a member of the team")]
struct NotAMember(NodeKey);

/// A stream that came in.
pub(crate) struct Inbound {
    pub(crate) peer: NodeKey,
    pub(crate) door: Door,
    pub(crate) stream: Stream,
    /// The connection that it came over.
    pub(crate) over: Over,
    /// Given back when the stream has been served.
    pub(crate) permits: Permits,
}

/// The stream's place among those of its peer, and among all.
#[derive(Debug)]
pub(crate) struct Permits {
    _peer: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// Asks a handler to open a stream.
#[derive(Debug)]
pub(crate) struct OpenStream {
    pub(crate) name: StreamProtocol,
    pub(crate) door: Door,
    pub(crate) reply: oneshot::Sender<Result<Stream, OpenError>>,
}

/// What all handlers share.
#[derive(Clone)]
pub(crate) struct Reception {
    pub(crate) names: Arc<Names>,
    pub(crate) gatekeeper: Gatekeeper,
    streams: Arc<Semaphore>,
    inbound: mpsc::Sender<Inbound>,
}

impl Reception {
    /// Hands a stream on, or drops it where there are too many.
    pub(crate) fn receive(
        &self,
        (peer, over): (NodeKey, Over),
        door: Door,
        stream: Stream,
        of_peer: &Arc<Semaphore>,
    ) {
        let permits = of_peer
            .clone()
            .try_acquire_owned()
            .ok()
            .zip(self.streams.clone().try_acquire_owned().ok());
        let Some((of_peer, all)) = permits else {
            tracing::debug!(%peer, ?door, "too many streams at once; one is closed unread");
            return;
        };
        let permits = Permits {
            _peer: of_peer,
            _all: all,
        };
        let inbound = Inbound {
            peer,
            door,
            stream,
            over,
            permits,
        };
        if self.inbound.try_send(inbound).is_err() {
            tracing::debug!(%peer, ?door, "nobody is there to serve a stream; it is closed unread");
        }
    }
}

/// The connections to a peer, each kind with the oldest first.
#[derive(Debug, Default)]
struct Connections {
    direct: Vec<ConnectionId>,
    /// Through another member.
    relayed: Vec<(ConnectionId, Arc<AtomicBool>)>,
}

impl Connections {
    /// The one to use. The oldest: both sides then use the same one, and a second is there for when it breaks.
    fn best(&self) -> Option<ConnectionId> {
        let relayed = self.relayed.first().map(|(connection, _)| *connection);
        self.direct.first().copied().or(relayed)
    }

    fn is_empty(&self) -> bool {
        self.direct.is_empty() && self.relayed.is_empty()
    }
}

/// See the [module](self).
pub(crate) struct Doors {
    reception: Reception,
    contacts: SharedContacts,
    /// Peers to which connections stay open although nothing is said.
    kept: usize,
    dial_strangers: bool,
    /// Of each member.
    streams: Places,
    connections: HashMap<PeerId, Connections>,
    /// Connections through another member that are just being made, and what keeps them open.
    relayed: HashMap<ConnectionId, Arc<AtomicBool>>,
    /// Streams to be opened, some of them over one connection and no other.
    waiting: VecDeque<(PeerId, Option<ConnectionId>, OpenStream)>,
    waker: Option<Waker>,
}

impl Doors {
    /// `streams`: places of those that are served. `kept`: connections to so many members stay open although nothing is
    /// said; one to yet another, as to who keeps records, is closed when it is not used. `dial_strangers`: this node is
    /// not a member yet, so everyone is a stranger.
    pub(crate) fn new(
        names: Names,
        gatekeeper: Gatekeeper,
        contacts: SharedContacts,
        streams: Arc<Semaphore>,
        kept: usize,
        dial_strangers: bool,
    ) -> (Self, mpsc::Receiver<Inbound>) {
        let (inbound, receiver) = mpsc::channel(STREAMS);
        let reception = Reception {
            names: Arc::new(names),
            gatekeeper,
            streams,
            inbound,
        };
        let doors = Self {
            reception,
            contacts,
            kept,
            dial_strangers,
            streams: Places::new(STREAMS_PER_PEER),
            connections: HashMap::new(),
            relayed: HashMap::new(),
            waiting: VecDeque::new(),
            waker: None,
        };
        (doors, receiver)
    }

    /// Opens a stream to a connected peer. `over`: the only connection that will do.
    pub(crate) fn open(
        &mut self,
        (peer, over): (PeerId, Option<ConnectionId>),
        door: Door,
        reply: oneshot::Sender<Result<Stream, OpenError>>,
    ) {
        let refused = if !self.connections.contains_key(&peer) {
            OpenError::NotConnected
        } else if self.waiting.len() >= STREAMS {
            OpenError::TooMany
        } else if let Some(name) = self.reception.names.get(door).cloned() {
            self.waiting
                .push_back((peer, over, OpenStream { name, door, reply }));
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
            return;
        } else {
            OpenError::NotOffered(door)
        };
        // Who asked may have gone away; that is its affair.
        reply.send(Err(refused)).ok();
    }

    fn handler(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        relayed: bool,
    ) -> Result<Handler, ConnectionDenied> {
        let key = key_of(&peer).map_err(ConnectionDenied::new)?;
        let member = self.reception.gatekeeper.is_member(&peer);
        // A member that makes more connections has no more streams.
        let streams = match member {
            true => self.streams.of(key),
            false => Arc::new(Semaphore::new(STREAMS_PER_STRANGER)),
        };
        let is_wanted = self.connections.contains_key(&peer) || self.connections.len() < self.kept;
        let over = Over::new(connection, relayed, self.kept > 0 && is_wanted && member);
        if relayed {
            self.relayed.insert(connection, Arc::clone(&over.keep_alive));
        }
        Ok(Handler::new(
            self.reception.clone(),
            (peer, key),
            member,
            over,
            streams,
        ))
    }
}

impl NetworkBehaviour for Doors {
    type ConnectionHandler = Handler;
    type ToSwarm = std::convert::Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(connection, peer, is_relayed(local))
    }

    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let Some(peer) = peer else {
            return Ok(vec![]);
        };
        let key = key_of(&peer).map_err(ConnectionDenied::new)?;
        if !self.dial_strangers && !self.reception.gatekeeper.is_member(&peer) {
            return Err(ConnectionDenied::new(NotAMember(key)));
        }
        Ok(self.contacts.addresses(key))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(connection, peer, is_relayed(address))
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(event) => {
                let connections = self.connections.entry(event.peer_id).or_default();
                if let Some(keep_alive) = self.relayed.remove(&event.connection_id) {
                    connections.relayed.push((event.connection_id, keep_alive));
                } else {
                    connections.direct.push(event.connection_id);
                }
                if !connections.direct.is_empty() {
                    // What is under way through another member ends there, and nothing new begins.
                    for (_, keep_alive) in &connections.relayed {
                        keep_alive.store(false, Ordering::Relaxed);
                    }
                }
            }
            FromSwarm::DialFailure(event) => drop(self.relayed.remove(&event.connection_id)),
            FromSwarm::ListenFailure(event) => drop(self.relayed.remove(&event.connection_id)),
            FromSwarm::ConnectionClosed(event) => {
                if let Some(connections) = self.connections.get_mut(&event.peer_id) {
                    connections
                        .direct
                        .retain(|connection| *connection != event.connection_id);
                    connections
                        .relayed
                        .retain(|(connection, _)| *connection != event.connection_id);
                    if connections.is_empty() {
                        self.connections.remove(&event.peer_id);
                    }
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        while let Some((peer_id, over, open)) = self.waiting.pop_front() {
            let connections = self.connections.get(&peer_id);
            let connection = connections.and_then(|connections| match over {
                None => connections.best(),
                Some(over) => connections.direct.contains(&over).then_some(over),
            });
            let Some(connection) = connection else {
                open.reply.send(Err(OpenError::NotConnected)).ok();
                continue;
            };
            return Poll::Ready(ToSwarm::NotifyHandler {
                peer_id,
                handler: NotifyHandler::One(connection),
                event: open,
            });
        }
        self.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use libp2p::swarm::ConnectionHandler as _;
    use tvix_node_protocol::envelope::NodeSecret;
    use tvix_node_protocol::roster::{Founder, Genesis};

    use super::*;
    use crate::identity::peer_of;
    use crate::machine::Machine;
    use crate::roster::Roster;

    /// Of a team of these.
    fn doors(keys: &[NodeKey], kept: usize) -> Doors {
        let founder = |key: &NodeKey| Founder {
            key: *key,
            name: "one".to_owned(),
        };
        let mut founders: Vec<Founder> = keys.iter().map(founder).collect();
        founders.sort_by_key(|founder| founder.key);
        let genesis = Genesis {
            name: "team".to_owned(),
            founders,
            threshold: 1,
            salt: [1; 32],
        };
        let gatekeeper = Gatekeeper::default();
        gatekeeper.set(&Roster::new(genesis).unwrap().members(0));
        let home = tempfile::tempdir().unwrap();
        let contacts = SharedContacts::open(home.path()).unwrap();
        let streams = Machine::default().streams;
        let (doors, _inbound) = Doors::new(Names::join_only(), gatekeeper, contacts, streams, kept, false);
        doors
    }

    #[test]
    fn a_member_has_so_many_streams_however_many_connections_it_makes() {
        let keys = [1, 2].map(|seed| NodeSecret::from_bytes(&[seed; 32]).key());
        let mut doors = doors(&keys, 2);
        let mut connected = |number, peer| {
            let id = ConnectionId::new_unchecked(number);
            doors.handler(id, peer, false).unwrap()
        };
        let [ann, bob] = keys.map(|key| peer_of(key).unwrap());
        let (first, second) = (connected(1, ann), connected(2, ann));
        let all = u32::try_from(STREAMS_PER_PEER).unwrap();
        let _taken = first.streams.clone().try_acquire_many_owned(all).unwrap();
        assert!(second.streams.clone().try_acquire_owned().is_err());
        assert!(connected(3, bob).streams.clone().try_acquire_owned().is_ok());
        let stranger = peer_of(NodeSecret::from_bytes(&[9; 32]).key()).unwrap();
        assert_eq!(
            connected(4, stranger).streams.available_permits(),
            STREAMS_PER_STRANGER
        );
        // Nor is one member all there are.
        const { assert!(STREAMS_PER_PEER * 4 <= STREAMS) };
    }

    #[test]
    fn connections_to_so_many_members_stay_open_and_others_while_they_are_used() {
        let keys = [1, 2, 3].map(|seed| NodeSecret::from_bytes(&[seed; 32]).key());
        let mut doors = doors(&keys, 2);
        let mut stays = |number: usize, peer: PeerId| {
            let id = ConnectionId::new_unchecked(number);
            let handler = doors.handler(id, peer, false).unwrap();
            doors.connections.entry(peer).or_default().direct.push(id);
            handler.connection_keep_alive()
        };
        let [one, two, three] = keys.map(|key| peer_of(key).unwrap());
        assert!(stays(1, one) && stays(2, two));
        assert!(!stays(3, three), "one too many");
        assert!(stays(4, one), "another one to the same");
        let stranger = peer_of(NodeSecret::from_bytes(&[9; 32]).key()).unwrap();
        assert!(!stays(5, stranger));
    }
}
