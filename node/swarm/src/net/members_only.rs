//! Keeps a libp2p behaviour from strangers: on their connections it does not exist.

use std::collections::HashMap;
use std::task::{Context, Poll};

use either::Either;
use libp2p::PeerId;
use libp2p::core::transport::PortUse;
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::swarm::behaviour::FromSwarm;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, NetworkBehaviour, NotifyHandler, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm, dummy,
};

use super::gatekeeper::Gatekeeper;

/// The behaviour `B`, for members. Whether a connection is a member's is decided when it is made; who
/// becomes a member later is reconnected.
pub(crate) struct MembersOnly<B> {
    pub(crate) inner: B,
    gatekeeper: Gatekeeper,
    /// Members' connections, which alone the inner behaviour knows.
    shown: HashMap<ConnectionId, PeerId>,
}

impl<B: NetworkBehaviour> MembersOnly<B> {
    pub(crate) fn new(inner: B, gatekeeper: Gatekeeper) -> Self {
        Self {
            inner,
            gatekeeper,
            shown: HashMap::new(),
        }
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for MembersOnly<B> {
    type ConnectionHandler = Either<THandler<B>, dummy::ConnectionHandler>;
    type ToSwarm = B::ToSwarm;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if !self.gatekeeper.is_member(&peer) {
            return Ok(Either::Right(dummy::ConnectionHandler));
        }
        let handler = self
            .inner
            .handle_established_inbound_connection(connection, peer, local, remote)?;
        self.shown.insert(connection, peer);
        Ok(Either::Left(handler))
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner
            .handle_pending_outbound_connection(connection, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if !self.gatekeeper.is_member(&peer) {
            return Ok(Either::Right(dummy::ConnectionHandler));
        }
        let handler = self
            .inner
            .handle_established_outbound_connection(connection, peer, address, role, port)?;
        self.shown.insert(connection, peer);
        Ok(Either::Left(handler))
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        let tell = match &event {
            FromSwarm::ConnectionEstablished(event) => self.shown.contains_key(&event.connection_id),
            FromSwarm::AddressChange(event) => self.shown.contains_key(&event.connection_id),
            FromSwarm::ConnectionClosed(event) => self.shown.remove(&event.connection_id).is_some(),
            FromSwarm::DialFailure(event) => {
                self.shown.remove(&event.connection_id);
                true
            }
            FromSwarm::ListenFailure(event) => {
                self.shown.remove(&event.connection_id);
                true
            }
            _ => true,
        };
        if tell {
            self.inner.on_swarm_event(event);
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        let Either::Left(event) = event;
        self.inner.on_connection_handler_event(peer, connection, event);
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            let Poll::Ready(action) = self.inner.poll(context) else {
                return Poll::Pending;
            };
            let ToSwarm::NotifyHandler {
                peer_id,
                handler,
                event,
            } = action
            else {
                return Poll::Ready(action.map_in(Either::Left));
            };
            // A stranger's connection, even one of a peer that has become a member, has no such handler.
            let connection = match handler {
                NotifyHandler::One(connection) => self.shown.contains_key(&connection).then_some(connection),
                NotifyHandler::Any => self
                    .shown
                    .iter()
                    .find(|(_, peer)| **peer == peer_id)
                    .map(|(connection, _)| *connection),
            };
            if let Some(connection) = connection {
                return Poll::Ready(ToSwarm::NotifyHandler {
                    peer_id,
                    handler: NotifyHandler::One(connection),
                    event: Either::Left(event),
                });
            }
        }
    }
}
