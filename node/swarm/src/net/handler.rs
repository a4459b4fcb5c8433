//! One connection's doors.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use libp2p::core::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound, ProtocolsChange,
};
use libp2p::swarm::{
    ConnectionHandler, ConnectionHandlerEvent, ConnectionId, Stream, StreamUpgradeError, SubstreamProtocol,
};
use libp2p::{PeerId, StreamProtocol};
use tokio::sync::{Semaphore, oneshot};
use tvix_node_protocol::envelope::NodeKey;

use super::door::Door;
use super::doors::{OpenError, OpenStream, Reception};
use crate::limits::JOIN_VERSIONS_TRIED;

/// A connection, as those know it who serve streams over it.
#[derive(Debug, Clone)]
pub(crate) struct Over {
    pub(crate) connection: ConnectionId,
    /// It leads through another member.
    pub(crate) relayed: bool,
    /// Whether it stays open although nothing is said. Changes when a better one has come.
    pub(crate) keep_alive: Arc<AtomicBool>,
    /// Others are passed on over it, so it stays open for them.
    pub(crate) held: Arc<AtomicBool>,
}

impl Over {
    pub(crate) fn new(connection: ConnectionId, relayed: bool, keep_alive: bool) -> Self {
        Self {
            connection,
            relayed,
            keep_alive: Arc::new(AtomicBool::new(keep_alive)),
            held: Arc::default(),
        }
    }
}

/// Handles the streams of one connection.
pub(crate) struct Handler {
    reception: Reception,
    peer: PeerId,
    key: NodeKey,
    /// Whether the peer was a member when the connection was made.
    member: bool,
    over: Over,
    /// Of the peer, over all its connections.
    pub(super) streams: Arc<Semaphore>,
    waiting: VecDeque<(Named, Opening)>,
    /// The names of all that the peer offers, as it says: what fits into one message of identify, and nothing before that
    /// has come or where it takes this node for a stranger.
    offered: HashSet<StreamProtocol>,
    waker: Option<Waker>,
}

impl Handler {
    pub(crate) fn new(
        reception: Reception,
        (peer, key): (PeerId, NodeKey),
        member: bool,
        over: Over,
        streams: Arc<Semaphore>,
    ) -> Self {
        Self {
            reception,
            peer,
            key,
            member,
            over,
            streams,
            waiting: VecDeque::new(),
            offered: HashSet::new(),
            waker: None,
        }
    }

    fn wait(&mut self, names: Vec<StreamProtocol>, opening: Opening) {
        self.waiting.push_back((Named(names), opening));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The peer does not know the name of a door. Says in which versions it knows the door, where that can be found out.
    fn not_offered(&mut self, Opening { door, probing, reply }: Opening) {
        let names = &self.reception.names;
        if door == Door::Join && !probing {
            // A stranger is not told what there is, so it tries.
            let others = (1..=JOIN_VERSIONS_TRIED).filter(|version| *version != door.version());
            let others = others.filter_map(|version| names.other(door, version)).collect();
            let probing = true;
            self.wait(others, Opening { door, probing, reply });
            return;
        }
        let theirs = names.versions_among(door, &self.offered);
        let of_team =
            |door: &Door| *door != Door::Join && !names.versions_among(*door, &self.offered).is_empty();
        let error = if theirs.contains(&door.version()) || !Door::ALL.iter().any(of_team) {
            OpenError::NotOffered(door)
        } else {
            OpenError::OtherVersion { door, theirs }
        };
        // Who asked may have gone away.
        reply.send(Err(error)).ok();
    }

    fn opened(&self, (stream, name): (Stream, StreamProtocol), opening: Opening) {
        let Opening { door, probing, reply } = opening;
        let opened = match probing {
            false => Ok(stream),
            true => Err(OpenError::OtherVersion {
                door,
                theirs: self.reception.names.versions_among(door, [&name]),
            }),
        };
        // Who asked may have gone away; the stream closes with it.
        reply.send(opened).ok();
    }

    fn receive(&self, door: Door, stream: Stream) {
        // Between the offer and now the roster may have changed.
        if door == Door::Join || self.is_members() {
            let from = (self.key, self.over.clone());
            self.reception.receive(from, door, stream, &self.streams);
        }
    }

    /// A member's, from the beginning and still.
    fn is_members(&self) -> bool {
        self.member && self.reception.gatekeeper.is_member(&self.peer)
    }
}

/// Waits for the outcome of opening a stream.
pub(crate) struct Opening {
    door: Door,
    /// Only to find out in which other version the peer knows the door.
    probing: bool,
    reply: oneshot::Sender<Result<Stream, OpenError>>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = OpenStream;
    type ToBehaviour = Infallible;
    type InboundProtocol = Accepting;
    type OutboundProtocol = Named;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Opening;

    fn listen_protocol(&self) -> SubstreamProtocol<Accepting> {
        SubstreamProtocol::new(Accepting(self.reception.names.open_to(self.is_members())), ())
    }

    fn connection_keep_alive(&self) -> bool {
        let wanted = |why: &AtomicBool| why.load(Ordering::Relaxed);
        (wanted(&self.over.keep_alive) || wanted(&self.over.held)) && self.is_members()
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Named, Opening, Infallible>> {
        if let Some((names, opening)) = self.waiting.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(names, opening),
            });
        }
        self.waker = Some(context.waker().clone());
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, OpenStream { name, door, reply }: OpenStream) {
        let probing = false;
        self.wait(vec![name], Opening { door, probing, reply });
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<Accepting, Named, (), Opening>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, door),
                ..
            }) => self.receive(door, stream),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) => {
                self.opened(protocol, info);
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, info }) => {
                let error = match error {
                    StreamUpgradeError::NegotiationFailed => return self.not_offered(info),
                    StreamUpgradeError::Timeout => OpenError::Failed("no answer in time".to_owned()),
                    StreamUpgradeError::Io(error) => OpenError::Failed(error.to_string()),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                info.reply.send(Err(error)).ok();
            }
            ConnectionEvent::RemoteProtocolsChange(ProtocolsChange::Added(added)) => {
                self.offered.extend(added.cloned());
            }
            ConnectionEvent::RemoteProtocolsChange(ProtocolsChange::Removed(removed)) => {
                for name in removed {
                    self.offered.remove(name);
                }
            }
            _ => {}
        }
    }
}

/// The doors a peer may choose from.
pub(crate) struct Accepting(Vec<(StreamProtocol, Door)>);

impl UpgradeInfo for Accepting {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        let names: Vec<_> = self.0.iter().map(|(name, _)| name.clone()).collect();
        names.into_iter()
    }
}

impl InboundUpgrade<Stream> for Accepting {
    type Output = (Stream, Door);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, name: StreamProtocol) -> Self::Future {
        // The name is one of those offered; were it another, `join` would be the safe choice.
        let door = self.0.iter().find(|(other, _)| *other == name);
        ready(Ok((stream, door.map_or(Door::Join, |(_, door)| *door))))
    }
}

/// The one door that is being opened, by whichever of these names the peer knows.
pub(crate) struct Named(Vec<StreamProtocol>);

impl UpgradeInfo for Named {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl OutboundUpgrade<Stream> for Named {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, name: StreamProtocol) -> Self::Future {
        ready(Ok((stream, name)))
    }
}
