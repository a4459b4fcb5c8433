use super::shelf::noise;
use super::*;
use crate::core::{Core, lock};
use crate::limits::PIECE_CHUNKS;
use crate::net::Door;
use crate::net::doors::Inbound;
use crate::net::wire::Wire;
use crate::protocols::outboard::BLOCK;
use bao_tree::io::outboard::PreOrderMemOutboard;
use bao_tree::io::sync::encode_ranges_validated;
use futures::FutureExt;
use futures::future::BoxFuture;
use iroh_blobs::protocol::Request;
use tvix_node_protocol::limits::BLOB_REQUEST_BYTES;
use tvix_node_protocol::messages::{
    BlobQuestion, BlobsQuestion, PathAnswer, PathsQuestion, ServeAnswer, TreeQuestion,
};

/// Where in an answer a bit is flipped: in the middle of the third group of 16 KiB.
const FLIPPED: usize = 2 * 16 * 1024 + 1000;

/// Serves everything honestly but files, of which one bit is wrong.
fn with_a_flipped_bit(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    let Inbound {
        peer,
        door,
        stream,
        over,
        permits,
    } = inbound;
    let wire = |stream| Wire::new(core.traffic.counted_serving(stream, peer, door));
    match door {
        Door::Blob => {
            let wire = wire(stream);
            async move { flip_large(&core, wire).await }.boxed()
        }
        Door::Blobs => {
            let wire = wire(stream);
            async move { flip_small(&core, wire).await }.boxed()
        }
        _ => honestly(
            core,
            Inbound {
                peer,
                door,
                stream,
                over,
                permits,
            },
        ),
    }
}

fn read(core: &Core, blob: tvix_node_protocol::tree::BlobDigest) -> Vec<u8> {
    let mut bytes = vec![];
    let mut file = core.shelf.blob(blob).unwrap().unwrap();
    std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    bytes
}

async fn flip_large(core: &Core, mut wire: Wire) {
    let BlobQuestion { blob, .. } = wire.reader.receive().await.unwrap();
    wire.writer.send(&ServeAnswer::Coming).await.unwrap();
    wire.writer.flush().await.unwrap();
    let request = wire
        .reader
        .receive_raw(BLOB_REQUEST_BYTES)
        .await
        .unwrap()
        .unwrap();
    let mut request = bytes::Bytes::from(request);
    let (request, _) = Request::read_async(&mut request).await.unwrap();
    let Request::Get(request) = request else { panic!() };
    let bytes = read(core, blob);
    let outboard = PreOrderMemOutboard::create(&bytes, BLOCK);
    let mut answer = (bytes.len() as u64).to_le_bytes().to_vec();
    let (_, ranges) = request.ranges.as_single().unwrap();
    encode_ranges_validated(&bytes[..], &outboard, ranges, &mut answer).unwrap();
    let position = FLIPPED.min(answer.len() - 1);
    answer[position] ^= 1;
    // It is cut off before the end.
    wire.writer.send_bytes(&answer).await.ok();
    wire.writer.close().await.ok();
}

async fn flip_small(core: &Core, mut wire: Wire) {
    let question: BlobsQuestion = wire.reader.receive().await.unwrap();
    wire.writer.send(&ServeAnswer::Coming).await.unwrap();
    for blob in crate::protocols::blobs::unpack(&question.blobs).unwrap() {
        let mut bytes = read(core, blob);
        bytes[0] ^= 1;
        wire.writer
            .send_bytes(&[crate::protocols::blobs::FOLLOWS])
            .await
            .ok();
        wire.writer.send_bytes(&bytes).await.ok();
    }
    wire.writer.close().await.ok();
}

/// Answers for another tree and another path than was asked for.
fn with_something_else(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    let Inbound {
        peer,
        door,
        stream,
        over,
        permits,
    } = inbound;
    match door {
        Door::Tree => async move {
            let mut wire = Wire::new(core.traffic.counted_serving(stream, peer, door));
            let _: TreeQuestion = wire.reader.receive().await.unwrap();
            wire.writer.send(&ServeAnswer::Coming).await.unwrap();
            let other = tvix_node_protocol::tree::Tree::Directory(Default::default());
            wire.writer.send_raw(&other.to_bytes()).await.unwrap();
            wire.writer.send_raw(&[]).await.unwrap();
            wire.writer.close().await.unwrap();
        }
        .boxed(),
        Door::Paths => async move {
            let mut wire = Wire::new(core.traffic.counted_serving(stream, peer, door));
            let _: PathsQuestion = wire.reader.receive().await.unwrap();
            let path = core.shelf.advertised(None, 1).unwrap().remove(0);
            let shown = core.shelf.path_info(peer, &path).unwrap();
            wire.writer.send(&PathAnswer { shown }).await.unwrap();
            wire.writer.close().await.unwrap();
        }
        .boxed(),
        _ => honestly(
            core,
            Inbound {
                peer,
                door,
                stream,
                over,
                permits,
            },
        ),
    }
}

/// Ann is honest; Liz lies; Cat fetches.
async fn three(lie: Serve) -> (TestNode, TestNode, TestNode) {
    let ann = TestNode::founder(1).await;
    let liz = ann.invite_as(2, Roles::all(), lie, |_| ()).await;
    let mut cat = ann.invite(3).await;
    cat.meets(ann.key()).await;
    cat.meets(liz.key()).await;
    (ann, liz, cat)
}

fn is_liar(node: &TestNode, other: &TestNode) -> bool {
    lock(&node.handle.core().standing).is_liar(other.key(), now())
}

#[tokio::test]
async fn a_liar_is_cut_at_the_first_wrong_group_and_the_rest_comes_from_another() {
    let (ann, liz, cat) = three(with_a_flipped_bit).await;
    let large = noise(1, usize::try_from(PIECE_CHUNKS).unwrap() * 1024);
    for shelf in [&ann.shelf, &liz.shelf] {
        let root = shelf.add_directory(&[("large", &large)]);
        shelf.add_path("p", root);
    }
    let root = ann.shelf.tree_of(&super::shelf::path("p"));
    // The liar alone brings nothing that is wrong, and an error that says what it did.
    let alone = soon(cat.handle.fetch_tree(root, vec![liz.key()], None)).await;
    let error = alone.unwrap_err().to_string();
    assert!(error.contains("something else than was asked for"), "{error}");
    assert!(is_liar(&cat, &liz));
    let from_liz = cat.handle.traffic()[&liz.key()].content_received;
    assert!(
        from_liz < 2 << 20,
        "{from_liz} bytes of 16 MiB were taken from the liar"
    );
    let arrival = soon(cat.handle.fetch_tree(root, vec![liz.key(), ann.key()], None))
        .await
        .unwrap();
    cat.shelf.adopt(&arrival);
    assert!(cat.shelf.is_complete(root));
    assert!(!is_liar(&cat, &ann));
}

#[tokio::test]
async fn a_wrong_small_file_is_not_taken() {
    let (ann, liz, cat) = three(with_a_flipped_bit).await;
    let files: Vec<(String, Vec<u8>)> = (0..20)
        .map(|seed| (format!("f{seed}"), noise(seed, 500)))
        .collect();
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, bytes)| (name.as_str(), &bytes[..]))
        .collect();
    for shelf in [&ann.shelf, &liz.shelf] {
        let root = shelf.add_directory(&files);
        shelf.add_path("p", root);
    }
    let root = ann.shelf.tree_of(&super::shelf::path("p"));
    let arrival = soon(cat.handle.fetch_tree(root, vec![liz.key(), ann.key()], None))
        .await
        .unwrap();
    cat.shelf.adopt(&arrival);
    assert!(cat.shelf.is_complete(root));
    assert!(is_liar(&cat, &liz) && !is_liar(&cat, &ann));
}

#[tokio::test]
async fn liars_are_asked_last() {
    let (ann, liz, cat) = three(with_a_flipped_bit).await;
    let holders = [liz.key(), ann.key()]
        .map(|key| (key, crate::Through::Asked))
        .into();
    lock(&cat.handle.core().standing).lied(liz.key(), now());
    assert_eq!(cat.handle.providers(&holders), [ann.key(), liz.key()]);
}

#[tokio::test]
async fn another_tree_or_path_than_was_asked_for_is_a_lie() {
    let (ann, liz, cat) = three(with_something_else).await;
    let root = ann.shelf.add_directory(&[("x", b"x")]);
    let path = ann.shelf.add_path("p", root);
    liz.shelf.add_small("q");
    let arrival = soon(cat.handle.fetch_tree(root, vec![liz.key(), ann.key()], None))
        .await
        .unwrap();
    cat.shelf.adopt(&arrival);
    assert!(is_liar(&cat, &liz));
    let error = soon(cat.handle.path_infos(liz.key(), &[path]))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("spoke of"), "{error}");
}
