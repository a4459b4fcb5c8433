//! Members that are put out, that leave, and what becomes of those they brought in.

use super::building::{event, running};
use super::shelf::noise;
use super::*;
use crate::FindScope;
use crate::core::Core;
use crate::net::Door;
use crate::net::doors::Inbound;
use futures::FutureExt as _;
use futures::future::BoxFuture;

/// Ann founds a team together with Dan, who takes his place; as many of them as `threshold` put a founder out.
pub(super) async fn two_founders(threshold: u16) -> (TestNode, TestNode) {
    let founder = |seed| Founder {
        key: key(seed),
        name: format!("node {seed}"),
    };
    let home = tempfile::tempdir().unwrap();
    let team = Team::found(home.path(), "team", founder(1), vec![founder(4)], threshold).unwrap();
    let ann = TestNode::start(1, home, team).await;
    let home = tempfile::tempdir().unwrap();
    let ticket = ann.handle.invite_founder(key(4), now() + DAY).unwrap();
    let team = join(home.path(), &secret(4), &ticket, "whatever", &Clock::system()).await;
    let mut dan = TestNode::start(4, home, team.unwrap()).await;
    dan.meets(ann.key()).await;
    (ann, dan)
}

async fn hears_that_it_is_out(node: &mut TestNode, key: NodeKey) {
    node.notice(move |handle, _| !handle.members().contains(key))
        .await;
}

#[tokio::test]
async fn builds_of_and_for_a_revoked_member_break_off() {
    let mut ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    let mut cat = ann.invite(3).await;
    bob.meets(cat.key()).await;
    cat.meets(bob.key()).await;
    let (mut for_cat, mut at_bob) = running(&cat, &mut bob).await;
    let (mut for_bob, mut at_cat) = running(&bob, &mut cat).await;
    let (mut for_ann, mut of_ann) = running(&ann, &mut cat).await;
    // A build between others goes on.
    let (mut between, still) = running(&bob, &mut ann).await;
    ann.handle.revoke(cat.key()).await.unwrap();
    soon(at_bob.cancelled()).await;
    soon(at_cat.cancelled()).await;
    soon(of_ann.cancelled()).await;
    for call in [&mut for_cat, &mut for_bob, &mut for_ann] {
        event(call).await.unwrap_err();
    }
    still.log(b"going on").await.unwrap();
    event(&mut between).await.unwrap();
}

/// Keeps who says hello waiting for an answer.
fn says_no_hello(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    match inbound.door {
        Door::Hello => async move {
            let _open = inbound;
            std::future::pending().await
        }
        .boxed(),
        _ => honestly(core, inbound),
    }
}

#[tokio::test]
async fn who_does_not_answer_keeps_nobody_from_being_cut_off() {
    let mut ann = TestNode::founder(1).await;
    let mute = ann.invite_as(2, Roles::all(), says_no_hello, |_| ()).await;
    ann.meets(mute.key()).await;
    // Each would be waited for as long as an answer may take, all of them longer than anything here.
    let all = async {
        for seed in 3..6 {
            let other = ann.invite(seed).await;
            ann.meets(other.key()).await;
            ann.handle.revoke(other.key()).await.unwrap();
            let gone = Notice::PeerDown { peer: other.key() };
            ann.notice(|_, notice| notice == Some(&gone)).await;
        }
    };
    soon(all).await;
}

#[tokio::test]
async fn a_transfer_to_a_revoked_member_breaks_off() {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    let root = ann.shelf.add_directory(&[("large", &noise(1, 64 << 20))]);
    ann.shelf.add_path("p", root);
    let revoking = async {
        let came = || {
            bob.handle
                .traffic()
                .get(&ann.key())
                .map_or(0, |traffic| traffic.content_received)
        };
        eventually(async || came() > 0).await;
        ann.handle.revoke(bob.key()).await.unwrap();
    };
    let fetching = bob.handle.fetch_tree(root, vec![ann.key()], None);
    let (fetched, ()) = soon(async { tokio::join!(fetching, revoking) }).await;
    fetched.unwrap_err();
}

/// A node is told that it is not a member any more, since who vouched for it is not.
async fn is_told_what_to_do(node: &mut TestNode) {
    let told = |notice: &Notice| match notice {
        Notice::PeerUnusable { message, .. } => message.contains("who vouched for this key"),
        _ => false,
    };
    node.notice(|_, notice| notice.is_some_and(told)).await;
}

#[tokio::test]
async fn whom_a_revoked_member_brought_in_is_shown_and_comes_back_when_renewed() {
    let ann = TestNode::founder(1).await;
    let bob = ann.invite(2).await;
    let mut cat = bob.invite(3).await;
    cat.meets(ann.key()).await;
    assert!(ann.handle.team().to_renew().is_empty());
    ann.handle.revoke(bob.key()).await.unwrap();
    is_told_what_to_do(&mut cat).await;
    assert!(!ann.handle.members().contains(cat.key()));
    assert_eq!(ann.handle.team().to_renew(), [cat.key()].into());
    // Why is not told to who is not a member: the presence secret is in it.
    let revoked = cat
        .handle
        .team()
        .with_roster(|roster| roster.is_revoked(bob.key()));
    assert!(!revoked);
    ann.handle.renew(cat.key(), Roles::all(), DAY).await.unwrap();
    assert!(ann.handle.team().to_renew().is_empty());
    // Whoever of the two reaches the other first.
    eventually(async || cat.handle.team().digest() == ann.handle.team().digest()).await;
    cat.meets(ann.key()).await;
    assert!(!cat.handle.members().contains(bob.key()));
}

#[tokio::test]
async fn the_team_goes_on_without_a_founder_whose_key_is_lost() {
    let (mut ann, dan) = two_founders(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(dan.key()).await;
    ann.meets(bob.key()).await;
    dan.handle.revoke(ann.key()).await.unwrap();
    // Ann's laptop, in the hands of somebody else, brings nobody in any more.
    ann.notice(|handle, _| !handle.connected().contains(&key(4)))
        .await;
    let eve = ann.invite(5).await;
    assert!(!dan.handle.members().contains(eve.key()));
    assert_eq!(dan.handle.team().to_renew(), [bob.key()].into());
    dan.handle.renew(bob.key(), Roles::all(), DAY).await.unwrap();
    eventually(async || bob.handle.team().digest() == dan.handle.team().digest()).await;
    bob.meets(dan.key()).await;
    assert!(!bob.handle.members().contains(ann.key()));
    let fay = dan.invite(6).await;
    assert!(fay.handle.members().contains(bob.key()) && !fay.handle.members().contains(eve.key()));
}

#[tokio::test]
async fn one_founder_alone_does_not_put_another_out_where_the_team_wants_two() {
    let (ann, dan) = two_founders(2).await;
    let bob = ann.invite(2).await;
    dan.handle.revoke(ann.key()).await.unwrap();
    eventually(async || ann.handle.team().digest() == dan.handle.team().digest()).await;
    for node in [&ann, &dan, &bob] {
        assert!(node.handle.members().contains(ann.key()));
    }
}

#[tokio::test]
async fn who_leaves_is_out_for_everyone_and_takes_back_what_it_advertised() {
    let mut ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    ann.meets(bob.key()).await;
    let path = bob.shelf.add_small("hello");
    bob.handle.announce(std::slice::from_ref(&path));
    bob.publishes().await;
    soon(bob.handle.leave()).await.unwrap();
    hears_that_it_is_out(&mut ann, bob.key()).await;
    assert_eq!(ann.handle.kept_presence(), (0, 0));
    assert!(soon(ann.handle.find(&[path], FindScope::All)).await.is_empty());
    let again = Team::open(bob.home.path(), ann.handle.swarm()).unwrap();
    assert!(!again.roster().members(now()).contains(bob.key()));
}

#[tokio::test]
async fn that_the_only_founder_leaves_is_told_to_everyone_who_is_connected() {
    let mut ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    ann.meets(bob.key()).await;
    soon(ann.handle.leave()).await.unwrap();
    hears_that_it_is_out(&mut bob, ann.key()).await;
    let bob = bob.restart().await;
    assert!(!bob.handle.members().contains(ann.key()));
}

#[tokio::test]
async fn who_was_away_hears_of_a_revocation_from_a_third() {
    let ann = TestNode::founder(1).await;
    let mut dan = ann.invite(4).await;
    let mut bob = ann.invite(2).await;
    let cat = ann.invite(3).await;
    bob.meets(dan.key()).await;
    bob.meets(cat.key()).await;
    // Bob goes away; Cat is put out; the one who did it goes away too.
    let swarm = ann.handle.swarm();
    bob.handle.shutdown().await;
    ann.handle.revoke(cat.key()).await.unwrap();
    hears_that_it_is_out(&mut dan, cat.key()).await;
    ann.handle.shutdown().await;
    let team = Team::open(bob.home.path(), swarm).unwrap();
    assert!(
        team.roster().members(now()).contains(cat.key()),
        "it has not heard"
    );
    let mut bob = TestNode::start(2, bob.home, team).await;
    bob.meets(dan.key()).await;
    hears_that_it_is_out(&mut bob, cat.key()).await;
    eventually(async || !bob.handle.connected().contains(&cat.key())).await;
}
