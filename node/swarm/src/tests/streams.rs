//! Streams of one connection, opened by somebody who keeps to no rules of ours.

use std::future::poll_fn;
use std::pin::Pin;

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::core::muxing::StreamMuxer as _;
use libp2p::core::transport::{DialOpts, PortUse, Transport as _};
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::quic;

use super::*;
use crate::identity::keypair;
use crate::limits::{
    NEGOTIATING_STREAMS, QUIC_CONNECTION_WINDOW, QUIC_STREAM_WINDOW, STREAMS_PER_CONNECTION,
};

/// What both sides of a stream say first.
const HEADER: &[u8] = b"\x13/multistream/1.0.0\n";

/// A stranger's connection, and what keeps it.
struct Raw {
    connection: quic::Connection,
    _transport: quic::tokio::Transport,
}

impl Raw {
    async fn dial(to: &TestNode) -> Self {
        let mut transport = quic::tokio::Transport::new(quic::Config::new(&keypair(&secret(9)).unwrap()));
        let addresses = to.handle.addresses();
        let address = addresses
            .iter()
            .find(|address| address.contains("/quic-v1"))
            .unwrap();
        let address: Multiaddr = address.parse().unwrap();
        let how = DialOpts {
            role: Endpoint::Dialer,
            port_use: PortUse::New,
        };
        let (_, connection) = soon(transport.dial(address, how).unwrap()).await.unwrap();
        Self {
            connection,
            _transport: transport,
        }
    }

    /// One more stream; none where none comes for a while.
    async fn open(&mut self) -> Option<quic::Stream> {
        let opened = poll_fn(|context| Pin::new(&mut self.connection).poll_outbound(context));
        let opened = tokio::time::timeout(Duration::from_millis(500), opened).await;
        opened.ok().map(|opened| opened.unwrap())
    }

    /// One more stream, on which so much is said.
    async fn say(&mut self, bytes: &[u8]) -> quic::Stream {
        let mut stream = self.open().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        stream
    }
}

/// Whether the other side says on a stream what it says first, soon.
async fn is_answered(stream: &mut quic::Stream, patience: Duration) -> bool {
    let mut answer = [0; HEADER.len()];
    let read = tokio::time::timeout(patience, stream.read_exact(&mut answer)).await;
    read.is_ok_and(|read| read.is_ok() && answer == HEADER)
}

#[tokio::test]
async fn so_many_streams_wait_for_what_they_are_about() {
    let ann = TestNode::founder(1).await;
    let mut raw = Raw::dial(&ann).await;
    let mut unsaid = Vec::new();
    for _ in 1..NEGOTIATING_STREAMS {
        unsaid.push(raw.say(&HEADER[..1]).await);
    }
    let mut last = raw.say(HEADER).await;
    assert!(is_answered(&mut last, PATIENCE).await, "there is room for it");
    let mut one_more = raw.say(HEADER).await;
    assert!(!is_answered(&mut one_more, Duration::from_millis(500)).await);
    drop(unsaid.pop());
    assert!(is_answered(&mut one_more, PATIENCE).await);
}

#[tokio::test]
async fn so_many_streams_are_open_on_one_connection() {
    let ann = TestNode::founder(1).await;
    let mut raw = Raw::dial(&ann).await;
    let mut open = Vec::new();
    while open.len() <= STREAMS_PER_CONNECTION
        && let Some(stream) = raw.open().await
    {
        open.push(stream);
    }
    assert_eq!(open.len(), STREAMS_PER_CONNECTION);
}

/// What is taken of what is written to a stream, until no more is for a while.
async fn write_all_that_is_taken(stream: &mut quic::Stream) -> usize {
    let (mut written, bytes) = (0, vec![7; 64 << 10]);
    while let Ok(count) = tokio::time::timeout(Duration::from_secs(2), stream.write(&bytes)).await {
        written += count.unwrap();
    }
    written
}

#[tokio::test]
async fn what_nobody_reads_of_a_stream_and_of_a_connection_has_a_bound() {
    let ann = TestNode::founder(1).await;
    let mut raw = Raw::dial(&ann).await;
    let mut unsaid = Vec::new();
    for _ in 0..NEGOTIATING_STREAMS {
        unsaid.push(raw.say(&HEADER[..1]).await);
    }
    // Nobody looks at these.
    let (mut taken, mut open) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let mut stream = raw.open().await.unwrap();
        taken.push(write_all_that_is_taken(&mut stream).await);
        open.push(stream);
    }
    let (stream, connection) = (QUIC_STREAM_WINDOW as usize, QUIC_CONNECTION_WINDOW as usize);
    assert_eq!(taken[0], stream);
    let all: usize = taken.iter().sum();
    assert!(taken[1] < stream && taken[2] == 0, "{taken:?}");
    assert!(all + NEGOTIATING_STREAMS == connection, "{all} of {connection}");
}
