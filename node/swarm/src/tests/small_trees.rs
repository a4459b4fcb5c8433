use std::sync::atomic::{AtomicUsize, Ordering};

use super::shelf::{component, noise};
use super::*;
use crate::core::{Core, lock};
use crate::limits::{CONTENT_STREAMS_PER_PEER, SHARES};
use crate::net::Door;
use crate::net::doors::Inbound;
use crate::net::wire::Wire;
use crate::{Caps, FetchError, FetchOrder, Priority, ProviderError};
use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use tvix_node_protocol::limits::{PACKED_TREE, SMALL_TREE, SMALL_TREE_FILES, TREES_BATCH, TREES_BYTES};
use tvix_node_protocol::messages::{ServeAnswer, TREE_APART, TREE_FOLLOWS, TREES_END, TreesQuestion};
use tvix_node_protocol::packed::Packed;
use tvix_node_protocol::tree::{Directory, Node, SymlinkTarget, Tree, TreeDigest};

/// Two members who know each other; the first one serves so.
async fn pair(serve: Serve) -> (TestNode, TestNode) {
    let founder = TestNode::founder(1).await;
    let ann = founder.invite_as(2, Roles::all(), serve, |_| ()).await;
    let mut bob = founder.invite(3).await;
    bob.meets(ann.key()).await;
    (ann, bob)
}

/// Trees that differ, each a path of its own.
fn add_small(node: &TestNode, count: u64, size: usize) -> Vec<TreeDigest> {
    let add = |number: u64| {
        let bytes = noise(number, size);
        let root = node
            .shelf
            .add_directory(&[("a", &bytes), ("b", &number.to_le_bytes())]);
        node.shelf.add_path(&format!("p{number}"), root);
        root
    };
    (0..count).map(add).collect()
}

/// To fetch what is said to be small.
fn small(root: TreeDigest, providers: Vec<NodeKey>) -> FetchOrder {
    FetchOrder {
        max_bytes: Some(SMALL_TREE),
        ..FetchOrder::new(root, providers)
    }
}

async fn take_all(to: &TestNode, roots: &[TreeDigest], from: &[NodeKey]) {
    take_of(to, roots, from, SMALL_TREE).await;
}

/// The same of trees with so many bytes at most.
async fn take_of(to: &TestNode, roots: &[TreeDigest], from: &[NodeKey], most: u64) {
    let order = |root: &TreeDigest| FetchOrder {
        max_bytes: Some(most),
        ..FetchOrder::new(*root, from.to_vec())
    };
    let fetched = roots.iter().map(|root| to.handle.fetch(order(root)));
    for arrival in soon(join_all(fetched)).await {
        to.shelf.adopt(&arrival.unwrap());
    }
    for root in roots {
        assert!(to.shelf.is_complete(*root));
    }
}

fn wire(core: &Core, inbound: Inbound) -> Wire {
    let Inbound {
        stream, peer, door, ..
    } = inbound;
    Wire::new(core.traffic.counted_serving(stream, peer, door))
}

/// Questions for many trees, and for one.
static ASKED: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

fn counting(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    match inbound.door {
        Door::Trees => drop(ASKED[0].fetch_add(1, Ordering::Relaxed)),
        Door::Tree | Door::Blobs => drop(ASKED[1].fetch_add(1, Ordering::Relaxed)),
        _ => {}
    }
    honestly(core, inbound)
}

#[tokio::test]
async fn what_is_wanted_while_others_are_asked_for_comes_together() {
    let (ann, bob) = pair(counting).await;
    let roots = add_small(&ann, 200, 1000);
    // Nothing is asked before all of them wait.
    let streams = bob.handle.core().fetching.streams.of(ann.key());
    let most = u32::try_from(CONTENT_STREAMS_PER_PEER).unwrap() * SHARES;
    let held = streams.enter(Priority::Import, most).await;
    let from = [ann.key()];
    let waits = async {
        let asking = bob.handle.core().fetching.asking.of(ann.key());
        eventually(async || asking.waiting() == roots.len()).await;
        drop(held);
    };
    tokio::join!(take_of(&bob, &roots, &from, 2000), waits);
    let [together, alone] = [0, 1].map(|which| ASKED[which].load(Ordering::Relaxed));
    assert_eq!(together, 1);
    assert_eq!(alone, 0);
    let traffic = bob.handle.traffic();
    assert!(traffic[&ann.key()].content_received > 200_000);
}

#[tokio::test]
async fn more_than_fits_into_one_answer_is_asked_for_again() {
    let (ann, bob) = pair(honestly).await;
    // Directories count there, and nobody knows of them before.
    let add = |number: usize| {
        let root = add_links(&ann, 25, &number.to_string());
        ann.shelf.add_path(&format!("p{number}"), root);
        root
    };
    let roots: Vec<TreeDigest> = (0..TREES_BYTES / 100_000 + 4).map(add).collect();
    take_of(&bob, &roots, &[ann.key()], 100).await;
}

/// A directory with so many links, of 4000 bytes each, and a file.
fn add_links(node: &TestNode, count: usize, file: &str) -> TreeDigest {
    let mut links = Directory::default();
    for number in 0..count {
        let target = SymlinkTarget::new(&[b'x'; 4000]).unwrap();
        links
            .insert(component(&number.to_string()), Node::Symlink(target))
            .unwrap();
    }
    let file = node.shelf.add_blob(file.as_bytes());
    links.insert(component("file"), file).unwrap();
    node.shelf.add_tree(Tree::Directory(links))
}

#[tokio::test]
async fn caps_hold_for_what_comes_together() {
    let (ann, bob) = pair(honestly).await;
    let roots = add_small(&ann, 20, 20_000);
    ann.handle.set_caps(Caps {
        upload: Some(200 << 10),
        download: None,
    });
    let since = std::time::Instant::now();
    take_all(&bob, &roots, &[ann.key()]).await;
    // A second's worth may go at once.
    assert!(since.elapsed() >= Duration::from_millis(500));
}

#[tokio::test]
async fn what_comes_together_is_lent_while_it_is_read() {
    let (ann, bob) = pair(honestly).await;
    let roots = add_small(&ann, 3, 100);
    ann.shelf.collect_what_is_not_lent();
    take_all(&bob, &roots, &[ann.key()]).await;
}

/// One with more files, or directories, than travel together.
fn add_odd(node: &TestNode) -> [TreeDigest; 3] {
    let mut files = Directory::default();
    for number in 0..=SMALL_TREE_FILES as u64 {
        let file = node.shelf.add_blob(&number.to_le_bytes());
        files.insert(component(&number.to_string()), file).unwrap();
    }
    let links = add_links(node, PACKED_TREE / 4000 + 1, "links");
    let large = noise(9, usize::try_from(SMALL_TREE).unwrap() + 1);
    let large = node.shelf.add_directory(&[("large", &large)]);
    let files = node.shelf.add_tree(Tree::Directory(files));
    for (name, root) in [("files", files), ("links", links), ("large", large)] {
        node.shelf.add_path(name, root);
    }
    [files, links, large]
}

#[tokio::test]
async fn what_does_not_come_together_with_others_comes_by_itself_or_it_is_said_why_not() {
    let (ann, bob) = pair(honestly).await;
    let [files, links, large] = add_odd(&ann);
    take_all(&bob, &[files, links], &[ann.key()]).await;
    let fetch = |root| soon(bob.handle.fetch(small(root, vec![ann.key()])));
    let refused = fetch(large).await.unwrap_err();
    assert!(matches!(refused, FetchError::TooLarge { size, .. } if size == SMALL_TREE + 1));
    // Who said that it is smaller need not be who brings it.
    let said = ann
        .shelf
        .add_directory(&[("a", &noise(50, 600)), ("b", &noise(51, 600))]);
    ann.shelf.add_path("said", said);
    let order = FetchOrder {
        max_bytes: Some(1000),
        ..small(said, vec![ann.key()])
    };
    let refused = soon(bob.handle.fetch(order)).await.unwrap_err();
    assert!(
        matches!(refused, FetchError::TooLarge { size: 1200, .. }),
        "{refused}"
    );
    assert!(!lock(&bob.handle.core().standing).is_liar(ann.key(), now()));
    let private = ann.shelf.add_directory(&[("secret", b"secret")]);
    for root in [private, TreeDigest([7; 32])] {
        let FetchError::Failed { failures, .. } = fetch(root).await.unwrap_err() else {
            panic!("it is not to be had");
        };
        assert!(
            matches!(failures[..], [(_, ProviderError::NotThere)]),
            "{failures:?}"
        );
    }
}

#[tokio::test]
async fn a_question_for_trees_is_answered_for_what_the_asker_may_have() {
    let (ann, bob) = pair(honestly).await;
    let [there] = add_small(&ann, 1, 10)[..] else {
        unreachable!()
    };
    let [files, links, large] = add_odd(&ann);
    let private = ann.shelf.add_directory(&[("secret", b"secret")]);
    let damaged = ann.shelf.add_directory(&[("damaged", b"it")]);
    ann.shelf.add_path("damaged", damaged);
    ann.shelf
        .damage(tvix_node_protocol::tree::BlobDigest::of(b"it"), b"is not");
    let roots = [files, links, large, private, damaged, TreeDigest([7; 32]), there];
    let open = || bob.handle.core().open(ann.key(), Door::Trees);
    let mut wire = open().await.unwrap();
    let answer: ServeAnswer = wire.ask(&TreesQuestion::about(roots)).await.unwrap();
    assert_eq!(answer, ServeAnswer::Coming);
    for root in &roots[..6] {
        let frame = wire.reader.receive_raw(PACKED_TREE).await.unwrap().unwrap();
        assert_eq!(frame, [TREE_APART], "{root}");
    }
    let frame = wire.reader.receive_raw(PACKED_TREE).await.unwrap().unwrap();
    assert_eq!(frame[0], TREE_FOLLOWS);
    let packed = Packed::from_bytes(&frame[1..], there, SMALL_TREE).unwrap();
    assert_eq!(packed.files.len(), 2);
    assert_eq!(wire.reader.receive_raw(1).await.unwrap(), None);
    let digests = |count: usize| (0..count).map(|number| TreeDigest([number as u8; 32]));
    let ask = async |roots: Vec<TreeDigest>| {
        let question = TreesQuestion::about(roots);
        open()
            .await
            .unwrap()
            .ask::<_, ServeAnswer>(&question)
            .await
            .unwrap()
    };
    assert_eq!(ask(digests(TREES_BATCH).collect()).await, ServeAnswer::Coming);
    let more = digests(TREES_BATCH).chain([there]);
    assert_eq!(ask(more.collect()).await, ServeAnswer::NotHere);
    assert_eq!(ask(vec![there, there]).await, ServeAnswer::NotHere);
}

/// One bit of the first tree is wrong.
fn with_a_wrong_bit(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    answering(core, inbound, |number, frame| {
        if number == 0
            && let Some(last) = frame.last_mut()
        {
            *last ^= 1;
        }
    })
}

/// Says that no more fits before anything has come.
fn with_an_end(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    answering(core, inbound, |_, frame| *frame = vec![TREES_END])
}

/// More bytes than a tree may have that travels with others.
fn with_too_much(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    answering(core, inbound, |_, frame| {
        *frame = vec![TREE_FOLLOWS; PACKED_TREE + 2];
    })
}

/// Has all trees that it is asked for, and changes the frames of its answer.
fn answering(core: Arc<Core>, inbound: Inbound, change: fn(usize, &mut Vec<u8>)) -> BoxFuture<'static, ()> {
    if inbound.door != Door::Trees {
        return honestly(core, inbound);
    }
    async move {
        let mut wire = wire(&core, inbound);
        let question: TreesQuestion = wire.reader.receive().await.unwrap();
        wire.writer.send(&ServeAnswer::Coming).await.unwrap();
        for (number, root) in question.roots().unwrap().into_iter().enumerate() {
            let tree = core.shelf.tree(root).unwrap().unwrap();
            let directories = vec![(root, tree.to_bytes())];
            let mut packed = Packed {
                directories,
                files: Default::default(),
            };
            for (blob, _) in tree.files() {
                let mut bytes = Vec::new();
                let mut file = core.shelf.blob(blob).unwrap().unwrap();
                std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
                packed.files.insert(blob, bytes);
            }
            let mut frame = vec![TREE_FOLLOWS];
            packed.append_to(&mut frame);
            change(number, &mut frame);
            wire.writer.send_raw(&frame).await.ok();
        }
        wire.writer.close().await.ok();
    }
    .boxed()
}

/// A provider that serves so is a liar, and what it was to bring comes from another one.
async fn is_a_liar(serve: Serve) {
    let (liar, bob) = pair(serve).await;
    let mut honest = liar.invite(4).await;
    honest.meets(bob.key()).await;
    let roots = add_small(&liar, 5, 100);
    assert_eq!(add_small(&honest, 5, 100), roots);
    take_all(&bob, &roots, &[liar.key(), honest.key()]).await;
    assert!(lock(&bob.handle.core().standing).is_liar(liar.key(), now()));
    assert!(!lock(&bob.handle.core().standing).is_liar(honest.key(), now()));
}

#[tokio::test]
async fn a_wrong_bit_is_noticed_and_what_it_was_in_comes_from_another_one() {
    is_a_liar(with_a_wrong_bit).await;
}

#[tokio::test]
async fn an_answer_that_ends_before_it_begins_is_none() {
    is_a_liar(with_an_end).await;
}

#[tokio::test]
async fn a_tree_larger_than_one_that_travels_with_others_may_be_is_not_read() {
    is_a_liar(with_too_much).await;
}

/// Brings no small trees together with others, and says nothing when it is asked for one by itself.
fn apart_and_silent(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    match inbound.door {
        Door::Tree => silent(core, inbound),
        _ => answering(core, inbound, |_, frame| *frame = vec![TREE_APART]),
    }
}

fn silent_for_many(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    match inbound.door {
        Door::Trees => silent(core, inbound),
        _ => honestly(core, inbound),
    }
}

fn silent(_: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    async move {
        let _inbound = inbound;
        std::future::pending::<()>().await;
    }
    .boxed()
}

/// A provider that serves so is not waited for where there is another one.
async fn is_replaced(serve: Serve) {
    let (ann, bob) = pair(serve).await;
    let mut honest = ann.invite(4).await;
    honest.meets(bob.key()).await;
    let roots = add_small(&ann, 5, 100);
    assert_eq!(add_small(&honest, 5, 100), roots);
    let since = std::time::Instant::now();
    take_all(&bob, &roots, &[ann.key(), honest.key()]).await;
    // Without another one it would have been waited for as long as for any answer.
    assert!(since.elapsed() < crate::limits::ANSWER_TIME);
}

#[tokio::test]
async fn what_a_silent_provider_does_not_bring_comes_from_another_one_after_a_moment() {
    is_replaced(silent_for_many).await;
}

#[tokio::test]
async fn so_does_what_it_would_bring_by_itself_and_says_nothing_then() {
    is_replaced(apart_and_silent).await;
}

#[tokio::test]
async fn a_question_that_nobody_waits_for_any_more_is_over() {
    let (ann, bob) = pair(silent_for_many).await;
    let roots = add_small(&ann, 2, 100);
    let fetches = roots
        .iter()
        .map(|root| bob.handle.fetch(small(*root, vec![ann.key()])));
    let mut fetches = Box::pin(join_all(fetches));
    let core = bob.handle.core();
    let streams = core.fetching.streams.of(ann.key());
    let all = streams.free();
    let asked = async { eventually(async || streams.free() < all).await };
    tokio::select! {
        () = asked => {}
        _ = &mut fetches => panic!("nothing is answered"),
    }
    drop(fetches);
    eventually(async || streams.free() == all).await;
}

/// Is busy when it is asked for many for the first time.
fn busy_at_first(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    if inbound.door != Door::Trees || ASKED.fetch_add(1, Ordering::Relaxed) > 0 {
        return honestly(core, inbound);
    }
    async move { wire(&core, inbound).answer(&ServeAnswer::Busy).await.unwrap() }.boxed()
}

#[tokio::test]
async fn a_provider_that_is_busy_is_asked_again() {
    let (ann, bob) = pair(busy_at_first).await;
    take_all(&bob, &add_small(&ann, 3, 100), &[ann.key()]).await;
}
