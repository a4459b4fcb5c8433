//! Bodies on the server's side: archives that come in, events and logs that go out, piece by piece.

use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tvix_node_protocol::control::{Event, EventKind};

use super::api::LogReader;
use crate::limits::{ARCHIVE_BYTES, EVENT_BYTES, LOG_CHUNK};

/// Why a body could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// More than is taken.
    #[error("the body has more than the {limit} bytes that are taken here")]
    TooLarge {
        /// How many are.
        limit: u64,
    },
    /// The client went away or broke the protocol.
    #[error("the body ended before its end: {0}")]
    Torn(#[source] hyper::Error),
}

/// The archive that a client sends. At most one piece of it is in memory; the client waits until that
/// is taken.
#[derive(Debug)]
pub struct UploadBody {
    incoming: Option<Incoming>,
    left: u64,
    rest: Option<oneshot::Sender<Incoming>>,
}

/// What nobody read of an [`UploadBody`].
pub(super) struct Rest(oneshot::Receiver<Incoming>);

impl Rest {
    /// Reads it to its end. A client that is still sending when the connection closes may never see
    /// its answer; this one sees it and stops.
    pub(super) async fn discard(self) {
        if let Ok(mut incoming) = self.0.await {
            while let Some(Ok(_)) = incoming.frame().await {}
        }
    }
}

impl Drop for UploadBody {
    fn drop(&mut self) {
        if let (Some(incoming), Some(rest)) = (self.incoming.take(), self.rest.take()) {
            // Nobody receives it where the connection is gone.
            drop(rest.send(incoming));
        }
    }
}

impl UploadBody {
    pub(super) fn new(incoming: Incoming) -> (Self, Rest) {
        let (sender, rest) = oneshot::channel();
        let body = Self {
            incoming: Some(incoming),
            left: ARCHIVE_BYTES,
            rest: Some(sender),
        };
        (body, Rest(rest))
    }

    /// The next piece; none after the last. Only then is the archive complete.
    ///
    /// # Errors
    /// See [`UploadError`].
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, UploadError> {
        match &mut self.incoming {
            Some(incoming) => chunk(incoming, &mut self.left, ARCHIVE_BYTES).await,
            None => Ok(None),
        }
    }

    /// The archive for a reader that blocks, to be used on a thread where blocking is allowed
    /// (`tokio::task::spawn_blocking`). Must be called within the runtime.
    #[must_use]
    pub fn into_reader(self) -> ArchiveReader {
        ArchiveReader {
            body: self,
            piece: Bytes::new(),
            runtime: Handle::current(),
        }
    }
}

async fn chunk(incoming: &mut Incoming, left: &mut u64, limit: u64) -> Result<Option<Bytes>, UploadError> {
    while let Some(frame) = incoming.frame().await {
        // Trailers say nothing here.
        let Ok(data) = frame.map_err(UploadError::Torn)?.into_data() else {
            continue;
        };
        *left = left
            .checked_sub(data.len() as u64)
            .ok_or(UploadError::TooLarge { limit })?;
        if !data.is_empty() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Reads a body that is small by nature.
pub(super) async fn collect(mut incoming: Incoming, limit: usize) -> Result<Vec<u8>, UploadError> {
    let limit = limit as u64;
    if incoming.size_hint().lower() > limit {
        return Err(UploadError::TooLarge { limit });
    }
    let mut bytes = Vec::new();
    let mut left = limit;
    while let Some(data) = chunk(&mut incoming, &mut left, limit).await? {
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// An [`UploadBody`] as [`Read`]. Errors carry an [`UploadError`].
#[derive(Debug)]
pub struct ArchiveReader {
    body: UploadBody,
    piece: Bytes,
    runtime: Handle,
}

impl Read for ArchiveReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() && !buffer.is_empty() {
            match self.runtime.block_on(self.body.chunk()) {
                Ok(Some(piece)) => self.piece = piece,
                Ok(None) => return Ok(0),
                Err(error @ UploadError::TooLarge { .. }) => {
                    return Err(io::Error::new(io::ErrorKind::FileTooLarge, error));
                }
                Err(error @ UploadError::Torn(_)) => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, error));
                }
            }
        }
        let length = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// Why an answer breaks off. The client sees a connection that ends in the middle of a body.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnswerError {
    #[error("the events of the session ended without the last one")]
    EventsCut,
    #[error("an event has {0} bytes, more than the {EVENT_BYTES} that are sent")]
    EventTooLarge(usize),
    #[error("an event cannot be written as JSON")]
    Event(#[source] serde_json::Error),
    #[error("the log cannot be read")]
    Log(#[source] io::Error),
}

/// What goes out.
pub(super) enum AnswerBody {
    Whole(Full<Bytes>),
    Events(Events),
    Log(LogReader),
}

/// The events of a session, a frame each; the connection flushes when no further one is ready.
pub(super) struct Events {
    receiver: mpsc::Receiver<Event>,
    state: EventsState,
}

#[derive(PartialEq, Eq)]
enum EventsState {
    Open,
    Cut,
    Ended,
}

impl Events {
    pub(super) const fn new(receiver: mpsc::Receiver<Event>) -> Self {
        Self {
            receiver,
            state: EventsState::Open,
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        match self.state {
            EventsState::Ended => Poll::Ready(None),
            EventsState::Cut => Poll::Ready(Some(Err(AnswerError::EventsCut))),
            EventsState::Open => match ready!(self.receiver.poll_recv(context)) {
                Some(event) => {
                    if matches!(event.kind, EventKind::Ended { .. }) {
                        self.state = EventsState::Ended;
                    }
                    Poll::Ready(Some(line(&event).map(Frame::data)))
                }
                None => {
                    // An error throws away what is not flushed, and a pause flushes.
                    self.state = EventsState::Cut;
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
            },
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Self::Events(events) => events.poll(context),
            Self::Log(reader) => {
                let mut chunk = vec![0; LOG_CHUNK];
                let mut buffer = ReadBuf::new(&mut chunk);
                match ready!(Pin::new(reader).poll_read(context, &mut buffer)) {
                    Err(error) => Poll::Ready(Some(Err(AnswerError::Log(error)))),
                    Ok(()) if buffer.filled().is_empty() => Poll::Ready(None),
                    Ok(()) => {
                        let length = buffer.filled().len();
                        chunk.truncate(length);
                        Poll::Ready(Some(Ok(Frame::data(chunk.into()))))
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Events(events) => events.state == EventsState::Ended,
            Self::Log(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Events(_) | Self::Log(_) => SizeHint::default(),
        }
    }
}

fn line(event: &Event) -> Result<Bytes, AnswerError> {
    let mut line = serde_json::to_vec(event).map_err(AnswerError::Event)?;
    line.push(b'\n');
    if line.len() > EVENT_BYTES {
        return Err(AnswerError::EventTooLarge(line.len()));
    }
    Ok(line.into())
}
