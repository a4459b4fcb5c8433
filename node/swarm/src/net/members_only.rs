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

    /// How many of a peer's connections the inner behaviour knows.
    fn shown_of(&self, peer: PeerId) -> usize {
        self.shown.values().filter(|shown| **shown == peer).count()
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
        match event {
            // How many connections a peer has besides: to the inner behaviour that is those that it knows. A
            // peer's first one as a member is its first one.
            FromSwarm::ConnectionEstablished(mut event) if self.shown.contains_key(&event.connection_id) => {
                event.other_established = self.shown_of(event.peer_id).saturating_sub(1);
                self.inner.on_swarm_event(FromSwarm::ConnectionEstablished(event));
            }
            FromSwarm::ConnectionClosed(mut event) if self.shown.remove(&event.connection_id).is_some() => {
                event.remaining_established = self.shown_of(event.peer_id);
                self.inner.on_swarm_event(FromSwarm::ConnectionClosed(event));
            }
            FromSwarm::AddressChange(event) if self.shown.contains_key(&event.connection_id) => {
                self.inner.on_swarm_event(FromSwarm::AddressChange(event));
            }
            FromSwarm::ConnectionEstablished(_)
            | FromSwarm::ConnectionClosed(_)
            | FromSwarm::AddressChange(_) => {}
            FromSwarm::DialFailure(event) => {
                self.shown.remove(&event.connection_id);
                self.inner.on_swarm_event(FromSwarm::DialFailure(event));
            }
            FromSwarm::ListenFailure(event) => {
                self.shown.remove(&event.connection_id);
                self.inner.on_swarm_event(FromSwarm::ListenFailure(event));
            }
            event => self.inner.on_swarm_event(event),
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

#[cfg(test)]
mod tests {
    use libp2p::core::ConnectedPoint;
    use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished};

    use super::*;

    /// Takes note of how many other connections it is told of.
    #[derive(Default)]
    struct Counts(Vec<usize>);

    impl NetworkBehaviour for Counts {
        type ConnectionHandler = dummy::ConnectionHandler;
        type ToSwarm = std::convert::Infallible;

        fn handle_established_inbound_connection(
            &mut self,
            _: ConnectionId,
            _: PeerId,
            _: &Multiaddr,
            _: &Multiaddr,
        ) -> Result<THandler<Self>, ConnectionDenied> {
            Ok(dummy::ConnectionHandler)
        }

        fn handle_established_outbound_connection(
            &mut self,
            _: ConnectionId,
            _: PeerId,
            _: &Multiaddr,
            _: Endpoint,
            _: PortUse,
        ) -> Result<THandler<Self>, ConnectionDenied> {
            Ok(dummy::ConnectionHandler)
        }

        fn on_swarm_event(&mut self, event: FromSwarm) {
            match event {
                FromSwarm::ConnectionEstablished(event) => self.0.push(event.other_established),
                FromSwarm::ConnectionClosed(event) => self.0.push(event.remaining_established),
                _ => {}
            }
        }

        fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
            match event {}
        }

        fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
            Poll::Pending
        }
    }

    #[test]
    fn what_a_peer_did_as_a_stranger_does_not_count() {
        let address: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
        let point = ConnectedPoint::Dialer {
            address: address.clone(),
            role_override: Endpoint::Dialer,
            port_use: PortUse::New,
        };
        let (peer, gatekeeper) = (PeerId::random(), Gatekeeper::default());
        let mut members = MembersOnly::new(Counts::default(), gatekeeper.clone());
        let connect = |members: &mut MembersOnly<Counts>, number, others| {
            let connection = ConnectionId::new_unchecked(number);
            members
                .handle_established_inbound_connection(connection, peer, &address, &address)
                .unwrap();
            members.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id: peer,
                connection_id: connection,
                endpoint: &point,
                failed_addresses: &[],
                other_established: others,
            }));
        };
        let close = |members: &mut MembersOnly<Counts>, number, left| {
            members.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
                peer_id: peer,
                connection_id: ConnectionId::new_unchecked(number),
                endpoint: &point,
                cause: None,
                remaining_established: left,
            }));
        };
        connect(&mut members, 1, 0);
        assert!(members.inner.0.is_empty(), "a stranger");
        gatekeeper.let_in(peer);
        connect(&mut members, 2, 1);
        connect(&mut members, 3, 2);
        close(&mut members, 2, 2);
        close(&mut members, 3, 1);
        close(&mut members, 1, 0);
        assert_eq!(members.inner.0, [0, 1, 1, 0]);
    }
}
