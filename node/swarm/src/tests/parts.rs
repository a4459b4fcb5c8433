//! What is said of a large file of which a part cannot be read.

use std::ops::Range;

use bao_tree::{ChunkNum, ChunkRanges};
use futures::AsyncReadExt as _;
use iroh_blobs::get::StreamPair;
use iroh_blobs::get::fsm::{AtConnected, RequestCounters};
use iroh_blobs::protocol::GetRequest;
use tvix_node_protocol::messages::{BlobQuestion, ServeAnswer};
use tvix_node_protocol::subtrees::SUBTREE_BYTES;
use tvix_node_protocol::tree::{BlobDigest, TreeDigest};

use super::shelf::noise;
use super::*;
use crate::net::Door;
use crate::net::wire::WireReader;
use crate::protocols::blob::{BlobReader, BlobWriter};

/// Asks for a large file, or parts of it: what was answered, what follows, and what is held for as long as that is read.
pub(super) async fn ask_for(
    asker: &TestNode,
    provider: &TestNode,
    question: BlobQuestion,
    request: GetRequest,
) -> (ServeAnswer, WireReader, impl Sized) {
    let mut wire = asker
        .handle
        .core()
        .open(provider.key(), Door::Blob)
        .await
        .unwrap();
    wire.writer.send(&question).await.unwrap();
    let (_answered, reader) = BlobReader::after_the_answer();
    let pair = StreamPair::new(0, reader, BlobWriter::new(wire.writer));
    let connected = AtConnected::new(pair.t0, pair.recv, pair.send, request, RequestCounters::default());
    let start = soon(connected.next()).await.unwrap();
    let answer = soon(wire.reader.receive()).await.unwrap();
    (answer, wire.reader, start)
}

/// Chunks of 1 KiB in a part.
const PART: u64 = SUBTREE_BYTES / 1024;

#[tokio::test]
async fn who_cannot_read_where_what_is_wanted_begins_says_so_and_sends_what_comes_before_a_later_part() {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    let large = noise(1, 3 * usize::try_from(SUBTREE_BYTES).unwrap());
    let (root, blob): (TreeDigest, _) = (
        ann.shelf.add_directory(&[("large", &large)]),
        BlobDigest::of(&large),
    );
    ann.shelf.add_path("p", root);
    ann.shelf.keep_parts(&large);
    let mut damaged = large;
    damaged[usize::try_from(SUBTREE_BYTES).unwrap() + 500_000] ^= 1;
    ann.shelf.damage(blob, &damaged);
    let asked = async |chunks: Range<u64>| {
        let ranges = ChunkRanges::from(ChunkNum(chunks.start)..ChunkNum(chunks.end));
        let request = GetRequest::blob_ranges(blob.0.into(), ranges);
        let (answer, mut reader, _held) = ask_for(&bob, &ann, BlobQuestion { root, blob }, request).await;
        let mut come = vec![];
        soon(reader.bytes().read_to_end(&mut come)).await.unwrap();
        (answer, come.len() / 1024)
    };
    // Nobody has looked at that part before.
    let inside = PART + 16..PART + 48;
    assert_eq!(asked(inside.clone()).await, (ServeAnswer::Broken, 0));
    // It is known now, and what comes before it is of use.
    let (answer, come) = asked(PART - 160..PART + 160).await;
    assert_eq!(answer, ServeAnswer::Coming);
    assert!((160..320).contains(&come), "{come} KiB came");
    assert_eq!(asked(PART..PART + 160).await, (ServeAnswer::Broken, 0));
    for whole in [0..160, 2 * PART..2 * PART + 160] {
        let (answer, come) = asked(whole).await;
        assert_eq!(answer, ServeAnswer::Coming);
        assert!(come >= 160, "{come} KiB came");
    }
}
