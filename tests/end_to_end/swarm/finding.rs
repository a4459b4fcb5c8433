//! Advertised through the team, found by who has never met the holder, and taken back.

use rustix::process::Signal;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::envelope::NodeKey;

use super::nodes::{Node, team};
use super::observer::Observer;
use crate::harness::sandbox_works;

pub fn store_path(printed: &str) -> StorePath {
    StorePath::from_absolute_path(printed.as_bytes()).expect("a store path")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_is_found_and_fetched_from_a_holder_never_met() {
    let test = "a_path_is_found_and_fetched_from_a_holder_never_met";
    if !tokio::task::block_in_place(|| sandbox_works(test)) {
        return;
    }
    let expression = r#"{ thing = build "thing" { } "write $out thing"; }"#;
    let ([alice, bob], path, bob_key) = tokio::task::block_in_place(|| {
        let nodes = team([("alice", 0), ("bob", 1)]);
        nodes[1].machine.expression(expression);
        let path = nodes[1].build("thing", &[]).path();
        let key = nodes[1].key().parse::<NodeKey>().expect("a key");
        (nodes, store_path(&path), key)
    });
    // Bob tells all who keep his records at once.
    let keeper = Observer::join(&alice).await;
    keeper.sees(&path, &[bob_key]).await;
    keeper.leave().await;
    // Until alice is known to keep it: who joins while bob stands still can have it from nobody else.
    loop {
        bob.signal(Signal::STOP);
        let observer = Observer::join(&alice).await;
        let holders = observer.holders(&path).await;
        let met = observer.swarm.connected();
        observer.leave().await;
        assert!(!met.contains(&bob_key), "{met:?}");
        if holders == [bob_key] {
            break;
        }
        bob.signal(Signal::CONT);
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    tokio::task::block_in_place(|| {
        let carol = Node::up("carol", 0);
        carol.join(&alice.ticket(&[])).ok();
        carol.machine.expression(expression);
        let mut building = carol.start_build("thing", &[]);
        building.until("target-named");
        assert!(carol.peer("bob").is_none(), "carol has met bob");
        bob.signal(Signal::CONT);
        let build = super::nodes::finished(building.finish());
        assert_eq!(store_path(&build.path()), path);
        assert_eq!(
            (build.count("built"), build.count("fetched")),
            (0, 1),
            "{}",
            build.messages()
        );
        assert!(!alice.has(&build.path()), "it did not come by way of alice");
        assert!(carol.content_received("bob") > 0);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_path_is_advertised_until_its_node_goes_down() {
    let test = "every_path_is_advertised_until_its_node_goes_down";
    if !tokio::task::block_in_place(|| sandbox_works(test)) {
        return;
    }
    let ([alice, mut bob], built, source, bob_key) = tokio::task::block_in_place(|| {
        let nodes = team([("alice", 0), ("bob", 1)]);
        nodes[1]
            .machine
            .expression(r#"{ thing = build "thing" { inherit tool; } "write $out thing"; tool = tool; }"#);
        let built = nodes[1].build("thing", &[]).path();
        let source = nodes[1].machine.run(&["eval", "-A", "tool"]);
        let source = source.ok().trim_matches('"').to_owned();
        let key = nodes[1].key().parse::<NodeKey>().expect("a key");
        (nodes, store_path(&built), store_path(&source), key)
    });
    let observer = Observer::join(&alice).await;
    observer.sees(&built, &[bob_key]).await;
    observer.sees(&source, &[bob_key]).await;
    tokio::task::block_in_place(|| bob.down());
    // Without a withdrawal they would be good for an hour.
    observer.sees(&built, &[]).await;
    observer.sees(&source, &[]).await;
    observer.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_collected_is_advertised_no_more() {
    let ([alice, bob], first, second, bob_key) = tokio::task::block_in_place(|| {
        let nodes = team([("alice", 0), ("bob", 0)]);
        let machine = &nodes[1].machine;
        machine.write("first", "first");
        machine.write("second", "second");
        let add = |name| store_path(machine.run(&["store", "add", name]).ok());
        let paths = (add("first"), add("second"));
        let key = nodes[1].key().parse::<NodeKey>().expect("a key");
        (nodes, paths.0, paths.1, key)
    });
    let observer = Observer::join(&alice).await;
    observer.sees(&first, &[bob_key]).await;
    observer.sees(&second, &[bob_key]).await;
    tokio::task::block_in_place(|| {
        let collected = bob.json(&["store", "gc", "--max-freed", "1"]);
        assert_eq!(
            collected["removed"].as_array().map(Vec::len),
            Some(1),
            "{collected}"
        );
    });
    let (kept, gone) = match tokio::task::block_in_place(|| bob.has(&first.to_absolute_path())) {
        true => (first, second),
        false => (second, first),
    };
    // Without a withdrawal it would be good for an hour.
    observer.sees(&gone, &[]).await;
    observer.sees(&kept, &[bob_key]).await;
    observer.leave().await;
}
