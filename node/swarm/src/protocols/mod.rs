//! Our own protocols, door by door: what is asked, and how it is answered.

pub(crate) mod ahead;
pub(crate) mod blob;
pub(crate) mod blobs;
pub(crate) mod build;
pub(crate) mod carry;
pub(crate) mod find;
pub(crate) mod hello;
pub(crate) mod join;
pub(crate) mod keepers;
pub(crate) mod outboard;
pub(crate) mod paths;
pub(crate) mod patience;
pub(crate) mod presence;
pub(crate) mod publish;
pub(crate) mod push;
pub(crate) mod reachability;
pub(crate) mod relay;
pub(crate) mod roster;
pub(crate) mod serving;
pub(crate) mod texts;
pub(crate) mod tree;
pub(crate) mod trees;

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::core::Core;
use crate::net::Door;
use crate::net::doors::Inbound;
use crate::net::wire::{Wire, WireError};

/// How a stream is served.
pub(crate) type Serve = fn(Arc<Core>, Inbound) -> BoxFuture<'static, ()>;

/// Serves streams until the network is gone or the node stops. Each has its own task.
pub(crate) async fn serve_all(core: Arc<Core>, mut inbound: mpsc::Receiver<Inbound>, serve: Serve) {
    let mut tasks = JoinSet::new();
    let mut stopping = core.stopping.subscribe();
    loop {
        tokio::select! {
            stream = inbound.recv() => match stream {
                Some(stream) => { tasks.spawn(serve(core.clone(), stream)); }
                None => break,
            },
            // Taken out as they end, so that their number stays that of the streams open.
            Some(_) = tasks.join_next() => {}
            _ = stopping.wait_for(|stopping| *stopping) => break,
        }
    }
    tasks.shutdown().await;
}

/// As it should be.
pub(crate) fn honestly(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    serve(core, inbound).boxed()
}

async fn serve(core: Arc<Core>, inbound: Inbound) {
    let Inbound {
        peer,
        door,
        stream,
        over,
        permits,
    } = inbound;
    // Checked when the stream was opened; the roster may have changed since.
    if door != Door::Join && !core.team.members().contains(peer) {
        return;
    }
    if door == Door::Hop {
        if let Err(error) = relay::serve(&core, peer, stream, over).await {
            tracing::debug!(%peer, %error, "what is passed on between others has ended");
        }
        drop(permits);
        return;
    }
    let wire = Wire::new(core.traffic.counted_serving(stream, peer, door));
    let result: Result<(), WireError> = match door {
        Door::Join => join::serve(&core, peer, wire).await,
        Door::Hello => hello::serve(&core, peer, wire).await,
        Door::Reachability => reachability::serve(&core, peer, wire).await,
        Door::Roster => roster::serve(&core, peer, wire).await,
        Door::Presence => presence::serve(&core, peer, wire).await,
        Door::Paths => paths::serve(&core, peer, wire).await,
        Door::Tree => tree::serve(&core, peer, wire).await,
        Door::Trees => trees::serve(&core, peer, wire).await,
        Door::Blobs => blobs::serve(&core, peer, wire).await,
        Door::Blob => blob::serve(&core, peer, wire).await,
        Door::Texts => texts::serve(&core, peer, wire).await,
        Door::Build => build::serve(&core, peer, wire).await,
        Door::Push => push::serve(&core, peer, wire).await,
        // The first is served above, the second by the library.
        Door::Hop | Door::Stop => Ok(()),
    };
    if let Err(error) = result {
        tracing::debug!(%peer, door = door.name(), %error, "a peer's question could not be answered");
    }
    drop(permits);
}
