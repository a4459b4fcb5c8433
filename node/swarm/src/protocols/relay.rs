//! Passing connections on between members that cannot reach each other directly.
//!
//! The messages are those of libp2p, whose part for one who lets itself be reached, or reaches others, is used as it is. The
//! part between them is here: its bytes are let through at the rate that the owner allows, and it ends when he
//! says so, neither of which the library offers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::PeerId;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::Stream;
use tvix_node_protocol::envelope::NodeKey;

use crate::core::Core;
use crate::identity::{key_of, peer_of};
use crate::limits::{
    ANSWER_TIME, RELAY_CIRCUIT_BYTES, RELAY_CIRCUIT_TIME, RELAY_PIECE, RELAY_RESERVATION_TIME,
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

/// Passes everything on in both directions, until both sides have ended, or the owner wants it no more.
async fn pass_on(core: &Core, one: Stream, other: Stream) -> io::Result<()> {
    let mut allowed = core.relaying.allowed();
    let left = AtomicU64::new(RELAY_CIRCUIT_BYTES);
    let (from_one, to_one) = one.split();
    let (from_other, to_other) = other.split();
    let both = async {
        tokio::try_join!(
            one_way(&core.throttles, from_one, to_other, &left),
            one_way(&core.throttles, from_other, to_one, &left)
        )
    };
    tokio::select! {
        done = tokio::time::timeout(RELAY_CIRCUIT_TIME, both) => match done {
            Ok(done) => done.map(drop),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        },
        // An error says that this node goes down.
        _ = allowed.wait_for(|allowed| !*allowed) => Ok(()),
    }
}

/// Passes on what comes from one side. `left`: bytes that may still go, both directions together.
async fn one_way(
    throttles: &Throttles,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    left: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; RELAY_PIECE];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.close().await;
        }
        let had = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(count as u64)
        });
        if had.is_err() {
            return Err(io::Error::other("more went over a connection than is passed on"));
        }
        // It comes in here, and goes out again.
        throttles.download.pass_on(count).await;
        throttles.upload.pass_on(count).await;
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
    }
}
