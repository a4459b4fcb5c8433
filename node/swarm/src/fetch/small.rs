//! Fetching small files, many at a time.

use bao_tree::io::BaoContentItem;
use bao_tree::io::fsm::{ResponseDecoder, ResponseDecoderNext};
use bao_tree::{BaoTree, ChunkRanges};
use iroh_blobs::util::{RecvStream, RecvStreamAsyncStreamReader};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::{BlobsQuestion, ServeAnswer};
use tvix_node_protocol::tree::BlobDigest;

use super::arrival::{Item, Kind};
use super::plan::{Signs, Turn};
use super::provider::{CUT_SHORT, ProviderError};
use super::walk::write;
use super::{Work, coming};
use crate::call;
use crate::core::lock;
use crate::limits::WRITE_BATCH;
use crate::net::Door;
use crate::protocols::blob::BlobReader;
use crate::protocols::blobs::{FOLLOWS, MISSING, UNREADABLE};
use crate::protocols::outboard::BLOCK;

/// Fetches files from one provider, as long as they are not brought by another. What has come is kept, whatever happens
/// then, and the plan knows what has not.
pub(crate) async fn fetch(
    work: &Work,
    provider: NodeKey,
    (turn, signs): (Turn, Signs),
    files: Vec<(BlobDigest, u64)>,
) -> Result<(), ProviderError> {
    let at = call::at(provider, Door::Blobs);
    let question = BlobsQuestion {
        root: work.arrival.root(),
        blobs: files.iter().flat_map(|(blob, _)| blob.0).collect(),
    };
    let mut wire = work.core.open_at_provider(provider, Door::Blobs).await?;
    coming(wire.ask::<_, ServeAnswer>(&question).await.map_err(at)?)?;
    let mut reader = BlobReader::Open(wire.reader);
    let (mut items, mut size) = (vec![], 0);
    let mut failed = None;
    for (number, (blob, length)) in files.iter().enumerate() {
        signs.waits();
        let came = receive(&mut reader, *blob, *length).await;
        signs.came();
        match came {
            Ok(bytes) => {
                work.report.moves(bytes.len());
                work.core.throttles.download.pass(bytes.len()).await;
                size += bytes.len();
                items.push(Item {
                    kind: Kind::File,
                    digest: blob.0,
                    bytes,
                });
            }
            Err(error) => failed = Some(error),
        }
        if size >= WRITE_BATCH || failed.is_some() || number + 1 == files.len() {
            let count = items.len();
            write(&work.arrival, std::mem::take(&mut items)).await?;
            if !lock(&work.plan).brought(turn, count) {
                return Ok(());
            }
            work.report.came(provider, std::mem::take(&mut size) as u64);
        }
        if let Some(error) = failed {
            return Err(error);
        }
    }
    Ok(())
}

/// One file, verified group by group.
async fn receive(reader: &mut BlobReader, blob: BlobDigest, length: u64) -> Result<Vec<u8>, ProviderError> {
    let ended = |error: std::io::Error| ProviderError::Ended(error.to_string());
    let mut status = [MISSING];
    reader.recv_exact(&mut status).await.map_err(ended)?;
    match status {
        [FOLLOWS] => {}
        [UNREADABLE] => return Err(ProviderError::Broken),
        _ => return Err(ProviderError::NotThere),
    }
    // The plan puts no larger ones here.
    let length = usize::try_from(length).map_err(|_| ProviderError::NotThere)?;
    let mut bytes = Vec::with_capacity(length);
    if length <= BLOCK.bytes() {
        bytes.resize(length, 0);
        reader.recv_exact(&mut bytes).await.map_err(ended)?;
        if BlobDigest::of(&bytes) != blob {
            return Err(ProviderError::Lied(format!(
                "the file {blob} has another content"
            )));
        }
        return Ok(bytes);
    }
    let tree = BaoTree::new(length as u64, BLOCK);
    let hash = bao_tree::blake3::Hash::from_bytes(blob.0);
    let mut decoder = ResponseDecoder::new(
        hash,
        ChunkRanges::all(),
        tree,
        RecvStreamAsyncStreamReader::new(reader),
    );
    loop {
        match decoder.next().await {
            ResponseDecoderNext::Done(_) => return Ok(bytes),
            ResponseDecoderNext::More((next, item)) => {
                decoder = next;
                match item {
                    Ok(BaoContentItem::Leaf(leaf)) => bytes.extend_from_slice(&leaf.data),
                    Ok(BaoContentItem::Parent(_)) => {}
                    Err(error) => return Err(decode_error(error)),
                }
            }
        }
    }
}

/// Whether a break or a lie.
fn decode_error(error: bao_tree::io::DecodeError) -> ProviderError {
    use bao_tree::io::DecodeError;
    match error {
        DecodeError::ParentHashMismatch(_) | DecodeError::LeafHashMismatch(_) => {
            ProviderError::Lied(error.to_string())
        }
        DecodeError::ParentNotFound(_) | DecodeError::LeafNotFound(_) => {
            ProviderError::Ended(CUT_SHORT.to_owned())
        }
        DecodeError::Io(_) => ProviderError::Ended(error.to_string()),
    }
}
