//! Both ends of TLS, and who stands between them: no clock and no task, each is asked until it wants more.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures::{AsyncRead, AsyncWrite};

use super::super::*;
use super::mutation::Random;
use super::{HELD, HELD_BEFORE};

#[derive(Default)]
struct Line {
    coming: VecDeque<u8>,
    /// Nothing more comes.
    cut: bool,
    said: Vec<u8>,
}

/// What one end reads from and writes to.
#[derive(Clone, Default)]
pub(super) struct Socket(Arc<Mutex<Line>>);

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut line = self.0.lock().unwrap();
        if line.coming.is_empty() && !line.cut {
            return Poll::Pending;
        }
        let count = buf.len().min(line.coming.len());
        for (to, from) in buf.iter_mut().zip(line.coming.drain(..count)) {
            *to = from;
        }
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().unwrap().said.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// One end.
pub(super) struct End {
    pub(super) stream: TlsStream<Socket>,
    socket: Socket,
    /// How its handshake ended, when it did.
    pub(super) met: Option<Result<PeerId, HandshakeError>>,
    /// All it has heard by now.
    pub(super) heard: Vec<u8>,
    /// How it ended, when it did.
    pub(super) ended: Option<io::Result<()>>,
}

impl End {
    fn new(session: Box<dyn Session>) -> Self {
        let socket = Socket::default();
        Self {
            stream: TlsStream::before_handshake(socket.clone(), session),
            socket,
            met: None,
            heard: vec![],
            ended: None,
        }
    }

    /// Two that have said nothing yet: who dials, and who listens.
    pub(super) fn pair(dialler: &Tls, listener: &Tls) -> [Self; 2] {
        [
            Self::new(dialler.clone().dialler().unwrap()),
            Self::new(listener.clone().listener().unwrap()),
        ]
    }

    /// Goes on with the handshake as far as it can.
    fn shake(&mut self) {
        if self.met.is_none()
            && let Poll::Ready(done) = self
                .stream
                .poll_handshake(&mut Context::from_waker(Waker::noop()))
        {
            self.met = Some(
                done.map_err(HandshakeError::from)
                    .and_then(|()| other_end(self.stream.state())),
            );
        }
        self.costs_no_more_than_it_may();
    }

    /// Reads what there is to read.
    pub(super) fn read(&mut self) {
        let mut piece = [0; 5000];
        while self.ended.is_none() {
            let read = Pin::new(&mut self.stream);
            match read.poll_read(&mut Context::from_waker(Waker::noop()), &mut piece) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => self.ended = Some(Ok(())),
                Poll::Ready(Ok(count)) => self.heard.extend_from_slice(&piece[..count]),
                Poll::Ready(Err(error)) => self.ended = Some(Err(error)),
            }
        }
        self.costs_no_more_than_it_may();
    }

    fn costs_no_more_than_it_may(&self) {
        let most = if self.peer().is_some() { HELD } else { HELD_BEFORE };
        let held = self.stream.held();
        assert!(held <= most, "{held} bytes are held");
    }

    /// What it said since this was asked last.
    pub(super) fn said(&self) -> Vec<u8> {
        std::mem::take(&mut self.socket.0.lock().unwrap().said)
    }

    fn comes(&mut self, bytes: &[u8]) {
        self.socket.0.lock().unwrap().coming.extend(bytes);
    }

    /// These bytes come before the handshake is done.
    pub(super) fn hears_in_handshake(&mut self, bytes: &[u8]) {
        self.comes(bytes);
        self.shake();
    }

    /// These bytes come when it is done.
    pub(super) fn hears_after_handshake(&mut self, bytes: &[u8]) {
        self.comes(bytes);
        self.read();
    }

    /// Nothing more comes.
    pub(super) fn is_cut(&mut self) {
        self.socket.0.lock().unwrap().cut = true;
    }

    /// Whom it met, when its handshake went well.
    pub(super) fn peer(&self) -> Option<PeerId> {
        self.met.as_ref()?.as_ref().ok().copied()
    }
}

/// Pieces in which these bytes come: all at once, or few, or many.
pub(super) fn pieces<'a>(mut bytes: &'a [u8], random: &mut Random) -> Vec<&'a [u8]> {
    let largest = [bytes.len(), 5000, 300, 20][random.below(4)].max(1 + bytes.len() / 500);
    let mut pieces = vec![];
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at(bytes.len().min(1 + random.below(largest)));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

/// Has both ends shake hands, each hearing of the other's words what `between` makes of them, and then nothing more:
/// so both come to an end.
pub(super) fn shake(
    ends: &mut [End; 2],
    random: &mut Random,
    mut between: impl FnMut(usize, Vec<u8>, &mut Random) -> Vec<u8>,
) {
    // An honest handshake takes two rounds.
    for _ in 0..20 {
        let mut quiet = true;
        for side in 0..2 {
            ends[side].shake();
            let said = ends[side].said();
            if !said.is_empty() {
                quiet = false;
                let passed_on = between(side, said, random);
                for piece in pieces(&passed_on, random) {
                    ends[1 - side].hears_in_handshake(piece);
                }
            }
        }
        if quiet {
            break;
        }
    }
    for end in ends {
        if end.met.is_none() {
            end.is_cut();
            end.shake();
        }
        assert!(end.met.is_some(), "an end waits for more than the end");
    }
}

/// Both ends after an honest handshake.
pub(super) fn met(dialler: &Tls, listener: &Tls, random: &mut Random) -> [End; 2] {
    let mut ends = End::pair(dialler, listener);
    shake(&mut ends, random, |_, said, _| said);
    assert!(ends.iter().all(|end| end.peer().is_some()));
    ends
}
