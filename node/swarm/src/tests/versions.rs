//! Programs of another version: what each side says to whom it cannot speak with.

use super::strangers::speaking;
use super::*;
use crate::call::CallError;
use crate::net::contacts::{Contacts, SharedContacts};
use crate::net::door::Names;
use crate::net::driver::Driver;
use crate::net::gatekeeper::Gatekeeper;
use crate::net::network::Network;
use crate::net::transport::{Setup, build};
use crate::net::{Door, OpenError};
use crate::protocols::hello;
use crate::team::JoinError;

/// Ann, and Bob whose program calls its doors by these names; Ann has heard what Bob offers.
async fn ann_and(names: impl FnOnce(&TestNode) -> Names) -> (TestNode, NodeKey, Network) {
    let ann = TestNode::founder(1).await;
    let bob = ann.invite(2).await;
    let key = bob.key();
    bob.handle.shutdown().await;
    let network = speaking(names(&ann), 2, &ann);
    soon(network.connect(ann.key())).await.unwrap();
    eventually(async || {
        let refused = ann.handle.core().try_open(key, Door::Texts).await;
        matches!(
            refused,
            Err(CallError::Open {
                source: OpenError::OtherVersion { .. },
                ..
            })
        )
    })
    .await;
    (ann, key, network)
}

#[tokio::test]
async fn a_member_whose_program_is_newer_is_named_with_both_versions_and_the_way_out() {
    let newer = |ann: &TestNode| Names::with_versions(ann.handle.swarm(), |door| door.version() + 1);
    let (mut ann, bob, _network) = ann_and(newer).await;
    let error = soon(hello::greet(&ann.handle.core().clone(), bob))
        .await
        .unwrap_err();
    let said = "the peer speaks 'hello' in version 2, and this node in version 1: update this node";
    assert!(error.to_string().contains(said), "{error}");
    let said_aloud = |_: &SwarmHandle, notice: Option<&Notice>| matches!(notice, Some(Notice::PeerUnusable { peer, message }) if *peer == bob && message == said);
    ann.notice(said_aloud).await;
    // Whichever door it is, and nobody is cut off for it.
    for door in Door::ALL
        .into_iter()
        .filter(|door| !matches!(door, Door::Hop | Door::Stop))
    {
        let error = soon(ann.handle.core().open(bob, door))
            .await
            .err()
            .unwrap()
            .to_string();
        let (name, ours) = (door.name(), door.version());
        let said = format!(
            "the peer speaks '{name}' in version {}, and this node in version {ours}: update this node",
            ours + 1
        );
        assert!(error.contains(&said), "{door:?}: {error}");
    }
    assert!(ann.handle.connected().contains(&bob));
}

#[tokio::test]
async fn a_member_whose_program_is_older_is_told_apart_from_one_that_is_newer() {
    let older = |ann: &TestNode| Names::with_versions(ann.handle.swarm(), |door| door.version() - 1);
    let (ann, bob, _network) = ann_and(older).await;
    let error = soon(ann.handle.core().open(bob, Door::Build))
        .await
        .err()
        .unwrap();
    let said = "the peer speaks 'build' in version 1, and this node in version 2: update the peer";
    assert!(error.to_string().contains(said), "{error}");
}

#[tokio::test]
async fn a_member_whose_program_has_not_a_door_at_all_is_not_taken_for_one_that_does_not_know_this_node() {
    let without = |ann: &TestNode| Names::of(ann.handle.swarm()).without(Door::Texts);
    let (ann, bob, _network) = ann_and(without).await;
    let error = soon(ann.handle.core().open(bob, Door::Texts))
        .await
        .err()
        .unwrap();
    let said = "does not offer 'texts', of which this node speaks version 1, in any version";
    assert!(error.to_string().contains(said), "{error}");
    assert!(ann.handle.core().try_open(bob, Door::Hello).await.is_ok());
}

#[tokio::test]
async fn who_joins_at_a_program_of_another_version_is_told_which_it_is() {
    let secret_of_inviter = secret(5);
    let swarm_id = tvix_node_protocol::build::SwarmId([9; 32]);
    let (gatekeeper, contacts) = (
        Gatekeeper::default(),
        SharedContacts::in_memory(Contacts::default()),
    );
    let (mut swarm, _inbound) = build(Setup {
        secret: &secret_of_inviter,
        names: Names::with_versions(swarm_id, |door| door.version() + 3),
        gatekeeper: gatekeeper.clone(),
        contacts: contacts.clone(),
        mdns: false,
        streams: crate::Machine::default().streams,
        kept: 1,
    })
    .unwrap();
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    let (driver, network, _events) = Driver::new(swarm, gatekeeper, contacts, 0, vec![]);
    let driver = tokio::spawn(driver.run());
    eventually(async || !network.addresses().is_empty()).await;
    let ticket = Ticket {
        swarm: swarm_id,
        inviter: secret_of_inviter.key(),
        addresses: network.addresses().iter().map(ToString::to_string).collect(),
        not_after: now() + DAY,
        secret: [7; 16],
        founder: None,
    };
    let home = tempfile::tempdir().unwrap();
    let (own, clock) = (secret(6), Clock::system());
    let joined = join(home.path(), &own, &ticket, "node 6", &clock);
    let error = soon(joined).await.unwrap_err();
    assert!(matches!(error, JoinError::Version { .. }), "{error}");
    let said = "the peer speaks 'join' in version 4, and this node in version 1: update this node";
    assert!(error.to_string().contains(said), "{error}");
    driver.abort();
}
