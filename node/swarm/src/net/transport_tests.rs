use libp2p::core::transport::PortUse;
use libp2p::core::{ConnectedPoint, Endpoint, Multiaddr};
use libp2p::swarm::behaviour::{ConnectionEstablished, FromSwarm};
use libp2p::swarm::{ConnectionId, NetworkBehaviour};

use super::*;
use crate::limits::CONNECTIONS_PENDING_EACH;
use crate::machine::Machine;
use crate::net::contacts::Contacts;

fn network() -> Swarm<Behaviour> {
    let (swarm, _inbound) = build(Setup {
        secret: &NodeSecret::from_bytes(&[1; 32]),
        names: Names::join_only(),
        gatekeeper: Gatekeeper::default(),
        contacts: SharedContacts::in_memory(Contacts::default()),
        mdns: false,
        streams: Machine::default().streams,
        kept: 1,
    })
    .unwrap();
    swarm
}

fn address() -> Multiaddr {
    "/ip4/127.0.0.1/tcp/1".parse().unwrap()
}

/// Connections as libp2p tells of them, without a network.
#[derive(Default)]
struct Made(usize);

impl Made {
    fn id(&mut self) -> ConnectionId {
        self.0 += 1;
        ConnectionId::new_unchecked(self.0)
    }

    /// One more that is being made; whether there was room for it.
    fn begins(&mut self, limits: &mut connection_limits::Behaviour, from: Endpoint) -> bool {
        let (id, at) = (self.id(), address());
        match from {
            Endpoint::Listener => limits.handle_pending_inbound_connection(id, &at, &at).is_ok(),
            Endpoint::Dialer => limits
                .handle_pending_outbound_connection(id, Some(PeerId::random()), &[], Endpoint::Dialer)
                .is_ok(),
        }
    }

    /// One more that is made; whether there was room for it.
    fn is_made(
        &mut self,
        limits: &mut connection_limits::Behaviour,
        peer_id: PeerId,
        from: Endpoint,
    ) -> bool {
        let (connection_id, at) = (self.id(), address());
        let (allowed, endpoint) = match from {
            Endpoint::Listener => {
                let allowed = limits.handle_established_inbound_connection(connection_id, peer_id, &at, &at);
                let (local_addr, send_back_addr) = (at.clone(), at);
                let endpoint = ConnectedPoint::Listener {
                    local_addr,
                    send_back_addr,
                };
                (allowed.is_ok(), endpoint)
            }
            Endpoint::Dialer => {
                let (role, port) = (Endpoint::Dialer, PortUse::New);
                let allowed =
                    limits.handle_established_outbound_connection(connection_id, peer_id, &at, role, port);
                let endpoint = ConnectedPoint::Dialer {
                    address: at,
                    role_override: role,
                    port_use: port,
                };
                (allowed.is_ok(), endpoint)
            }
        };
        if allowed {
            limits.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint: &endpoint,
                failed_addresses: &[],
                other_established: 0,
            }));
        }
        allowed
    }
}

/// Goes on until there is no room: how often there was.
fn until_full(most: u32, mut one_more: impl FnMut() -> bool) -> u32 {
    (0..=most).take_while(|_| one_more()).count().try_into().unwrap()
}

#[tokio::test]
async fn connections_end_at_their_bounds_and_those_of_others_leave_some_to_make() {
    let mut swarm = network();
    let limits = &mut swarm.behaviour_mut().limits;
    let mut made = Made::default();
    let incoming = until_full(CONNECTIONS, || {
        made.is_made(limits, PeerId::random(), Endpoint::Listener)
    });
    assert_eq!(incoming, CONNECTIONS_INCOMING);
    let outgoing = until_full(CONNECTIONS, || {
        made.is_made(limits, PeerId::random(), Endpoint::Dialer)
    });
    assert_eq!(incoming + outgoing, CONNECTIONS);
}

#[tokio::test]
async fn one_peer_has_so_many_connections_whoever_makes_them() {
    let mut swarm = network();
    let limits = &mut swarm.behaviour_mut().limits;
    let (mut made, peer) = (Made::default(), PeerId::random());
    assert!(made.is_made(limits, peer, Endpoint::Dialer));
    let more = until_full(CONNECTIONS, || made.is_made(limits, peer, Endpoint::Listener));
    assert_eq!(1 + more, CONNECTIONS_PER_PEER);
    assert!(!made.is_made(limits, peer, Endpoint::Dialer));
    assert!(made.is_made(limits, PeerId::random(), Endpoint::Listener));
}

#[tokio::test]
async fn so_many_connections_are_being_made_at_once_in_each_direction() {
    let mut swarm = network();
    let limits = &mut swarm.behaviour_mut().limits;
    let mut made = Made::default();
    for from in [Endpoint::Listener, Endpoint::Dialer] {
        let pending = until_full(CONNECTIONS, || made.begins(limits, from));
        assert_eq!(pending, CONNECTIONS_PENDING, "{from:?}");
    }
}

#[test]
fn the_teams_of_a_node_share_the_connections() {
    const TEAMS: u32 = 16;
    let mut limits = connection_limits::Behaviour::new(connections(TEAMS));
    let mut made = Made::default();
    let incoming = until_full(CONNECTIONS, || {
        made.is_made(&mut limits, PeerId::random(), Endpoint::Listener)
    });
    let outgoing = until_full(CONNECTIONS, || {
        made.is_made(&mut limits, PeerId::random(), Endpoint::Dialer)
    });
    assert_eq!(incoming, CONNECTIONS_INCOMING / TEAMS);
    assert_eq!(incoming + outgoing, CONNECTIONS / TEAMS);
}

#[tokio::test]
async fn who_uses_its_share_of_the_memory_takes_no_more_connections_and_makes_none() {
    let mut swarm = network();
    let behaviour = swarm.behaviour_mut();
    let machine = std::fs::read_to_string("/proc/meminfo").unwrap();
    let kilobytes = machine
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.strip_suffix("kB"))
        .unwrap();
    let bytes: f64 = 1024.0 * kilobytes.trim().parse::<f64>().unwrap();
    let most = behaviour.memory.max_allowed_bytes() as f64;
    assert!(
        (most - bytes * MEMORY_SHARE).abs() < bytes / 100.0,
        "{most} of {bytes}"
    );
    let is_taken = |behaviour: &mut Behaviour, number| {
        let (id, at) = (ConnectionId::new_unchecked(number), address());
        behaviour.handle_pending_inbound_connection(id, &at, &at).is_ok()
    };
    assert!(is_taken(behaviour, 1));
    // A process has more than a byte.
    behaviour.memory = memory_connection_limits::Behaviour::with_max_bytes(1);
    assert!(!is_taken(behaviour, 2));
    let dialled = behaviour.handle_pending_outbound_connection(
        ConnectionId::new_unchecked(3),
        None,
        &[],
        Endpoint::Dialer,
    );
    assert!(dialled.is_err());
}

#[tokio::test]
async fn one_address_does_not_take_all_places_for_connections_that_are_being_made() {
    let mut swarm = network();
    let behaviour = swarm.behaviour_mut();
    let (here, mut last) = ("/ip4/192.0.2.1/tcp/1".parse().unwrap(), 0);
    let mut begins = |from: &str| {
        last += 1;
        let (connection, from) = (ConnectionId::new_unchecked(last), from.parse().unwrap());
        let allowed = behaviour.handle_pending_inbound_connection(connection, &here, &from);
        allowed.is_ok()
    };
    let of_one = until_full(CONNECTIONS, || begins("/ip4/198.51.100.1/tcp/7"));
    assert_eq!(of_one as usize, CONNECTIONS_PENDING_EACH);
    assert!(begins("/ip4/198.51.100.2/tcp/7"));
}
