//! Path infos: what is known of a path, and the record that speaks for it.

use std::sync::Arc;

use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::limits::{PATHS_ANSWER, PATHS_QUESTION};
use tvix_node_protocol::messages::{Message as _, PathAnswer, PathHash, PathsQuestion, Shown};
use tvix_node_protocol::nix::store_path::StorePath;

use crate::call::{self, CallError};
use crate::core::{Core, lock};
use crate::limits::{BUSY_PAUSE, PATHS_LOOKED_UP, PATHS_OF_A_CALL, PATHS_SILENCE, PATHS_TRIES};
use crate::net::wire::{Wire, WireError};
use crate::net::{ConnectError, Door};
use crate::shelf::{Shelf, ShelfError};

/// Why a peer's path infos are not to be had.
#[derive(Debug, thiserror::Error)]
pub enum PathsError {
    /// It could not be asked.
    #[error(transparent)]
    Call(#[from] CallError),
    /// It has too much to do, or was asked for more than a member may ask for.
    #[error("{0} answers no more questions at the moment; try again later, or ask another")]
    Busy(NodeKey),
    /// It cannot read what it has, or sent something that is no answer.
    #[error("{peer} did not answer as it should: {message}")]
    Broken {
        /// Who.
        peer: NodeKey,
        /// What was wrong.
        message: String,
    },
    /// More than can be taken in one go.
    #[error("what was asked for at {peer} has more than {limit} bytes; ask for fewer at a time")]
    TooLarge {
        /// Who.
        peer: NodeKey,
        /// What may come.
        limit: usize,
    },
    /// It answered for another path.
    #[error("{peer}, asked about {wanted}, spoke of {got}")]
    OtherPath {
        /// Who.
        peer: NodeKey,
        /// What was asked.
        wanted: StorePath,
        /// What came.
        got: StorePath,
    },
}

pub(crate) async fn serve(core: &Arc<Core>, peer: NodeKey, mut wire: Wire) -> Result<(), WireError> {
    let question: PathsQuestion = wire.reader.receive().await?;
    let hashes = question.hashes();
    let amount = u32::try_from(hashes.len()).unwrap_or(u32::MAX);
    if hashes.len() > PATHS_QUESTION || !lock(&core.allowance).take(peer, amount, core.team.now()) {
        tracing::debug!(%peer, amount, "too many questions about paths; the stream is closed");
        return Ok(());
    }
    let mut sent = 0;
    for part in hashes.chunks(PATHS_LOOKED_UP) {
        let part = part.to_vec();
        let found = core.ask_shelf(move |shelf| {
            let look_up = |hash: &PathHash| {
                shown_of(shelf, peer, hash).unwrap_or_else(|error| {
                    tracing::error!(%error, "a path could not be looked up for a peer");
                    None
                })
            };
            Ok(part.iter().map(look_up).collect::<Vec<_>>())
        });
        let found = found
            .await
            .map_err(|error| WireError::Io(std::io::Error::other(error)))?;
        for shown in found {
            // At least one is answered, so that who asks again comes to an end.
            if sent >= PATHS_ANSWER {
                return wire.writer.close().await;
            }
            sent += wire.writer.send_counted(&PathAnswer { shown }).await?;
        }
    }
    wire.writer.close().await
}

fn shown_of(shelf: &dyn Shelf, peer: NodeKey, hash: &PathHash) -> Result<Option<Shown>, ShelfError> {
    for path in shelf.with_hash(hash)? {
        if let Some(shown) = shelf.path_info(peer, &path)? {
            return Ok(Some(shown));
        }
    }
    Ok(None)
}

/// What a peer knows of these paths, in their order; none: it does not have the path, or not for us.
pub(crate) async fn ask(
    core: &Core,
    peer: NodeKey,
    paths: &[StorePath],
) -> Result<Vec<Option<Shown>>, PathsError> {
    ask_within(core, peer, paths, PATHS_OF_A_CALL).await
}

/// As [`ask`]. `most`: bytes that may come.
pub(crate) async fn ask_within(
    core: &Core,
    peer: NodeKey,
    paths: &[StorePath],
    most: usize,
) -> Result<Vec<Option<Shown>>, PathsError> {
    if core.is_away(peer) {
        let reason = "it could not be reached a moment ago".to_owned();
        return Err(CallError::from(ConnectError::Unreachable { peer, reason }).into());
    }
    let mut left = most;
    let at = call::at(peer, Door::Paths);
    let mut answers = Vec::with_capacity(paths.len());
    let mut refused = 0;
    while answers.len() < paths.len() {
        let rest = &paths[answers.len()..];
        let part = &rest[..rest.len().min(PATHS_QUESTION)];
        let mut wire = core.open(peer, Door::Paths).await?;
        let question = PathsQuestion::about(part);
        wire.writer.send(&question).await.map_err(at)?;
        wire.writer.flush().await.map_err(at)?;
        let before = answers.len();
        for path in part {
            // An answer that has become too large ends early: the rest is asked for anew.
            let size = wire.reader.size_within(PathAnswer::LIMIT, PATHS_SILENCE).await;
            let Some(size) = size.map_err(at)? else {
                if answers.len() == before {
                    // Closed before the first answer: it was asked for more than a member may ask for, and may be asked again
                    // in a while.
                    if refused >= PATHS_TRIES {
                        return Err(PathsError::Busy(peer));
                    }
                    refused += 1;
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                break;
            };
            refused = 0;
            left = left
                .checked_sub(size)
                .ok_or(PathsError::TooLarge { peer, limit: most })?;
            let answer: PathAnswer = wire
                .reader
                .message_within(size, PATHS_SILENCE)
                .await
                .map_err(at)?;
            if let Some(shown) = &answer.shown
                && shown.info.path != *path
            {
                lock(&core.standing).lied(peer, core.team.now());
                return Err(PathsError::OtherPath {
                    peer,
                    wanted: path.clone(),
                    got: shown.info.path.clone(),
                });
            }
            answers.push(answer.shown);
        }
    }
    Ok(answers)
}
