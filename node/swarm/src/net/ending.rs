//! Connections that come to an end.
//!
//! Who closes a connection first sends what is still on its way, and libp2p waits for that for ever. To a machine that
//! is gone, or a program that is stopped, it never gets away: the connection would stay, as if it were still there, and
//! everything with it that waits for its end.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::FutureExt;
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use tokio::time::Sleep;

use crate::limits::CLOSE_TIME;

/// See the [module](self).
pub(crate) struct Ending<M> {
    muxer: M,
    /// When it has been closing for long enough.
    late: Option<Pin<Box<Sleep>>>,
}

impl<M> Ending<M> {
    pub(crate) fn new(muxer: M) -> Self {
        Self { muxer, late: None }
    }
}

impl<M: StreamMuxer + Unpin> StreamMuxer for Ending<M> {
    type Substream = M::Substream;
    type Error = M::Error;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        Pin::new(&mut self.muxer).poll_inbound(context)
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        Pin::new(&mut self.muxer).poll_outbound(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if let Poll::Ready(closed) = Pin::new(&mut self.muxer).poll_close(context) {
            return Poll::Ready(closed);
        }
        let late = self
            .late
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(CLOSE_TIME)));
        // What is dropped then is the connection: whoever is at the other end finds it broken.
        late.poll_unpin(context).map(Ok)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.muxer).poll(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::{AsyncRead, AsyncWrite};
    use libp2p::core::muxing::StreamMuxerExt as _;
    use libp2p::core::upgrade::OutboundConnectionUpgrade as _;

    use super::*;
    use crate::net::yamux::Yamux;

    /// Takes nothing and brings nothing, and says so never.
    struct Dead;

    impl AsyncRead for Dead {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut [u8],
        ) -> Poll<std::io::Result<usize>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Dead {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<std::io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Pending
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Pending
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_say_farewell_is_closed_all_the_same() {
        let mut made = Yamux::new().upgrade_outbound(Dead, "/yamux/1.0.0").await.unwrap();
        let closing = poll_fn(|context| made.poll_close_unpin(context));
        let closed = tokio::time::timeout(CLOSE_TIME * 2, closing).await;
        assert!(closed.is_ok_and(|closed| closed.is_ok()));
    }
}
