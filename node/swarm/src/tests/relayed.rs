//! Members that nobody can dial, as behind a NAT: they listen nowhere.

use super::*;
use crate::net::network::ConnectError;

/// Ann, whom all can dial, and two who can only dial. `relay`: whether Ann passes connections on.
async fn ann_and_two_unreachable(relay: bool) -> (TestNode, TestNode, TestNode) {
    let home = tempfile::tempdir().unwrap();
    let me = Founder {
        key: key(1),
        name: "ann".to_owned(),
    };
    let team = Team::found(home.path(), "team", me, vec![], 1).unwrap();
    let ann = TestNode::start_with(1, home, team, honestly, |config| config.relay = relay).await;
    let unreachable = |config: &mut Config| config.listen.clear();
    let mut bob = ann.invite_as(2, Roles::all(), honestly, unreachable).await;
    let mut cat = ann.invite_as(3, Roles::all(), honestly, unreachable).await;
    bob.meets(ann.key()).await;
    cat.meets(ann.key()).await;
    (ann, bob, cat)
}

fn is_through_another(node: &TestNode, peer: NodeKey) -> bool {
    let overview = node.handle.overview();
    let connections = &overview[&peer].connections;
    !connections.is_empty() && connections.iter().all(|address| address.contains("/p2p-circuit"))
}

#[tokio::test]
async fn two_whom_nobody_can_dial_meet_through_a_third() {
    let (ann, mut bob, cat) = ann_and_two_unreachable(true).await;
    // More than the library would pass on.
    let content = super::shelf::noise(7, 3 << 20);
    let tree = cat.shelf.add_directory(&[("file", &content)]);
    cat.shelf.add_path("large", tree);
    eventually(async || bob.handle.connect(cat.key()).await.is_ok()).await;
    bob.meets(cat.key()).await;
    assert!(is_through_another(&bob, cat.key()));
    let arrival = soon(bob.handle.fetch_tree(tree, vec![cat.key()], None))
        .await
        .unwrap();
    bob.shelf.adopt(&arrival);
    assert!(bob.shelf.is_complete(tree));
    // Neither tells that it lets itself be reached through another where it invites: who is invited cannot use it.
    let ticket = cat.ticket().await;
    assert!(
        ticket
            .addresses
            .iter()
            .all(|address| !address.contains("circuit"))
    );
    // With the one between, the connection is gone.
    ann.handle.shutdown().await;
    eventually(async || !bob.handle.connected().contains(&cat.key())).await;
}

#[tokio::test]
async fn the_owner_ends_what_is_passed_on_and_lets_it_begin_again() {
    let (ann, mut bob, cat) = ann_and_two_unreachable(true).await;
    eventually(async || bob.handle.connect(cat.key()).await.is_ok()).await;
    bob.meets(cat.key()).await;
    assert!(is_through_another(&bob, cat.key()));
    ann.handle.set_relaying(false);
    eventually(async || !bob.handle.connected().contains(&cat.key())).await;
    let refused = soon(bob.handle.connect(cat.key())).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Unreachable { .. }), "{refused}");
    // They go on speaking with ann herself.
    assert!(bob.handle.connected().contains(&ann.key()) && cat.handle.connected().contains(&ann.key()));
    ann.handle.set_relaying(true);
    eventually(async || bob.handle.connect(cat.key()).await.is_ok()).await;
}

#[tokio::test]
async fn what_is_passed_on_goes_at_the_rate_of_the_one_between() {
    let (ann, mut bob, cat) = ann_and_two_unreachable(true).await;
    let content = super::shelf::noise(8, 2 << 20);
    let tree = cat.shelf.add_directory(&[("file", &content)]);
    cat.shelf.add_path("large", tree);
    eventually(async || bob.handle.connect(cat.key()).await.is_ok()).await;
    bob.meets(cat.key()).await;
    ann.handle.set_caps(crate::Caps {
        upload: Some(1 << 20),
        download: None,
    });
    let since = std::time::Instant::now();
    let arrival = soon(bob.handle.fetch_tree(tree, vec![cat.key()], None)).await;
    bob.shelf.adopt(&arrival.unwrap());
    let took = since.elapsed();
    assert!(
        took >= Duration::from_millis(1900),
        "2 MiB at 1 MiB/s took {took:?}"
    );
    assert!(bob.shelf.is_complete(tree));
}

#[tokio::test]
async fn who_does_not_want_to_passes_nothing_on() {
    let (_ann, bob, cat) = ann_and_two_unreachable(false).await;
    tokio::time::sleep(crate::limits::RELAY_PATIENCE + Duration::from_secs(2)).await;
    let refused = soon(bob.handle.connect(cat.key())).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Unreachable { .. }), "{refused}");
    assert!(
        !cat.handle
            .addresses()
            .iter()
            .any(|address| address.contains("circuit"))
    );
}

#[tokio::test]
async fn who_is_put_out_is_not_reached_through_others_either() {
    let (ann, mut bob, cat) = ann_and_two_unreachable(true).await;
    eventually(async || bob.handle.connect(cat.key()).await.is_ok()).await;
    bob.meets(cat.key()).await;
    ann.handle.revoke(cat.key()).await.unwrap();
    eventually(async || !bob.handle.connected().contains(&cat.key())).await;
    eventually(async || !ann.handle.connected().contains(&cat.key())).await;
    let refused = soon(bob.handle.connect(cat.key())).await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn nothing_is_passed_on_for_strangers() {
    use futures::StreamExt;
    use libp2p::multiaddr::Protocol;
    use libp2p::swarm::SwarmEvent;
    let ann = TestNode::founder(1).await;
    let mut swarm =
        libp2p::SwarmBuilder::with_existing_identity(crate::identity::keypair(&secret(9)).unwrap())
            .with_tokio()
            .with_tcp(
                libp2p::tcp::Config::default(),
                libp2p::tls::Config::new,
                libp2p::yamux::Config::default,
            )
            .unwrap()
            .with_relay_client(libp2p::tls::Config::new, libp2p::yamux::Config::default)
            .unwrap()
            .with_behaviour(|_, relayed| relayed)
            .unwrap()
            .build();
    let address: libp2p::Multiaddr = ann.handle.addresses()[0].parse().unwrap();
    let peer = crate::identity::peer_of(ann.key()).unwrap();
    let way = address.with(Protocol::P2p(peer)).with(Protocol::P2pCircuit);
    let listener = swarm.listen_on(way).unwrap();
    let refused = async {
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::ListenerClosed {
                    listener_id, reason, ..
                } if listener_id == listener => return reason.is_err(),
                SwarmEvent::Behaviour(libp2p::relay::client::Event::ReservationReqAccepted { .. }) => {
                    return false;
                }
                _ => {}
            }
        }
    };
    assert!(soon(refused).await);
}
