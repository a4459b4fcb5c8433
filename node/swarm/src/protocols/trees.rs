//! Small trees, many in one answer.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::limits::{PACKED_TREE, SMALL_TREE, SMALL_TREE_FILES, TREES_BYTES};
use tvix_node_protocol::messages::{ServeAnswer, TREE_APART, TREE_FOLLOWS, TREES_END, TreesQuestion};
use tvix_node_protocol::packed::Packed;
use tvix_node_protocol::tree::{BlobDigest, TreeDigest};

use super::serving::TreeWalk;
use crate::core::Core;
use crate::net::wire::{Wire, WireError};
use crate::shelf::{Shelf, ShelfError};

pub(crate) async fn serve(core: &Arc<Core>, peer: NodeKey, mut wire: Wire) -> Result<(), WireError> {
    let question: TreesQuestion = wire.reader.receive().await?;
    let Some(roots) = question.roots() else {
        return wire.answer(&ServeAnswer::NotHere).await;
    };
    // The whole answer is in memory.
    let Some(_place) = core.serving.place(peer).await else {
        return wire.answer(&ServeAnswer::Busy).await;
    };
    let frames = core.ask_shelf(move |shelf| Ok(frames(shelf, peer, &roots))).await;
    let frames = match frames {
        Ok(frames) => frames,
        Err(error) => {
            tracing::error!(%error, "small trees could not be read for a peer");
            return wire.answer(&ServeAnswer::Broken).await;
        }
    };
    wire.writer.send(&ServeAnswer::Coming).await?;
    for frame in frames {
        wire.writer
            .send_small_frame(&frame, &core.throttles.upload)
            .await?;
    }
    wire.writer.close().await
}

/// A frame for each tree, until there are too many bytes. Blocks.
fn frames(shelf: &dyn Shelf, peer: NodeKey, roots: &[TreeDigest]) -> Vec<Vec<u8>> {
    let mut frames = Vec::with_capacity(roots.len());
    let mut bytes = 0;
    for root in roots {
        if bytes > TREES_BYTES {
            frames.push(vec![TREES_END]);
            break;
        }
        let packed = packed(shelf, peer, *root).unwrap_or_else(|error| {
            tracing::error!(%root, %error, "a small tree could not be read for a peer");
            None
        });
        let frame = match packed {
            Some(packed) => {
                let mut frame = vec![TREE_FOLLOWS];
                packed.append_to(&mut frame);
                frame
            }
            None => vec![TREE_APART],
        };
        bytes += frame.len();
        frames.push(frame);
    }
    frames
}

/// A tree; none where this peer may not have it, it is not here as a whole, or is not small.
fn packed(shelf: &dyn Shelf, peer: NodeKey, root: TreeDigest) -> Result<Option<Packed>, ShelfError> {
    if !shelf.may_serve(peer, root)? {
        return Ok(None);
    }
    let mut walk = TreeWalk::new(root);
    let (mut directories, mut sizes) = (Vec::new(), BTreeMap::new());
    let mut bytes = 0;
    while let Some(digest) = walk.next() {
        // Before it is read.
        let size = shelf.tree_size(digest)?;
        bytes += size.unwrap_or_default() + size_of::<u32>();
        let Some(tree) = size.and_then(|_| (bytes <= PACKED_TREE).then(|| shelf.tree(digest))) else {
            return Ok(None);
        };
        let Some(tree) = tree? else {
            return Ok(None);
        };
        walk.take(&tree);
        sizes.extend(tree.files());
        directories.push((digest, tree.to_bytes()));
    }
    let size: u64 = sizes.values().sum();
    let small = size <= SMALL_TREE && sizes.len() <= SMALL_TREE_FILES;
    if !small || size > (PACKED_TREE - bytes) as u64 {
        return Ok(None);
    }
    let mut files = BTreeMap::new();
    for (blob, size) in sizes {
        match shelf.blob(blob)?.map(|file| read(file, blob, size)) {
            Some(Ok(Some(content))) => files.insert(blob, content),
            Some(Ok(None)) | None => return Ok(None),
            Some(Err(error)) => return Err(ShelfError::new(error)),
        };
    }
    Ok(Some(Packed { directories, files }))
}

/// The bytes of a file; none where it is not what it should be.
fn read(file: File, blob: BlobDigest, size: u64) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    file.take(size + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes).filter(|bytes| BlobDigest::of(bytes) == blob))
}
