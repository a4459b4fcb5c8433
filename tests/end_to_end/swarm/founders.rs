//! Teams of several founders, and what becomes of one that loses a key.

use serde_json::Value;

use super::nodes::{Node, all_meet, text, until};
use crate::harness::sandbox_works;

const UP: &[&str] = &["--listen", "127.0.0.1:0", "--slots", "1"];

fn founder_key(node: &Node) -> String {
    node.machine.run(&["founder-key"]).ok().to_owned()
}

/// Ann founds a team with bob and carol, and gets a ticket for each.
fn found(ann: &Node, others: [&Node; 2]) -> [String; 2] {
    let [bob, carol] = others.map(|other| format!("{}={}", other.name, founder_key(other)));
    let arguments = [
        "invite",
        "--name",
        ann.name,
        "--new-team",
        "--founder",
        &bob,
        "--founder",
        &carol,
    ];
    let invited = ann.machine.run(&arguments);
    let tickets: Vec<String> = invited.ok().lines().map(str::to_owned).collect();
    for said in ["3 founders", "2 of them", "in this order, for bob, carol"] {
        assert!(invited.stderr.contains(said), "{}", invited.stderr);
    }
    tickets.try_into().expect("one for each")
}

fn member(node: &Node, name: &str) -> Option<Value> {
    let team = node.json(&["members"]);
    let mut all = team["members"].as_array().expect("a list").iter();
    all.find(|member| member["name"] == name).cloned()
}

/// Who has said that a founder is to be out, as a node knows it.
fn against(node: &Node, name: &str) -> Vec<String> {
    let member = member(node, name).unwrap_or_else(|| panic!("{} does not know {name}", node.name));
    let said = member["against"].as_array().expect("a list").iter();
    said.map(|founder| text(&founder["name"])).collect()
}

#[track_caller]
fn is_out(node: &Node, name: &str) {
    until(&format!("{} hears that {name} is out", node.name), || {
        member(node, name).is_none().then_some(())
    });
}

/// Has one of these nodes build something for another, while no third one lends its slots.
#[track_caller]
fn builds_for(builder: &Node, node: &Node, all: &[Node]) {
    for other in all {
        let lends = if other.name == builder.name { "on" } else { "off" };
        other.machine.run(&["share", lends]).ok();
    }
    let name = format!("by-{}-for-{}", builder.name, node.name);
    node.machine.expression(&format!(
        "{{ it = build \"{name}\" {{ }} \"write $out {name}\"; }}"
    ));
    let build = node.build("it", &["-j", "0"]);
    assert_eq!(build.count("built"), 1, "{}", build.messages());
    let started = build.of_kind("build-started").last().expect("it was built");
    assert_eq!(started["node"], builder.name, "{}", build.messages());
}

#[test]
fn a_team_goes_on_without_a_founder_whose_home_is_lost() {
    if !sandbox_works("a_team_goes_on_without_a_founder_whose_home_is_lost") {
        return;
    }
    let mut ann = Node::up("ann", 1);
    let [mut bob, mut carol, dave] = ["bob", "carol", "dave"].map(|name| Node::up(name, 1));
    let tickets = found(&ann, [&bob, &carol]);
    for (node, ticket) in [&bob, &carol].into_iter().zip(&tickets) {
        let joined = node.join(ticket);
        let told = format!("as {}, one of 3 founders (2 of them put one out)", node.name);
        assert!(joined.ok().contains(&told), "{}", joined.stdout);
    }
    dave.join(&ann.ticket(&[])).ok();
    for node in [&ann, &bob, &carol, &dave] {
        for other in ["ann", "bob", "carol", "dave"]
            .into_iter()
            .filter(|other| *other != node.name)
        {
            node.meet(other);
        }
    }
    for (one, other) in [(&bob, &carol), (&carol, &bob)] {
        one.notes(other);
    }
    for node in [&bob, &carol] {
        node.notes(&dave);
    }
    // Ann's machine is gone, with all that was on it.
    ann.kill();
    std::fs::remove_dir_all(ann.machine.home().join("teams")).expect("the folder is there");
    std::fs::remove_file(ann.machine.home().join("identity")).expect("it has a key");
    drop(ann);

    // Bob says so while carol is away, and is away himself when she hears it: from dave, who has no say.
    carol.down();
    let said = bob.machine.run(&["revoke", "ann"]);
    assert!(
        said.ok()
            .contains("1 of 2 founders (bob) said that ann is to be out")
            && said
                .stdout
                .contains("another founder runs 'tvix-node revoke ann'"),
        "{}",
        said.stdout
    );
    until("dave hears what bob has said", || {
        (against(&dave, "ann") == ["bob"]).then_some(())
    });
    dave.machine
        .run(&["revoke", "ann"])
        .failed(1, &["only a founder"]);
    bob.down();
    bob.start(UP);
    assert_eq!(against(&bob, "ann"), ["bob"], "it is not forgotten");
    assert_eq!(
        bob.machine.run(&["revoke", "ann"]).stdout,
        said.stdout,
        "nor counted twice"
    );
    bob.down();
    carol.start(UP);
    until("carol hears what bob has said", || {
        (against(&carol, "ann") == ["bob"]).then_some(())
    });
    let shown = carol.machine.run(&["members"]);
    for line in [
        "\n3 founders; it takes 2",
        "\n1 of 2 founders (bob) said that ann is to be out",
    ] {
        assert!(shown.ok().contains(line), "{}", shown.stdout);
    }
    let doctor: Value = serde_json::from_str(&carol.machine.run(&["doctor", "--json"]).stdout).expect("JSON");
    let mut found = doctor.as_array().expect("a list").iter();
    let found = found
        .find(|finding| finding["about"] == "founders")
        .expect("it is said");
    assert!(
        text(&found["advice"]).contains("'tvix-node revoke ann'"),
        "{found}"
    );
    let said = carol.machine.run(&["revoke", "ann"]);
    assert_eq!(said.ok(), "ann is out of the team");
    let shown = carol.machine.run(&["members"]);
    assert!(
        shown.ok().contains("invited by ann, who is out")
            && shown.stdout.contains("\n2 of 3 founders are left"),
        "{}",
        shown.stdout
    );
    bob.start(UP);
    is_out(&bob, "ann");

    // What hung on ann hangs on others now.
    bob.machine.run(&["renew", "dave"]).ok();
    let erin = Node::up("erin", 1);
    erin.join(&carol.ticket(&[])).ok();
    let nodes = [bob, carol, dave, erin];
    all_meet(&nodes);
    let [bob, carol, dave, erin] = &nodes;
    for (builder, node) in [(dave, bob), (erin, dave), (carol, erin), (bob, carol)] {
        builds_for(builder, node, &nodes);
    }
}

#[test]
fn only_who_has_a_founders_key_takes_its_place_and_none_does_alone_what_takes_two() {
    let ann = Node::up("ann", 0);
    let [mut bob, carol, mut dave, eve] = ["bob", "carol", "dave", "eve"].map(|name| Node::up(name, 0));
    let [of_bob, of_carol] = found(&ann, [&bob, &carol]);
    let genesis = |name: &str| text(&member(&ann, name).expect("a founder")["key"]);
    // Before they have come, they are founders already; and nobody becomes one in their stead.
    for ticket in [&of_bob, &of_carol] {
        eve.join(ticket).failed(
            1,
            &["for the founder with the key", "does not have", "founder-key"],
        );
    }
    founder_key(&eve);
    eve.join(&of_bob).failed(1, &["does not have"]);
    carol.join(&of_bob).failed(1, &[&genesis("bob"), "does not have"]);
    eve.machine.run(&["members"]).failed(1, &["no team"]);
    bob.join(&of_bob).ok();
    assert_eq!(member(&bob, "bob").expect("a founder")["me"], true);
    assert_eq!(
        member(&bob, "bob").expect("a founder")["key"],
        genesis("bob").as_str()
    );
    assert_ne!(genesis("bob"), bob.key(), "the key of the home is another");
    bob.join(&of_bob).failed(1, &["already"]);
    // A ticket that was lost, or is too old, is made anew, by whoever is there.
    dave.join(&bob.ticket(&[])).ok();
    let again = dave.ticket(&["--founder", "carol"]);
    eve.join(&again).failed(1, &["does not have"]);
    dave.down();
    carol.join(&again).failed(1, &["cannot redeem the ticket"]);
    dave.start(&["--listen", "127.0.0.1:0", "--slots", "0"]);
    let joined = carol.join(&again);
    assert!(
        joined.ok().contains("as carol, one of 3 founders"),
        "{}",
        joined.stdout
    );
    let other = ["invite", "--founder", "dave"];
    ann.machine.run(&other).failed(1, &["dave is no founder"]);
    ann.machine
        .run(&["invite", "--founder", "eve"])
        .failed(1, &["'eve'", "'bob'"]);

    // By the same key after a restart.
    bob.down();
    bob.start(&["--listen", "127.0.0.1:0", "--slots", "0"]);
    assert_eq!(member(&bob, "bob").expect("a founder")["me"], true);
    bob.meet("carol");

    let said = bob.machine.run(&["revoke", "carol"]);
    assert!(said.ok().contains("1 of 2 founders (bob)"), "{}", said.stdout);
    for node in [&ann, &carol, &dave] {
        until("it is heard what bob has said", || {
            (against(node, "carol") == ["bob"]).then_some(())
        });
    }
    dave.machine
        .run(&["revoke", "bob"])
        .failed(1, &["only a founder"]);
    // One founder is enough for who is none, and a founder goes alone.
    carol.machine.run(&["revoke", "dave"]).ok();
    is_out(&ann, "dave");
    bob.machine.run(&["leave"]).ok();
    is_out(&carol, "bob");
    assert!(member(&ann, "carol").is_some());
    // His node comes to others by its own key, and whose founder it was nobody there can tell.
    bob.join(&eve.ticket(&[])).ok();
    assert_eq!(member(&bob, "bob").expect("a member")["key"], bob.key().as_str());
}

#[test]
fn what_cannot_be_a_team_is_not_founded() {
    let [mut ann, bob] = ["ann", "bob"].map(|name| Node::up(name, 0));
    let of = |name: &str, key: &str| format!("{name}={key}");
    let (bobs, own) = (of("bob", &founder_key(&bob)), of("bob", &founder_key(&ann)));
    let invite = |more: &[&str]| {
        let line = [&["invite", "--name", "ann", "--new-team"], more].concat();
        ann.machine.run(&line)
    };
    // Found before a node is asked.
    invite(&["--founder", &bobs]).failed(2, &["--threshold 1", "--threshold 2", "third founder"]);
    invite(&["--founder", &bobs, "--threshold", "3"]).failed(2, &["2 founders", "1 to 2"]);
    invite(&["--founder", &bobs, "--threshold", "0"]).failed(2, &["1 to 2"]);
    invite(&["--founder", "bob=abc"]).failed(2, &["'abc' is not a key", "founder-key"]);
    invite(&["--founder", &of("ann", &"00".repeat(32)), "--threshold", "1"]).failed(2, &["ann"]);
    invite(&["--founder", "bob"]).failed(2, &["--founder bob=KEY"]);
    // Found by the node.
    let home = of("bob", &ann.key());
    for own in [&own, &home] {
        invite(&["--founder", own, "--threshold", "1"]).failed(1, &["'bob'", "this node's own"]);
    }
    ann.machine.run(&["members"]).failed(1, &["no team"]);
    ann.machine
        .run(&["invite", "--founder", "bob"])
        .failed(1, &["no team"]);
    ann.ticket(&[]);
    ann.machine
        .run(&["invite", "--founder", &bobs, "--threshold", "1"])
        .failed(1, &["in a team already", "--new-team"]);
    let teams = ann.json(&["teams"]);
    assert_eq!(teams.as_array().map(Vec::len), Some(1), "{teams}");
    let alone = text(&teams[0]["swarm"]);
    // Beside that team, by a key that is in none.
    let founded = invite(&["--founder", &bobs, "--threshold", "2"]);
    assert!(
        founded.stderr.contains("2 founders") && founded.stderr.contains("stays in"),
        "{}",
        founded.stderr
    );
    // It did not come to it with the ticket, and is a founder with any other, too.
    ann.down();
    bob.join(founded.ok()).failed(1, &["cannot redeem the ticket"]);
    ann.start(&["--listen", "127.0.0.1:0", "--slots", "0"]);
    let teams = ann.json(&["teams"]);
    let all = teams.as_array().expect("a list").iter();
    let id = all
        .map(|team| text(&team["swarm"]))
        .find(|team| *team != alone)
        .expect("two teams");
    let joined = bob.join(&ann.ticket(&["--team", &id]));
    assert!(
        joined.ok().contains("as bob, one of 2 founders (2 of"),
        "{}",
        joined.stdout
    );
    let known = bob.json(&["members"]);
    assert_eq!(
        (&known["founders"], &known["threshold"]),
        (&2.into(), &2.into()),
        "{known}"
    );
    assert!(
        !known.to_string().contains(&ann.key()),
        "ann is known by the key of her home"
    );
}
