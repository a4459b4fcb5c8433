//! Passing connections on between members that cannot reach each other directly.
//!
//! The messages are those of libp2p, whose part for one who lets itself be reached, or reaches others, is used as it is. The
//! part between them is here: its bytes are let through at the rate that the owner allows, and it ends when he
//! says so, neither of which the library offers.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::PeerId;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::Stream;
use tvix_node_protocol::envelope::NodeKey;

use crate::core::{Core, lock};
use crate::identity::{key_of, peer_of};
use crate::limits::{
    ANSWER_TIME, RELAY_CIRCUIT_BYTES, RELAY_CIRCUIT_ENDING, RELAY_CIRCUIT_IDLE, RELAY_CIRCUIT_TIME,
    RELAY_PIECE, RELAY_RESERVATION_TIME,
};
use crate::net::Door;
use crate::net::caps::Throttles;
use crate::net::handler::Over;
use crate::net::relay_messages::{
    Question, Status, answer, connected, incoming, is_taken, question, receive, reserved, send,
};
use crate::net::relays::is_relayed;

/// Serves one question of a member; a connection that is passed on lasts as long as this.
pub(crate) async fn serve(core: &Arc<Core>, peer: NodeKey, mut stream: Stream, over: Over) -> io::Result<()> {
    let message = in_time(receive(&mut stream)).await?;
    let refused = match question(&message) {
        None => Status::MalformedMessage,
        // What is passed on is not passed on once more.
        Some(_) if over.relayed => Status::PermissionDenied,
        Some(Question::Reserve) => match reserve(core, peer, over) {
            Ok(message) => {
                in_time(send(&mut stream, &message)).await?;
                return in_time(stream.close()).await;
            }
            Err(status) => status,
        },
        Some(Question::Connect(to)) => match reach(core, peer, to).await {
            Ok((circuit, other)) => {
                in_time(send(&mut stream, &connected())).await?;
                let passed = pass_on(core, stream, other).await;
                drop(circuit);
                return passed;
            }
            Err(status) => status,
        },
    };
    in_time(send(&mut stream, &answer(refused))).await?;
    in_time(stream.close()).await
}

async fn in_time<T>(doing: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    tokio::time::timeout(ANSWER_TIME, doing).await.map_err(late)?
}

/// Lets a member be reached through this node; the answer to it.
fn reserve(core: &Core, peer: NodeKey, over: Over) -> Result<Vec<u8>, Status> {
    if !*core.relaying.allowed().borrow() {
        return Err(Status::ReservationRefused);
    }
    let me = peer_of(core.team.me()).ok_or(Status::ReservationRefused)?;
    if !core.relaying.reserve(peer, over, Instant::now()) {
        return Err(Status::ResourceLimitExceeded);
    }
    let mut addresses = core.network.addresses();
    addresses.retain(|address| !is_relayed(address));
    let expire = core.team.now().saturating_add(RELAY_RESERVATION_TIME.as_secs());
    let named = addresses
        .into_iter()
        .map(|address| address.with(Protocol::P2p(me)));
    Ok(reserved(expire, named))
}

/// Makes a stream to one who lets itself be reached through this node.
async fn reach(
    core: &Arc<Core>,
    from: NodeKey,
    to: PeerId,
) -> Result<(crate::net::relaying::Circuit, Stream), Status> {
    if !*core.relaying.allowed().borrow() {
        return Err(Status::PermissionDenied);
    }
    let to = key_of(&to).map_err(|_| Status::NoReservation)?;
    let over = core.relaying.over(to, Instant::now());
    let over = over.ok_or(Status::NoReservation)?;
    let circuit = core.relaying.begin(from).ok_or(Status::ResourceLimitExceeded)?;
    let asking = async {
        let opened = core.network.open_over(to, over, Door::Stop).await;
        let mut stream = opened.map_err(io::Error::other)?;
        let from = peer_of(from).ok_or(io::ErrorKind::InvalidInput)?;
        send(&mut stream, &incoming(&from)).await?;
        let said = receive(&mut stream).await?;
        Ok((stream, is_taken(&said)))
    };
    match in_time(asking).await {
        Ok((stream, true)) => Ok((circuit, stream)),
        Ok((_, false)) => Err(Status::PermissionDenied),
        Err(error) => {
            tracing::debug!(%from, %to, %error, "a connection could not be passed on");
            Err(Status::ConnectionFailed)
        }
    }
}

/// Passes everything on in both directions, until both sides have ended, nothing goes any more, or the owner wants it no more.
async fn pass_on(core: &Core, one: Stream, other: Stream) -> io::Result<()> {
    let mut allowed = core.relaying.allowed();
    tokio::select! {
        done = between(&core.throttles, Passing::new(), one, other) => done,
        // An error says that this node goes down.
        _ = allowed.wait_for(|allowed| !*allowed) => Ok(()),
    }
}

/// What both directions of a connection know of it.
struct Passing {
    /// How long it may last.
    time: Duration,
    /// Bytes that may still go.
    left: u64,
    /// How long nothing may go.
    idle: Duration,
    /// The same once one side has ended.
    ending: Duration,
    /// When something last did.
    last: tokio::time::Instant,
    ended: bool,
}

impl Passing {
    fn new() -> Self {
        Self {
            time: RELAY_CIRCUIT_TIME,
            left: RELAY_CIRCUIT_BYTES,
            idle: RELAY_CIRCUIT_IDLE,
            ending: RELAY_CIRCUIT_ENDING,
            last: tokio::time::Instant::now(),
            ended: false,
        }
    }

    /// Until when it lasts if nothing goes.
    fn until(&self) -> tokio::time::Instant {
        let patience = if self.ended { self.ending } else { self.idle };
        self.last + patience
    }
}

async fn between<S: AsyncRead + AsyncWrite>(
    throttles: &Throttles,
    passing: Passing,
    one: S,
    other: S,
) -> io::Result<()> {
    let over = tokio::time::sleep(passing.time);
    let passing = Mutex::new(passing);
    let (from_one, to_one) = one.split();
    let (from_other, to_other) = other.split();
    let both = async {
        tokio::try_join!(
            one_way(throttles, from_one, to_other, &passing),
            one_way(throttles, from_other, to_one, &passing)
        )
    };
    let idle = async {
        loop {
            let until = lock(&passing).until();
            if until <= tokio::time::Instant::now() {
                return;
            }
            // The end of one side brings it nearer.
            let look = until.min(tokio::time::Instant::now() + lock(&passing).ending);
            tokio::time::sleep_until(look).await;
        }
    };
    tokio::select! {
        done = both => done.map(drop),
        () = over => Err(io::Error::new(io::ErrorKind::TimedOut, "the connection was passed on for as long as one may be")),
        () = idle => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing went over the connection any more")),
    }
}

/// Passes on what comes from one side.
async fn one_way(
    throttles: &Throttles,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    passing: &Mutex<Passing>,
) -> io::Result<()> {
    let mut buffer = vec![0; RELAY_PIECE];
    loop {
        let count = from.read(&mut buffer).await?;
        {
            let mut passing = lock(passing);
            passing.last = tokio::time::Instant::now();
            passing.ended |= count == 0;
            let left = passing.left.checked_sub(count as u64);
            passing.left =
                left.ok_or_else(|| io::Error::other("more went over a connection than is passed on"))?;
        }
        if count == 0 {
            return to.close().await;
        }
        // It comes in here, and goes out again.
        throttles.download.pass_on(count).await;
        throttles.upload.pass_on(count).await;
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, ready};

    use tokio::io::{AsyncRead as TokioRead, AsyncWrite as TokioWrite, DuplexStream, ReadBuf};

    use super::*;

    /// One end of a pipe, as libp2p's streams are.
    struct End(DuplexStream);

    impl AsyncRead for End {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            let mut buffer = ReadBuf::new(bytes);
            ready!(pin!(&mut self.0).poll_read(cx, &mut buffer))?;
            Poll::Ready(Ok(buffer.filled().len()))
        }
    }

    impl AsyncWrite for End {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            pin!(&mut self.0).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            pin!(&mut self.0).poll_flush(cx)
        }

        fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            pin!(&mut self.0).poll_shutdown(cx)
        }
    }

    /// A connection that is passed on: its ends, and how it ends.
    fn circuit(change: impl FnOnce(&mut Passing)) -> (End, End, tokio::task::JoinHandle<io::Result<()>>) {
        let (one, near_one) = tokio::io::duplex(1 << 16);
        let (other, near_other) = tokio::io::duplex(1 << 16);
        let mut passing = Passing::new();
        change(&mut passing);
        let passed = tokio::spawn(async move {
            between(&Throttles::default(), passing, End(near_one), End(near_other)).await
        });
        (End(one), End(other), passed)
    }

    #[tokio::test]
    async fn both_directions_go_until_both_have_ended() {
        let (mut one, mut other, passed) = circuit(|_| ());
        let mut said = vec![];
        one.write_all(b"question").await.unwrap();
        one.close().await.unwrap();
        other.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"question");
        said.clear();
        other.write_all(b"answer").await.unwrap();
        other.close().await.unwrap();
        one.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"answer");
        passed.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn no_more_goes_than_is_passed_on_in_both_directions_together() {
        // As much has gone already as one connection may carry, but for ten bytes.
        let (mut one, mut other, passed) = circuit(|passing| {
            assert_eq!(passing.left, RELAY_CIRCUIT_BYTES);
            passing.left -= RELAY_CIRCUIT_BYTES - 10;
        });
        let mut said = [0; 5];
        one.write_all(b"12345").await.unwrap();
        other.read_exact(&mut said).await.unwrap();
        other.write_all(b"67890").await.unwrap();
        one.read_exact(&mut said).await.unwrap();
        one.write_all(b"1").await.unwrap();
        let error = passed.await.unwrap().unwrap_err();
        assert!(error.to_string().contains("more went over"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_over_which_something_goes_all_the_time_ends_all_the_same() {
        let (mut one, mut other, mut passed) = circuit(|_| ());
        let since = tokio::time::Instant::now();
        let talking = async {
            let mut said = [0];
            loop {
                tokio::time::sleep(RELAY_CIRCUIT_IDLE / 2).await;
                if one.write_all(b"x").await.is_err() || other.read_exact(&mut said).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let error = tokio::select! {
            passed = &mut passed => passed.unwrap().unwrap_err(),
            () = talking => unreachable!("it talks for ever"),
            () = tokio::time::sleep(2 * RELAY_CIRCUIT_TIME) => panic!("it goes on for ever"),
        };
        assert!(error.to_string().contains("as long as one may be"), "{error}");
        assert!(since.elapsed() >= RELAY_CIRCUIT_TIME, "{:?}", since.elapsed());
    }

    #[test]
    fn what_is_passed_on_may_rest_as_long_as_is_said_and_less_once_one_side_has_ended() {
        let mut passing = Passing::new();
        assert_eq!(passing.until() - passing.last, RELAY_CIRCUIT_IDLE);
        passing.ended = true;
        assert_eq!(passing.until() - passing.last, RELAY_CIRCUIT_ENDING);
    }

    #[tokio::test]
    async fn a_connection_over_which_nothing_goes_ends() {
        let short = Duration::from_millis(100);
        // Neither has ended: it holds its place.
        let (_one, _other, passed) = circuit(|passing| (passing.idle, passing.ending) = (2 * short, short));
        let since = Instant::now();
        let error = passed.await.unwrap().unwrap_err();
        assert!(
            error.kind() == io::ErrorKind::TimedOut && since.elapsed() >= 2 * short,
            "{error}"
        );
        // One has, and the other says nothing and does not end.
        let (mut one, _other, passed) = circuit(|passing| passing.ending = short);
        one.close().await.unwrap();
        let error = passed.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
