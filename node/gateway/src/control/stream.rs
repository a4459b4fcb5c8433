//! What flows on the commands' side: events and logs in, archives out.

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::{mpsc, oneshot};
use tvix_node_protocol::control::{Event, EventKind};
use tvix_node_protocol::path_info::PathInfo;

use super::client::Sender;
use super::client_error::ClientError;
use crate::limits::{EVENT_BYTES, UPLOAD_CHUNK, UPLOAD_CHUNKS};

/// The events of a session. Dropping it ends the session.
#[derive(Debug)]
pub struct EventStream {
    body: Incoming,
    lines: Lines,
    ended: bool,
    /// Keeps the connection, and with it the session, after the last event: what the session
    /// protects stays protected until the command has made its roots.
    _sender: Sender,
}

impl EventStream {
    pub(super) fn new(sender: Sender, body: Incoming) -> Self {
        Self {
            body,
            lines: Lines::default(),
            ended: false,
            _sender: sender,
        }
    }

    /// The next event; none after [`Ended`](EventKind::Ended). May be dropped at any instant without
    /// losing an event.
    ///
    /// # Errors
    /// [`ClientError::EventsCut`] where the stream ends before the session has; see [`ClientError`].
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        while !self.ended {
            if let Some(line) = self.lines.take() {
                let event: Event =
                    serde_json::from_slice(&line).map_err(|error| answer(error.to_string()))?;
                self.ended = matches!(event.kind, EventKind::Ended { .. });
                return Ok(Some(event));
            }
            let data = match self.body.frame().await {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Err(ClientError::EventsCut(Some(error))),
                None => return Err(ClientError::EventsCut(None)),
            };
            if !self.lines.add(&data) {
                return Err(answer(format!("an event has more than {EVENT_BYTES} bytes")));
            }
        }
        Ok(None)
    }
}

fn answer(reason: String) -> ClientError {
    ClientError::Answer {
        request: "events".to_owned(),
        reason,
    }
}

/// Lines out of pieces.
#[derive(Debug, Default)]
struct Lines {
    bytes: BytesMut,
    /// How much of `bytes` is known to hold no end of line.
    searched: usize,
}

impl Lines {
    /// `false`: a line is too long.
    fn add(&mut self, data: &[u8]) -> bool {
        self.bytes.extend_from_slice(data);
        self.searched < EVENT_BYTES
    }

    fn take(&mut self) -> Option<BytesMut> {
        let found = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n');
        match found {
            Some(position) => {
                let line = self.bytes.split_to(self.searched + position + 1);
                self.searched = 0;
                Some(line)
            }
            None => {
                self.searched = self.bytes.len();
                None
            }
        }
    }
}

/// A build log, read piece by piece.
#[derive(Debug)]
pub struct LogStream {
    request: String,
    body: Incoming,
    _sender: Sender,
}

impl LogStream {
    pub(super) fn new(request: String, sender: Sender, body: Incoming) -> Self {
        Self {
            request,
            body,
            _sender: sender,
        }
    }

    /// The next piece; none after the last.
    ///
    /// # Errors
    /// [`ClientError::Broken`]
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|source| ClientError::Broken {
                request: self.request.clone(),
                source,
            })?;
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

/// What a request carries.
pub(super) enum RequestBody {
    Whole(Full<Bytes>),
    Archive(mpsc::Receiver<Piece>),
}

/// One step of an upload.
pub(super) enum Piece {
    Data(Bytes),
    End,
}

/// Somebody dropped an [`Upload`] that was not finished.
#[derive(Debug, thiserror::Error)]
#[error("the archive was given up before its end")]
pub(super) struct GivenUp;

impl Body for RequestBody {
    type Data = Bytes;
    type Error = GivenUp;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, GivenUp>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Self::Archive(receiver) => Poll::Ready(match ready!(receiver.poll_recv(context)) {
                Some(Piece::Data(data)) => Some(Ok(Frame::data(data))),
                Some(Piece::End) => None,
                // Without an end the node must not take it for complete.
                None => Some(Err(GivenUp)),
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Archive(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Archive(_) => SizeHint::default(),
        }
    }
}

/// An archive, or an export (then `T` is a list), on its way into the store.
///
/// It is written either with [`Write`], on a thread where blocking is allowed (it panics on one
/// that drives async tasks), or with [`send`](Self::send). The source is added by
/// [`finish`](Self::finish) alone; dropping the upload gives it up. At most
/// [`UPLOAD_CHUNKS`] pieces of [`UPLOAD_CHUNK`] bytes wait in memory.
///
/// Where the node refuses the archive in the middle, writing fails with `BrokenPipe`, and `finish`
/// has the reason.
#[derive(Debug)]
pub struct Upload<T = PathInfo> {
    pieces: mpsc::Sender<Piece>,
    buffer: BytesMut,
    answer: oneshot::Receiver<Result<T, ClientError>>,
    /// There is an answer: before the archive's end, that is a refusal.
    answered: Arc<AtomicBool>,
}

/// Where the node's answer to an [`Upload`] goes.
pub(super) struct Answer<T> {
    answer: oneshot::Sender<Result<T, ClientError>>,
    answered: Arc<AtomicBool>,
}

impl<T> Answer<T> {
    pub(super) fn give(self, answer: Result<T, ClientError>) {
        // Nobody receives it where the upload was given up.
        drop(self.answer.send(answer));
        self.answered.store(true, Ordering::Release);
    }
}

impl<T> Upload<T> {
    pub(super) fn new() -> (Self, RequestBody, Answer<T>) {
        let (pieces, receiver) = mpsc::channel(UPLOAD_CHUNKS);
        let (answer, answered) = oneshot::channel();
        let flag = Arc::new(AtomicBool::new(false));
        let upload = Self {
            pieces,
            buffer: BytesMut::new(),
            answer: answered,
            answered: Arc::clone(&flag),
        };
        let answer = Answer {
            answer,
            answered: flag,
        };
        (upload, RequestBody::Archive(receiver), answer)
    }

    /// Sends a piece of the archive.
    ///
    /// # Errors
    /// `BrokenPipe`: the node takes no more; [`finish`](Self::finish) says why.
    pub async fn send(&mut self, data: Bytes) -> io::Result<()> {
        self.check_answered()?;
        let pending = self.buffer.split().freeze();
        for data in [pending, data] {
            if !data.is_empty() {
                self.pieces.send(Piece::Data(data)).await.map_err(|_| closed())?;
            }
        }
        Ok(())
    }

    fn check_answered(&self) -> io::Result<()> {
        if self.answered.load(Ordering::Acquire) {
            Err(closed())
        } else {
            Ok(())
        }
    }

    /// The archive is complete: what was added.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn finish(mut self) -> Result<T, ClientError> {
        let sent = match self.send(Bytes::new()).await {
            Ok(()) => self.pieces.send(Piece::End).await.is_ok(),
            Err(_) => false,
        };
        drop(self.pieces);
        match self.answer.await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Request {
                request: "the addition of a source".to_owned(),
                reason: format!("the program is ending (all of it was sent: {sent})"),
            }),
        }
    }
}

impl<T> Write for Upload<T> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + data.len() > UPLOAD_CHUNK {
            self.flush()?;
        }
        let taken = data.len().min(UPLOAD_CHUNK);
        self.buffer.extend_from_slice(&data[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.check_answered()?;
        self.pieces
            .blocking_send(Piece::Data(self.buffer.split().freeze()))
            .map_err(|_| closed())
    }
}

fn closed() -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        "the node takes no more of this archive",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_of_any_pieces() {
        let text = b"one\ntwo\n\nthree\n";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for piece in text.chunks(size) {
                assert!(lines.add(piece));
                while let Some(line) = lines.take() {
                    found.push(line.to_vec());
                }
            }
            assert_eq!(
                found,
                [&b"one\n"[..], b"two\n", b"\n", b"three\n"],
                "pieces of {size}"
            );
        }
    }

    #[test]
    fn a_line_without_end_is_bounded() {
        let mut lines = Lines::default();
        let piece = vec![b'x'; 1 << 20];
        let mut pieces = 0;
        while lines.add(&piece) {
            assert!(lines.take().is_none());
            pieces += 1;
        }
        assert_eq!(pieces, EVENT_BYTES >> 20);
    }
}
