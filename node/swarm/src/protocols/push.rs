//! Paths for a desired store: offered, fetched by the store, and confirmed by it.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::messages::{PushFrame, PushOffer, PushRefusal, Shown};
use tvix_node_protocol::nix::store_path::StorePath;
use tvix_node_protocol::roster::Role;
use tvix_node_protocol::tree::TreeDigest;

use crate::call::{self, CallError};
use crate::core::Core;
use crate::limits::{BUILD_FRAMES, HEARTBEAT, PUSH_SILENCE};
use crate::net::Door;
use crate::net::wire::{Wire, WireError, WireWriter};
use crate::protocols::build::Unwanted;

/// Paths somebody wants stored here, for the node to take or to refuse. Dropping it refuses it.
#[derive(Debug)]
pub struct IncomingPush {
    /// Who offers them, and has them to be fetched.
    pub peer: NodeKey,
    /// The paths, a path's references before itself.
    pub paths: Vec<Shown>,
    frames: mpsc::Sender<PushFrame>,
    place: Arc<Place>,
}

/// The place of a push among those that are taken: as long as it is told of, and as long as somebody works on it, whether
/// the offerer is still there or not.
#[derive(Debug)]
struct Place {
    _of_peer: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

/// A push that was taken. While it exists heartbeats are sent; dropping it refuses what is left.
#[derive(Debug)]
pub struct TakenPush {
    frames: mpsc::Sender<PushFrame>,
    _place: Arc<Place>,
}

impl IncomingPush {
    /// Takes it.
    #[must_use]
    pub fn accept(self) -> TakenPush {
        TakenPush {
            frames: self.frames,
            _place: self.place,
        }
    }

    /// Refuses it; who offers sees why.
    pub async fn refuse(self, reason: PushRefusal, message: impl Into<String>) {
        self.accept().refuse(reason, message).await;
    }
}

impl TakenPush {
    #[cfg(test)]
    pub(crate) fn frames_are_unwanted(&self) -> bool {
        self.frames.is_closed()
    }

    /// A path is stored, durably, with this content.
    ///
    /// # Errors
    /// [`Unwanted`] where the offerer is gone; what is stored is stored.
    pub async fn stored(&self, path: StorePath, tree: TreeDigest) -> Result<(), Unwanted> {
        let frame = PushFrame::Stored { path, tree };
        self.frames.send(frame).await.map_err(|_| Unwanted)
    }

    /// All are stored.
    ///
    /// # Errors
    /// [`Unwanted`] where the offerer is gone.
    pub async fn done(self) -> Result<(), Unwanted> {
        self.frames.send(PushFrame::Done).await.map_err(|_| Unwanted)
    }

    /// No more are taken; who offers sees why.
    pub async fn refuse(self, reason: PushRefusal, message: impl Into<String>) {
        let message = message.into();
        // Gone: then nobody wants to know.
        self.frames
            .send(PushFrame::Refused { reason, message })
            .await
            .ok();
    }
}

pub(crate) async fn serve(core: &Arc<Core>, peer: NodeKey, mut wire: Wire) -> Result<(), WireError> {
    let refused = |reason, message: &str| PushFrame::Refused {
        reason,
        message: message.to_owned(),
    };
    if !core.team.members().may(core.team.me(), Role::Store) {
        let answer = refused(
            PushRefusal::NotAStore,
            "this node does not have the role 'store' in the team",
        );
        return wire.answer(&answer).await;
    }
    // Both are said before the offer is read, which may be large.
    let of_peer = core.pushes_of_each.of(peer).try_acquire_owned();
    let place = of_peer.and_then(|of_peer| {
        Ok(Place {
            _of_peer: of_peer,
            _of_all: core.pushes_taken.clone().try_acquire_owned()?,
        })
    });
    let Ok(place) = place.map(Arc::new) else {
        let answer = refused(PushRefusal::Busy, "this store takes no more pushes at the moment");
        return wire.answer(&answer).await;
    };
    let offer: PushOffer = wire.reader.receive().await?;
    let (frames, receiver) = mpsc::channel(BUILD_FRAMES);
    let incoming = IncomingPush {
        peer,
        paths: offer.paths,
        frames,
        place: Arc::clone(&place),
    };
    if core.pushes.try_send(incoming).is_err() {
        let answer = refused(PushRefusal::Busy, "this store takes no more pushes at the moment");
        return wire.answer(&answer).await;
    }
    let pumped = pump(wire.writer, receiver).await;
    drop(place);
    pumped
}

async fn pump(mut writer: WireWriter, mut frames: mpsc::Receiver<PushFrame>) -> Result<(), WireError> {
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    loop {
        let frame = tokio::select! {
            frame = frames.recv() => frame.unwrap_or_else(|| PushFrame::Refused {
                reason: PushRefusal::Failed,
                message: "the store let the push go; it may be shutting down".to_owned(),
            }),
            _ = heartbeat.tick() => PushFrame::Heartbeat,
        };
        let last = matches!(frame, PushFrame::Done | PushFrame::Refused { .. });
        writer.send(&frame).await?;
        if last {
            return writer.close().await;
        }
        writer.flush().await?;
    }
}

/// Why paths are not in the desired store.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The store cannot be reached, or the connection broke.
    #[error(transparent)]
    Call(#[from] CallError),
    /// It does not take them.
    #[error("{store} does not take the paths: {message}")]
    Refused {
        /// The store.
        store: NodeKey,
        /// Why, for the program.
        reason: PushRefusal,
        /// Why, for a person.
        message: String,
    },
    /// It says that it is done, but has not confirmed this one as it was offered.
    #[error("{store} has not confirmed that it stored {path} with the content offered")]
    Unconfirmed {
        /// The store.
        store: NodeKey,
        /// The path.
        path: StorePath,
    },
}

/// Offers paths to a store, and returns once it has confirmed every one with its tree digest.
pub(crate) async fn push(core: &Core, store: NodeKey, paths: Vec<Shown>) -> Result<(), PushError> {
    let at = call::at(store, Door::Push);
    let wire = core.open(store, Door::Push).await?;
    let offer = PushOffer { paths };
    let (mut reader, mut writer) = (wire.reader, wire.writer);
    let mut confirmed = std::collections::BTreeSet::new();
    // A store that refuses says so without reading the offer, and then the offer cannot be sent to its end.
    let mut first = {
        let offering = async {
            writer.send(&offer).await?;
            writer.flush().await
        };
        let answering = reader.receive_within(PUSH_SILENCE);
        tokio::pin!(offering, answering);
        tokio::select! {
            biased;
            answer = &mut answering => Some(answer),
            offered = &mut offering => match offered {
                Ok(()) => Some((&mut answering).await),
                // Why it was not taken is perhaps on its way.
                Err(error) => Some((&mut answering).await.map_err(|_| error)),
            },
        }
    };
    loop {
        let frame: Result<Option<PushFrame>, WireError> = match first.take() {
            Some(frame) => frame,
            None => reader.receive_within(PUSH_SILENCE).await,
        };
        match frame.map_err(at)?.ok_or(WireError::Closed).map_err(at)? {
            PushFrame::Heartbeat => {}
            PushFrame::Stored { path, tree } => {
                let offered = |shown: &Shown| shown.info.path == path && shown.info.tree == tree;
                if offer.paths.iter().any(offered) {
                    confirmed.insert(path);
                }
            }
            PushFrame::Refused { reason, message } => {
                return Err(PushError::Refused {
                    store,
                    reason,
                    message,
                });
            }
            PushFrame::Done => break,
        }
    }
    let missing = offer
        .paths
        .iter()
        .find(|shown| !confirmed.contains(&shown.info.path));
    match missing {
        None => Ok(()),
        Some(shown) => Err(PushError::Unconfirmed {
            store,
            path: shown.info.path.clone(),
        }),
    }
}
