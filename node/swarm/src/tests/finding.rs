use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::shelf::path;
use super::*;
use crate::core::Core;
use crate::limits::{PRESENCE_LIFETIME, PRESENCE_PAUSE};
use crate::net::Door;
use crate::net::doors::Inbound;
use crate::protocols::find::{FindScope, Through, groups};
use crate::protocols::publish;
use tvix_node_protocol::nix::store_path::StorePath;
use tvix_node_protocol::presence::{PresenceHeader, Region, pack, root_of};

/// Ann, who has nothing, and Bob, who has a path that Ann keeps the record of.
async fn keeper_and_holder() -> (TestNode, TestNode, StorePath) {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    let path = bob.shelf.add_small("hello");
    bob.handle.announce(std::slice::from_ref(&path));
    bob.publishes().await;
    (ann, bob, path)
}

#[tokio::test]
async fn a_third_node_finds_and_fetches_what_a_member_it_never_met_has() {
    let (ann, bob, path) = keeper_and_holder().await;
    // Cat knows the ticket alone, and stays away from everyone it has no reason to speak to.
    let mut cat = ann
        .invite_as(3, Roles::all(), honestly, |config| config.keep_peers = 0)
        .await;
    soon(cat.handle.connect(ann.key())).await.unwrap();
    cat.meets(ann.key()).await;
    let holders = soon(cat.handle.find(std::slice::from_ref(&path), FindScope::Records)).await;
    assert_eq!(holders[&path], [(bob.key(), Through::Records)].into());
    let providers = cat.handle.providers(&holders[&path]);
    let shown = soon(cat.handle.path_infos(providers[0], std::slice::from_ref(&path)))
        .await
        .unwrap();
    let tree = shown[0].as_ref().unwrap().info.tree;
    let arrival = soon(cat.handle.fetch_tree(tree, providers, None)).await.unwrap();
    cat.shelf.adopt(&arrival);
    assert!(cat.shelf.is_complete(bob.shelf.tree_of(&path)));
}

#[tokio::test]
async fn connected_members_are_asked_first_and_all_at_once() {
    let (ann, bob, path) = keeper_and_holder().await;
    let absent = super::shelf::path("absent");
    let wanted = [path.clone(), absent.clone()];
    let holders = soon(ann.handle.find(&wanted, FindScope::Connected)).await;
    assert_eq!(holders[&path], [(bob.key(), Through::Asked)].into());
    assert!(!holders.contains_key(&absent));
    assert_eq!(
        soon(ann.handle.have(bob.key(), &wanted)).await.unwrap(),
        [true, false]
    );
}

#[tokio::test]
async fn what_was_advertised_is_withdrawn_on_shutdown() {
    let (ann, bob, path) = keeper_and_holder().await;
    assert_eq!(ann.handle.kept_presence(), (1, 1));
    bob.handle.shutdown().await;
    assert_eq!(ann.handle.kept_presence(), (0, 0));
    let holders = soon(ann.handle.find(&[path], FindScope::Records)).await;
    assert!(holders.is_empty());
}

#[tokio::test]
async fn what_is_being_told_when_all_is_taken_back_does_not_come_after_it() {
    let (ann, bob, _) = keeper_and_holder().await;
    let (core, serial) = (bob.handle.core(), bob.handle.serial());
    for round in 0..5 {
        let paths: Vec<StorePath> = (0..2000)
            .map(|number| path(&format!("p{round}-{number}")))
            .collect();
        bob.handle.announce(&paths);
        tokio::time::sleep(PRESENCE_PAUSE + std::time::Duration::from_millis(round)).await;
        publish::withdraw(core, serial).await;
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        assert_eq!(ann.handle.kept_presence(), (0, 0), "round {round}");
        publish::resume(core);
        bob.publishes().await;
        assert_eq!(ann.handle.kept_presence().1, 2001);
        bob.handle.withdraw(&paths);
    }
}

#[tokio::test]
async fn paths_that_come_and_go_are_told() {
    let (ann, bob, hello) = keeper_and_holder().await;
    let world = bob.shelf.add_small("world");
    bob.handle.announce(std::slice::from_ref(&world));
    bob.publishes().await;
    assert_eq!(ann.handle.kept_presence(), (1, 2));
    bob.handle.withdraw(std::slice::from_ref(&hello));
    bob.publishes().await;
    assert_eq!(ann.handle.kept_presence(), (1, 1));
    let holders = soon(ann.handle.find(&[hello, world.clone()], FindScope::Records)).await;
    assert_eq!(holders.keys().collect::<Vec<_>>(), [&world]);
    bob.handle.withdraw(&[world]);
    bob.publishes().await;
    assert_eq!(ann.handle.kept_presence(), (0, 0));
}

#[tokio::test]
async fn thousands_of_paths_are_told_in_few_messages_and_asked_in_one() {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    let paths: Vec<StorePath> = (0..5000).map(|number| path(&format!("p{number}"))).collect();
    bob.handle.announce(&paths);
    bob.publishes().await;
    assert_eq!(ann.handle.kept_presence().1, 5000);
    let held = soon(ann.handle.have(bob.key(), &paths)).await.unwrap();
    assert!(held.into_iter().all(|held| held));
    let holders = soon(ann.handle.find(&paths, FindScope::Records)).await;
    assert_eq!(holders.len(), 5000);
}

#[tokio::test]
async fn what_a_node_has_at_its_start_is_advertised() {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    let path = bob.shelf.add_small("hello");
    let mut bob = bob.restart().await;
    bob.meets(ann.key()).await;
    bob.publishes().await;
    let holders = soon(ann.handle.find(std::slice::from_ref(&path), FindScope::Records)).await;
    assert!(holders.contains_key(&path));
}

#[tokio::test]
async fn a_private_path_is_neither_advertised_nor_shown_nor_served() {
    let (ann, bob, _) = keeper_and_holder().await;
    let private = bob.shelf.add_small("private");
    bob.shelf.make_private(&private);
    let mut bob = bob.restart().await;
    bob.meets(ann.key()).await;
    bob.publishes().await;
    let wanted = std::slice::from_ref(&private);
    assert!(soon(ann.handle.find(wanted, FindScope::All)).await.is_empty());
    assert_eq!(soon(ann.handle.have(bob.key(), wanted)).await.unwrap(), [false]);
    assert_eq!(
        soon(ann.handle.path_infos(bob.key(), wanted)).await.unwrap(),
        [None]
    );
    // Somebody has told Ann the digest: of no use.
    let tree = bob.shelf.tree_of(&private);
    assert!(
        soon(ann.handle.fetch_tree(tree, vec![bob.key()], None))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_revocation_changes_the_keys_and_everything_is_found_again() {
    let (ann, bob, path) = keeper_and_holder().await;
    let mut cat = ann.invite(3).await;
    cat.meets(bob.key()).await;
    let before = ann.handle.team().presence_secret();
    ann.handle.revoke(cat.key()).await.unwrap();
    eventually(async || bob.handle.team().presence_secret() != before).await;
    let wanted = std::slice::from_ref(&path);
    eventually(async || {
        ann.handle
            .find(wanted, FindScope::Records)
            .await
            .contains_key(&path)
    })
    .await;
    eventually(async || {
        ann.handle
            .find(wanted, FindScope::Connected)
            .await
            .contains_key(&path)
    })
    .await;
    // Who is out has the old secret: to it the new keys say nothing.
    assert_ne!(before.key(&path), ann.handle.team().presence_secret().key(&path));
}

#[tokio::test]
async fn a_record_that_does_not_verify_is_not_believed_when_a_keeper_hands_it_on() {
    let (ann, bob, _) = keeper_and_holder().await;
    let path = path("made-up");
    let secret_of_team = ann.handle.team().presence_secret();
    let key = secret_of_team.key(&path);
    // Ann's table gets a record of Bob's that Bob never signed.
    let header = PresenceHeader {
        swarm: ann.handle.swarm(),
        epoch: secret_of_team.epoch(),
        holder: bob.key(),
        region: Region::of(key, 0),
        depth: 0,
        cell: 0,
        count: 1,
        root: root_of(&[key]),
        serial: u64::MAX,
        issued_at: now(),
        not_after: now() + PRESENCE_LIFETIME,
    };
    let mut forged = tvix_node_protocol::envelope::seal(&header, &secret(9)).unwrap();
    forged.signer = bob.key();
    let claim = tvix_node_protocol::messages::Claim {
        header: forged,
        keys: pack(&[key]),
    };
    let mut missing = [key].into();
    let mut found = std::collections::BTreeSet::new();
    let core = bob.handle.core();
    crate::protocols::find::take_claims(
        core,
        ann.key(),
        vec![claim],
        secret_of_team.epoch(),
        &mut missing,
        &mut found,
    );
    assert!(found.is_empty() && missing.contains(&key));
    assert!(crate::core::lock(&core.standing).is_liar(ann.key(), now()));
}

#[tokio::test]
async fn who_asks_for_too_much_is_not_answered() {
    let ann = TestNode::founder(1).await;
    let start = now();
    let stopped = Clock::new(move || start);
    let mut bob = ann
        .invite_as(2, Roles::all(), honestly, |config| config.clock = stopped)
        .await;
    bob.meets(ann.key()).await;
    let paths: Vec<StorePath> = (0..10).map(|number| path(&format!("q{number}"))).collect();
    assert!(soon(ann.handle.path_infos(bob.key(), &paths)).await.is_ok());
    let rest = crate::limits::PRESENCE_QUESTIONS_PER_MINUTE - 10;
    assert!(crate::core::lock(&bob.handle.core().allowance).take(ann.key(), rest, start));
    let refused = soon(ann.handle.path_infos(bob.key(), &paths)).await.unwrap_err();
    assert!(refused.to_string().contains("try again later"), "{refused}");
    // It has not said that it has none of them.
    assert!(soon(ann.handle.have(bob.key(), &paths)).await.is_err());
}

#[tokio::test]
async fn who_has_asked_too_much_is_answered_as_soon_as_it_may_ask_again() {
    let ann = TestNode::founder(1).await;
    let time = Arc::new(std::sync::atomic::AtomicU64::new(now()));
    let start = time.load(std::sync::atomic::Ordering::Relaxed);
    let clock = {
        let time = time.clone();
        Clock::new(move || time.load(std::sync::atomic::Ordering::Relaxed))
    };
    let mut bob = ann
        .invite_as(2, Roles::all(), honestly, |config| config.clock = clock)
        .await;
    bob.meets(ann.key()).await;
    let tree = bob.shelf.add_directory(&[("file", b"content")]);
    let held = bob.shelf.add_path("held", tree);
    bob.handle.announce(std::slice::from_ref(&held));
    let paths = [held, path("not-there")];
    let all = crate::limits::PRESENCE_QUESTIONS_PER_MINUTE;
    assert!(crate::core::lock(&bob.handle.core().allowance).take(ann.key(), all, start));
    let asking = soon(ann.handle.have(bob.key(), &paths));
    let passing = async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        time.store(start + 10, std::sync::atomic::Ordering::Relaxed);
    };
    let (answer, ()) = tokio::join!(asking, passing);
    assert_eq!(answer.unwrap(), [true, false]);
}

/// Questions about presence that were put to who does not answer any.
static UNANSWERED: AtomicUsize = AtomicUsize::new(0);

/// Says nothing when it is asked what it has.
fn without_presence(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    if inbound.door != Door::Presence {
        return honestly(core, inbound);
    }
    async move {
        UNANSWERED.fetch_add(1, Ordering::Relaxed);
        let _inbound = inbound;
        std::future::pending::<()>().await;
    }
    .boxed()
}

#[tokio::test]
async fn who_does_not_answer_is_not_asked_again_before_it_gives_a_sign_of_life() {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite_as(2, Roles::all(), without_presence, |_| ()).await;
    let mut cat = ann.invite(3).await;
    cat.meets(ann.key()).await;
    cat.meets(bob.key()).await;
    bob.meets(ann.key()).await;
    let hello = cat.shelf.add_small("hello");
    cat.handle.announce(std::slice::from_ref(&hello));
    let wanted = [hello.clone(), path("absent")];
    // It may give one at any time; then it is asked once more.
    eventually(async || {
        let before = UNANSWERED.load(Ordering::Relaxed);
        let holders = ann.handle.find(&wanted, FindScope::All).await;
        // Cat may have had too much to do to answer in time.
        let answered = holders.get(&hello) == Some(&[(cat.key(), Through::Asked)].into());
        answered && UNANSWERED.load(Ordering::Relaxed) == before
    })
    .await;
    assert_ne!(UNANSWERED.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn who_went_away_is_dialled_once_and_not_waited_for_again() {
    let (ann, bob, _) = keeper_and_holder().await;
    let mut cat = ann
        .invite_as(3, Roles::all(), honestly, |config| config.keep_peers = 0)
        .await;
    for peer in [ann.key(), bob.key()] {
        soon(cat.handle.connect(peer)).await.unwrap();
        cat.meets(peer).await;
    }
    // Where bob was, something takes connections and says nothing, as long as anybody waits.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("/ip4/127.0.0.1/tcp/{}", silent.local_addr().unwrap().port());
    let core = cat.handle.core();
    core.contacts
        .with(|contacts| contacts.add(bob.key(), address.parse().unwrap()));
    bob.handle.shutdown().await;
    eventually(async || !cat.handle.connected().contains(&bob.key())).await;
    let asked = || groups(core, &[ann.key(), bob.key()], 1).map(|group| group.len());
    let absent = [path("absent")];
    assert!(soon(cat.handle.find(&absent, FindScope::All)).await.is_empty());
    // Ann alone.
    eventually(async || asked() == [1, 0]).await;
    // Who was told that bob has something does not wait for him either.
    let shown = cat.handle.path_infos(bob.key(), &absent).now_or_never();
    let refused = shown.unwrap().unwrap_err();
    assert!(refused.to_string().contains("a moment ago"), "{refused}");
    // It is the same when the dial has come to nothing.
    drop(silent);
    let tried = soon(cat.handle.connect(bob.key())).await;
    assert!(tried.is_err(), "{tried:?}");
    assert_eq!(asked(), [1, 0]);
}
