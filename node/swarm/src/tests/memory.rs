//! What waits in memory, on the side that sends and on the side that takes.

use std::pin::pin;

use futures::future::{Either, select};
use tvix_node_protocol::messages::{BlobsQuestion, ServeAnswer};
use tvix_node_protocol::tree::{Directory, Leaf, Node, Tree, TreeDigest};

use super::shelf::component;
use super::*;
use crate::Machine;
use crate::limits::{COMING_BYTES, COMING_BYTES_PER_PEER, LISTINGS, WALK_BYTES, WALK_BYTES_PER_PEER};
use crate::net::Door;
use crate::protocols::serving::Serving;
use crate::room::{Held, Room};

/// Ann, who has trees, and Bob, who fetches them, on these machines.
async fn pair(anns: Machine, bobs: Machine) -> (TestNode, TestNode) {
    let cat = TestNode::founder(1).await;
    let on = |machine| move |config: &mut Config| config.machine = machine;
    let ann = cat.invite_as(2, Roles::all(), honestly, on(anns)).await;
    let mut bob = cat.invite_as(3, Roles::all(), honestly, on(bobs)).await;
    bob.meets(ann.key()).await;
    (ann, bob)
}

/// A directory that is read first, and in it as many as there are sizes, each of so many bytes or some more.
fn add_directories(node: &TestNode, tree: &str, sizes: &[usize]) -> TreeDigest {
    let mut root = Directory::default();
    for (number, size) in sizes.iter().enumerate() {
        let mut directory = Directory::default();
        let (mut bytes, mut entries) = (0, 0);
        let file = node.shelf.add_blob(b"");
        while bytes < *size {
            let name = format!("{tree} {number} {entries}");
            bytes += name.len() + 40;
            entries += 1;
            directory.insert(component(&name), file.clone()).unwrap();
        }
        let directory = Tree::Directory(directory);
        assert!(directory.to_bytes().len() >= *size);
        let name = component(&number.to_string());
        let inner = node.shelf.add_tree(directory);
        root.insert(name, Node::Directory(inner)).unwrap();
    }
    let root = node.shelf.add_tree(Tree::Directory(root));
    node.shelf.add_path(tree, root);
    root
}

/// All that there is room for, as peers of other teams may have it.
fn fill(room: &Room, all: usize, each: usize) -> Vec<Held> {
    let peers = (0..all / each).map(|number| NodeKey([u8::try_from(number).unwrap(); 32]));
    let held: Vec<Held> = peers.map(|peer| room.try_take(peer, each).unwrap()).collect();
    assert_eq!(room.free(), 0);
    held
}

/// What is asked for does not come as long as this is held, and then it does.
async fn waits_for<T>(held: impl Sized, asked: impl Future<Output = T>) -> T {
    let moment = pin!(tokio::time::sleep(Duration::from_millis(300)));
    let asked = pin!(asked);
    let Either::Right(((), asked)) = select(asked, moment).await else {
        panic!("it has come although there is no room");
    };
    drop(held);
    soon(asked).await
}

#[tokio::test]
async fn directories_and_texts_are_read_when_there_is_room_for_them_and_not_before() {
    let anns = Machine::default();
    let (ann, bob) = pair(anns.clone(), Machine::default()).await;
    let root = add_directories(&ann, "a", &[100]);
    let Node::File { blob, size, .. } = ann.shelf.add_blob(b"Derive()") else {
        unreachable!("a file is a file")
    };
    let text = Tree::Leaf(Leaf::File {
        blob,
        size,
        executable: false,
    });
    let text = [ann.shelf.add_path("text.drv", ann.shelf.add_tree(text))];
    let full = || fill(&anns.serving.ahead, WALK_BYTES, WALK_BYTES_PER_PEER);
    let fetched = bob.handle.fetch_tree(root, vec![ann.key()], None);
    waits_for(full(), fetched).await.unwrap();
    let texts = bob.handle.texts(ann.key(), &text);
    assert_eq!(
        waits_for(full(), texts).await.unwrap(),
        [Some(b"Derive()".to_vec())]
    );
    eventually(async || anns.serving.ahead.free() == WALK_BYTES).await;
}

#[tokio::test]
async fn directories_are_taken_when_there_is_room_for_them_and_not_before() {
    let bobs = Machine::default();
    let (ann, bob) = pair(Machine::default(), bobs.clone()).await;
    let root = add_directories(&ann, "a", &[100]);
    let full = fill(&bobs.coming, COMING_BYTES, COMING_BYTES_PER_PEER);
    let fetched = bob.handle.fetch_tree(root, vec![ann.key()], None);
    waits_for(full, fetched).await.unwrap();
    assert_eq!(bobs.coming.free(), COMING_BYTES);
}

#[tokio::test]
async fn directories_larger_than_all_the_room_there_is_go_alone() {
    let mut serving = Serving::new();
    serving.ahead = Arc::new(Room::new(2000, 1000));
    let anns = Machine {
        serving: Arc::new(serving),
        ..Machine::default()
    };
    let bobs = Machine {
        coming: Arc::new(Room::new(2000, 1000)),
        ..Machine::default()
    };
    let (ann, bob) = pair(anns, bobs).await;
    // What has come and is not written yet must not keep the next one out.
    let fetches = ["a", "b", "c"].map(|tree| {
        let root = add_directories(&ann, tree, &[600, 700, 100_000, 100, 50_000, 600]);
        bob.handle.fetch_tree(root, vec![ann.key()], None)
    });
    for fetched in soon(futures::future::join_all(fetches)).await {
        fetched.unwrap();
    }
}

#[tokio::test]
async fn so_many_trees_are_listed_at_once() {
    let anns = Machine::default();
    let (ann, bob) = pair(anns.clone(), Machine::default()).await;
    let root = ann.shelf.add_directory(&[("a", b"a")]);
    ann.shelf.add_path("listed", root);
    let places = (0..LISTINGS).map(|number| NodeKey([u8::try_from(number).unwrap(); 32]));
    let mut listing = Vec::new();
    for peer in places {
        listing.push(anns.serving.listing_place(peer).await.unwrap());
    }
    let mut wire = bob.handle.core().open(ann.key(), Door::Blobs).await.unwrap();
    let question = BlobsQuestion { root, blobs: vec![] };
    let answer: ServeAnswer = waits_for(listing, wire.ask(&question)).await.unwrap();
    assert_eq!(answer, ServeAnswer::Coming);
}
