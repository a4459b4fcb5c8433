//! What the pieces of a connection cost that nobody has read yet, beside the bytes in them.
//!
//! Yamux bounds the bytes that a stream may bring before they are read, and keeps each frame that brings some by itself: a place
//! in a queue, and memory of its own. A window full of frames with one byte each would be a hundred times as large. So the frames
//! are followed as they come, and what is read of each stream as it is read; a connection on which keeping the unread ones
//! apart would take more than it may ends. Frames that are read cost nothing, however small and many they are.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use futures::{AsyncRead, AsyncWrite};
use yamux::Stream;

use crate::limits::{FRAME_ALLOCATION, FRAME_SLOT, FRAME_TURNS};

/// A connection has brought too much in small pieces.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the peer sends in so small pieces that those which are not read yet would take more than {most} bytes beside what is in them"
)]
pub(crate) struct TooManyFrames {
    most: usize,
}

/// A frame, as its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    stream: u32,
    /// It opens its stream.
    first: bool,
    /// Bytes in it that are kept until they are read.
    bytes: u32,
}

/// The frames of what comes in, in whatever pieces that is read.
#[derive(Debug)]
enum Parser {
    /// So many bytes of a header have come.
    Header([u8; HEADER], usize),
    /// So many bytes of what is in a frame have not.
    Body(usize),
    /// There are no frames any more: Yamux ends the connection, and says why.
    Lost,
}

/// Bytes of a header: version, type, flags, stream and length.
const HEADER: usize = 12;
/// The only type of frame with something in it.
const DATA: u8 = 0;
/// The last type there is.
const GO_AWAY: u8 = 3;
const SYN: u16 = 1;
const RST: u16 = 8;

impl Parser {
    fn new() -> Self {
        Self::Header([0; HEADER], 0)
    }

    /// Whether what comes next is a frame's first byte.
    fn is_between_frames(&self) -> bool {
        matches!(self, Self::Header(_, 0))
    }

    /// Says which frames begin in what has come.
    fn take(
        &mut self,
        mut come: &[u8],
        mut frame: impl FnMut(Frame) -> Result<(), TooManyFrames>,
    ) -> Result<(), TooManyFrames> {
        while !come.is_empty() {
            match self {
                Self::Header(header, have) => {
                    let count = come.len().min(HEADER - *have);
                    let (head, rest) = come.split_at(count);
                    header[*have..*have + count].copy_from_slice(head);
                    *have += count;
                    come = rest;
                    if *have == HEADER {
                        let (read, next) = Self::read(header);
                        *self = next;
                        if let Some(read) = read {
                            frame(read)?;
                        }
                    }
                }
                Self::Body(left) => {
                    let count = come.len().min(*left);
                    come = &come[count..];
                    *left -= count;
                    if *left == 0 {
                        *self = Self::new();
                    }
                }
                Self::Lost => return Ok(()),
            }
        }
        Ok(())
    }

    /// The frame of a header, and what follows.
    fn read(header: &[u8; HEADER]) -> (Option<Frame>, Self) {
        let [version, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = *header;
        if version != 0 || kind > GO_AWAY {
            return (None, Self::Lost);
        }
        let (flags, length) = (u16::from_be_bytes([f0, f1]), u32::from_be_bytes([l0, l1, l2, l3]));
        let in_it = if kind == DATA { length } else { 0 };
        let frame = Frame {
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            first: flags & SYN != 0,
            // What comes with the end of its stream is thrown away.
            bytes: if flags & RST != 0 { 0 } else { in_it },
        };
        let next = match in_it {
            0 => Self::new(),
            bytes => usize::try_from(bytes).map_or(Self::Lost, Self::Body),
        };
        (Some(frame), next)
    }
}

/// What is kept of a stream.
#[derive(Debug, Default)]
struct Kept {
    /// Tells it from others that have had the same number.
    serial: u64,
    /// Bytes of each frame that has not been read to its end.
    frames: VecDeque<u32>,
    /// Bytes of the first one that have been.
    read: u32,
    /// Frames that there have been at once: the queue stays as long as that.
    most: usize,
}

impl Kept {
    fn cost(&self) -> usize {
        self.frames.len() * FRAME_ALLOCATION + self.most * FRAME_SLOT
    }

    fn comes(&mut self, bytes: u32) {
        if bytes > 0 {
            self.frames.push_back(bytes);
            self.most = self.most.max(self.frames.len());
        }
    }

    fn is_read(&mut self, mut bytes: usize) {
        while let Some(first) = self.frames.front() {
            let left = (first - self.read) as usize;
            if bytes < left {
                // It fits, being less than what is left of it.
                self.read += bytes as u32;
                return;
            }
            bytes -= left;
            self.read = 0;
            self.frames.pop_front();
        }
    }
}

/// What is kept of all streams of a connection.
#[derive(Debug)]
struct Books {
    streams: HashMap<u32, Kept>,
    /// What they cost together, and may.
    cost: usize,
    most: usize,
    serial: u64,
    /// The frame that came last, if it opens a stream.
    opening: Option<Frame>,
    /// Frames that went out.
    sent: u64,
    /// Streams that nobody has any more, and Yamux may.
    dropped: VecDeque<Gone>,
    /// Those that nobody had any more when the frame before this one came.
    leaving: VecDeque<Gone>,
}

/// A stream that nobody has any more.
#[derive(Debug)]
struct Gone {
    stream: u32,
    serial: u64,
    /// Yamux has taken note of it when so many frames have gone out, if not before.
    by: u64,
}

impl Books {
    fn change(&mut self, stream: u32, serial: Option<u64>, change: impl FnOnce(&mut Kept)) {
        let Some(kept) = self.streams.get_mut(&stream) else {
            return;
        };
        if serial.is_none_or(|serial| serial == kept.serial) {
            let before = kept.cost();
            change(kept);
            self.cost = self.cost - before + kept.cost();
        }
    }

    fn comes(&mut self, frame: Frame) -> Result<(), TooManyFrames> {
        self.opening = None;
        if frame.first {
            // It is known when Yamux has taken it. If there is such a stream already, it does not.
            self.opening = Some(frame);
        } else {
            // What comes for a stream that there is not is not kept.
            self.change(frame.stream, None, |kept| kept.comes(frame.bytes));
        }
        if self.cost > self.most {
            return Err(TooManyFrames { most: self.most });
        }
        Ok(())
    }

    fn open(&mut self, stream: u32, come: u32) -> u64 {
        // If Yamux gives a number anew, who had it before is gone.
        self.forget(stream, None);
        self.serial += 1;
        let serial = self.serial;
        let kept = Kept {
            serial,
            ..Kept::default()
        };
        self.streams.insert(stream, kept);
        self.change(stream, None, |kept| kept.comes(come));
        serial
    }

    fn forget(&mut self, stream: u32, serial: Option<u64>) {
        let kept = self.streams.get(&stream);
        if kept.is_some_and(|kept| serial.is_none_or(|serial| serial == kept.serial))
            && let Some(kept) = self.streams.remove(&stream)
        {
            self.cost -= kept.cost();
        }
    }

    fn drop_stream(&mut self, stream: u32, serial: u64) {
        let turns = FRAME_TURNS * (self.streams.len() as u64 + 1);
        let by = self.sent + turns;
        self.dropped.push_back(Gone { stream, serial, by });
    }

    /// Before each frame Yamux takes what its streams have to say, that they are dropped included; unless something is `stuck`
    /// that it has to write first. Then it takes one thing for each frame that it has written, of one stream after the other.
    fn next_frame(&mut self, stuck: bool) {
        while let Some(gone) = self.leaving.pop_front_if(|gone| !stuck || gone.by <= self.sent) {
            self.forget(gone.stream, Some(gone.serial));
        }
        self.leaving.append(&mut self.dropped);
    }
}

/// What is kept of a connection, as all its parts know it.
#[derive(Debug, Clone)]
pub(crate) struct Ledger(Arc<Mutex<Books>>);

impl Ledger {
    /// Of a connection that may have so many bytes kept beside what is in its frames.
    pub(crate) fn new(most: usize) -> Self {
        Self(Arc::new(Mutex::new(Books {
            streams: HashMap::new(),
            cost: 0,
            most,
            serial: 0,
            opening: None,
            sent: 0,
            dropped: VecDeque::new(),
            leaving: VecDeque::new(),
        })))
    }

    fn with<T>(&self, action: impl FnOnce(&mut Books) -> T) -> T {
        action(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A stream that was opened here.
    pub(crate) fn outgoing(&self, stream: Stream) -> Counted {
        let number = stream.id().val();
        let serial = self.with(|books| books.open(number, 0));
        self.counted(stream, serial)
    }

    /// A stream that the frame that came last has opened.
    pub(crate) fn incoming(&self, stream: Stream) -> Counted {
        let number = stream.id().val();
        let serial = self.with(|books| {
            let opening = books.opening.take().filter(|frame| frame.stream == number);
            books.open(number, opening.map_or(0, |frame| frame.bytes))
        });
        self.counted(stream, serial)
    }

    fn counted(&self, stream: Stream, serial: u64) -> Counted {
        Counted {
            held: Held {
                ledger: self.clone(),
                stream: stream.id().val(),
                serial,
            },
            stream,
        }
    }
}

/// A stream of which it is known what is read. What it has goes before that is said.
#[derive(Debug)]
pub(crate) struct Counted {
    stream: Stream,
    held: Held,
}

#[derive(Debug)]
struct Held {
    ledger: Ledger,
    stream: u32,
    serial: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.ledger
            .with(|books| books.drop_stream(self.stream, self.serial));
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_read(context, into))?;
        if count > 0 {
            let Held {
                ledger,
                stream,
                serial,
            } = &self.held;
            ledger.with(|books| books.change(*stream, Some(*serial), |kept| kept.is_read(count)));
        }
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}

/// A connection whose frames are followed as Yamux reads them. Nothing is kept of them, or copied.
pub(crate) struct Frames<C> {
    socket: C,
    ledger: Ledger,
    parser: Parser,
    /// Of what goes out.
    sent: Parser,
    /// Something could not be written since the last frame began.
    stuck: bool,
}

impl<C> Frames<C> {
    pub(crate) fn new(socket: C, ledger: Ledger) -> Self {
        Self {
            socket,
            ledger,
            parser: Parser::new(),
            sent: Parser::new(),
            stuck: false,
        }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Frames<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.parser.is_between_frames() {
            let stuck = std::mem::take(&mut this.stuck);
            this.ledger.with(|books| books.next_frame(stuck));
        }
        let count = ready!(Pin::new(&mut this.socket).poll_read(context, into))?;
        let ledger = &this.ledger;
        let taken = this
            .parser
            .take(&into[..count], |frame| ledger.with(|books| books.comes(frame)));
        Poll::Ready(taken.map(|()| count).map_err(|reason| {
            tracing::debug!(%reason, "a connection is ended");
            io::Error::other(reason)
        }))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Frames<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = Pin::new(&mut this.socket).poll_write(context, from);
        this.stuck |= written.is_pending();
        if let Poll::Ready(Ok(count)) = &written {
            let mut frames = 0;
            let counted = this.sent.take(&from[..*count], |_| {
                frames += 1;
                Ok(())
            });
            debug_assert_eq!(counted, Ok(()), "counting refuses nothing");
            if frames > 0 {
                this.ledger.with(|books| books.sent += frames);
            }
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(context)
    }
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
