//! Members that dial each other to see whether they can.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tvix_node_protocol::limits::REACHABILITY_PORTS;
use tvix_node_protocol::messages::{ListenPort, ReachabilityAnswer, ReachabilityQuestion};

use super::*;
use crate::Reached;
use crate::core::Core;
use crate::limits::DIAL_BACKS_PER_MINUTE;
use crate::net::Door;
use crate::net::doors::Inbound;
use crate::net::wire::Wire;

async fn asks(node: &TestNode, peer: NodeKey, ports: Vec<ListenPort>) -> ReachabilityAnswer {
    let core = node.handle.core();
    let mut wire = core.open(peer, Door::Reachability).await.unwrap();
    let question = ReachabilityQuestion { ports };
    soon(wire.ask(&question)).await.unwrap()
}

/// Waits until a node has had itself dialled: another question while it does would find the other one busy.
async fn has_been_dialled(node: &TestNode) {
    eventually(async || node.handle.reached() == Reached::ByAll).await;
}

#[tokio::test]
async fn members_find_out_that_they_can_be_dialled() {
    let mut ann = TestNode::founder(1).await;
    let bob = ann.invite(2).await;
    ann.meets(bob.key()).await;
    for (node, other) in [(&ann, bob.key()), (&bob, ann.key())] {
        eventually(async || node.handle.reached() == Reached::ByAll).await;
        assert_eq!(node.handle.reached_by(), [(other, true)].into());
        let ways = node.handle.addresses();
        assert!(ways.iter().all(|way| !way.contains("circuit")), "{ways:?}");
    }
    // The connection over which it was asked for is still there.
    assert!(ann.handle.connected().contains(&bob.key()));
}

#[tokio::test]
async fn who_listens_nowhere_asks_nobody_and_lets_itself_be_reached_through_another() {
    let ann = TestNode::founder(1).await;
    let unreachable = |config: &mut Config| config.listen.clear();
    let mut bob = ann.invite_as(2, Roles::all(), honestly, unreachable).await;
    bob.meets(ann.key()).await;
    eventually(async || bob.handle.addresses().iter().any(|way| way.contains("circuit"))).await;
    assert_eq!(bob.handle.reached(), Reached::Unknown);
}

#[tokio::test]
async fn a_port_where_nobody_answers_or_somebody_else_does_is_not_reached() {
    let mut ann = TestNode::founder(1).await;
    let bob = ann.invite(2).await;
    ann.meets(bob.key()).await;
    has_been_dialled(&ann).await;
    let dialled = |reached: Vec<ListenPort>| ReachabilityAnswer::Dialled {
        seen: "127.0.0.1".to_owned(),
        reached,
    };
    // Nobody answers where nobody listens any more.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = ListenPort::Tcp(listener.local_addr().unwrap().port());
    drop(listener);
    assert_eq!(asks(&ann, bob.key(), vec![closed]).await, dialled(vec![]));
    let own = |node: &TestNode| {
        let ways = node.handle.addresses();
        let tcp = ways.iter().find(|way| way.contains("/tcp/")).unwrap();
        ListenPort::Tcp(tcp.rsplit('/').next().unwrap().parse().unwrap())
    };
    let cat = ann.invite(3).await;
    assert_eq!(
        asks(&ann, bob.key(), vec![own(&cat)]).await,
        dialled(vec![]),
        "that is cat"
    );
    assert_eq!(
        asks(&ann, bob.key(), vec![own(&ann)]).await,
        dialled(vec![own(&ann)])
    );
}

#[tokio::test]
async fn a_port_is_reached_although_there_are_as_many_connections_as_there_may_be() {
    let mut ann = TestNode::founder(1).await;
    let bob = ann.invite(2).await;
    ann.meets(bob.key()).await;
    has_been_dialled(&ann).await;
    let ports = || {
        let ways = ann.handle.addresses().into_iter();
        let port = |way: String| -> Option<ListenPort> {
            let port = way.split('/').nth(4)?.parse().ok()?;
            Some(if way.contains("quic") {
                ListenPort::Quic(port)
            } else {
                ListenPort::Tcp(port)
            })
        };
        ways.filter_map(port).collect::<Vec<_>>()
    };
    eventually(async || ports().len() == REACHABILITY_PORTS).await;
    // Each time two more, which stay for a moment.
    for _ in 0..4 {
        let ReachabilityAnswer::Dialled { mut reached, .. } = asks(&ann, bob.key(), ports()).await else {
            panic!("bob does not dial");
        };
        let mut wanted = ports();
        wanted.sort();
        reached.sort();
        assert_eq!(reached, wanted);
    }
}

#[tokio::test]
async fn nobody_has_others_dial_without_end() {
    let mut ann = TestNode::founder(1).await;
    let bob = ann.invite(2).await;
    ann.meets(bob.key()).await;
    let many = vec![ListenPort::Tcp(1); REACHABILITY_PORTS + 1];
    assert_eq!(asks(&ann, bob.key(), many).await, ReachabilityAnswer::Busy);
    let mut answers = vec![];
    for _ in 0..=DIAL_BACKS_PER_MINUTE {
        answers.push(asks(&ann, bob.key(), vec![]).await);
    }
    assert_eq!(answers.pop(), Some(ReachabilityAnswer::Busy));
}

/// Says to have dialled, and has not.
fn falsely(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    if inbound.door != Door::Reachability {
        return honestly(core, inbound);
    }
    async move {
        let mut wire = Wire::new(
            core.traffic
                .counted_serving(inbound.stream, inbound.peer, inbound.door),
        );
        let question: ReachabilityQuestion = wire.reader.receive().await.unwrap();
        let answer = ReachabilityAnswer::Dialled {
            seen: "203.0.113.77".to_owned(),
            reached: question.ports,
        };
        wire.answer(&answer).await.unwrap();
        drop(inbound.permits);
    }
    .boxed()
}

#[tokio::test]
async fn a_word_without_a_connection_counts_for_nothing() {
    let home = tempfile::tempdir().unwrap();
    let me = Founder {
        key: key(1),
        name: "ann".to_owned(),
    };
    let team = Team::found(home.path(), "team", me, vec![], 1).unwrap();
    // With one way to her, bob makes one connection, and that before she asks.
    let one_way = |config: &mut Config| config.listen.truncate(1);
    let mut ann = TestNode::start_with(1, home, team, honestly, one_way).await;
    let bob = ann.invite_as(2, Roles::all(), falsely, |_| ()).await;
    ann.meets(bob.key()).await;
    let reachability = ann.handle.core().network.reachability();
    let has_said = || {
        let asked = vec![(bob.key(), "127.0.0.1".parse().unwrap())];
        reachability.with(|known| known.ask_now(asked, Instant::now()).is_empty())
    };
    eventually(async || has_said()).await;
    let ways = ann.handle.addresses();
    assert!(ways.iter().all(|way| !way.contains("203.0.113.77")), "{ways:?}");
    assert_eq!(ann.handle.reached(), Reached::Unknown);
}
