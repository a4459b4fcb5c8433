//! Two ends of a connection in memory, which holds, and moves at once, no more than it is told.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures::{AsyncRead, AsyncWrite};

#[derive(Default)]
struct Direction {
    bytes: VecDeque<u8>,
    /// Bytes that went through, ever.
    passed: usize,
    /// The byte to turn over on its way.
    spoilt: Option<usize>,
    ended: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Direction {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

pub(in crate::net) struct Pipe {
    to_here: Arc<Mutex<Direction>>,
    from_here: Arc<Mutex<Direction>>,
    holds: usize,
    at_once: usize,
}

impl Pipe {
    /// Both ends of one that holds so many bytes in each direction and takes or gives so many in one call.
    pub(in crate::net) fn pair(holds: usize, at_once: usize) -> (Self, Self) {
        let (one, other) = (Arc::default(), Arc::default());
        let end = |to_here: &Arc<_>, from_here: &Arc<_>| Self {
            to_here: Arc::clone(to_here),
            from_here: Arc::clone(from_here),
            holds,
            at_once,
        };
        (end(&one, &other), end(&other, &one))
    }

    /// Turns over one bit of that byte of all that is said here.
    pub(in crate::net) fn spoil(&self, byte: usize) {
        self.from_here.lock().unwrap().spoilt = Some(byte);
    }

    /// Bytes that were said here.
    pub(in crate::net) fn said(&self) -> usize {
        self.from_here.lock().unwrap().passed
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        for direction in [&self.to_here, &self.from_here] {
            let mut direction = direction.lock().unwrap();
            direction.ended = true;
            direction.wake();
        }
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut direction = self.to_here.lock().unwrap();
        if direction.bytes.is_empty() && !direction.ended {
            direction.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = buf.len().min(self.at_once).min(direction.bytes.len());
        for (to, from) in buf.iter_mut().zip(direction.bytes.drain(..count)) {
            *to = from;
        }
        direction.wake();
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut direction = self.from_here.lock().unwrap();
        if direction.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let count = buf
            .len()
            .min(self.at_once)
            .min(self.holds - direction.bytes.len());
        if count == 0 {
            direction.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        for byte in &buf[..count] {
            let spoilt = direction.spoilt == Some(direction.passed);
            direction.bytes.push_back(byte ^ u8::from(spoilt));
            direction.passed += 1;
        }
        direction.wake();
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut direction = self.from_here.lock().unwrap();
        direction.ended = true;
        direction.wake();
        Poll::Ready(Ok(()))
    }
}
