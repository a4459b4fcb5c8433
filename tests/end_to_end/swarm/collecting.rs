//! Collections of garbage while others fetch.

use std::time::Duration;

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::tree::TreeDigest;
use tvix_node_swarm::{Caps, FetchOrder};

use super::nodes::{team, text};
use super::observer::Observer;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_being_fetched_is_not_collected_between_two_questions() {
    let ([alice], fetched, other, tree) = tokio::task::block_in_place(|| {
        let nodes = team([("alice", 0)]);
        let machine = &nodes[0].machine;
        let folder = machine.folder().join("much");
        std::fs::create_dir(&folder).expect("a folder");
        // Each of these is asked for by itself.
        for number in 0..40u8 {
            std::fs::write(folder.join(number.to_string()), vec![number; 100 << 10]).expect("a file");
        }
        machine.write("other", "other");
        let [fetched, other] =
            ["much", "other"].map(|name| machine.run(&["store", "add", name]).ok().to_owned());
        let info = nodes[0].json(&["store", "info", &fetched]);
        let tree: TreeDigest = text(&info["treeDigest"]).parse().expect("a digest");
        (nodes, fetched, other, tree)
    });
    let key: NodeKey = tokio::task::block_in_place(|| alice.key())
        .parse()
        .expect("a key");
    let observer = Observer::join(&alice).await;
    // So slowly that it takes longer than a collection.
    observer.swarm.set_caps(Caps {
        upload: None,
        download: Some(256 << 10),
    });
    let (progress, mut watch) = tokio::sync::watch::channel(Default::default());
    let order = FetchOrder {
        progress: Some(progress),
        ..FetchOrder::new(tree, vec![key])
    };
    let fetching = observer.swarm.fetch(order);
    let collecting = async {
        let some_came = watch.wait_for(|how_far| how_far.received > 0);
        some_came.await.expect("it comes");
        let collected = tokio::task::block_in_place(|| alice.json(&["store", "gc"]));
        observer.swarm.set_caps(Caps::default());
        collected
    };
    let (fetched_tree, collected) = tokio::join!(fetching, collecting);
    assert_eq!(collected["removed"], serde_json::json!([other]), "{collected}");
    fetched_tree.expect("all of it came from the only one who has it");
    assert!(tokio::task::block_in_place(|| alice.has(&fetched)));
    let patience = Duration::from_secs(60);
    tokio::time::timeout(patience, observer.leave())
        .await
        .expect("it ends");
}
