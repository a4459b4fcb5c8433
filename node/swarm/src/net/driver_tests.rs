use std::sync::Arc;

use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::envelope::NodeSecret;

use super::*;
use crate::machine::Machine;
use crate::net::contacts::Contacts;
use crate::net::transport::{Setup, build};

/// A driver that is not running, and what belongs to it.
fn driver() -> (Driver, Network, mpsc::Receiver<NetEvent>) {
    let (gatekeeper, contacts) = (
        Gatekeeper::default(),
        SharedContacts::in_memory(Contacts::default()),
    );
    let (swarm, _inbound) = build(Setup {
        secret: &NodeSecret::from_bytes(&[1; 32]),
        swarm: Some(SwarmId([1; 32])),
        gatekeeper: gatekeeper.clone(),
        contacts: contacts.clone(),
        mdns: false,
        streams: Arc::clone(&Machine::default().streams),
        kept: 1,
    })
    .unwrap();
    Driver::new(swarm, gatekeeper, contacts, 1, vec![])
}

#[tokio::test]
async fn so_many_walks_are_made_at_once_and_more_make_do_with_what_is_known() {
    let (mut driver, _network, _events) = driver();
    let mut walk = |walk| {
        let (reply, answer) = oneshot::channel();
        let label = b"label".to_vec();
        driver.on_command(Command::Closest { label, walk, reply });
        answer
    };
    let mut walks: Vec<_> = (0..WALKS).map(|_| walk(true)).collect();
    assert_eq!(walk(true).try_recv(), Ok(vec![]), "one too many");
    assert_eq!(walk(false).try_recv(), Ok(vec![]));
    assert!(walks.iter_mut().all(|answer| answer.try_recv().is_err()));
    assert_eq!(driver.walks.len(), WALKS);
}

#[tokio::test]
async fn reports_that_nobody_attends_to_do_not_pile_up_and_hold_nothing_up() {
    let (driver, _network, mut events) = driver();
    for _ in 0..=NETWORK_EVENTS {
        driver.report(NetEvent::Gone(NodeKey([1; 32])));
    }
    assert_eq!(events.len(), NETWORK_EVENTS);
    assert!(events.recv().await.is_some());
    driver.report(NetEvent::Gone(NodeKey([2; 32])));
    assert_eq!(events.len(), NETWORK_EVENTS);
}
