//! Small files of a tree, many in one answer.
//!
//! After [`ServeAnswer::Coming`] each file that was asked for comes in order: one byte that says whether
//! it follows or why not, then its bytes. A file of more than 16 KiB comes with the hashes above its groups of
//! 16 KiB in between, in the order of the iroh-blobs protocol (a "combined" BLAKE3 encoding without the
//! size, which the asker knows from the tree), so that a wrong byte is found within its group.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use bao_tree::ChunkRanges;
use bao_tree::io::outboard::PreOrderMemOutboard;
use bao_tree::io::sync::encode_ranges_validated;
use tokio::sync::mpsc;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::limits::BLOBS_BATCH;
use tvix_node_protocol::messages::{BlobsQuestion, ServeAnswer};
use tvix_node_protocol::tree::BlobDigest;

use super::outboard::BLOCK;
use super::serving::{files_for, small_file};
use crate::core::Core;
use crate::limits::{CONTENT_PIECE, CONTENT_QUEUE, PACKED_BLOB, SMALL_TREE, SMALL_TREE_FILES};
use crate::net::wire::{Wire, WireError};
use crate::shelf::{Shelf, ShelfError};

/// The file follows.
pub(crate) const FOLLOWS: u8 = 0;
/// The file is not here, or too large to come this way.
pub(crate) const MISSING: u8 = 1;
/// The file cannot be read.
pub(crate) const UNREADABLE: u8 = 2;

/// Digests one after the other, as they travelled.
pub(crate) fn unpack(bytes: &[u8]) -> Option<Vec<BlobDigest>> {
    let (digests, rest) = bytes.as_chunks::<32>();
    let sound = rest.is_empty() && digests.len() <= BLOBS_BATCH;
    sound.then(|| digests.iter().map(|digest| BlobDigest(*digest)).collect())
}

pub(crate) async fn serve(core: &Arc<Core>, peer: NodeKey, mut wire: Wire) -> Result<(), WireError> {
    let question: BlobsQuestion = wire.reader.receive().await?;
    let Some(wanted) = unpack(&question.blobs) else {
        return wire.answer(&ServeAnswer::NotHere).await;
    };
    let root = question.root;
    // It is held to the end.
    let lent = match files_for(core, peer, root).await {
        Ok(lent) => lent,
        Err(answer) => return wire.answer(&answer).await,
    };
    let files = Arc::clone(&lent.files);
    if wanted.len() <= SMALL_TREE_FILES {
        let Some(_place) = core.serving.small_place(peer).await else {
            return wire.answer(&ServeAnswer::Busy).await;
        };
        match small_answer(core, &wanted, &files).await {
            Ok(Some(answer)) => {
                wire.writer.send(&ServeAnswer::Coming).await?;
                let throttle = &core.throttles.upload;
                wire.writer.send_small_content(&answer, throttle).await?;
                return wire.writer.close().await;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%root, %error, "files could not be read for a peer");
                return wire.answer(&ServeAnswer::Broken).await;
            }
        }
    }
    let Some(_place) = core.serving.place(peer).await else {
        return wire.answer(&ServeAnswer::Busy).await;
    };
    wire.writer.send(&ServeAnswer::Coming).await?;
    let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(CONTENT_QUEUE);
    let reader = {
        let core = core.clone();
        async move {
            core.ask_shelf(move |shelf| {
                let mut piece = Vec::with_capacity(CONTENT_PIECE);
                for blob in wanted {
                    append(shelf, blob, &files, &mut piece);
                    let full = piece.len() >= CONTENT_PIECE;
                    if full && sender.blocking_send(std::mem::take(&mut piece)).is_err() {
                        return Ok(());
                    }
                }
                // Nobody reads any more: there is nothing left to do.
                sender.blocking_send(piece).ok();
                Ok(())
            })
            .await
        }
    };
    // The receiver goes with the writer: the reading thread notices where nobody writes any more.
    let writing = async move {
        while let Some(piece) = receiver.recv().await {
            wire.writer.send_content(&piece, &core.throttles.upload).await?;
        }
        Ok::<_, WireError>(wire)
    };
    let (read, wire) = tokio::join!(reader, writing);
    if let Err(error) = read {
        // The stream ends before its end: the peer sees that something is missing.
        tracing::error!(%root, %error, "files could not be read for a peer");
        return Ok(());
    }
    wire?.writer.close().await
}

/// The whole answer, where it is small.
async fn small_answer(
    core: &Core,
    wanted: &[BlobDigest],
    files: &Arc<HashSet<BlobDigest>>,
) -> Result<Option<Vec<u8>>, ShelfError> {
    /// With the hashes of what it has, and a byte for each file.
    const MOST: usize = SMALL_TREE as usize + SMALL_TREE as usize / 128;
    let (wanted, files) = (wanted.to_vec(), Arc::clone(files));
    let answer = core.ask_shelf(move |shelf| {
        let mut answer = Vec::new();
        for blob in wanted {
            append(shelf, blob, &files, &mut answer);
            if answer.len() > MOST {
                return Ok(None);
            }
        }
        answer.shrink_to_fit();
        Ok(Some(answer))
    });
    answer.await
}

/// Appends one of these files as it travels, or why it does not.
fn append(shelf: &dyn Shelf, blob: BlobDigest, files: &HashSet<BlobDigest>, to: &mut Vec<u8>) {
    let before = to.len();
    let status = match files.contains(&blob).then(|| append_file(shelf, blob, to)) {
        Some(Ok(true)) => return,
        Some(Ok(false)) | None => MISSING,
        Some(Err(error)) => {
            tracing::error!(%blob, %error, "a file could not be read for a peer");
            UNREADABLE
        }
    };
    to.truncate(before);
    to.push(status);
}

/// Appends one file as it travels; false where it cannot come this way.
fn append_file(shelf: &dyn Shelf, blob: BlobDigest, to: &mut Vec<u8>) -> Result<bool, ShelfError> {
    let Some(bytes) = small_file(shelf, blob, PACKED_BLOB)? else {
        return Ok(false);
    };
    to.push(FOLLOWS);
    encode(&bytes, to).map_err(ShelfError::new)?;
    Ok(true)
}

/// Bytes with the hashes above their groups; a single group has none.
fn encode(bytes: &[u8], to: &mut Vec<u8>) -> io::Result<()> {
    if bytes.len() <= BLOCK.bytes() {
        to.extend_from_slice(bytes);
        return Ok(());
    }
    let outboard = PreOrderMemOutboard::create(bytes, BLOCK);
    encode_ranges_validated(bytes, &outboard, &ChunkRanges::all(), to).map_err(io::Error::other)
}
