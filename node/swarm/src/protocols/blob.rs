//! One large file, or parts of it: the iroh-blobs protocol on a stream of ours.
//!
//! With the question comes a `Get` request of that protocol as one frame, before anything is answered. After
//! [`ServeAnswer::Coming`] follow the file's size and the ranges asked for, with the hashes that prove each group of 16 KiB.
//! It says that the file is here, and that the part of 8 MiB in which the ranges begin has been found to be right; where it is not,
//! nothing could be proven, and the answer is [`ServeAnswer::Broken`]. A later part that cannot be read ends the stream where it
//! begins, even if that is known before: who has what comes before it can have the rest from another, and is told the truth if it
//! asks for the rest here. The asker does not end its side, as iroh does: over TCP,
//! who has ended its side and then goes away is not noticed.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use bao_tree::ChunkRanges;
use bao_tree::io::sync::encode_ranges;
use bytes::Bytes;
use futures::AsyncReadExt;
use iroh::endpoint::VarInt;
use iroh_blobs::protocol::{GetRequest, Request};
use iroh_blobs::util::{RecvStream, SendStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::limits::BLOB_REQUEST_BYTES;
use tvix_node_protocol::messages::{BlobQuestion, ServeAnswer};
use tvix_node_protocol::tree::BlobDigest;

use super::outboard::{BlobOutboard, FileState};
use super::serving::files_for;
use crate::core::{Core, blocking};
use crate::limits::{ANSWER_TIME, CONTENT_PIECE, CONTENT_QUEUE};
use crate::net::wire::{Wire, WireError, WireReader, WireWriter};
use crate::shelf::ShelfError;

/// Our reading side, as iroh-blobs wants it: there once the answer has been read from it.
pub(crate) enum BlobReader {
    Waiting(oneshot::Receiver<WireReader>),
    Open(WireReader),
}

impl BlobReader {
    pub(crate) fn after_the_answer() -> (oneshot::Sender<WireReader>, Self) {
        let (answered, waiting) = oneshot::channel();
        (answered, Self::Waiting(waiting))
    }

    async fn wire(&mut self) -> io::Result<&mut WireReader> {
        if let Self::Waiting(waiting) = self {
            let wire = waiting.await.map_err(|_| io::ErrorKind::UnexpectedEof)?;
            *self = Self::Open(wire);
        }
        match self {
            Self::Open(wire) => Ok(wire),
            Self::Waiting(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Our writing side, as iroh-blobs wants it, for one request.
pub(crate) struct BlobWriter {
    wire: WireWriter,
    request: Vec<u8>,
}

impl BlobWriter {
    pub(crate) fn new(wire: WireWriter) -> Self {
        let request = Vec::new();
        Self { wire, request }
    }
}

fn slow(_: tokio::time::error::Elapsed) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the peer is silent")
}

impl RecvStream for BlobReader {
    /// Reads to the end, or `len` bytes.
    async fn recv_bytes(&mut self, len: usize) -> io::Result<Bytes> {
        let mut bytes = Vec::new();
        let mut source = self.wire().await?.bytes().take(len as u64);
        timeout(ANSWER_TIME, source.read_to_end(&mut bytes))
            .await
            .map_err(slow)??;
        Ok(bytes.into())
    }

    async fn recv_bytes_exact(&mut self, len: usize) -> io::Result<Bytes> {
        let mut bytes = vec![0; len];
        self.recv_exact(&mut bytes).await?;
        Ok(bytes.into())
    }

    async fn recv_exact(&mut self, target: &mut [u8]) -> io::Result<()> {
        timeout(ANSWER_TIME, self.wire().await?.bytes().read_exact(target))
            .await
            .map_err(slow)?
    }

    fn stop(&mut self, _: VarInt) -> io::Result<()> {
        // Our streams have no codes; dropping the stream says the same.
        Ok(())
    }

    fn id(&self) -> u64 {
        0
    }
}

impl SendStream for BlobWriter {
    async fn send_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        self.send(&bytes).await
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.request.extend_from_slice(bytes);
        Ok(())
    }

    /// Sends the request, which is complete.
    async fn sync(&mut self) -> io::Result<()> {
        self.wire
            .send_raw(&self.request)
            .await
            .map_err(io::Error::other)?;
        self.wire.flush().await.map_err(io::Error::other)
    }

    fn reset(&mut self, _: VarInt) -> io::Result<()> {
        Ok(())
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        Ok(None)
    }

    fn id(&self) -> u64 {
        0
    }
}

pub(crate) async fn serve(core: &Arc<Core>, peer: NodeKey, mut wire: Wire) -> Result<(), WireError> {
    let BlobQuestion { root, blob } = wire.reader.receive().await?;
    // It is held to the end.
    let lent = match files_for(core, peer, root).await {
        Ok(lent) => lent,
        Err(answer) => return wire.answer(&answer).await,
    };
    if !lent.files.contains(&blob) {
        return wire.answer(&ServeAnswer::NotHere).await;
    }
    let Some(_place) = core.serving.place(peer).await else {
        return wire.answer(&ServeAnswer::Busy).await;
    };
    let request = wire.reader.receive_raw(BLOB_REQUEST_BYTES).await?;
    let request = Bytes::from(request.ok_or(WireError::Closed)?);
    let (request, _) = Request::read_async(&mut { request }).await?;
    let Some(ranges) = ranges_of(&request, blob) else {
        tracing::debug!(%peer, "a request of another kind than is served here");
        return Ok(());
    };
    // Before it is said that it comes: who is told so takes an early end for that of the connection.
    let opened = {
        let (core, ranges) = (core.clone(), ranges.clone());
        blocking(move || open(&core, blob, &ranges)).await
    };
    let file = match opened {
        Ok(Ok(Some(file))) => file,
        Ok(Ok(None)) => return wire.answer(&ServeAnswer::NotHere).await,
        Ok(Err(error)) => {
            tracing::error!(%blob, %error, "a file could not be read for a peer");
            return wire.answer(&ServeAnswer::Broken).await;
        }
        Err(error) => {
            tracing::error!(%blob, %error, "a file could not be read for a peer");
            return wire.answer(&ServeAnswer::Broken).await;
        }
    };
    wire.writer.send(&ServeAnswer::Coming).await?;
    wire.writer.flush().await?;
    let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(CONTENT_QUEUE);
    let encoder = blocking(move || encode(&file, &ranges, sender));
    let mut writer = wire.writer;
    // The receiver goes with the writer: the reading thread notices where nobody writes any more.
    let writing = async move {
        while let Some(piece) = receiver.recv().await {
            writer.send_content(&piece, &core.throttles.upload).await?;
        }
        writer.close().await
    };
    let (encoded, written) = tokio::join!(encoder, writing);
    match encoded {
        Ok(Ok(())) => {}
        // The stream has ended before its end: the peer sees that something is missing.
        Ok(Err(error)) => tracing::error!(%blob, %error, "a file could not be read for a peer"),
        Err(error) => tracing::error!(%blob, %error, "a file could not be read for a peer"),
    }
    written
}

/// The ranges wanted of this file; none where the request is another one.
fn ranges_of(request: &Request, blob: BlobDigest) -> Option<ChunkRanges> {
    let Request::Get(GetRequest { hash, ranges }) = request else {
        return None;
    };
    let (0, ranges) = ranges.as_single()? else {
        return None;
    };
    (*hash.as_bytes() == blob.0).then(|| ranges.clone())
}

/// A file that is served.
struct Served {
    file: File,
    state: FileState,
    outboard: Arc<BlobOutboard>,
}

/// Opens a file of which these ranges are wanted, and sees to it that their beginning can be proven; none where it is not here.
/// Blocks.
fn open(core: &Core, blob: BlobDigest, ranges: &ChunkRanges) -> Result<Option<Served>, ShelfError> {
    let Some(file) = core.shelf.blob(blob)? else {
        return Ok(None);
    };
    // As it was before it is read: a change meanwhile shows.
    let state = FileState::of(&file.metadata().map_err(ShelfError::new)?);
    let parts = || {
        core.shelf.subtrees(blob).unwrap_or_else(|error| {
            tracing::warn!(%blob, %error, "the hashes of a file's parts could not be read; all of it is");
            Vec::new()
        })
    };
    let spool = core.fetching.spool();
    let outboard = core.serving.outboard(blob, (&file, state), spool, parts);
    let outboard = outboard.map_err(ShelfError::new)?;
    let with_file = outboard.with(&file, state).map_err(ShelfError::new)?;
    if let Some(first) = ranges.boundaries().first() {
        // It would have to be read now anyway.
        with_file.prove_from(first.0).map_err(ShelfError::new)?;
    }
    Ok(Some(Served {
        file,
        state,
        outboard,
    }))
}

/// Reads, proves and sends. Blocks.
fn encode(served: &Served, ranges: &ChunkRanges, sender: mpsc::Sender<Vec<u8>>) -> Result<(), ShelfError> {
    let Served {
        file,
        state,
        outboard,
    } = served;
    let outboard = outboard.with(file, *state).map_err(ShelfError::new)?;
    let mut pieces = Pieces {
        piece: Vec::with_capacity(CONTENT_PIECE),
        sender,
    };
    let sent = pieces
        .write_all(&state.size.to_le_bytes())
        .and_then(|()| encode_ranges(file, outboard, ranges, &mut pieces).map_err(io::Error::other));
    // What comes before a part that cannot be read as well.
    let flushed = pieces.flush();
    match sent.and(flushed) {
        // Nobody reads any more.
        Err(_) if pieces.sender.is_closed() => Ok(()),
        sent => sent.map_err(ShelfError::new),
    }
}

/// Collects small writes and sends them from a thread that may block.
struct Pieces {
    piece: Vec<u8>,
    sender: mpsc::Sender<Vec<u8>>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= CONTENT_PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let next = Vec::with_capacity(CONTENT_PIECE + (64 << 10));
        let piece = std::mem::replace(&mut self.piece, next);
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.sender.blocking_send(piece).map_err(gone)
    }
}
