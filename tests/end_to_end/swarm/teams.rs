//! One node in two teams, which do not see each other.

use std::io::{BufRead as _, BufReader};

use rustix::process::Signal;
use serde_json::Value;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::envelope::NodeKey;

use super::nodes::{Build, Node, text, until};
use super::observer::Observer;
use crate::harness::sandbox_works;

const PACKAGES: &str = r#"rec {
    first = build "first" { } "write $out first";
    second = build "second" { inherit first; } "copy $first $out";
    third = build "third" { inherit first; } "write $out third";
    source = "${./input}";
}"#;

/// Alice and bob each found a team, and carl joins both.
fn two_teams(slots: [u32; 3]) -> [Node; 3] {
    let names = ["alice", "bob", "carl"];
    let mut slots = slots.into_iter();
    let nodes = names.map(|name| Node::up(name, slots.next().expect("one for each")));
    let [alice, bob, carl] = &nodes;
    for founder in [alice, bob] {
        carl.join(&founder.ticket(&[])).ok();
        founder.meet("carl");
        carl.meet(founder.name);
    }
    for node in &nodes {
        node.machine.expression(PACKAGES);
    }
    nodes
}

/// The node as it is known in the team that somebody founded.
fn key_in_team_of(node: &Node, founder: &str) -> String {
    let members = node.json(&["members", "--team", &format!("{founder}'s team")]);
    text(&members["me"])
}

/// The node that built the only derivation with this name.
fn builder(build: &Build, name: &str) -> String {
    let started = build.of_kind("build-started");
    let mut of_name = started.filter(|event| text(&event["derivation"]).ends_with(&format!("-{name}.drv")));
    text(
        &of_name
            .next()
            .unwrap_or_else(|| panic!("{name} was not built:\n{}", build.messages()))["node"],
    )
}

fn explained(node: &Node, path: &str) -> String {
    node.machine.run(&["trust", "explain", path]).ok().to_owned()
}

#[test]
fn a_node_is_in_two_teams_by_two_keys_and_each_command_says_which_one_it_means() {
    let [alice, bob, mut carl] = two_teams([0, 0, 0]);
    let keys = |carl: &Node| [key_in_team_of(carl, "alice"), key_in_team_of(carl, "bob")];
    let before = keys(&carl);
    assert_ne!(before[0], before[1]);
    // What each team knows of carl names the other nowhere.
    for (node, own, other) in [(&alice, 0, 1), (&bob, 1, 0)] {
        let known = format!("{}{}", node.json(&["members"]), node.json(&["peers"]));
        assert!(known.contains(&before[own]), "{known}");
        assert!(!known.contains(&before[other]), "{known}");
        assert_eq!(
            node.json(&["members"])["members"].as_array().map(Vec::len),
            Some(2)
        );
    }
    let ids: Vec<String> = [&alice, &bob]
        .map(|node| text(&node.json(&["members"])["swarm"]))
        .to_vec();
    let teams = carl.json(&["teams"]);
    let listed: Vec<String> = teams
        .as_array()
        .expect("a list")
        .iter()
        .map(|team| text(&team["swarm"]))
        .collect();
    assert_eq!(listed, ids);
    for command in [&["members"][..], &["invite"], &["leave"]] {
        carl.machine
            .run(command)
            .failed(1, &["--team", &ids[0][..12], &ids[1][..12], "alice's team"]);
    }
    carl.machine
        .run(&["members", "--team", "nobodys"])
        .failed(1, &["nobodys", &ids[0][..12]]);
    let by_id = carl.json(&["members", "--team", &ids[1][..8]]);
    assert_eq!(text(&by_id["swarm"]), ids[1]);
    // Joined again is joined already.
    carl.join(&alice.ticket(&[])).failed(1, &["already"]);
    // It is the same after a restart.
    carl.down();
    carl.start(&["--listen", "127.0.0.1:0", "--slots", "0"]);
    carl.meet("alice");
    carl.meet("bob");
    assert_eq!(keys(&carl), before);
}

/// The folder of a team at a node.
fn folder(node: &Node, team: &str) -> std::path::PathBuf {
    let members = node.json(&["members", "--team", team]);
    node.machine.home().join("teams").join(text(&members["swarm"]))
}

#[test]
fn a_team_that_refused_has_seen_the_key_of_the_home_and_no_other_one_does() {
    let [alice, bob, carl] = ["alice", "bob", "carl"].map(|name| Node::up(name, 0));
    let home = carl.key();
    let used = alice.ticket(&[]);
    let dave = Node::up("dave", 0);
    dave.join(&used).ok();
    carl.join(&used).failed(1, &["used"]);
    carl.join(&bob.ticket(&[])).ok();
    assert_ne!(key_in_team_of(&carl, "bob"), home);
    carl.join(&alice.ticket(&[])).ok();
    assert_eq!(key_in_team_of(&carl, "alice"), home);
    // It is so after a restart, too.
    let mut carl = carl;
    carl.down();
    carl.start(&["--listen", "127.0.0.1:0", "--slots", "0"]);
    assert_eq!(key_in_team_of(&carl, "alice"), home);
    assert_ne!(key_in_team_of(&carl, "bob"), home);
}

#[test]
fn a_team_whose_key_is_missing_is_not_met_by_another_key_and_can_be_given_up() {
    let [_alice, bob, mut carl] = two_teams([0, 0, 0]);
    let before = key_in_team_of(&carl, "bob");
    let of_bobs = folder(&carl, "bob's team");
    let id = of_bobs
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    carl.down();
    let (key, aside) = (of_bobs.join("identity"), of_bobs.join("elsewhere"));
    std::fs::rename(&key, &aside).expect("it has one");
    // Who looks on is told, and what to do.
    carl.machine
        .run(&["up", "--listen", "127.0.0.1:0"])
        .failed(1, &["missing", "identity", "backup", "leave --team"]);
    // In the background it takes part in the other one.
    let teams = carl.json(&["teams"]);
    let names: Vec<String> = teams
        .as_array()
        .expect("a list")
        .iter()
        .map(|team| text(&team["team"]))
        .collect();
    assert_eq!(names, ["alice's team"]);
    // A ticket that is not taken leaves it with no other key, either.
    let (dave, ticket) = (Node::up("dave", 0), bob.ticket(&[]));
    dave.join(&ticket).ok();
    carl.join(&ticket).failed(1, &["used"]);
    carl.machine.run(&["down"]).ok();
    carl.machine
        .run(&["up", "--listen", "127.0.0.1:0"])
        .failed(1, &["missing", "identity"]);
    carl.machine.run(&["down"]);
    // With its key it is there again, as the same; here as if it had ended after it was taken in, and before it wrote that down.
    std::fs::rename(&aside, of_bobs.join("identity.asked")).expect("it is back");
    carl.start(&["--listen", "127.0.0.1:0", "--slots", "0"]);
    assert_eq!(key_in_team_of(&carl, "bob"), before);
    carl.meet("bob");
    // Without it, it can be left.
    carl.down();
    std::fs::remove_file(&key).expect("it is there");
    carl.machine.run(&["leave", "--team", &id[..12]]).ok();
    assert!(!of_bobs.exists());
    carl.machine.run(&["down"]).ok();
    carl.start(&["--listen", "127.0.0.1:0", "--slots", "0"]);
    carl.join(&bob.ticket(&[])).ok();
    assert_ne!(key_in_team_of(&carl, "bob"), before);
}

#[test]
fn a_damaged_team_is_named_and_its_last_founder_s_key_is_not_thrown_away_by_mistake() {
    let [mut alice, carl] = ["alice", "carl"].map(|name| Node::up(name, 0));
    carl.join(&alice.ticket(&[])).ok();
    let team = folder(&alice, "alice's team");
    let id = team.file_name().expect("a name").to_string_lossy().into_owned();
    alice.down();
    let nonces = team.join("nonces");
    let whole = std::fs::read(&nonces).unwrap_or_default();
    std::fs::write(&nonces, b"torn").expect("it can be written");
    // In the background it is up, and says what is wrong whatever is asked of it.
    let says = |arguments: &[&str], status, words: &[&str]| {
        let all: Vec<&str> = words.iter().copied().chain(["nonces", &id[..12]]).collect();
        alice.machine.run(arguments).failed(status, &all);
    };
    says(&["members"], 1, &["leave --team"]);
    says(&["invite"], 1, &["--new-team"]);
    says(&["leave"], 1, &["leave --team"]);
    let status = alice.machine.run(&["status"]);
    assert!(status.ok().contains("is not running"), "{}", status.stdout);
    let health = alice.machine.run(&["doctor"]);
    assert_eq!(health.status, 1);
    assert!(health.stdout.contains("does not take part in the team"));
    let last = alice.machine.run(&["leave", "--team", &id]);
    last.failed(1, &["last founder", "--force"]);
    alice.machine.run(&["down"]).ok();
    match whole.as_slice() {
        [] => std::fs::remove_file(&nonces).expect("it is there"),
        whole => std::fs::write(&nonces, whole).expect("it can be written"),
    }
    alice.start(&["--listen", "127.0.0.1:0", "--slots", "0"]);
    alice.meet("carl");
}

#[test]
fn a_team_that_only_does_not_run_at_the_moment_is_not_forgotten() {
    let [alice, mut carl] = ["alice", "carl"].map(|name| Node::up(name, 0));
    carl.join(&alice.ticket(&[])).ok();
    let of_alices = folder(&carl, "alice's team");
    let id = of_alices
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    carl.down();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("it has one").to_string();
    let up = ["up", "--background", "--slots", "0", "--listen", &address];
    let mut background = carl.machine.start(&up);
    let mut ready = String::new();
    let said = background.child.stdout.take().expect("a pipe");
    BufReader::new(said).read_line(&mut ready).expect("it says so");
    for leave in [&["leave"][..], &["leave", "--team", &id[..12]]] {
        carl.machine
            .run(leave)
            .failed(1, &["not running", &id[..12], "use", "leave --team"]);
    }
    assert!(of_alices.join("roster").exists());
    carl.machine.run(&["down"]).ok();
    assert!(background.child.wait().expect("it ends").success());
    drop(taken);
    carl.start(&["--listen", "127.0.0.1:0", "--slots", "0"]);
    carl.meet("alice");
    carl.machine.run(&["leave"]).ok();
    assert!(!of_alices.exists());
    until("alice knows that carl has left", || {
        let members = alice.json(&["members"]);
        (members["members"].as_array().map(Vec::len) == Some(1)).then_some(())
    });
}

#[test]
fn leaving_that_is_cut_short_is_finished_and_takes_nothing_along() {
    let [alice, bob, mut carl] = two_teams([0, 0, 0]);
    let home = key_in_team_of(&carl, "alice");
    let of_alices = folder(&carl, "alice's team");
    let teams = of_alices.parent().expect("a folder").to_owned();
    let ticket = alice.ticket(&[]);
    // It has put its own key out, and is killed while it tells alice, who does not listen.
    let roster = || std::fs::read(of_alices.join("roster")).expect("the roster");
    let before = roster();
    alice.signal(Signal::STOP);
    let leaving = carl.machine.start(&["leave", "--team", "alice's team"]);
    until("carl has written down that he leaves", || {
        (roster() != before).then_some(())
    });
    carl.kill();
    alice.signal(Signal::CONT);
    assert_ne!(leaving.finish().status, 0);
    // And one that is killed between the two steps of forgetting.
    let left = teams.join(format!(".left-{}", "ab".repeat(32)));
    std::fs::create_dir(&left).expect("a folder");
    std::fs::write(left.join("identity"), [7; 32]).expect("a file");
    carl.start(&["--listen", "127.0.0.1:0", "--slots", "0"]);
    assert!(!left.exists(), "its key is left over");
    carl.meet("bob");
    carl.join(&ticket).failed(1, &["over", "leave --team"]);
    carl.machine.run(&["leave", "--team", "alice's team"]).ok();
    assert!(!of_alices.exists());
    carl.join(&ticket).ok();
    carl.meet("alice");
    assert_ne!(key_in_team_of(&carl, "alice"), home);
    bob.meet("carl");
}

#[test]
fn what_came_from_one_team_is_as_if_it_were_not_there_to_the_other() {
    if !sandbox_works("what_came_from_one_team_is_as_if_it_were_not_there_to_the_other") {
        return;
    }
    let [alice, bob, carl] = two_teams([1, 0, 1]);
    let made = alice.build("first", &["-j", "1"]).path();
    // Bob is in carl's other team, and could build it as well.
    let got = carl.build("first", &[]);
    assert_eq!(
        (got.count("built"), got.count("fetched")),
        (0, 1),
        "{}",
        got.messages()
    );
    until("alice finds it at carl", || {
        explained(&alice, &made).contains("what carl shows").then_some(())
    });
    // What carl builds from it himself is as good as from there.
    alice.machine.run(&["share", "off"]).ok();
    let from_it = carl.build("third", &[]);
    assert_eq!(builder(&from_it, "third"), "this node");
    let from_it = from_it.path();
    // What is carl's own both learn of.
    std::fs::write(carl.machine.folder().join("input"), "a source of carl").expect("a file");
    let own = carl
        .machine
        .run(&["eval", "-A", "source", "--raw"])
        .ok()
        .to_owned();
    for node in [&alice, &bob] {
        until("the source is found", || {
            explained(node, &own).contains("what carl shows").then_some(())
        });
    }
    // That was announced later than what came from alice, and what was built from it: bob would know that by now.
    for path in [&made, &from_it] {
        assert!(explained(&bob, path).contains("nobody who can be asked has it"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_one_team_are_told_nothing_by_name_or_content_of_what_came_from_the_other() {
    let name = "members_of_one_team_are_told_nothing_by_name_or_content_of_what_came_from_the_other";
    if !tokio::task::block_in_place(|| sandbox_works(name)) {
        return;
    }
    let ([alice, bob, carl], made, tree) = tokio::task::block_in_place(|| {
        let nodes = two_teams([1, 0, 0]);
        let made = nodes[0].build("first", &["-j", "1"]).path();
        assert_eq!(nodes[2].build("first", &[]).count("fetched"), 1);
        let info: Value = nodes[2].json(&["store", "info", &made]);
        (nodes, made, text(&info["treeDigest"]))
    });
    let path = StorePath::from_absolute_path(made.as_bytes()).expect("a path");
    let tree: tvix_node_protocol::tree::TreeDigest = tree.parse().expect("a digest");
    for (founder, knows) in [(&alice, true), (&bob, false)] {
        let observer = Observer::join(founder).await;
        let carls: NodeKey = tokio::task::block_in_place(|| key_in_team_of(&carl, founder.name))
            .parse()
            .expect("a key");
        observer.swarm.connect(carls).await.expect("carl is there");
        let paths = std::slice::from_ref(&path);
        let shown = observer.swarm.path_infos(carls, paths).await.expect("an answer");
        assert_eq!(shown[0].is_some(), knows, "{}", founder.name);
        let has = observer.swarm.have(carls, paths).await.expect("an answer");
        assert_eq!(has, [knows], "{}", founder.name);
        let fetched = observer.swarm.fetch_tree(tree, vec![carls], None).await;
        assert_eq!(fetched.is_ok(), knows, "{}", founder.name);
        observer.leave().await;
    }
}

#[test]
fn a_build_goes_to_either_team_and_what_depends_on_it_stays_there() {
    if !sandbox_works("a_build_goes_to_either_team_and_what_depends_on_it_stays_there") {
        return;
    }
    let [alice, bob, carl] = two_teams([1, 1, 0]);
    let build = carl.build("second", &[]);
    assert_eq!(
        (build.count("built"), build.count("failed")),
        (2, 0),
        "{}",
        build.messages()
    );
    let first = builder(&build, "first");
    assert_eq!(builder(&build, "second"), first);
    // It is said in which team.
    assert!(first.contains("(team "), "{first}");
    let (there, other) = match first.starts_with("alice") {
        true => (&alice, &bob),
        false => (&bob, &alice),
    };
    let outputs = build
        .of_kind("build-finished")
        .map(|event| text(&event["outputs"]["out"]));
    for output in outputs {
        let path = format!("/nix/store/{output}");
        assert!(there.has(&path), "{path} is not at its builder");
        assert!(!other.has(&path), "{path} went to the other team");
        assert!(explained(other, &path).contains("nobody who can be asked has it"));
    }
}

#[test]
fn nothing_that_came_from_one_team_goes_into_builds_for_the_other() {
    if !sandbox_works("nothing_that_came_from_one_team_goes_into_builds_for_the_other") {
        return;
    }
    let [alice, bob, carl] = two_teams([1, 0, 1]);
    let made = alice.build("first", &["-j", "1"]).path();
    assert_eq!(carl.build("first", &[]).count("fetched"), 1);
    assert!(carl.has(&made));
    // Carl is the only one who builds for bob. He has the first of two, and does it again: bob must not see that he had.
    let build = bob.build("second", &[]);
    assert_eq!(
        (build.count("built"), build.count("failed")),
        (2, 0),
        "{}",
        build.messages()
    );
    for name in ["first", "second"] {
        assert_eq!(builder(&build, name), "carl");
    }
    // Having built it for bob, carl has it for him.
    until("bob finds it at carl", || {
        explained(&bob, &made)
            .contains("what carl shows is believed")
            .then_some(())
    });
    // And a record that bob can check is carl's as bob knows him.
    let records = bob.json(&["record", &build.path()]);
    assert_eq!(
        records[0]["signer"],
        key_in_team_of(&carl, "bob").as_str(),
        "{records}"
    );
}

#[test]
fn an_input_that_came_from_one_team_comes_again_from_the_other() {
    if !sandbox_works("an_input_that_came_from_one_team_comes_again_from_the_other") {
        return;
    }
    let [alice, bob, carl] = two_teams([1, 1, 1]);
    let made = alice.build("first", &["-j", "1"]).path();
    assert_eq!(carl.build("first", &[]).count("fetched"), 1);
    carl.machine.run(&["share", "off"]).ok();
    assert_eq!(bob.build("first", &["-j", "1"]).path(), made);
    assert!(bob.has(&made));
    let shared = carl.machine.run(&["share", "on"]);
    assert!(shared.ok().contains("others get free slots"), "{}", shared.stdout);
    let sent = bob.content_sent("carl");
    let build = bob.build("second", &["-j", "0"]);
    assert_eq!(builder(&build, "second"), "carl");
    assert!(
        bob.content_sent("carl") > sent,
        "carl used what he had from alice"
    );
    // Now it is known to be there in both.
    until("bob finds it at carl", || {
        explained(&bob, &made).contains("what carl shows").then_some(())
    });
}

#[test]
fn nobody_is_asked_to_build_with_or_to_keep_what_came_from_another_team() {
    if !sandbox_works("nobody_is_asked_to_build_with_or_to_keep_what_came_from_another_team") {
        return;
    }
    let [alice, bob, carl] = two_teams([1, 1, 0]);
    let made = alice.build("first", &["-j", "1"]).path();
    assert_eq!(carl.build("first", &[]).count("fetched"), 1);
    alice.machine.run(&["share", "off"]).ok();
    let build = carl.build("second", &[]);
    assert_eq!(build.finished.status, 1, "{}", build.messages());
    assert!(build.messages().contains("another team"), "{}", build.messages());
    let pushed = carl.build("first", &["--to", "bob"]);
    assert_eq!(pushed.finished.status, 1, "{}", pushed.messages());
    assert!(
        pushed.messages().contains("another team"),
        "{}",
        pushed.messages()
    );
    assert!(!bob.has(&made));
}

#[test]
fn leaving_one_team_leaves_the_other_alone_and_takes_nothing_there() {
    if !sandbox_works("leaving_one_team_leaves_the_other_alone_and_takes_nothing_there") {
        return;
    }
    let [alice, bob, carl] = two_teams([1, 0, 0]);
    let made = alice.build("first", &["-j", "1"]).path();
    assert_eq!(carl.build("first", &[]).count("fetched"), 1);
    let (in_alices, in_bobs) = (key_in_team_of(&carl, "alice"), key_in_team_of(&carl, "bob"));
    carl.machine.run(&["leave", "--team", "alice's team"]).ok();
    until("carl is out of alice's team", || {
        let members = alice.json(&["members"]);
        (members["members"].as_array().map(Vec::len) == Some(1)).then_some(())
    });
    assert_eq!(key_in_team_of(&carl, "bob"), in_bobs);
    carl.meet("bob");
    assert!(carl.has(&made));
    assert!(explained(&bob, &made).contains("nobody who can be asked has it"));
    // With a new ticket it comes back, as somebody new; what had come from there is from there.
    carl.join(&alice.ticket(&[])).ok();
    carl.meet("alice");
    alice.meet("carl");
    let anew = key_in_team_of(&carl, "alice");
    assert!(anew != in_alices && anew != in_bobs);
    until("alice finds it at carl", || {
        explained(&alice, &made).contains("what carl shows").then_some(())
    });
    // One who is put out of one team stays in the other.
    bob.machine.run(&["revoke", "carl"]).ok();
    until("carl is out of bob's team", || {
        carl.peer("bob").is_none().then_some(())
    });
    carl.meet("alice");
}
