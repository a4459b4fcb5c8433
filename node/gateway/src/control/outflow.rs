//! Streams that a thread writes while they are sent.

use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;

use super::api::LogReader;
use crate::limits::{UPLOAD_CHUNK, UPLOAD_CHUNKS};

enum Piece {
    Data(Bytes),
    End,
    Failed(io::Error),
}

/// The end of a stream that is written, on a thread where blocking is allowed. What is dropped without
/// [`Outflow::end`] breaks off, so that nobody takes a part for the whole.
#[derive(Debug)]
pub struct Outflow {
    pieces: mpsc::Sender<Piece>,
    buffer: BytesMut,
}

impl Outflow {
    /// Both ends of a new stream. At most [`UPLOAD_CHUNKS`] pieces of [`UPLOAD_CHUNK`] bytes wait in
    /// memory.
    #[must_use]
    pub fn new() -> (Self, LogReader) {
        let (pieces, receiver) = mpsc::channel(UPLOAD_CHUNKS);
        let outflow = Self {
            pieces,
            buffer: BytesMut::new(),
        };
        let inflow = Inflow {
            receiver,
            piece: Bytes::new(),
            ended: false,
        };
        (outflow, Box::new(inflow))
    }

    /// The stream is complete, or breaks off with this error. That nobody reads it any more is no fault.
    pub fn end(mut self, written: io::Result<()>) {
        let last = match written.and_then(|()| self.flush()) {
            Ok(()) => Piece::End,
            Err(error) => Piece::Failed(error),
        };
        drop(self.pieces.blocking_send(last));
    }
}

impl Write for Outflow {
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
        self.pieces
            .blocking_send(Piece::Data(self.buffer.split().freeze()))
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads this any more"))
    }
}

struct Inflow {
    receiver: mpsc::Receiver<Piece>,
    piece: Bytes,
    ended: bool,
}

impl AsyncRead for Inflow {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.piece.is_empty() && !this.ended {
            match ready!(this.receiver.poll_recv(context)) {
                Some(Piece::Data(data)) => this.piece = data,
                Some(Piece::End) => this.ended = true,
                Some(Piece::Failed(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            }
        }
        let length = this.piece.len().min(buffer.remaining());
        buffer.put_slice(&this.piece[..length]);
        this.piece.advance(length);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn only_what_was_ended_well_is_read_to_its_end() {
        type End = fn(Outflow);
        let ends: [(End, Option<io::ErrorKind>); 3] = [
            (|outflow| outflow.end(Ok(())), None),
            (drop, Some(io::ErrorKind::UnexpectedEof)),
            (
                |outflow| outflow.end(Err(io::ErrorKind::InvalidData.into())),
                Some(io::ErrorKind::InvalidData),
            ),
        ];
        for (end, expected) in ends {
            let (mut outflow, mut reader) = Outflow::new();
            let content = vec![7; 3 * UPLOAD_CHUNK + 5];
            let written = content.clone();
            let writer = tokio::task::spawn_blocking(move || {
                outflow.write_all(&written).unwrap();
                outflow.flush().unwrap();
                end(outflow);
            });
            let mut read = Vec::new();
            let result = reader.read_to_end(&mut read).await;
            writer.await.unwrap();
            assert_eq!(result.err().map(|error| error.kind()), expected);
            assert!(read == content);
        }
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_stops_the_writer() {
        let (mut outflow, reader) = Outflow::new();
        drop(reader);
        let written = tokio::task::spawn_blocking(move || outflow.write_all(&vec![0; 2 * UPLOAD_CHUNK]));
        let error = written.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
