use super::shelf::path;
use super::*;
use crate::PathsError;
use crate::core::Core;
use crate::limits::PRESENCE_QUESTIONS_PER_MINUTE;
use crate::net::Door;
use crate::net::doors::Inbound;
use crate::net::wire::Wire;
use futures::FutureExt;
use futures::future::BoxFuture;
use tvix_node_protocol::limits::{TEXT_BYTES, TEXTS_BYTES, TEXTS_QUESTION};
use tvix_node_protocol::messages::{ServeAnswer, TEXT_FOLLOWS, TEXTS_END, TextsQuestion};
use tvix_node_protocol::nix::store_path::StorePath;
use tvix_node_protocol::tree::{Leaf, Node, SymlinkTarget, Tree};

/// Ann, who has texts, and Bob, who asks for them.
async fn pair(serve: Serve) -> (TestNode, TestNode) {
    let mut bob = TestNode::founder(1).await;
    let ann = bob.invite_as(2, Roles::all(), serve, |_| ()).await;
    bob.meets(ann.key()).await;
    (ann, bob)
}

fn add_text(node: &TestNode, name: &str, bytes: &[u8]) -> StorePath {
    let Node::File {
        blob,
        size,
        executable,
    } = node.shelf.add_blob(bytes)
    else {
        unreachable!("a file is a file");
    };
    let tree = Tree::Leaf(Leaf::File {
        blob,
        size,
        executable,
    });
    node.shelf.add_path(name, node.shelf.add_tree(tree))
}

async fn texts(
    bob: &TestNode,
    ann: &TestNode,
    paths: &[StorePath],
) -> Result<Vec<Option<Vec<u8>>>, PathsError> {
    soon(bob.handle.texts(ann.key(), paths)).await
}

#[tokio::test]
async fn texts_come_in_the_order_asked_for_and_nothing_else_does() {
    let (ann, bob) = pair(honestly).await;
    let first = add_text(&ann, "a.drv", b"Derive(a)");
    let second = add_text(&ann, "b.drv", b"Derive(b)");
    let empty = add_text(&ann, "empty", b"");
    let private = add_text(&ann, "private.drv", b"Derive(private)");
    ann.shelf.make_private(&private);
    let directory = ann.shelf.add_small("directory");
    let blob = ann.shelf.add_blob(b"#!/bin/sh");
    let Node::File { blob, size, .. } = blob else {
        unreachable!("a file is a file")
    };
    let script = Tree::Leaf(Leaf::File {
        blob,
        size,
        executable: true,
    });
    let script = ann.shelf.add_path("script", ann.shelf.add_tree(script));
    let link = Tree::Leaf(Leaf::Symlink(SymlinkTarget::new(b"a.drv").unwrap()));
    let link = ann.shelf.add_path("link", ann.shelf.add_tree(link));
    let absent = path("absent.drv");
    let wanted = [
        second.clone(),
        absent,
        first,
        private,
        directory,
        script,
        link,
        empty,
        second,
    ];
    let got = texts(&bob, &ann, &wanted).await.unwrap();
    let text = |text: &[u8]| Some(text.to_vec());
    let expected = [
        text(b"Derive(b)"),
        None,
        text(b"Derive(a)"),
        None,
        None,
        None,
        None,
        text(b""),
        text(b"Derive(b)"),
    ];
    assert_eq!(got, expected);
    assert_eq!(
        texts(&bob, &ann, &[]).await.unwrap(),
        Vec::<Option<Vec<u8>>>::new()
    );
    let traffic = bob.handle.traffic()[&ann.key()];
    assert!(traffic.content_received > 27, "{traffic:?}");
}

#[tokio::test]
async fn more_texts_than_one_question_may_have_are_asked_for_in_several() {
    let (ann, bob) = pair(honestly).await;
    let mut paths: Vec<StorePath> = (0..50)
        .map(|number| add_text(&ann, &format!("{number}.drv"), number.to_string().as_bytes()))
        .collect();
    let asked = 3 * TEXTS_QUESTION + 7;
    paths = paths.into_iter().cycle().take(asked).collect();
    let got = texts(&bob, &ann, &paths).await.unwrap();
    assert_eq!(got.len(), asked);
    for (number, text) in got.into_iter().enumerate() {
        assert_eq!(text, Some((number % 50).to_string().into_bytes()));
    }
}

#[tokio::test]
async fn the_largest_texts_come_and_larger_ones_do_not() {
    let (ann, bob) = pair(honestly).await;
    let largest = vec![b'x'; TEXT_BYTES];
    // More than one answer may have: the second brings the rest.
    let count = TEXTS_BYTES / TEXT_BYTES + 1;
    let path = add_text(&ann, "largest.drv", &largest);
    let got = texts(&bob, &ann, &vec![path; count]).await.unwrap();
    assert!(got.len() == count && got.iter().all(|text| text.as_ref() == Some(&largest)));
    let larger = add_text(&ann, "larger.drv", &vec![b'x'; TEXT_BYTES + 1]);
    assert_eq!(texts(&bob, &ann, &[larger]).await.unwrap(), [None]);
}

#[tokio::test]
async fn who_asks_for_too_many_texts_is_told_so() {
    let start = now();
    let stopped = Clock::new(move || start);
    let mut bob = TestNode::founder(1).await;
    let ann = bob
        .invite_as(2, Roles::all(), honestly, |config| config.clock = stopped)
        .await;
    bob.meets(ann.key()).await;
    let path = add_text(&ann, "a.drv", b"Derive(a)");
    // More in one question than the protocol allows.
    let mut wire = bob.handle.core().open(ann.key(), Door::Texts).await.unwrap();
    let question = TextsQuestion {
        paths: vec![path.clone(); TEXTS_QUESTION + 1],
    };
    let answer: ServeAnswer = soon(wire.ask(&question)).await.unwrap();
    assert_eq!(answer, ServeAnswer::Busy);
    // More than a member may ask for in a minute, of whatever kind.
    let all = PRESENCE_QUESTIONS_PER_MINUTE;
    assert!(crate::core::lock(&ann.handle.core().allowance).take(bob.key(), all, start));
    let error = texts(&bob, &ann, &[path]).await.unwrap_err();
    assert!(
        matches!(error, PathsError::Busy(peer) if peer == ann.key()),
        "{error}"
    );
}

/// Answers every question for texts with a frame that announces so many bytes, and these.
fn answering(
    core: Arc<Core>,
    inbound: Inbound,
    length: usize,
    bytes: &'static [u8],
) -> BoxFuture<'static, ()> {
    if inbound.door != Door::Texts {
        return honestly(core, inbound);
    }
    async move {
        let mut wire = Wire::new(
            core.traffic
                .counted_serving(inbound.stream, inbound.peer, inbound.door),
        );
        let _: TextsQuestion = wire.reader.receive().await.unwrap();
        wire.writer.send(&ServeAnswer::Coming).await.unwrap();
        let length = u32::try_from(length).unwrap();
        wire.writer.send_bytes(&length.to_le_bytes()).await.unwrap();
        wire.writer.send_bytes(bytes).await.unwrap();
        wire.writer.close().await.unwrap();
    }
    .boxed()
}

fn with_a_giant(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    answering(core, inbound, TEXT_BYTES + 2, &[TEXT_FOLLOWS])
}

fn with_nothing(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    answering(core, inbound, 1, &[TEXTS_END])
}

fn with_an_early_end(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    answering(core, inbound, 2, &[TEXT_FOLLOWS, b'x'])
}

fn with_an_unknown_answer(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    answering(core, inbound, 1, &[77])
}

#[tokio::test]
async fn answers_that_are_none_are_errors() {
    let wanted = [path("a.drv"), path("b.drv")];
    for (serve, what) in [
        (with_a_giant as Serve, "more than"),
        (with_nothing, "none of the texts"),
        (with_an_early_end, "closed the stream"),
        (with_an_unknown_answer, "no answer about"),
    ] {
        let (ann, bob) = pair(serve).await;
        let error = texts(&bob, &ann, &wanted).await.unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[tokio::test]
async fn a_call_that_would_bring_more_than_fits_into_memory_is_refused() {
    let (ann, bob) = pair(honestly).await;
    let left = std::sync::atomic::AtomicUsize::new(20);
    let path = add_text(&ann, "a.drv", &[b'x'; 21]);
    let core = bob.handle.core();
    let asked = soon(crate::protocols::texts::ask_within(
        core,
        ann.key(),
        &[path],
        &left,
    ))
    .await;
    assert!(matches!(asked, Err(PathsError::TooLarge { .. })), "{asked:?}");
}
