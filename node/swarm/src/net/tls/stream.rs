//! Encrypted bytes over a socket.
//!
//! | what | where it waits | bound |
//! |---|---|---|
//! | what came before the handshake was done | `incoming` | [`HANDSHAKE`] and twice [`READ`] |
//! | records that came later | `incoming`, where they are decrypted in place | twice [`INCOMING`] |
//! | what they said and nobody has read yet | `received` | what was in `incoming`: the socket is read when it is empty |
//! | what is said and is less than a record | `saying` | [`RECORD`] |
//! | records to be sent | `outgoing` | [`OUTGOING`] and a record |
//!
//! So who does not read, or does not send, costs these bounds and no more. Small writes become one record: it is made
//! when it is full or somebody flushes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::{AsyncRead, AsyncWrite};
use rustls::CommonState;

use super::session::{Buffer, Progress, Session, Task};
use crate::limits::{
    TLS_HANDSHAKE as HANDSHAKE, TLS_INCOMING as INCOMING, TLS_OUTGOING as OUTGOING, TLS_READ as READ,
    TLS_RECORD as RECORD,
};

/// What is said and heard over an encrypted connection.
pub(crate) struct TlsStream<S> {
    socket: S,
    session: Box<dyn Session>,
    incoming: Buffer,
    received: Vec<u8>,
    /// Of `received`, what was read already.
    read: usize,
    saying: Vec<u8>,
    outgoing: Buffer,
    /// Bytes to read from the socket at once.
    wanted: usize,
    /// The other end said that it says nothing more.
    ended: bool,
    /// This end did.
    closed: bool,
    /// What ended it.
    failed: Option<rustls::Error>,
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// The connection when nothing was said yet. It is to be used when [`TlsStream::poll_handshake`] is done.
    pub(super) fn before_handshake(socket: S, session: Box<dyn Session>) -> Self {
        Self {
            socket,
            session,
            incoming: Buffer::default(),
            received: vec![],
            read: 0,
            saying: vec![],
            outgoing: Buffer::default(),
            wanted: READ,
            ended: false,
            closed: false,
            failed: None,
        }
    }

    /// What is known of the connection.
    pub(super) fn state(&self) -> &CommonState {
        self.session.state()
    }

    /// Is ready when both ends have proved who they are, and all that is to be sent for that is sent.
    pub(super) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let progress = self.look(cx)?;
            // Both ends may have something to say at once, so neither waits with reading until the other has read.
            let sent = match self.poll_send(cx)? {
                Poll::Ready(()) => Pin::new(&mut self.socket).poll_flush(cx)?,
                Poll::Pending => Poll::Pending,
            };
            match progress {
                Progress::Done | Progress::Received if !self.state().is_handshaking() => return sent.map(Ok),
                Progress::Ended | Progress::Closed => return Poll::Ready(Err(unexpected_end())),
                _ => ready!(self.poll_receive(cx))?,
            }
        }
    }

    /// Looks at what came. Where it ends the connection, the other end is told as far as it takes it at once.
    fn look(&mut self, cx: &mut Context<'_>) -> io::Result<Progress> {
        self.run(Task::Read).inspect_err(|_| {
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                tracing::debug!("the other end was not told why the connection ends: {error}");
            }
        })
    }

    /// Whether nothing has ended it before its time.
    fn is_whole(&self) -> io::Result<()> {
        self.failed.clone().map_or(Ok(()), |error| Err(broken(error)))
    }

    /// Goes through what came until the task is done, or there is something to read where that is the task.
    fn run(&mut self, task: Task<'_>) -> io::Result<Progress> {
        self.is_whole()?;
        loop {
            match self.step(task) {
                Ok(Progress::Again) => {}
                Ok(Progress::Received) if !matches!(task, Task::Read) => {}
                Ok(Progress::Ended) => {
                    self.ended = true;
                    if matches!(task, Task::Read) {
                        return Ok(Progress::Ended);
                    }
                }
                Ok(Progress::Closed) => {
                    self.ended = true;
                    return Ok(Progress::Closed);
                }
                Ok(progress) => return Ok(progress),
                Err(error) => {
                    // What tells the other end why is waiting to be encoded.
                    while self.state().wants_write() && matches!(self.step(Task::Read), Ok(Progress::Again)) {
                    }
                    self.failed = Some(error.clone());
                    return Err(broken(error));
                }
            }
        }
    }

    fn step(&mut self, task: Task<'_>) -> Result<Progress, rustls::Error> {
        let incoming = self.incoming.filled();
        let (used, progress) = self
            .session
            .step(incoming, &mut self.received, &mut self.outgoing, task);
        self.incoming.consume(used);
        progress
    }

    /// Reads from the socket.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Who has not proved who it is gets little memory, however fast it speaks.
        let shaking_hands = self.state().is_handshaking();
        let most = if shaking_hands { HANDSHAKE } else { INCOMING };
        if self.incoming.len() >= most {
            let error = rustls::Error::General("a message of the other end is too long".to_owned());
            self.failed = Some(error.clone());
            return Poll::Ready(Err(broken(error)));
        }
        let room = self.incoming.room(self.wanted);
        let asked_for = room.len();
        let count = ready!(Pin::new(&mut self.socket).poll_read(cx, room))?;
        if count == 0 {
            return Poll::Ready(Err(unexpected_end()));
        }
        self.incoming.fill(count);
        if count == asked_for && !shaking_hands {
            // There is more where that came from: a busy connection has few calls, a quiet one little memory.
            self.wanted = INCOMING.min(self.wanted * 2);
        }
        Poll::Ready(Ok(()))
    }

    /// Sends all records.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.outgoing.len() > 0 {
            let count = ready!(Pin::new(&mut self.socket).poll_write(cx, self.outgoing.filled()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.consume(count);
        }
        Poll::Ready(Ok(()))
    }

    /// Makes a record of what is said, when there is room for it.
    fn poll_seal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.saying.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if self.outgoing.len() + self.saying.len() > OUTGOING {
            ready!(self.poll_send(cx))?;
        }
        let saying = std::mem::take(&mut self.saying);
        let said = self.tell(Task::Say(&saying));
        self.saying = saying;
        self.saying.clear();
        Poll::Ready(said)
    }

    /// Does what says something.
    fn tell(&mut self, task: Task<'_>) -> io::Result<()> {
        match self.run(task)? {
            Progress::Done => Ok(()),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// The socket ended, and not because the other end said so: somebody may have cut it.
fn unexpected_end() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the connection ended without a word",
    )
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        loop {
            let waiting = &this.received[this.read..];
            if !waiting.is_empty() || buf.is_empty() {
                let count = waiting.len().min(buf.len());
                buf[..count].copy_from_slice(&waiting[..count]);
                this.read += count;
                return Poll::Ready(Ok(count));
            }
            this.received.clear();
            this.read = 0;
            if this.ended {
                return Poll::Ready(Ok(0));
            }
            match this.look(cx)? {
                Progress::Done | Progress::Hungry => ready!(this.poll_receive(cx))?,
                _ => {}
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        this.is_whole()?;
        if this.saying.len() >= RECORD {
            ready!(this.poll_seal(cx))?;
        }
        let count = buf.len().min(RECORD - this.saying.len());
        this.saying.extend_from_slice(&buf[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_seal(cx))?;
        ready!(this.poll_send(cx))?;
        // What was said before is sent, but nobody says that it was heard.
        this.is_whole()?;
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.closed && this.failed.is_none() {
            ready!(this.poll_seal(cx))?;
            this.tell(Task::End)?;
            this.closed = true;
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.socket).poll_close(cx)
    }
}

#[cfg(test)]
impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    pub(super) fn socket(&self) -> &S {
        &self.socket
    }

    /// Bytes that came and were not read, encrypted or not.
    pub(super) fn unread(&self) -> usize {
        self.incoming.len() + self.received.len() - self.read
    }

    /// Bytes of memory that it has for what is said and heard.
    pub(super) fn held(&self) -> usize {
        self.incoming.held() + self.received.capacity() + self.saying.capacity() + self.outgoing.held()
    }

    /// Changes the key this end writes with.
    pub(super) fn change_key(&mut self) -> io::Result<()> {
        self.tell(Task::ChangeKey)
    }
}
