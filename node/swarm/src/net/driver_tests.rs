use std::sync::Arc;

use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::envelope::NodeSecret;

use super::*;
use crate::limits::{PING_INTERVAL, PING_TIME};
use crate::machine::Machine;
use crate::net::contacts::Contacts;
use crate::net::door::Names;
use crate::net::transport::{Setup, build};
use crate::roster::Members;

/// A driver that is not running, and what belongs to it.
fn driver() -> (Driver, Network, mpsc::Receiver<NetEvent>) {
    let (gatekeeper, contacts) = (
        Gatekeeper::default(),
        SharedContacts::in_memory(Contacts::default()),
    );
    let (swarm, _inbound) = build(Setup {
        secret: &NodeSecret::from_bytes(&[1; 32]),
        names: Names::of(SwarmId([1; 32])),
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

/// Two members that are connected, neither running, and the key of the second.
async fn connected_pair() -> (Driver, Driver, NodeKey) {
    pair(true).await
}

/// The same; or the second takes the first, which dials it, for a stranger.
async fn pair(known: bool) -> (Driver, Driver, NodeKey) {
    let (secrets, team) = (
        [1, 2].map(|seed| NodeSecret::from_bytes(&[seed; 32])),
        SwarmId([1; 32]),
    );
    let [mut one, mut two] = secrets.each_ref().map(|secret| {
        let (gatekeeper, contacts) = (
            Gatekeeper::default(),
            SharedContacts::in_memory(Contacts::default()),
        );
        for other in secrets
            .iter()
            .filter(|other| known || (secret.key() == secrets[0].key() && other.key() != secret.key()))
        {
            gatekeeper.let_in(peer_of(other.key()).unwrap());
        }
        let (swarm, _inbound) = build(Setup {
            secret,
            names: Names::of(team),
            gatekeeper: gatekeeper.clone(),
            contacts: contacts.clone(),
            mdns: false,
            streams: Arc::clone(&Machine::default().streams),
            kept: 1,
        })
        .unwrap();
        Driver::new(swarm, gatekeeper, contacts, 1, vec![]).0
    });
    let key = secrets[1].key();
    two.swarm
        .listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap())
        .unwrap();
    while one.connected.borrow().is_empty() || (two.connected.borrow().is_empty() && two.strangers.is_empty())
    {
        tokio::select! {
            event = one.swarm.select_next_some() => one.on_event(event),
            event = two.swarm.select_next_some() => {
                if let SwarmEvent::NewListenAddr { address, .. } = &event {
                    one.contacts.with(|contacts| contacts.add(key, address.clone()));
                    one.dial(peer_of(key).unwrap());
                }
                two.on_event(event);
            }
        }
    }
    (one, two, key)
}

#[tokio::test]
async fn a_connection_over_which_no_answer_comes_is_closed_and_one_that_answers_is_not() {
    let (mut one, _two, key) = connected_pair().await;
    let connection = *one.silence.watched().next().unwrap();
    let peer = peer_of(key).unwrap();
    let answered = |result| {
        BehaviourEvent::Ping(ping::Event {
            peer,
            connection,
            result,
        })
    };
    let mut now = Instant::now();
    let bound = (PING_INTERVAL + PING_TIME).as_secs();
    let mut pass = |one: &mut Driver, seconds| {
        for _ in 0..seconds {
            now += Duration::from_secs(1);
            one.on_tick(now);
        }
        one.silence.watched().count()
    };
    for _ in 0..3 {
        assert_eq!(pass(&mut one, bound - 1), 1);
        one.on_behaviour(answered(Ok(Duration::from_millis(1))));
    }
    // Whatever it is that fails.
    let failure = || ping::Failure::Other {
        error: "the stream cannot be opened".into(),
    };
    one.on_behaviour(answered(Err(failure())));
    assert_eq!(pass(&mut one, bound - 1), 1);
    one.on_behaviour(answered(Err(failure())));
    assert_eq!(pass(&mut one, 1), 0);
    // The other one is not there to take part in it.
    while !one.connected.borrow().is_empty() {
        let event = one.swarm.select_next_some().await;
        one.on_event(event);
    }
}

/// Whether one of two loses its connection, sooner than as one that nobody uses.
async fn is_cut_off(one: &mut Driver, two: &mut Driver) -> bool {
    let cut_off = async {
        while !one.connected.borrow().is_empty() {
            tokio::select! {
                event = one.swarm.select_next_some() => one.on_event(event),
                event = two.swarm.select_next_some() => two.on_event(event),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), cut_off)
        .await
        .is_ok()
}

/// Lets so much time pass for one of two, and says whether the other one stays connected with it.
async fn stays_after(one: &mut Driver, two: &mut Driver, at: Instant) -> bool {
    two.on_tick(at);
    if !two.strangers.is_empty() {
        return true;
    }
    !is_cut_off(one, two).await
}

#[tokio::test]
async fn a_stranger_has_so_long_to_become_a_member_and_less_once_it_is_one() {
    let second = Duration::from_secs(1);
    for (admitted, time) in [(false, STRANGER_TIME), (true, ADMITTED_TIME)] {
        let (mut one, mut two, _) = pair(false).await;
        let (peer, since) = *two.strangers.values().next().unwrap();
        if admitted {
            two.gatekeeper.let_in(peer);
        }
        assert!(stays_after(&mut one, &mut two, since + time - second).await);
        assert!(!stays_after(&mut one, &mut two, since + time).await, "{time:?}");
    }
}

#[tokio::test]
async fn who_does_not_know_the_question_is_not_cut_off_for_not_answering_it() {
    let (mut one, _two, key) = connected_pair().await;
    let connection = *one.silence.watched().next().unwrap();
    let (peer, result) = (peer_of(key).unwrap(), Err(ping::Failure::Unsupported));
    one.on_behaviour(BehaviourEvent::Ping(ping::Event {
        peer,
        connection,
        result,
    }));
    assert_eq!(one.silence.watched().count(), 0);
}

#[tokio::test]
async fn who_is_no_member_any_more_is_cut_off_also_where_it_comes_as_a_stranger_at_the_same_time() {
    let (mut one, mut two, key) = connected_pair().await;
    let (peer, strange) = (peer_of(key).unwrap(), ConnectionId::new_unchecked(usize::MAX));
    // The one over which it joined, which stays for a moment.
    one.strangers.insert(strange, (peer, Instant::now()));
    one.gatekeeper.set(&Members::default());
    one.members_changed(&BTreeSet::new());
    assert!(is_cut_off(&mut one, &mut two).await);
    assert!(one.of_members.is_empty() && one.strangers.contains_key(&strange));
}
