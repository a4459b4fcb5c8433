//! One connection's doors.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use libp2p::core::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionHandler, ConnectionHandlerEvent, ConnectionId, Stream, StreamUpgradeError, SubstreamProtocol,
};
use libp2p::{PeerId, StreamProtocol};
use tokio::sync::{Semaphore, oneshot};
use tvix_node_protocol::envelope::NodeKey;

use super::door::Door;
use super::doors::{OpenError, OpenStream, Reception};

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
    waiting: VecDeque<OpenStream>,
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
            waker: None,
        }
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
        if let Some(OpenStream { name, door, reply }) = self.waiting.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(Named(name), Opening { door, reply }),
            });
        }
        self.waker = Some(context.waker().clone());
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, open: OpenStream) {
        self.waiting.push_back(open);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<Accepting, Named, (), Opening>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, door),
                ..
            }) => self.receive(door, stream),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) => {
                // Who asked may have gone away; the stream closes with it.
                info.reply.send(Ok(protocol)).ok();
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, info }) => {
                let error = match error {
                    StreamUpgradeError::NegotiationFailed => OpenError::NotOffered(info.door),
                    StreamUpgradeError::Timeout => OpenError::Failed("no answer in time".to_owned()),
                    StreamUpgradeError::Io(error) => OpenError::Failed(error.to_string()),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                info.reply.send(Err(error)).ok();
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

/// The one door that is being opened.
pub(crate) struct Named(StreamProtocol);

impl UpgradeInfo for Named {
    type Info = StreamProtocol;
    type InfoIter = std::iter::Once<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(self.0.clone())
    }
}

impl OutboundUpgrade<Stream> for Named {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}
