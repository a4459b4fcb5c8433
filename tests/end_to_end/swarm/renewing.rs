//! Memberships that do not count any more, and the end of a team.

use serde_json::Value;

use super::nodes::{Node, all_meet, team, text, until};

fn waiting(node: &Node, name: &str) -> Option<Value> {
    let team = node.json(&["members"]);
    let mut all = team["waiting"].as_array().expect("a list").iter();
    all.find(|waits| waits["name"] == name).cloned()
}

fn roster(node: &Node) -> Value {
    let doctor = node.machine.run(&["doctor", "--json"]);
    let found: Value = serde_json::from_str(&doctor.stdout).expect("JSON");
    let mut all = found.as_array().expect("a list").iter();
    all.find(|finding| finding["about"] == "roster")
        .expect("it is said")
        .clone()
}

#[test]
fn who_was_invited_by_somebody_who_is_out_is_known_by_name_and_renewed_or_put_out() {
    let nodes = ["alice", "carol", "dave", "erin"].map(|name| Node::up(name, 0));
    let [alice, carol, dave, erin] = &nodes;
    carol
        .join(&alice.ticket(&["--role", "request,build,store,invite"]))
        .ok();
    dave.join(&carol.ticket(&[])).ok();
    erin.join(&carol.ticket(&[])).ok();
    all_meet(&nodes);

    alice.machine.run(&["revoke", "carol"]).ok();
    let waits = waiting(alice, "dave").expect("dave waits to be renewed");
    assert_eq!(
        (&waits["why"], &waits["issuer"]),
        (&"issuerOut".into(), &"carol".into())
    );
    assert!(waiting(alice, "carol").is_none(), "who is out waits for nothing");
    let shown = alice.machine.run(&["members"]);
    let row = "no member any more: to be renewed (invited by carol, who is out)";
    assert_eq!(shown.ok().matches(row).count(), 2, "{}", shown.stdout);
    let found = text(&roster(alice)["found"]);
    assert!(found.contains("dave (invited by carol, who is out)"), "{found}");
    // Dave is not told that carol is out, but that he is.
    until("dave hears that the others do not let him in", || {
        let found = roster(dave);
        (found["state"] == "bad" && text(&found["found"]).contains("do not let this node in")).then_some(())
    });

    alice.machine.run(&["renew", "dave"]).ok();
    assert!(waiting(alice, "dave").is_none());
    dave.meet("alice");
    until("dave is well", || (roster(dave)["state"] != "bad").then_some(()));
    let key = erin.key();
    alice
        .machine
        .run(&["renew", &key[..7]])
        .failed(1, &["8 of its letters"]);
    alice.machine.run(&["revoke", &key[..8]]).ok();
    assert!(waiting(alice, "erin").is_none());
    assert_eq!(roster(alice)["state"], "good");
    // What nobody can say of itself.
    alice
        .machine
        .run(&["revoke", "alice"])
        .failed(1, &["that is this node", "leave"]);
    alice
        .machine
        .run(&["renew", "alice"])
        .failed(1, &["is a founder", "does not end"]);
    dave.machine
        .run(&["renew", "dave"])
        .failed(1, &["no node renews its own membership", "alice"]);
}

/// A membership lasts long enough for a slow machine to join, and is waited for to end.
#[test]
fn a_membership_that_has_ended_is_renewed_and_does_not_come_back_by_its_ticket() {
    let (alice, mut dave, erin) = (Node::up("alice", 0), Node::up("dave", 0), Node::up("erin", 0));
    let tickets = [(); 2].map(|()| alice.ticket(&["--lasts", "10s"]));
    dave.join(&tickets[0]).ok();
    erin.join(&tickets[1]).ok();
    for name in ["dave", "erin"] {
        let waits = until("the membership ends", || waiting(&alice, name));
        assert_eq!(
            (&waits["why"], &waits["issuer"]),
            (&"ended".into(), &"alice".into())
        );
    }
    let found = text(&roster(&alice)["found"]);
    assert!(
        found.contains("dave (ended)") && found.contains("erin (ended)"),
        "{found}"
    );
    let found = until("erin sees that it has ended", || {
        let found = roster(&erin);
        (found["state"] == "bad").then_some(found)
    });
    assert!(
        text(&found["advice"]).contains("(alice) to run 'tvix-node renew erin'"),
        "{found}"
    );

    // As a home that is restored from a copy of before it joined: the key is the same.
    dave.down();
    std::fs::remove_dir_all(dave.machine.home().join("teams")).expect("the folder is there");
    dave.start(&["--listen", "127.0.0.1:0", "--slots", "0"]);
    dave.join(&tickets[0])
        .failed(1, &["has used this ticket already", "ask for a new one"]);
    assert!(waiting(&alice, "dave").is_some());

    let key = erin.key();
    alice.machine.run(&["renew", &key]).ok();
    erin.meet("alice");
    assert!(waiting(&alice, "erin").is_none());
}

#[test]
fn the_last_founder_does_not_leave_by_mistake_and_is_heard_by_those_it_leaves() {
    let [alice, bob, carol] = team([("alice", 0), ("bob", 0), ("carol", 0)]);
    alice
        .machine
        .run(&["leave"])
        .failed(1, &["the last founder", "--force", "found"]);
    assert_eq!(
        bob.json(&["members"])["members"].as_array().map(Vec::len),
        Some(3)
    );
    alice.machine.run(&["leave", "--force"]).ok();
    for node in [&bob, &carol] {
        until("it is heard that alice has left", || {
            let members = node.json(&["members"])["members"].clone();
            (members == serde_json::json!([])).then_some(())
        });
        let found = roster(node);
        assert_eq!(found["state"], "bad");
        assert!(text(&found["found"]).contains("all founders"), "{found}");
    }
    // Who goes for good needs no force where nobody is left behind.
    bob.machine.run(&["leave"]).ok();
    bob.ticket(&[]);
    bob.machine.run(&["leave"]).ok();
}
