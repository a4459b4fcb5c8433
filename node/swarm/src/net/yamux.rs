//! Many streams over one connection: Yamux, with bounds of our own on how many, and on what has come and is not read yet,
//! whatever it comes in ([`super::frames`]).
//!
//! What libp2p brings for it lets a connection hold 1 GiB, and does not let that be changed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use futures::io::BufWriter;
use futures::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use yamux::{Connection, ConnectionError, Mode};

use super::ending::Ending;
use super::frames::{Counted, Frames, Ledger};
use crate::limits::{
    CONNECTION_WINDOW, FRAME_TOGETHER, FRAMES_KEPT, STREAMS_PER_CONNECTION, UNTAKEN_STREAMS,
};

/// Makes connections of many streams, which come to an end.
#[derive(Debug, Clone)]
pub(crate) struct Yamux {
    pub(super) config: yamux::Config,
    /// Bytes that keeping frames apart may take on a connection.
    pub(super) frames: usize,
}

impl Yamux {
    /// With the bounds of this node.
    pub(crate) fn new() -> Self {
        Self::bounded(2 * STREAMS_PER_CONNECTION, CONNECTION_WINDOW)
    }

    /// With so many streams in both directions together, which may hold so many bytes that are not read yet.
    fn bounded(streams: usize, window: usize) -> Self {
        let mut config = yamux::Config::default();
        config
            // Each of the two is held against the other.
            .set_max_connection_receive_window(None)
            .set_max_num_streams(streams)
            .set_max_connection_receive_window(Some(window));
        let frames = FRAMES_KEPT;
        Self { config, frames }
    }

    pub(super) fn over<C: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        self,
        socket: C,
        mode: Mode,
    ) -> Muxer<C> {
        let ledger = Ledger::new(self.frames);
        // A frame comes as its head and its bytes, and goes as one.
        let socket = BufWriter::with_capacity(FRAME_TOGETHER, socket);
        let socket = Frames::new(socket, ledger.clone());
        Muxer {
            connection: Connection::new(socket, self.config, mode),
            ledger,
            untaken: VecDeque::new(),
            waker: None,
        }
    }
}

/// See the [module](self).
pub(crate) struct Muxer<C> {
    connection: Connection<Frames<BufWriter<C>>>,
    ledger: Ledger,
    /// Streams that have come, and nobody has asked for.
    untaken: VecDeque<Counted>,
    /// Of who asks.
    waker: Option<Waker>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Counted, ConnectionError>> {
        let next = ready!(self.connection.poll_next_inbound(context));
        let next = next.unwrap_or(Err(ConnectionError::Closed));
        Poll::Ready(next.map(|stream| self.ledger.incoming(stream)))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Muxer<C> {
    type Substream = Counted;
    type Error = ConnectionError;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        if let Some(stream) = self.untaken.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        if let Poll::Ready(next) = self.poll_next(context) {
            return Poll::Ready(next);
        }
        self.waker = Some(context.waker().clone());
        Poll::Pending
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let opened = ready!(self.connection.poll_new_outbound(context));
        Poll::Ready(opened.map(|stream| self.ledger.outgoing(stream)))
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.connection.poll_close(context)
    }

    /// The connection goes on only while it is asked for streams.
    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        let stream = ready!(self.poll_next(context))?;
        if self.untaken.len() < UNTAKEN_STREAMS {
            self.untaken.push_back(stream);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        } else {
            tracing::debug!("a peer opens streams faster than they are taken; one is closed unread");
        }
        // There may be more; others have their turn in between.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl UpgradeInfo for Yamux {
    type Info = &'static str;
    type InfoIter = std::iter::Once<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once("/yamux/1.0.0")
    }
}

impl<C> InboundConnectionUpgrade<C> for Yamux
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = Ending<Muxer<C>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, socket: C, _: Self::Info) -> Self::Future {
        ready(Ok(Ending::new(self.over(socket, Mode::Server))))
    }
}

impl<C> OutboundConnectionUpgrade<C> for Yamux
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = Ending<Muxer<C>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, socket: C, _: Self::Info) -> Self::Future {
        ready(Ok(Ending::new(self.over(socket, Mode::Client))))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use futures::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _};
    use libp2p::core::muxing::StreamMuxerExt as _;

    use super::*;
    use crate::limits::STREAM_WINDOW;
    use crate::net::tls::pipe::Pipe;

    /// Two ends of a connection; the second has these bounds.
    fn pair(bounded: Yamux) -> (Muxer<Pipe>, Muxer<Pipe>) {
        let (here, there) = Pipe::pair(1 << 20, 1 << 16);
        (
            Yamux::new().over(here, Mode::Client),
            bounded.over(there, Mode::Server),
        )
    }

    /// Keeps a connection going, until it ends.
    async fn go_on(muxer: &mut Muxer<Pipe>) {
        while poll_fn(|context| muxer.poll_unpin(context)).await.is_ok() {}
    }

    /// What one end writes, until no more is taken for a while.
    async fn write_all_that_is_taken(stream: &mut Counted) -> usize {
        let (mut written, bytes) = (0, [7; 4096]);
        while let Ok(count) = tokio::time::timeout(Duration::from_millis(300), stream.write(&bytes)).await {
            written += count.unwrap();
        }
        written
    }

    /// A stream of a pair, as both ends have it.
    async fn stream(one: &mut Muxer<Pipe>, other: &mut Muxer<Pipe>) -> (Counted, Counted) {
        let mut stream = poll_fn(|context| one.poll_outbound_unpin(context)).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        let come = poll_fn(|context| other.poll_inbound_unpin(context));
        let mut come = tokio::select! {
            () = go_on(one) => panic!("the connection ended"),
            come = come => come.unwrap(),
        };
        come.read_exact(&mut [0]).await.unwrap();
        (stream, come)
    }

    #[tokio::test]
    async fn a_stream_that_nobody_reads_brings_so_much_and_no_more() {
        let (mut one, mut other) = pair(Yamux::new());
        let (mut writer, _reader) = stream(&mut one, &mut other).await;
        let taken = tokio::select! {
            () = go_on(&mut one) => panic!("the connection ended"),
            () = go_on(&mut other) => panic!("the connection ended"),
            taken = write_all_that_is_taken(&mut writer) => taken,
        };
        assert_eq!(taken + 1, STREAM_WINDOW);
    }

    /// A window is made larger where half of it has come within two round trips.
    #[tokio::test]
    async fn the_streams_of_a_connection_grow_by_so_much_together_and_no_more() {
        const GROWTH: usize = 1 << 20;
        const STREAMS: usize = 4;
        let (mut one, mut other) = pair(Yamux::bounded(STREAMS, STREAMS * STREAM_WINDOW + GROWTH));
        // Who is asked how far away it is answers late, so that all that comes comes fast.
        assert!(go_on(&mut other).now_or_never().is_none());
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (mut writer, mut reader) = stream(&mut one, &mut other).await;
        let passing = async {
            let (mut sent, piece) = (vec![0; 16 << 20], 1 << 16);
            let write = async { writer.write_all(&sent).await.unwrap() };
            let mut come = vec![0; piece];
            let read = async {
                let mut left = 16 << 20;
                while left > 0 {
                    left -= reader.read(&mut come).await.unwrap();
                }
            };
            futures::join!(write, read);
            sent.clear();
            write_all_that_is_taken(&mut writer).await
        };
        let unread = tokio::select! {
            () = go_on(&mut one) => panic!("the connection ended"),
            () = go_on(&mut other) => panic!("the connection ended"),
            unread = passing => unread,
        };
        assert!(unread > STREAM_WINDOW, "it has grown: {unread}");
        assert!(unread <= STREAM_WINDOW + GROWTH, "{unread}");
    }

    #[tokio::test]
    async fn a_connection_with_more_streams_than_there_may_be_ends() {
        let (mut one, mut other) = pair(Yamux::bounded(2, 2 * STREAM_WINDOW));
        let mut open = vec![];
        for _ in 0..2 {
            open.push(stream(&mut one, &mut other).await);
        }
        let mut one_more = poll_fn(|context| one.poll_outbound_unpin(context)).await.unwrap();
        one_more.write_all(b"x").await.unwrap();
        let ending = async {
            tokio::select! {
                () = go_on(&mut one) => {}
                () = go_on(&mut other) => {}
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(30), ending).await;
        assert!(ended.is_ok(), "it goes on");
        let come = poll_fn(|context| other.poll_inbound_unpin(context)).now_or_never();
        assert!(!matches!(come, Some(Ok(_))), "nobody gets it");
    }

    /// Who keeps to Yamux opens fewer, so it is said as it comes over the wire.
    #[tokio::test]
    async fn of_streams_that_nobody_takes_so_many_are_kept() {
        let (mut here, there) = Pipe::pair(1 << 20, 1 << 16);
        let mut muxer = Yamux::new().over(there, Mode::Server);
        let more = u32::try_from(UNTAKEN_STREAMS).unwrap() + 5;
        for number in 0..more {
            // Version, data, the first of its stream, whose number is odd, and no bytes.
            let mut frame = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
            frame[4..8].copy_from_slice(&(2 * number + 1).to_be_bytes());
            here.write_all(&frame).await.unwrap();
        }
        for _ in 0..2 * more {
            assert!(
                poll_fn(|context| muxer.poll_unpin(context))
                    .now_or_never()
                    .is_none()
            );
        }
        assert_eq!(muxer.untaken.len(), UNTAKEN_STREAMS);
    }
}
