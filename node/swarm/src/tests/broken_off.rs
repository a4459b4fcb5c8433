use std::sync::atomic::{AtomicBool, Ordering};

use super::parts::ask_for;
use super::shelf::{TestShelf, component, noise};
use super::*;
use crate::core::Core;
use crate::limits::{CONTENT_STREAMS, SHARES};
use crate::machine::{FetchPlaces, Pace};
use crate::net::Door;
use crate::net::doors::Inbound;
use crate::net::wire::Wire;
use crate::{FetchError, FetchOrder, Machine};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use iroh_blobs::protocol::GetRequest;
use tvix_node_protocol::messages::{BlobQuestion, BlobsQuestion, Message, ServeAnswer, TreeQuestion};
use tvix_node_protocol::tree::{BlobDigest, Directory, Node, SymlinkTarget, Tree, TreeDigest};

/// More than all buffers between two nodes hold: who sends it waits for who reads it.
const LARGE: usize = 20 << 20;

/// A tree whose directories have many bytes.
fn wide(shelf: &TestShelf) -> TreeDigest {
    let mut root = Directory::default();
    for number in 0..40_u64 {
        let mut inner = Directory::default();
        for entry in 0..100 {
            let target: String = noise(number * 1000 + entry, 2000)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            let link = Node::Symlink(SymlinkTarget::new(target.as_bytes()).unwrap());
            inner.insert(component(&entry.to_string()), link).unwrap();
        }
        let inner = shelf.add_tree(Tree::Directory(inner));
        root.insert(component(&number.to_string()), Node::Directory(inner))
            .unwrap();
    }
    shelf.add_tree(Tree::Directory(root))
}

/// Is busy whenever it is asked for the first time in a while: for directories, for small files and for a large one.
fn busy_at_first(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    static ASKED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];
    let number = match inbound.door {
        Door::Tree => 0,
        Door::Blobs => 1,
        Door::Blob => 2,
        _ => return honestly(core, inbound),
    };
    if ASKED[number].swap(true, Ordering::Relaxed) {
        return honestly(core, inbound);
    }
    async move {
        let wire = Wire::new(
            core.traffic
                .counted_serving(inbound.stream, inbound.peer, inbound.door),
        );
        wire.answer(&ServeAnswer::Busy).await.unwrap();
        drop(inbound.permits);
    }
    .boxed()
}

#[tokio::test]
async fn a_provider_that_is_busy_is_asked_again() {
    let ann = TestNode::founder(1).await;
    let bob = ann.invite_as(2, Roles::all(), busy_at_first, |_| ()).await;
    let mut cat = ann.invite(3).await;
    cat.meets(bob.key()).await;
    let large = noise(1, 1 << 20);
    let root = bob
        .shelf
        .add_directory(&[("large", &large), ("small", b"small"), ("other", b"other")]);
    bob.shelf.add_path("p", root);
    let order = FetchOrder::new(root, vec![bob.key()]);
    cat.shelf.adopt(&soon(cat.handle.fetch(order)).await.unwrap());
    assert!(cat.shelf.is_complete(root));
}

/// Asks, and goes away as soon as an answer begins.
async fn ask_and_go<Q: Message>(bob: &TestNode, ann: &TestNode, door: Door, question: &Q) {
    let mut wire = bob.handle.core().open(ann.key(), door).await.unwrap();
    let answer: ServeAnswer = soon(wire.ask(question)).await.unwrap();
    assert_eq!(answer, ServeAnswer::Coming);
}

#[tokio::test]
async fn who_goes_away_in_the_middle_of_an_answer_leaves_room_for_others() {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    let small: Vec<(String, Vec<u8>)> = (0..400)
        .map(|seed| (format!("f{seed}"), noise(seed, 40_000)))
        .collect();
    let mut files: Vec<(&str, &[u8])> = small
        .iter()
        .map(|(name, bytes)| (&name[..], &bytes[..]))
        .collect();
    let large = noise(5000, LARGE);
    files.push(("large", &large));
    let root = ann.shelf.add_directory(&files);
    ann.shelf.add_path("files", root);
    let blobs: Vec<u8> = small
        .iter()
        .flat_map(|(_, bytes)| BlobDigest::of(bytes).0)
        .collect();
    let directories = wide(&ann.shelf);
    ann.shelf.add_path("directories", directories);
    let blob = BlobDigest::of(&large);
    for _ in 0..CONTENT_STREAMS / 3 + 1 {
        ask_and_go(&bob, &ann, Door::Tree, &TreeQuestion { root: directories }).await;
        let question = BlobsQuestion {
            root,
            blobs: blobs.clone(),
        };
        ask_and_go(&bob, &ann, Door::Blobs, &question).await;
        let request = GetRequest::blob(blob.0);
        let (answer, ..) = ask_for(&bob, &ann, BlobQuestion { root, blob }, request).await;
        assert_eq!(answer, ServeAnswer::Coming);
    }
    let places = &ann.handle.core().serving.streams;
    eventually(async || places.available_permits() == CONTENT_STREAMS * SHARES as usize).await;
}

/// Has everything, and says nothing when it is asked for files.
fn without_files(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    silent_at(&[Door::Blobs, Door::Blob], core, inbound)
}

/// Has everything, and says nothing when it is asked for directories.
fn without_directories(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    silent_at(&[Door::Tree], core, inbound)
}

fn silent_at(doors: &[Door], core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    if !doors.contains(&inbound.door) {
        return honestly(core, inbound);
    }
    async move {
        let _inbound = inbound;
        std::future::pending::<()>().await;
    }
    .boxed()
}

/// Bob, who serves so, is asked first, and Ann has everything, too.
async fn brings_what_bob_does_not(serves: Serve) {
    let ann = TestNode::founder(1).await;
    let bob = ann.invite_as(2, Roles::all(), serves, |_| ()).await;
    let mut cat = ann.invite(3).await;
    cat.meets(ann.key()).await;
    cat.meets(bob.key()).await;
    let large = noise(2, 1 << 20);
    let files: [(&str, &[u8]); 2] = [("large", &large), ("small", b"small")];
    let root = ann.shelf.add_directory(&files);
    ann.shelf.add_path("p", root);
    assert_eq!(bob.shelf.add_directory(&files), root);
    bob.shelf.add_path("p", root);
    let since = std::time::Instant::now();
    let order = FetchOrder::new(root, vec![bob.key(), ann.key()]);
    cat.shelf.adopt(&soon(cat.handle.fetch(order)).await.unwrap());
    assert!(cat.shelf.is_complete(root));
    let took = since.elapsed();
    // Without another one it would have been waited for as long as for any answer.
    assert!(took < crate::limits::ANSWER_TIME, "{took:?}");
}

#[tokio::test]
async fn what_a_silent_provider_has_left_is_brought_by_another_after_a_moment() {
    brings_what_bob_does_not(without_files).await;
}

#[tokio::test]
async fn directories_that_a_silent_provider_does_not_bring_another_one_brings_after_a_moment() {
    brings_what_bob_does_not(without_directories).await;
}

#[tokio::test]
async fn what_comes_for_others_gives_way_where_it_does_not_come() {
    let ann = TestNode::founder(1).await;
    let bob = ann.invite_as(2, Roles::all(), without_files, |_| ()).await;
    let pace = Pace {
        time: Duration::from_millis(100),
        bytes: 1,
    };
    let machine = Machine {
        fetches: FetchPlaces::new(2, 1, pace),
        ..Machine::default()
    };
    let places = machine.fetches.all.clone();
    let change = |config: &mut Config| config.machine = machine;
    let mut cat = ann.invite_as(3, Roles::all(), honestly, change).await;
    cat.meets(ann.key()).await;
    cat.meets(bob.key()).await;
    let order = |node: &TestNode, bytes: &[u8]| {
        let root = node.shelf.add_directory(&[("file", bytes)]);
        node.shelf.add_path("p", root);
        FetchOrder {
            for_another: true,
            ..FetchOrder::new(root, vec![node.key()])
        }
    };
    let (silent, honest) = (order(&bob, b"one"), order(&ann, b"two"));
    let root = silent.root;
    let slow = soon(cat.handle.fetch(silent));
    let next = async {
        eventually(async || places.free() == SHARES as usize).await;
        // Longer than the pace: nobody waits.
        tokio::time::sleep(pace.time * 3).await;
        assert_eq!(places.free(), SHARES as usize);
        soon(cat.handle.fetch(honest)).await
    };
    let (slow, next) = tokio::join!(slow, next);
    assert!(
        matches!(slow, Err(FetchError::TooSlow(slow)) if slow == root),
        "{slow:?}"
    );
    cat.shelf.adopt(&next.unwrap());
}
