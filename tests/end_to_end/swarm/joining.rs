//! Becoming a member, and what who is none gets.

use tvix_node_protocol::build::{BuildKind, BuildLimits, BuildOptions, BuildRequest};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::ticket::Ticket;
use tvix_node_protocol::tree::TreeDigest;
use tvix_node_swarm::{Clock, team as membership};

use super::nodes::{Node, all_meet, team, text, until};
use super::observer::Observer;
use crate::harness::Machine;

#[test]
fn members_know_each_other_and_what_each_may_do() {
    let [alice, bob, carol] = team([("alice", 3), ("bob", 2), ("carol", 0)]);
    let of_alice = alice.json(&["members"]);
    let members = of_alice["members"].as_array().expect("a list");
    assert_eq!(members.len(), 3, "{of_alice}");
    let find = |name: &str| {
        let mut found = members.iter().filter(|member| member["name"] == name);
        found.next().unwrap_or_else(|| panic!("no {name} in {of_alice}"))
    };
    assert_eq!(find("alice")["founder"], true);
    assert_eq!(find("alice")["me"], true);
    for other in ["bob", "carol"] {
        assert_eq!(find(other)["founder"], false);
        assert_eq!(find(other)["connected"], true);
        assert_eq!(find(other)["issuedBy"], find("alice")["key"]);
        assert_eq!(
            find(other)["roles"],
            serde_json::json!(["request", "build", "store"])
        );
    }
    for node in [&bob, &carol] {
        let members = node.json(&["members"]);
        assert_eq!(members["swarm"], of_alice["swarm"]);
        assert_eq!(members["members"].as_array().map(Vec::len), Some(3), "{members}");
        assert_eq!(members["name"], node.name);
    }
    // Carol was never told where bob is.
    let peer = carol.peer("bob").expect("a peer");
    assert_eq!((&peer["slots"], &peer["free"]), (&2.into(), &2.into()), "{peer}");
    assert_eq!(peer["key"], bob.key());
    assert!(!peer["systems"].as_array().expect("a list").is_empty(), "{peer}");
    let shown = carol.machine.run(&["peers"]);
    assert!(
        shown.ok().contains("2 of 2") && shown.ok().contains("3 of 3"),
        "{}",
        shown.stdout
    );
}

#[test]
fn a_team_is_taken_up_again_by_a_node_that_was_down() {
    let [mut alice, bob] = team([("alice", 0), ("bob", 0)]);
    alice.down();
    until("bob notices that alice is down", || {
        bob.peer("alice").is_none().then_some(())
    });
    alice.start(&["--listen", "127.0.0.1:0", "--slots", "0"]);
    all_meet(&[alice, bob]);
}

#[test]
fn a_ticket_is_good_once() {
    let alice = Node::up("alice", 0);
    let (bob, carol) = (Node::up("bob", 0), Node::up("carol", 0));
    let ticket = alice.ticket(&[]);
    let joined = bob.join(&ticket);
    assert!(joined.ok().contains("as bob: 2 members"), "{}", joined.stdout);
    carol.join(&ticket).failed(1, &["used"]);
    carol.machine.run(&["members"]).failed(1, &["no team"]);
    // Neither is who is in already let in again.
    bob.join(&alice.ticket(&[])).failed(1, &["already"]);
}

#[test]
fn what_is_wrong_with_a_ticket_is_told() {
    let mut alice = Node::up("alice", 0);
    let (bob, carol) = (Node::up("bob", 0), Node::up("carol", 0));
    let good = alice.ticket(&[]);
    // Torn: wrong usage, found before anybody is asked.
    for torn in [
        &good[..good.len() - 3],
        &good[..40],
        &good.replace("ticket-1-", "ticket-1-a"),
    ] {
        bob.join(torn).failed(2, &["torn"]);
    }
    // Of a team that the node is in.
    let foreign = bob.ticket(&[]);
    bob.join(&foreign).failed(1, &["belongs to the team", "already"]);
    // Made for another team by somebody who is not there any more.
    drop(bob);
    carol
        .join(&foreign)
        .failed(1, &["cannot redeem the ticket", "127.0.0.1"]);
    // The inviter is down.
    alice.down();
    carol
        .join(&good)
        .failed(1, &["cannot redeem the ticket", "is it running"]);
    carol.machine.run(&["members"]).failed(1, &["no team"]);
}

/// Clocks that disagree are told from tickets that are too old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_ticket_and_a_wrong_clock_are_told() {
    let (alice, ticket) = tokio::task::block_in_place(|| {
        let alice = Node::up("alice", 0);
        let ticket = alice.ticket(&["--expires", "1h"]);
        (alice, ticket)
    });
    let ticket = Ticket::from_text(&ticket).expect("a ticket");
    let folder = tempfile::tempdir().expect("a folder");
    let secret = membership::new_secret().expect("a secret");
    let join = async |shift: i64| {
        let clock = Clock::new(move || Clock::system().now().saturating_add_signed(shift));
        let joined = membership::join(folder.path(), &secret, &ticket, "bob", &clock).await;
        joined.map(drop).map_err(|error| error.to_string())
    };
    let day = 24 * 3600;
    let error = join(day).await.expect_err("it is too old by this clock");
    assert!(
        error.contains("this clock says") && error.contains("set the clock"),
        "{error}"
    );
    let error = join(-day).await.expect_err("the statements are from the future");
    assert!(error.contains("clock"), "{error}");
    drop(alice);
}

/// Somebody who is no member, but knows everything that members know, dials one and speaks every protocol
/// that members speak.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_member_gets_nothing_but_join() {
    let (alice, path, tree) = tokio::task::block_in_place(|| {
        let alice = Node::up("alice", 1);
        alice.machine.write(
            "default.nix",
            r#"{ path = builtins.path { name = "secret"; path = ./default.nix; }; }"#,
        );
        let path = alice.machine.run(&["eval", "-A", "path"]);
        let path = path.ok().trim_matches('"').to_owned();
        let info = alice.json(&["store", "info", &path]);
        let tree: TreeDigest = text(&info["treeDigest"]).parse().expect("a digest");
        (alice, super::finding::store_path(&path), tree)
    });
    let key: NodeKey = tokio::task::block_in_place(|| alice.key())
        .parse()
        .expect("a key");
    let paths = [path];

    // What a member gets.
    let member = Observer::join(&alice).await;
    assert_eq!(member.swarm.have(key, &paths).await.expect("an answer"), [true]);
    assert!(member.swarm.path_infos(key, &paths).await.expect("an answer")[0].is_some());
    assert!(member.swarm.fetch_tree(tree, vec![key], None).await.is_ok());
    member.leave().await;

    let stranger = Observer::impostor(&alice).await;
    let swarm = &stranger.swarm;
    assert!(swarm.have(key, &paths).await.is_err());
    assert!(swarm.path_infos(key, &paths).await.is_err());
    assert!(swarm.texts(key, &paths).await.is_err());
    assert!(swarm.fetch_tree(tree, vec![key], None).await.is_err());
    assert!(swarm.push(key, Vec::new()).await.is_err());
    let request = BuildRequest {
        swarm: swarm.swarm(),
        requester: swarm.key(),
        builder: key,
        derivation: paths[0].clone(),
        inputs: Vec::new(),
        outputs: vec!["out".to_owned()],
        kind: BuildKind::Regular,
        desired_store: None,
        options: BuildOptions::default(),
        limits: BuildLimits::NONE,
        urgency: 0,
        fresh: false,
        keep_failed: false,
        nonce: [7; 16],
        issued_at: Clock::system().now(),
        not_after: Clock::system().now() + 60,
    };
    let asked = swarm.request_build(request).await;
    assert!(asked.is_err(), "a stranger was listened to");
    tokio::task::block_in_place(|| {
        let peers = alice.json(&["peers"]);
        assert_eq!(peers, serde_json::json!([]), "a stranger is no peer");
    });
    stranger.leave().await;
}

#[test]
fn what_needs_a_team_says_how_to_get_one() {
    let machine = Machine::new();
    for command in [["members"].as_slice(), &["revoke", "bob"], &["leave"]] {
        machine.run(command).failed(1, &["no team", "join", "invite"]);
    }
}

#[test]
fn a_member_that_is_put_out_is_out() {
    let [alice, _bob, carol] = team([("alice", 0), ("bob", 1), ("carol", 0)]);
    alice.machine.run(&["revoke", "bob"]).ok();
    for node in [&alice, &carol] {
        until("bob is out", || node.peer("bob").is_none().then_some(()));
        let members = node.json(&["members"]);
        let names = members["members"].as_array().expect("a list").iter();
        let names: Vec<String> = names.map(|member| text(&member["name"])).collect();
        assert!(!names.contains(&"bob".to_owned()), "{names:?}");
    }
}
