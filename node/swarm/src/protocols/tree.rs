//! The directories of a tree, breadth first, in one answer.

use std::collections::HashSet;
use std::sync::Arc;

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::{ServeAnswer, TreeQuestion};
use tvix_node_protocol::tree::{BlobDigest, TreeDigest};

use super::ahead::Ahead;
use super::serving::{TreeWalk, lend};
use crate::core::Core;
use crate::net::wire::{Wire, WireError};
use crate::shelf::{Shelf, ShelfError};

pub(crate) async fn serve(core: &Arc<Core>, peer: NodeKey, mut wire: Wire) -> Result<(), WireError> {
    let TreeQuestion { root } = wire.reader.receive().await?;
    let lent = core
        .ask_shelf(move |shelf| {
            let Some(loan) = lend(shelf, peer, root)? else {
                return Ok(None);
            };
            Ok(shelf.tree(root)?.map(|_| loan))
        })
        .await;
    let _loan = match lent {
        Ok(Some(loan)) => loan,
        Ok(None) => return wire.answer(&ServeAnswer::NotHere).await,
        Err(error) => {
            tracing::error!(%root, %error, "a tree could not be read for a peer");
            return wire.answer(&ServeAnswer::Broken).await;
        }
    };
    let Some(_place) = core.serving.walk_place(peer).await else {
        return wire.answer(&ServeAnswer::Busy).await;
    };
    wire.writer.send(&ServeAnswer::Coming).await?;
    let (ahead, mut ready) = Ahead::new(Arc::clone(&core.serving.ahead), peer);
    let walker = core.ask_shelf(move |shelf| walk(shelf, root, &ahead));
    // The receiver goes with the writer: the reading thread notices where nobody writes any more.
    let writing = async move {
        while let Some((bytes, _held)) = ready.recv().await {
            core.throttles.upload.pass(bytes.len()).await;
            wire.writer.send_raw(&bytes).await?;
        }
        Ok::<_, WireError>(wire)
    };
    let (walked, wire) = tokio::join!(walker, writing);
    let mut wire = wire?;
    match walked {
        Ok(Some(blobs)) => {
            core.serving.remember(root, blobs);
            wire.writer.send_raw(&[]).await?;
            wire.writer.close().await
        }
        // The stream ends before its end: the peer sees that something is missing.
        Ok(None) => Ok(()),
        Err(error) => {
            tracing::error!(%root, %error, "a tree could not be read to its end for a peer");
            Ok(())
        }
    }
}

/// Reads the directories of a tree ahead of who takes them. Its files come back; none where a part of it is not here, or
/// nobody takes more. Blocks.
fn walk(
    shelf: &dyn Shelf,
    root: TreeDigest,
    ahead: &Ahead,
) -> Result<Option<HashSet<BlobDigest>>, ShelfError> {
    let mut walk = TreeWalk::new(root);
    while let Some(digest) = walk.next() {
        let Some(size) = shelf.tree_size(digest)? else {
            return Ok(None);
        };
        // Before it is read.
        let Some(held) = ahead.room(size) else {
            return Ok(None);
        };
        let Some(tree) = shelf.tree(digest)? else {
            return Ok(None);
        };
        walk.take(&tree);
        let bytes = tree.to_bytes();
        drop(tree);
        if !ahead.send(bytes, held) {
            return Ok(None);
        }
    }
    Ok(Some(walk.blobs))
}
