//! Connections that others are making, from one address: whoever opens them and says nothing leaves places to others.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr};
use std::task::{Context, Poll};

use libp2p::PeerId;
use libp2p::core::multiaddr::Protocol;
use libp2p::core::transport::PortUse;
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::swarm::behaviour::FromSwarm;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    dummy,
};

use crate::limits::CONNECTIONS_PENDING_EACH;

/// See the [module](self). Programs of this machine are not counted: whoever runs them has easier ways to be in the way.
#[derive(Default)]
pub(crate) struct Arriving {
    from: HashMap<ConnectionId, IpAddr>,
}

/// Too many at once.
#[derive(Debug, thiserror::Error)]
#[error("{CONNECTIONS_PENDING_EACH} connections from {0} are being made already")]
struct TooMany(IpAddr);

/// Who is counted as one: an address, or with IPv6 the network that one customer has.
fn source(remote: &Multiaddr) -> Option<IpAddr> {
    let address = match remote.iter().next()? {
        Protocol::Ip4(address) => IpAddr::V4(address),
        Protocol::Ip6(address) => match address.to_ipv4_mapped() {
            Some(address) => IpAddr::V4(address),
            None if address.is_loopback() => IpAddr::V6(address),
            None => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        },
        _ => return None,
    };
    // One that comes by way of another member has that one's address, and its bounds.
    let relayed = remote.iter().any(|part| part == Protocol::P2pCircuit);
    (!relayed && !address.is_loopback()).then_some(address)
}

impl NetworkBehaviour for Arriving {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let Some(source) = source(remote) else {
            return Ok(());
        };
        if self.from.values().filter(|other| **other == source).count() >= CONNECTIONS_PENDING_EACH {
            return Err(ConnectionDenied::new(TooMany(source)));
        }
        self.from.insert(connection, source);
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.from.remove(&connection);
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
        if let FromSwarm::ListenFailure(event) = event {
            self.from.remove(&event.connection_id);
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use libp2p::swarm::ListenError;
    use libp2p::swarm::behaviour::ListenFailure;

    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn here() -> Multiaddr {
        address("/ip4/192.0.2.1/tcp/1")
    }

    #[derive(Default)]
    struct Door {
        arriving: Arriving,
        last: usize,
    }

    impl Door {
        /// Whether a connection from there may be made.
        fn begins(&mut self, from: &str) -> bool {
            self.last += 1;
            let connection = ConnectionId::new_unchecked(self.last);
            let remote = address(from);
            let allowed = self
                .arriving
                .handle_pending_inbound_connection(connection, &here(), &remote);
            allowed.is_ok()
        }

        /// How many more may, of two more than one address may make.
        fn more(&mut self, from: &str) -> usize {
            (0..CONNECTIONS_PENDING_EACH + 2)
                .filter(|_| self.begins(from))
                .count()
        }
    }

    #[test]
    fn one_address_makes_so_many_at_once_and_others_are_not_kept_out() {
        let mut door = Door::default();
        assert_eq!(door.more("/ip4/198.51.100.1/tcp/7"), CONNECTIONS_PENDING_EACH);
        // Another port is the same machine, another transport too.
        assert!(!door.begins("/ip4/198.51.100.1/udp/9/quic-v1"));
        assert!(!door.begins("/ip6/::ffff:198.51.100.1/tcp/9"));
        assert_eq!(door.more("/ip4/198.51.100.2/tcp/7"), CONNECTIONS_PENDING_EACH);
        assert_eq!(door.more("/ip6/2001:db8::1/tcp/7"), CONNECTIONS_PENDING_EACH);
        assert!(!door.begins("/ip6/2001:db8:0:0:ffff::2/tcp/7"));
        assert!(door.begins("/ip6/2001:db8:0:1::1/tcp/7"));
        // Programs of this machine, and who comes through another member.
        for free in [
            "/ip4/127.0.0.1/tcp/7",
            "/ip6/::1/tcp/7",
            "/ip4/198.51.100.1/tcp/7/p2p-circuit",
        ] {
            assert_eq!(door.more(free), CONNECTIONS_PENDING_EACH + 2, "{free}");
        }
    }

    #[test]
    fn what_is_made_or_has_failed_is_not_being_made_any_more() {
        let mut door = Door::default();
        let from = "/ip4/198.51.100.1/tcp/7";
        assert_eq!(door.more(from), CONNECTIONS_PENDING_EACH);
        let (first, second) = (ConnectionId::new_unchecked(1), ConnectionId::new_unchecked(2));
        door.arriving
            .handle_established_inbound_connection(first, PeerId::random(), &here(), &address(from))
            .unwrap();
        assert!(door.begins(from));
        assert!(!door.begins(from));
        door.arriving
            .on_swarm_event(FromSwarm::ListenFailure(ListenFailure {
                local_addr: &here(),
                send_back_addr: &address(from),
                error: &ListenError::Aborted,
                connection_id: second,
                peer_id: None,
            }));
        assert!(door.begins(from));
        assert!(!door.begins(from));
    }
}
