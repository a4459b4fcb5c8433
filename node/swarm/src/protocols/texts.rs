//! Derivations and other texts: the files that store paths are, many in one answer.
//!
//! Who builds for another needs the whole closure of derivations of a request, to recompute what it would
//! write: thousands of files of a few kilobytes. A tree for each, with its path info before it, would be
//! three round trips a file.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{StreamExt, TryStreamExt, stream};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::limits::{TEXT_BYTES, TEXTS_BYTES, TEXTS_QUESTION};
use tvix_node_protocol::messages::{ServeAnswer, TEXT_FOLLOWS, TEXT_NOT_HERE, TEXTS_END, TextsQuestion};
use tvix_node_protocol::nix::store_path::StorePath;
use tvix_node_protocol::tree::{Leaf, Tree};

use super::ahead::Ahead;
use super::paths::PathsError;
use crate::call;
use crate::core::{Core, lock};
use crate::limits::{CONTENT_PIECE, TEXTS_OF_A_CALL, TEXTS_QUESTIONS_AT_ONCE};
use crate::net::Door;
use crate::net::wire::{Wire, WireError};
use crate::shelf::{Shelf, ShelfError};

pub(crate) async fn serve(core: &Arc<Core>, peer: NodeKey, mut wire: Wire) -> Result<(), WireError> {
    let question: TextsQuestion = wire.reader.receive().await?;
    let amount = u32::try_from(question.paths.len()).unwrap_or(u32::MAX);
    if question.paths.len() > TEXTS_QUESTION || !lock(&core.allowance).take(peer, amount, core.team.now()) {
        return wire.answer(&ServeAnswer::Busy).await;
    }
    let Some(_place) = core.serving.walk_place(peer).await else {
        return wire.answer(&ServeAnswer::Busy).await;
    };
    wire.writer.send(&ServeAnswer::Coming).await?;
    let (ahead, mut ready) = Ahead::new(Arc::clone(&core.serving.ahead), peer);
    let reading = core.ask_shelf(move |shelf| {
        let mut answer = Answer::new(ahead);
        for path in &question.paths {
            if !answer.add(shelf, peer, path)? {
                break;
            }
        }
        answer.flush();
        Ok(())
    });
    // The receiver goes with the writer: the reading thread notices where nobody writes any more.
    let writing = async move {
        while let Some((piece, _held)) = ready.recv().await {
            wire.writer.send_content(&piece, &core.throttles.upload).await?;
        }
        Ok::<_, WireError>(wire)
    };
    let (read, wire) = tokio::join!(reading, writing);
    if let Err(error) = read {
        // The stream ends before its end: the peer sees that something is missing.
        tracing::error!(%peer, %error, "texts could not be read for a peer");
        return Ok(());
    }
    wire?.writer.close().await
}

/// An answer as it is written, by a thread that may block.
struct Answer {
    piece: Vec<u8>,
    /// Bytes of texts so far.
    size: usize,
    ahead: Ahead,
}

impl Answer {
    fn new(ahead: Ahead) -> Self {
        Self {
            piece: Vec::with_capacity(CONTENT_PIECE),
            size: 0,
            ahead,
        }
    }

    /// Answers for one path; false where no more is to be answered.
    fn add(&mut self, shelf: &dyn Shelf, peer: NodeKey, path: &StorePath) -> Result<bool, ShelfError> {
        let Some((mut file, size)) = open(shelf, peer, path)? else {
            self.frame(TEXT_NOT_HERE, 0);
            return Ok(self.flush_full());
        };
        if self.size + size > TEXTS_BYTES {
            self.frame(TEXTS_END, 0);
            return Ok(false);
        }
        self.size += size;
        self.frame(TEXT_FOLLOWS, size);
        let mut left = size;
        while left > 0 {
            let part = left.min(CONTENT_PIECE);
            let start = self.piece.len();
            self.piece.resize(start + part, 0);
            file.read_exact(&mut self.piece[start..])
                .map_err(ShelfError::new)?;
            left -= part;
            if !self.flush_full() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Begins a frame of one byte and so many others.
    fn frame(&mut self, byte: u8, size: usize) {
        // At most `TEXT_BYTES`, and one.
        let length = u32::try_from(size + 1).unwrap_or(u32::MAX);
        self.piece.extend_from_slice(&length.to_le_bytes());
        self.piece.push(byte);
    }

    /// Sends what has come together where that is much; false where nobody takes it any more.
    fn flush_full(&mut self) -> bool {
        self.piece.len() < CONTENT_PIECE || self.flush()
    }

    fn flush(&mut self) -> bool {
        let next = Vec::with_capacity(CONTENT_PIECE);
        let piece = std::mem::replace(&mut self.piece, next);
        let held = self.ahead.room(piece.len());
        held.is_some_and(|held| self.ahead.send(piece, held))
    }
}

/// The plain file a path is, and its size; none where it cannot come this way.
fn open(shelf: &dyn Shelf, peer: NodeKey, path: &StorePath) -> Result<Option<(File, usize)>, ShelfError> {
    let Some(shown) = shelf.path_info(peer, path)? else {
        return Ok(None);
    };
    let Some(Tree::Leaf(Leaf::File {
        blob,
        size,
        executable: false,
    })) = shelf.tree(shown.info.tree)?
    else {
        return Ok(None);
    };
    let Some(size) = usize::try_from(size).ok().filter(|size| *size <= TEXT_BYTES) else {
        return Ok(None);
    };
    let Some(file) = shelf.blob(blob)? else {
        return Ok(None);
    };
    let found = file.metadata().map_err(ShelfError::new)?.len();
    if found != size as u64 {
        return Err(ShelfError::new(format!(
            "the file of {path} has {found} bytes and should have {size}"
        )));
    }
    Ok(Some((file, size)))
}

/// The texts a peer has of these paths, in their order, unverified.
pub(crate) async fn ask(
    core: &Core,
    peer: NodeKey,
    paths: &[StorePath],
) -> Result<Vec<Option<Vec<u8>>>, PathsError> {
    ask_within(core, peer, paths, &AtomicUsize::new(TEXTS_OF_A_CALL)).await
}

/// As [`ask`]. `left`: bytes that may still come.
pub(crate) async fn ask_within(
    core: &Core,
    peer: NodeKey,
    paths: &[StorePath],
    left: &AtomicUsize,
) -> Result<Vec<Option<Vec<u8>>>, PathsError> {
    let mut parts = Vec::with_capacity(paths.len().div_ceil(TEXTS_QUESTION));
    // Not with a closure over borrowed parts: the future could not be sent to another thread.
    for part in paths.chunks(TEXTS_QUESTION) {
        parts.push(ask_part(core, peer, part, left));
    }
    let answers: Vec<Vec<_>> = stream::iter(parts)
        .buffered(TEXTS_QUESTIONS_AT_ONCE)
        .try_collect()
        .await?;
    Ok(answers.into_iter().flatten().collect())
}

/// Asks until there is an answer to each of these paths.
async fn ask_part(
    core: &Core,
    peer: NodeKey,
    paths: &[StorePath],
    left: &AtomicUsize,
) -> Result<Vec<Option<Vec<u8>>>, PathsError> {
    let mut texts = Vec::with_capacity(paths.len());
    while texts.len() < paths.len() {
        let before = texts.len();
        ask_once(core, peer, &paths[before..], left, &mut texts).await?;
        if texts.len() == before {
            let message = "it sends none of the texts asked for".to_owned();
            return Err(PathsError::Broken { peer, message });
        }
    }
    Ok(texts)
}

/// Takes one answer, which may end before all paths are answered.
async fn ask_once(
    core: &Core,
    peer: NodeKey,
    paths: &[StorePath],
    left: &AtomicUsize,
    texts: &mut Vec<Option<Vec<u8>>>,
) -> Result<(), PathsError> {
    let at = call::at(peer, Door::Texts);
    let broken = |message: String| PathsError::Broken { peer, message };
    let mut wire = core.open(peer, Door::Texts).await?;
    let question = TextsQuestion {
        paths: paths.to_vec(),
    };
    match wire.ask(&question).await.map_err(at)? {
        ServeAnswer::Coming => {}
        ServeAnswer::Busy => return Err(PathsError::Busy(peer)),
        ServeAnswer::NotHere => return Err(broken("it has no texts for this node".to_owned())),
        ServeAnswer::Broken => return Err(broken("it cannot read what it has".to_owned())),
    }
    let mut room = TEXTS_BYTES;
    for path in paths {
        let length = wire.reader.size(room.min(TEXT_BYTES) + 1).await.map_err(at)?;
        let length = length.ok_or(WireError::Closed).map_err(at)?;
        let size = length.saturating_sub(1);
        // Before it is read.
        let enough = |left: usize| left.checked_sub(size);
        if left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, enough)
            .is_err()
        {
            let limit = TEXTS_OF_A_CALL;
            return Err(PathsError::TooLarge { peer, limit });
        }
        let mut frame = wire.reader.frame(length).await.map_err(at)?;
        match (frame.first(), frame.len()) {
            (Some(&TEXT_FOLLOWS), _) => {
                core.throttles.download.pass(size).await;
                room -= size;
                frame.remove(0);
                texts.push(Some(frame));
            }
            (Some(&TEXT_NOT_HERE), 1) => texts.push(None),
            (Some(&TEXTS_END), 1) => break,
            _ => return Err(broken(format!("no answer about {path}"))),
        }
    }
    Ok(())
}
