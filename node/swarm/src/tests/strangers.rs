use super::*;
use crate::call::CallError;
use crate::net::contacts::{Contacts, SharedContacts};
use crate::net::door::Names;
use crate::net::driver::Driver;
use crate::net::gatekeeper::Gatekeeper;
use crate::net::network::Network;
use crate::net::transport::{Setup, build};
use crate::net::{Door, OpenError, Traffic};
use tvix_node_protocol::messages::{JoinAnswer, JoinRefusal, JoinRequest};

/// The network of somebody who knows the team's name and a member's address, whether a member's key or not. It speaks
/// every protocol itself.
pub(super) fn stranger(seed: u8, ann: &TestNode) -> Network {
    speaking(Names::of(ann.handle.swarm()), seed, ann)
}

/// The same, by these names.
pub(super) fn speaking(names: Names, seed: u8, ann: &TestNode) -> Network {
    let mut contacts = Contacts::default();
    for address in ann.handle.addresses() {
        contacts.add(ann.key(), address.parse().unwrap());
    }
    let contacts = SharedContacts::in_memory(contacts);
    let gatekeeper = Gatekeeper::default();
    gatekeeper.set(&ann.handle.members());
    let (swarm, inbound) = build(Setup {
        secret: &secret(seed),
        names,
        gatekeeper: gatekeeper.clone(),
        contacts: contacts.clone(),
        mdns: false,
        streams: crate::Machine::default().streams,
        kept: 1,
    })
    .unwrap();
    let (driver, network, mut events) = Driver::new(swarm, gatekeeper, contacts, 0, vec![]);
    tokio::spawn(async move {
        driver.run().await;
        drop(inbound);
    });
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    network
}

#[tokio::test]
async fn a_stranger_meets_no_protocol_but_join() {
    let ann = TestNode::founder(1).await;
    let path = ann.shelf.add_small("secret");
    ann.handle.announce(&[path]);
    let network = stranger(9, &ann);
    soon(network.connect(ann.key())).await.unwrap();
    for door in Door::ALL.into_iter().filter(|door| *door != Door::Join) {
        let opened = soon(network.open(ann.key(), door)).await;
        assert_eq!(opened.err(), Some(OpenError::NotOffered(door)), "{door:?}");
    }
    assert!(ann.handle.peers().is_empty() && ann.handle.connected().is_empty());
    // It can say that it has a ticket, and is told that it has none.
    let mut wire = crate::call::open(&network, &Traffic::default(), ann.key(), Door::Join)
        .await
        .unwrap();
    let request = JoinRequest::Redeem {
        swarm: ann.handle.swarm(),
        secret: [0; 16],
        name: "stranger".into(),
    };
    let answer: JoinAnswer = wire.ask(&request).await.unwrap();
    assert!(
        matches!(
            &answer,
            JoinAnswer::Refused {
                reason: JoinRefusal::UnknownTicket,
                ..
            }
        ),
        "{answer:?}"
    );
}

#[tokio::test]
async fn libp2ps_own_protocols_are_not_offered_to_strangers_either() {
    use futures::StreamExt;
    use libp2p::StreamProtocol;
    use libp2p::swarm::SwarmEvent;
    let ann = TestNode::founder(1).await;
    // A plain libp2p node that says what the other side answers it.
    #[derive(libp2p::swarm::NetworkBehaviour)]
    struct Curious {
        identify: libp2p::identify::Behaviour,
        ping: libp2p::ping::Behaviour,
        kad: libp2p::kad::Behaviour<libp2p::kad::store::MemoryStore>,
    }
    let kad_name = format!("/tvix-node/{}/kad/1", ann.handle.swarm());
    let mut swarm =
        libp2p::SwarmBuilder::with_existing_identity(crate::identity::keypair(&secret(9)).unwrap())
            .with_tokio()
            .with_tcp(
                libp2p::tcp::Config::default(),
                libp2p::tls::Config::new,
                libp2p::yamux::Config::default,
            )
            .unwrap()
            .with_behaviour(|keypair| {
                let peer = keypair.public().to_peer_id();
                let config = libp2p::kad::Config::new(StreamProtocol::try_from_owned(kad_name).unwrap());
                Curious {
                    identify: libp2p::identify::Behaviour::new(libp2p::identify::Config::new(
                        "tvix-node/1".into(),
                        keypair.public(),
                    )),
                    ping: libp2p::ping::Behaviour::new(libp2p::ping::Config::new()),
                    kad: libp2p::kad::Behaviour::with_config(
                        peer,
                        libp2p::kad::store::MemoryStore::new(peer),
                        config,
                    ),
                }
            })
            .unwrap()
            .build();
    let address: libp2p::Multiaddr = ann.handle.addresses()[0].parse().unwrap();
    let peer = crate::identity::peer_of(ann.key()).unwrap();
    swarm.behaviour_mut().kad.add_address(&peer, address.clone());
    swarm.dial(address).unwrap();
    let (mut identified, mut pinged) = (None, None);
    let asking = async {
        while identified.is_none() || pinged.is_none() {
            match swarm.select_next_some().await {
                SwarmEvent::Behaviour(CuriousEvent::Identify(libp2p::identify::Event::Received {
                    ..
                })) => {
                    identified = Some(true);
                }
                SwarmEvent::Behaviour(CuriousEvent::Identify(libp2p::identify::Event::Error { .. })) => {
                    identified = Some(false);
                }
                SwarmEvent::Behaviour(CuriousEvent::Ping(event)) => pinged = Some(event.result.is_ok()),
                SwarmEvent::Behaviour(CuriousEvent::Kad(libp2p::kad::Event::RoutingUpdated { .. })) => {}
                _ => {}
            }
        }
    };
    soon(asking).await;
    assert_eq!((identified, pinged), (Some(false), Some(false)));
    let query = swarm.behaviour_mut().kad.get_closest_peers(vec![1, 2, 3]);
    let walking = async {
        loop {
            if let SwarmEvent::Behaviour(CuriousEvent::Kad(libp2p::kad::Event::OutboundQueryProgressed {
                id,
                stats,
                step,
                ..
            })) = swarm.select_next_some().await
                && id == query
                && step.last
            {
                return stats.num_successes();
            }
        }
    };
    assert_eq!(soon(walking).await, 0, "its routing table is for members");
}

/// Whoever listens at the address, it is not who was dialled.
#[tokio::test]
async fn who_has_another_key_than_the_one_that_is_dialled_is_hung_up_on() {
    use futures::StreamExt;
    use libp2p::swarm::dial_opts::DialOpts;
    use libp2p::swarm::{DialError, SwarmEvent};
    let ann = TestNode::founder(1).await;
    for address in ann.handle.addresses() {
        let (mut swarm, _inbound) = build(Setup {
            secret: &secret(9),
            // Who is no member of anything may dial whom it likes.
            names: Names::join_only(),
            gatekeeper: Gatekeeper::default(),
            contacts: SharedContacts::in_memory(Contacts::default()),
            mdns: false,
            streams: crate::Machine::default().streams,
            kept: 1,
        })
        .unwrap();
        let dialled = DialOpts::peer_id(crate::identity::peer_of(key(2)).unwrap())
            .addresses(vec![address.parse().unwrap()])
            .build();
        swarm.dial(dialled).unwrap();
        let failing = async {
            loop {
                match swarm.select_next_some().await {
                    SwarmEvent::OutgoingConnectionError { error, .. } => return error,
                    SwarmEvent::ConnectionEstablished { peer_id, .. } => panic!("connected with {peer_id}"),
                    _ => {}
                }
            }
        };
        let error = soon(failing).await;
        let expected = crate::identity::peer_of(ann.key()).unwrap();
        assert!(
            matches!(&error, DialError::WrongPeerId { obtained, .. } if *obtained == expected),
            "{address}: {error}"
        );
    }
}

/// Takes some ten seconds: so long a connection may take to be made.
#[tokio::test]
async fn who_begins_a_handshake_and_says_no_more_is_hung_up_on() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let ann = TestNode::founder(1).await;
    let address = ann.handle.addresses()[0].clone();
    let port = address.split('/').nth(4).unwrap();
    let mut socket = tokio::net::TcpStream::connect(format!("127.0.0.1:{port}"))
        .await
        .unwrap();
    let agreed = b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n";
    socket.write_all(agreed).await.unwrap();
    let mut heard = vec![];
    // It may end in an error instead: what was said last was not read.
    let end = soon(socket.read_to_end(&mut heard)).await;
    assert_eq!(heard, agreed, "{end:?}");
}

#[tokio::test]
async fn this_node_does_not_dial_strangers() {
    let ann = TestNode::founder(1).await;
    let bob = TestNode::founder(2).await;
    ann.handle.core().contacts.with(|contacts| {
        for address in bob.handle.addresses() {
            contacts.add(bob.key(), address.parse().unwrap());
        }
    });
    let error = soon(ann.handle.connect(bob.key())).await.unwrap_err().to_string();
    assert!(error.contains("cannot reach"), "{error}");
    assert!(ann.handle.connected().is_empty());
}

#[tokio::test]
async fn two_teams_on_one_machine_do_not_speak() {
    let ann = TestNode::founder(1).await;
    let bob = TestNode::founder(2).await;
    let network = stranger(2, &ann);
    soon(network.connect(ann.key())).await.unwrap();
    let result = crate::call::open(&network, &Traffic::default(), ann.key(), Door::Presence).await;
    assert!(matches!(result, Err(CallError::Open { .. })));
    assert_ne!(ann.handle.swarm(), bob.handle.swarm());
}
