//! What goes past a bound.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tvix_node_protocol::envelope::Envelope;
use tvix_node_protocol::limits::{
    INTRODUCTION_BYTES, PATHS_ANSWER, PRESENCE_QUESTION_KEYS, PUSH_BYTES, SHOWN_BYTES, UNDERWAY_KEYS,
};
use tvix_node_protocol::messages::{
    Claim, JoinAnswer, JoinRequest, Message, PathAnswer, PathsQuestion, PresenceAnswer, PresenceCells,
    PresenceQuestion, PresenceRefusal, PushFrame, PushOffer, PushRefusal, RefusalReason, Shown,
};
use tvix_node_protocol::nix::store_path::StorePath;

use super::strangers::stranger;
use super::*;
use crate::FetchOrder;
use crate::core::Core;
use crate::limits::{
    ANSWER_TIME, CONNECTIONS_PER_PEER, EVENTS, FETCHES, PRESENCE_CELLS_PER_PUT, PRESENCE_QUERY_LEAST,
    PRESENCE_QUESTIONS_PER_MINUTE, PRESENCE_ROUNDS, PRESENCE_STATEMENTS_PER_MINUTE, PUSHES_TAKEN,
    PUSHES_TAKEN_PER_PEER, SHARES, STRANGERS, STREAMS,
};
use crate::line::{Priority, Rising};
use crate::net::Door;
use crate::net::doors::Inbound;
use crate::net::network::Network;
use crate::protocols::build::BuildEvent;
use crate::{CallError, PathsError, PushError};

/// Something whose path info is large: it refers to much.
fn large(node: &TestNode, name: &str) -> Shown {
    let path = node.shelf.add_small(name);
    static REFERENCES: OnceLock<BTreeSet<StorePath>> = OnceLock::new();
    let references = || {
        (0..20_000)
            .map(|number| super::shelf::path(&format!("r{number}")))
            .collect()
    };
    node.shelf
        .refer(&path, REFERENCES.get_or_init(references).clone());
    node.shelf.shown(&path)
}

#[tokio::test]
async fn an_answer_about_paths_ends_at_its_bound_and_the_rest_is_asked_for_anew() {
    let mut ann = TestNode::founder(1).await;
    let bob = ann.invite(2).await;
    ann.meets(bob.key()).await;
    let one = large(&bob, "p0");
    let size = tvix_node_protocol::cbor::to_vec(&PathAnswer {
        shown: Some(one.clone()),
    })
    .unwrap()
    .len();
    let count = PATHS_ANSWER / size + 3;
    let mut paths = vec![one.info.path.clone()];
    paths.extend((1..count).map(|number| large(&bob, &format!("p{number}")).info.path));
    let mut wire = ann.handle.core().open(bob.key(), Door::Paths).await.unwrap();
    let question = PathsQuestion::about(&paths);
    wire.writer.send(&question).await.unwrap();
    wire.writer.flush().await.unwrap();
    let mut answers = 0;
    while wire
        .reader
        .receive_or_end::<PathAnswer>()
        .await
        .unwrap()
        .is_some()
    {
        answers += 1;
    }
    // All are about as large as the first.
    let bytes = answers * size;
    assert!(
        answers < count && bytes <= PATHS_ANSWER + SHOWN_BYTES,
        "{answers} {bytes}"
    );
    // Nor does one call bring more than it may, in however many answers.
    let asked = crate::protocols::paths::ask_within(ann.handle.core(), bob.key(), &paths, (count - 1) * size);
    let asked = soon(asked).await;
    assert!(matches!(asked, Err(PathsError::TooLarge { .. })), "{asked:?}");
    let all = soon(ann.handle.path_infos(bob.key(), &paths)).await.unwrap();
    let names: Vec<StorePath> = all.into_iter().map(|shown| shown.unwrap().info.path).collect();
    assert_eq!(names, paths);
}

#[tokio::test]
async fn a_push_is_refused_before_its_offer_is_read() {
    let mut ann = TestNode::founder(1).await;
    let bob = ann.invite_as(2, roles(&[Role::Build]), honestly, |_| ()).await;
    ann.meets(bob.key()).await;
    let offer: Vec<Shown> = (0..24).map(|number| large(&ann, &format!("p{number}"))).collect();
    let size = tvix_node_protocol::cbor::to_vec(&offer).unwrap().len() as u64;
    let pushed = soon(ann.handle.push(bob.key(), offer)).await;
    let Err(PushError::Refused { reason, .. }) = pushed else {
        panic!("{pushed:?}")
    };
    assert_eq!(reason, PushRefusal::NotAStore);
    let came = bob
        .handle
        .traffic()
        .get(&ann.key())
        .map_or(0, |traffic| traffic.other_received);
    assert!(came < size / 4, "{came} of {size} bytes were read");
}

/// What is answered to a message that is sent as it is, however large; none: the stream is closed instead.
async fn answered<Q: Message, A: Message>(mut wire: crate::net::wire::Wire, question: &Q) -> Option<A> {
    let bytes = tvix_node_protocol::cbor::to_vec(question).unwrap();
    // The other end may have closed before all of it was sent.
    wire.writer.send_raw(&bytes).await.ok();
    wire.writer.flush().await.ok();
    soon(wire.reader.receive_or_end::<A>()).await.ok().flatten()
}

#[tokio::test]
async fn a_stranger_is_not_listened_to_beyond_an_introduction() {
    let ann = TestNode::founder(1).await;
    let (network, traffic) = (stranger(9, &ann), crate::net::Traffic::default());
    let asked = async |size: usize| {
        let statement = Envelope {
            domain: String::new(),
            version: 1,
            signer: key(9),
            payload: vec![0; size],
            signature: [0; 64],
        };
        let question = JoinRequest::Introduce {
            swarm: ann.handle.swarm(),
            statements: vec![statement],
        };
        let wire = crate::call::open(&network, &traffic, ann.key(), Door::Join);
        answered::<_, JoinAnswer>(soon(wire).await.unwrap(), &question).await
    };
    let told = asked(INTRODUCTION_BYTES - 1024).await;
    assert!(matches!(told, Some(JoinAnswer::Refused { .. })), "{told:?}");
    assert_eq!(asked(INTRODUCTION_BYTES).await, None);
    let told = asked(100).await;
    assert!(matches!(told, Some(JoinAnswer::Refused { .. })), "{told:?}");
}

#[tokio::test]
async fn a_store_does_not_listen_to_an_offer_beyond_its_bound() {
    let mut ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    ann.meets(bob.key()).await;
    let (shown, to) = (ann.shelf.shown(&ann.shelf.add_small("pushed")), bob.key());
    let record = |size| Envelope {
        domain: String::new(),
        version: 1,
        signer: key(1),
        payload: vec![0; size],
        signature: [0; 64],
    };
    let offered = async |bytes: usize| {
        let with_record = Shown {
            record: Some(record(bytes)),
            ..shown.clone()
        };
        let offer = PushOffer {
            paths: vec![with_record],
        };
        let wire = ann.handle.core().open(to, Door::Push).await.unwrap();
        answered::<_, PushFrame>(wire, &offer).await
    };
    assert_eq!(offered(PUSH_BYTES).await, None);
    assert!(bob.events.pushes.try_recv().is_err(), "nobody hears of it");
    let (frame, taken) = tokio::join!(offered(PUSH_BYTES - 4096), async {
        soon(bob.events.pushes.recv()).await.unwrap().accept()
    });
    assert_eq!(frame, Some(PushFrame::Heartbeat));
    drop(taken);
}

#[tokio::test]
async fn a_question_about_records_costs_as_much_as_some_keys_do_however_few_it_has() {
    let time = now();
    let mut ann = TestNode::founder_as(1, |config| config.clock = Clock::new(move || time)).await;
    let bob = ann.invite(2).await;
    ann.meets(bob.key()).await;
    let epoch = ann.handle.core().team.presence_secret().epoch();
    let keys = vec![0; 16];
    let (query, have) = (
        PresenceQuestion::Query {
            epoch,
            keys: keys.clone(),
        },
        PresenceQuestion::Have { epoch, keys },
    );
    let least = u32::try_from(PRESENCE_QUERY_LEAST).unwrap();
    // All but what two such questions cost, and one key.
    let taken = crate::core::lock(&ann.handle.core().allowance).take(
        bob.key(),
        PRESENCE_QUESTIONS_PER_MINUTE - 2 * least - 1,
        time,
    );
    assert!(taken);
    let mut wire = bob.handle.core().open(ann.key(), Door::Presence).await.unwrap();
    let mut asked = async |question: &PresenceQuestion| soon(wire.ask(question)).await.unwrap();
    let busy = PresenceAnswer::Refused {
        reason: PresenceRefusal::Busy,
    };
    for _ in 0..2 {
        let answer: PresenceAnswer = asked(&query).await;
        assert!(matches!(answer, PresenceAnswer::Claims { .. }), "{answer:?}");
    }
    let answer: PresenceAnswer = asked(&query).await;
    assert_eq!(answer, busy);
    let answer: PresenceAnswer = asked(&have).await;
    assert!(matches!(answer, PresenceAnswer::Held { .. }), "{answer:?}");
    let answer: PresenceAnswer = asked(&have).await;
    assert_eq!(answer, busy);
}

static ROUNDS: AtomicUsize = AtomicUsize::new(0);

/// Claims one more of the keys that it is asked about each time.
fn drip(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    if inbound.door != Door::Presence {
        return honestly(core, inbound);
    }
    async move {
        let stream = core
            .traffic
            .counted_serving(inbound.stream, inbound.peer, inbound.door);
        let mut wire = crate::net::wire::Wire::new(stream);
        while let Ok(Some(PresenceQuestion::Query { keys, .. })) = wire.reader.receive_or_end().await {
            ROUNDS.fetch_add(1, Ordering::Relaxed);
            let header = Envelope {
                domain: String::new(),
                version: 1,
                signer: inbound.peer,
                payload: Vec::new(),
                signature: [0; 64],
            };
            let keys = keys[..16].to_vec();
            let claims = vec![Claim { header, keys }];
            if wire
                .writer
                .send(&PresenceAnswer::Claims { claims })
                .await
                .is_err()
                || wire.writer.flush().await.is_err()
            {
                return;
            }
        }
    }
    .boxed()
}

#[tokio::test]
async fn a_keeper_that_always_has_a_little_more_to_say_is_not_listened_to_for_ever() {
    let mut ann = TestNode::founder(1).await;
    let bob = ann.invite_as(2, Roles::all(), drip, |_| ()).await;
    ann.meets(bob.key()).await;
    let core = ann.handle.core();
    let secret = core.team.presence_secret();
    let keys = (0..2 * PRESENCE_ROUNDS).map(|number| secret.key(&super::shelf::path(&format!("k{number}"))));
    let asked = crate::protocols::find::query(core, bob.key(), secret.epoch(), keys.collect(), PATIENCE);
    let claims = soon(asked).await.unwrap();
    assert_eq!(claims.len(), PRESENCE_ROUNDS);
    assert_eq!(ROUNDS.load(Ordering::Relaxed), PRESENCE_ROUNDS);
}

#[tokio::test]
async fn a_store_takes_so_many_pushes_of_one_member_and_of_all_and_refuses_the_next_one() {
    let mut ann = TestNode::founder(1).await;
    let machine = crate::Machine::default();
    let of_node = machine.clone();
    let mut bob = ann
        .invite_as(2, Roles::all(), honestly, move |config| config.machine = of_node)
        .await;
    let mut cat = ann.invite(3).await;
    ann.meets(bob.key()).await;
    cat.meets(bob.key()).await;
    let path = ann.shelf.add_small("pushed");
    let shown = ann.shelf.shown(&path);
    let mut taken = Vec::new();
    let mut pushing = tokio::task::JoinSet::new();
    for _ in 0..PUSHES_TAKEN_PER_PEER {
        let (handle, to, shown) = (ann.handle.clone(), bob.key(), shown.clone());
        pushing.spawn(async move { handle.push(to, vec![shown]).await });
        taken.push(soon(bob.events.pushes.recv()).await.unwrap().accept());
    }
    let to = bob.key();
    let is_refused = async |node: &TestNode| {
        let pushed = soon(node.handle.push(to, vec![shown.clone()])).await;
        let reason = PushRefusal::Busy;
        matches!(pushed, Err(PushError::Refused { reason: refused, .. }) if refused == reason)
    };
    assert!(is_refused(&ann).await);
    // Another member finds room, as long as there is some.
    let (handle, of_cat) = (cat.handle.clone(), shown.clone());
    pushing.spawn(async move { handle.push(to, vec![of_cat]).await });
    taken.push(soon(bob.events.pushes.recv()).await.unwrap().accept());
    let rest = u32::try_from(PUSHES_TAKEN - PUSHES_TAKEN_PER_PEER - 1).unwrap();
    let elsewhere = machine.pushes.clone().try_acquire_many_owned(rest).unwrap();
    assert!(is_refused(&cat).await);
    drop(elsewhere);
    for push in taken {
        push.stored(path.clone(), shown.info.tree).await.unwrap();
        push.done().await.unwrap();
    }
    while let Some(pushed) = soon(pushing.join_next()).await {
        pushed.unwrap().unwrap();
    }
    let push = ann.handle.push(bob.key(), vec![shown.clone()]);
    let take = async {
        let taken = bob.events.pushes.recv().await.unwrap().accept();
        taken.stored(path.clone(), shown.info.tree).await.unwrap();
        taken.done().await.unwrap();
    };
    let (pushed, ()) = soon(async { tokio::join!(push, take) }).await;
    pushed.unwrap();
}

#[tokio::test]
async fn a_push_whose_offerer_has_gone_away_keeps_its_place_as_long_as_it_is_worked_on() {
    let mut ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    ann.meets(bob.key()).await;
    let shown = ann.shelf.shown(&ann.shelf.add_small("pushed"));
    let places = bob.handle.core().pushes_of_each.of(ann.key());
    let mut taken = Vec::new();
    for number in 1..=PUSHES_TAKEN_PER_PEER {
        let (handle, to, shown) = (ann.handle.clone(), bob.key(), shown.clone());
        let pushing = tokio::spawn(async move { handle.push(to, vec![shown]).await });
        taken.push(soon(bob.events.pushes.recv()).await.unwrap().accept());
        pushing.abort();
        assert_eq!(places.available_permits(), PUSHES_TAKEN_PER_PEER - number);
    }
    // Long after the streams are gone.
    eventually(async || taken.iter().all(|push| push.frames_are_unwanted())).await;
    let pushed = soon(ann.handle.push(bob.key(), vec![shown.clone()])).await;
    let reason = PushRefusal::Busy;
    assert!(
        matches!(pushed, Err(PushError::Refused { reason: refused, .. }) if refused == reason),
        "{pushed:?}"
    );
    taken.clear();
    assert_eq!(places.available_permits(), PUSHES_TAKEN_PER_PEER);
}

#[tokio::test]
async fn what_the_node_does_not_attend_to_does_not_pile_up() {
    let mut ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    ann.meets(bob.key()).await;
    for _ in 0..=EVENTS {
        bob.handle.core().notify(Notice::RosterChanged);
    }
    assert_eq!(bob.events.notices.len(), EVENTS);
    let all = bob.handle.core().builds.try_reserve_many(EVENTS).unwrap();
    let mut call = soon(ann.handle.request_build(building::request(&ann, &bob, 1)))
        .await
        .unwrap();
    let event = building::event(&mut call).await.unwrap();
    let reason = RefusalReason::Busy;
    assert!(
        matches!(&event, BuildEvent::Refused(refusal) if refusal.reason == reason),
        "{event:?}"
    );
    drop(all);
    building::running_of(&ann, &mut bob, 2).await;
}

#[tokio::test]
async fn who_is_gone_is_found_out_although_nobody_was_told() {
    let mut ann = TestNode::founder(1).await;
    let bob = ann.invite(2).await;
    ann.meets(bob.key()).await;
    let core = ann.handle.core().clone();
    core.met(key(3), Facts::default(), now());
    assert_eq!(ann.handle.peers().len(), 2);
    core.miss_nobody();
    ann.notice(|_, notice| notice == Some(&Notice::PeerDown { peer: key(3) }))
        .await;
    assert!(ann.handle.peers().keys().eq([&bob.key()]));
}

/// Takes every question about presence and paths, and says nothing.
fn silently(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    if matches!(inbound.door, Door::Presence | Door::Paths) {
        async move {
            let _inbound = inbound;
            std::future::pending::<()>().await;
        }
        .boxed()
    } else {
        honestly(core, inbound)
    }
}

#[tokio::test]
async fn a_member_that_says_nothing_is_not_waited_for_as_long_as_for_a_slow_answer() {
    let mut ann = TestNode::founder(1).await;
    let bob = ann.invite_as(2, Roles::all(), silently, |_| ()).await;
    ann.meets(bob.key()).await;
    let paths = [super::shelf::path("wanted")];
    let since = Instant::now();
    let asked = async {
        tokio::join!(
            ann.handle.have(bob.key(), &paths),
            ann.handle.path_infos(bob.key(), &paths)
        )
    };
    let (have, infos) = soon(asked).await;
    assert!(matches!(have, Err(CallError::Wire { .. })), "{have:?}");
    assert!(
        matches!(infos, Err(PathsError::Call(CallError::Wire { .. }))),
        "{infos:?}"
    );
    assert!(since.elapsed() < ANSWER_TIME / 2, "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_member_that_floods_with_records_is_not_listened_to_and_others_are() {
    let mut ann = TestNode::founder(1).await;
    let bob = ann.invite(2).await;
    ann.meets(bob.key()).await;
    let mut wire = bob.handle.core().open(ann.key(), Door::Presence).await.unwrap();
    let empty = Envelope {
        domain: String::new(),
        version: 0,
        signer: bob.key(),
        payload: Vec::new(),
        signature: [0; 64],
    };
    let put = PresenceQuestion::Put {
        headers: vec![empty; PRESENCE_CELLS_PER_PUT],
    };
    let most = PRESENCE_STATEMENTS_PER_MINUTE as usize / PRESENCE_CELLS_PER_PUT;
    let mut taken = 0;
    let refusal = loop {
        // What is refused cell by cell has been looked at.
        match soon(wire.ask(&put)).await.unwrap() {
            PresenceAnswer::Wanted { cells, refused } => {
                assert!(cells.is_empty() && refused.len() == PRESENCE_CELLS_PER_PUT);
                let done: PresenceAnswer = soon(wire.ask(&PresenceCells { keys: vec![] })).await.unwrap();
                assert!(matches!(done, PresenceAnswer::Kept { cells: 0, .. }), "{done:?}");
                taken += 1;
            }
            PresenceAnswer::Refused { reason } => break reason,
            other => panic!("{other:?}"),
        }
        // Time goes on while the test runs, and with it what is allowed.
        assert!(
            taken < 4 * most,
            "{taken} messages, where {most} in a minute are allowed"
        );
    };
    assert_eq!(refusal, PresenceRefusal::Busy);
    assert!(taken >= most - 1, "{taken} of {most}");
    assert_eq!(ann.handle.kept_presence(), (0, 0));
    let mut cat = ann.invite(3).await;
    cat.meets(ann.key()).await;
    let path = cat.shelf.add_small("hello");
    cat.handle.announce(std::slice::from_ref(&path));
    cat.publishes().await;
    assert_eq!(ann.handle.kept_presence(), (1, 1));
}

#[tokio::test]
async fn one_message_about_presence_has_so_many_cells_and_keys() {
    let mut ann = TestNode::founder(1).await;
    let bob = ann.invite(2).await;
    ann.meets(bob.key()).await;
    let cell = Envelope {
        domain: String::new(),
        version: 0,
        signer: bob.key(),
        payload: Vec::new(),
        signature: [0; 64],
    };
    let put = PresenceQuestion::Put {
        headers: vec![cell; PRESENCE_CELLS_PER_PUT + 1],
    };
    let keys = vec![0; (PRESENCE_QUESTION_KEYS + 1) * 16];
    let epoch = ann.handle.core().team.presence_secret().epoch();
    let query = PresenceQuestion::Query {
        epoch,
        keys: keys.clone(),
    };
    let have = PresenceQuestion::Have { epoch, keys };
    let underway = PresenceQuestion::Underway {
        epoch,
        keys: vec![0; (UNDERWAY_KEYS + 1) * 16],
        turn: 0,
        terms: super::underway::TERMS,
    };
    let mut wire = bob.handle.core().open(ann.key(), Door::Presence).await.unwrap();
    for question in [put, query, have, underway] {
        let answer: PresenceAnswer = soon(wire.ask(&question)).await.unwrap();
        let reason = PresenceRefusal::TooMany;
        assert_eq!(answer, PresenceAnswer::Refused { reason });
    }
}

#[tokio::test]
async fn so_many_streams_are_served_at_once_for_all_teams_together() {
    let bob = TestNode::founder(1).await;
    let machine = crate::Machine::default();
    let of_node = machine.clone();
    let mut ann = bob
        .invite_as(2, Roles::all(), honestly, move |config| config.machine = of_node)
        .await;
    ann.meets(bob.key()).await;
    let path = ann.shelf.add_small("held");
    let asked = async || {
        let mut wire = bob.handle.core().open(ann.key(), Door::Paths).await.unwrap();
        let question = PathsQuestion::about(std::slice::from_ref(&path));
        soon(wire.ask::<_, PathAnswer>(&question)).await
    };
    // What other teams of the same node are asked; some may be on their way in this one.
    let all = u32::try_from(STREAMS).unwrap();
    let elsewhere = soon(machine.streams.clone().acquire_many_owned(all))
        .await
        .unwrap();
    assert!(asked().await.is_err(), "one too many is closed unread");
    drop(elsewhere);
    assert!(asked().await.unwrap().shown.is_some());
}

#[tokio::test]
async fn a_member_has_so_many_connections_and_no_more() {
    let ann = TestNode::founder(1).await;
    let bob = ann.invite(2).await;
    bob.handle.shutdown().await;
    let most = CONNECTIONS_PER_PEER as usize;
    let machines: Vec<Network> = (0..most + 3).map(|_| stranger(2, &ann)).collect();
    for machine in &machines {
        // One too many may be told only after it has been made.
        soon(machine.connect(ann.key())).await.ok();
    }
    let connected = || {
        let connected = machines
            .iter()
            .filter(|machine| machine.connected().contains(&ann.key()));
        connected.count()
    };
    let seen = || ann.handle.overview()[&bob.key()].connections.len();
    eventually(async || connected() <= most && seen() == most).await;
    // Others find room.
    let mut cat = ann.invite(3).await;
    cat.meets(ann.key()).await;
    assert_eq!(seen(), most);
}

#[tokio::test]
async fn strangers_do_not_keep_members_out() {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    let first_stranger = 100;
    let mut strangers = Vec::new();
    for number in 0..STRANGERS + 2 {
        let stranger = stranger(first_stranger + u8::try_from(number).unwrap(), &ann);
        soon(stranger.connect(ann.key())).await.ok();
        strangers.push(stranger);
    }
    let connected = || {
        let connected = strangers
            .iter()
            .filter(|stranger| stranger.connected().contains(&ann.key()));
        connected.count()
    };
    eventually(async || connected() <= STRANGERS).await;
    bob.meets(ann.key()).await;
}

/// Has nothing to say about any tree, and counts who asks.
fn counting(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    if inbound.door != Door::Tree {
        return honestly(core, inbound);
    }
    ASKED.fetch_add(1, Ordering::Relaxed);
    async move {
        let _inbound = inbound;
        std::future::pending::<()>().await;
    }
    .boxed()
}

static ASKED: AtomicUsize = AtomicUsize::new(0);

#[tokio::test]
async fn so_many_trees_are_fetched_at_once_by_all_teams_together() {
    let ann = TestNode::founder(1).await;
    let bob = ann.invite_as(2, Roles::all(), counting, |_| ()).await;
    let machine = crate::Machine::default();
    let of_node = machine.clone();
    let mut cat = ann
        .invite_as(3, Roles::all(), honestly, move |config| config.machine = of_node)
        .await;
    cat.meets(bob.key()).await;
    // What another team of the same node has.
    let elsewhere = machine.fetches.all.enter(Priority::Demanded, 2 * SHARES).await;
    let mut fetches = tokio::task::JoinSet::new();
    for number in 0..FETCHES {
        let (handle, from) = (cat.handle.clone(), bob.key());
        let mut root = [0; 32];
        root[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let tree = tvix_node_protocol::tree::TreeDigest(root);
        fetches.spawn(async move { handle.fetch_tree(tree, vec![from], None).await.map(drop) });
    }
    eventually(async || ASKED.load(Ordering::Relaxed) == FETCHES - 2).await;
    assert_eq!(machine.fetches.all.free(), 0);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(ASKED.load(Ordering::Relaxed), FETCHES - 2);
    drop(elsewhere);
    eventually(async || ASKED.load(Ordering::Relaxed) == FETCHES).await;
    fetches.shutdown().await;
}

#[tokio::test]
async fn what_is_most_urgent_is_fetched_first() {
    let ann = TestNode::founder(1).await;
    let machine = crate::Machine {
        fetches: crate::machine::FetchPlaces::new(1, 1, crate::limits::FETCH_PACE),
        ..crate::Machine::default()
    };
    let places = machine.fetches.all.clone();
    let change = move |config: &mut Config| config.machine = machine;
    let mut bob = ann.invite_as(2, Roles::all(), honestly, change).await;
    bob.meets(ann.key()).await;
    let held = places.enter(Priority::Import, SHARES).await;
    let (done, mut order) = tokio::sync::mpsc::unbounded_channel();
    let all = [
        Priority::Speculative,
        Priority::Demanded,
        Priority::Import,
        Priority::Awaited,
        // This one rises.
        Priority::Speculative,
    ];
    let mut last = Rising::default();
    for (number, priority) in all.into_iter().enumerate() {
        let root = ann.shelf.add_directory(&[("file", &[number as u8; 100])]);
        ann.shelf.add_path(&format!("p{number}"), root);
        let rising = Rising::from(priority);
        last = rising.clone();
        let order = FetchOrder {
            priority: rising,
            ..FetchOrder::new(root, vec![ann.key()])
        };
        let (handle, done) = (bob.handle.clone(), done.clone());
        tokio::spawn(async move {
            handle.fetch(order).await.unwrap();
            done.send(number).unwrap();
        });
    }
    eventually(async || places.waiting() == all.len()).await;
    last.raise(Priority::Awaited);
    // It leaves the line and enters it again.
    eventually(async || places.most_urgent(Priority::Awaited) == 3).await;
    drop(held);
    let mut came = vec![];
    for _ in all {
        came.push(soon(order.recv()).await.unwrap());
    }
    assert_eq!(came, [2, 3, 4, 1, 0]);
}
