//! How many bytes went to and came from each peer.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::{AsyncRead, AsyncWrite};
use tvix_node_protocol::envelope::NodeKey;

use super::door::Door;

/// Bytes on the streams of one peer, encryption and transport not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerTraffic {
    /// Content of store paths sent.
    pub content_sent: u64,
    /// Content of store paths received.
    pub content_received: u64,
    /// Everything else sent: requests, records, logs, presence, the roster.
    pub other_sent: u64,
    /// Everything else received.
    pub other_received: u64,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    received: AtomicU64,
}

#[derive(Debug, Default)]
struct PeerCounts {
    content: Arc<Counts>,
    other: Arc<Counts>,
}

/// Counters of all peers since the start. Bounded by the members: strangers are not counted.
#[derive(Debug, Clone, Default)]
pub struct Traffic(Arc<Mutex<BTreeMap<NodeKey, PeerCounts>>>);

impl Traffic {
    /// Where the answers through a door are counted, and where its questions.
    fn counts(&self, peer: NodeKey, door: Door) -> (Arc<Counts>, Arc<Counts>) {
        if door == Door::Join {
            // Strangers come and go; remembering each would be theirs to decide.
            return Default::default();
        }
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = peers.entry(peer).or_default();
        let answers = if door.carries_content() {
            counts.content.clone()
        } else {
            counts.other.clone()
        };
        (answers, counts.other.clone())
    }

    /// What has been counted so far.
    #[must_use]
    pub fn read(&self) -> BTreeMap<NodeKey, PeerTraffic> {
        let peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let traffic = |counts: &PeerCounts| PeerTraffic {
            content_sent: counts.content.sent.load(Ordering::Relaxed),
            content_received: counts.content.received.load(Ordering::Relaxed),
            other_sent: counts.other.sent.load(Ordering::Relaxed),
            other_received: counts.other.received.load(Ordering::Relaxed),
        };
        peers
            .iter()
            .map(|(peer, counts)| (*peer, traffic(counts)))
            .collect()
    }

    /// Counts what goes over a stream on which this node asks: content is what comes back.
    pub(crate) fn counted<S>(&self, stream: S, peer: NodeKey, door: Door) -> Counted<S> {
        let (content, other) = self.counts(peer, door);
        Counted {
            stream,
            sent: other,
            received: content,
        }
    }

    /// The same for a stream on which this node is asked.
    pub(crate) fn counted_serving<S>(&self, stream: S, peer: NodeKey, door: Door) -> Counted<S> {
        let (content, other) = self.counts(peer, door);
        Counted {
            stream,
            sent: content,
            received: other,
        }
    }
}

/// A stream whose bytes are counted.
#[derive(Debug)]
pub(crate) struct Counted<S> {
    stream: S,
    sent: Arc<Counts>,
    received: Arc<Counts>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Poll::Ready(Ok(count)) = &result {
            self.received.received.fetch_add(*count as u64, Ordering::Relaxed);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, buffer);
        if let Poll::Ready(Ok(count)) = &result {
            self.sent.sent.fetch_add(*count as u64, Ordering::Relaxed);
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}
