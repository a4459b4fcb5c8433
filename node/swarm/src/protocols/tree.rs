//! The directories of a tree, breadth first, in one answer.

use std::sync::Arc;

use tokio::sync::mpsc;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::{ServeAnswer, TreeQuestion};

use super::serving::walk;
use crate::core::Core;
use crate::limits::CONTENT_QUEUE;
use crate::net::wire::{Wire, WireError};

pub(crate) async fn serve(core: &Arc<Core>, peer: NodeKey, mut wire: Wire) -> Result<(), WireError> {
    let TreeQuestion { root } = wire.reader.receive().await?;
    let may = core
        .ask_shelf(move |shelf| Ok(shelf.may_serve(peer, root)? && shelf.tree(root)?.is_some()))
        .await;
    match may {
        Ok(true) => {}
        Ok(false) => return wire.answer(&ServeAnswer::NotHere).await,
        Err(error) => {
            tracing::error!(%root, %error, "a tree could not be read for a peer");
            return wire.answer(&ServeAnswer::Broken).await;
        }
    }
    let Some(_place) = core.serving.walk_place(peer).await else {
        return wire.answer(&ServeAnswer::Busy).await;
    };
    wire.writer.send(&ServeAnswer::Coming).await?;
    let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(CONTENT_QUEUE);
    let walker = {
        let core = core.clone();
        async move {
            core.ask_shelf(move |shelf| walk(shelf, root, |bytes| sender.blocking_send(bytes).is_ok()))
                .await
        }
    };
    // The receiver goes with the writer: the reading thread notices where nobody writes any more.
    let writing = async move {
        while let Some(bytes) = receiver.recv().await {
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
