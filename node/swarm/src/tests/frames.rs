//! Frames of one connection over TCP, sent by somebody who keeps to no rules of ours.

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::core::transport::{DialOpts, PortUse, Transport as _};
use libp2p::core::upgrade::OutboundConnectionUpgrade as _;
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::tcp;

use super::*;
use crate::identity::keypair;
use crate::limits::{FRAME_ALLOCATION, FRAME_SLOT, FRAMES_KEPT, NEGOTIATING_STREAMS};

/// An encrypted connection on which the other side speaks Yamux.
async fn dial(to: &TestNode) -> impl futures::AsyncRead + futures::AsyncWrite + Unpin {
    let address = to.handle.addresses()[0].parse::<Multiaddr>().unwrap();
    // Without the key that it ends with: that is for who knows what it means.
    let address = address.into_iter().take(2).collect::<Multiaddr>();
    let mut transport = tcp::tokio::Transport::new(tcp::Config::default());
    let how = DialOpts {
        role: Endpoint::Dialer,
        port_use: PortUse::New,
    };
    let mut socket = soon(transport.dial(address, how).unwrap()).await.unwrap();
    agree(&mut socket, b"\x0b/tls/1.0.0\n").await;
    let tls = libp2p::tls::Config::new(&keypair(&secret(9)).unwrap()).unwrap();
    let (_, mut socket) = soon(tls.upgrade_outbound(socket, "/tls/1.0.0")).await.unwrap();
    agree(&mut socket, b"\x0d/yamux/1.0.0\n").await;
    socket
}

/// Both sides say which protocol it is.
async fn agree(socket: &mut (impl futures::AsyncRead + futures::AsyncWrite + Unpin), name: &[u8]) {
    let said = [b"\x13/multistream/1.0.0\n", name].concat();
    socket.write_all(&said).await.unwrap();
    socket.flush().await.unwrap();
    let mut heard = vec![0; said.len()];
    soon(socket.read_exact(&mut heard)).await.unwrap();
    assert_eq!(heard, said);
}

/// The header of a frame.
fn header(kind: u8, flags: u8, stream: u32, length: u32) -> Vec<u8> {
    let mut header = vec![0, kind, 0, flags];
    header.extend(stream.to_be_bytes());
    header.extend(length.to_be_bytes());
    header
}

/// Asks whether the other side is there, by a number, and whether it says so.
async fn is_there(
    socket: &mut (impl futures::AsyncRead + futures::AsyncWrite + Unpin),
    number: u32,
) -> std::io::Result<bool> {
    socket.write_all(&header(2, 1, 0, number)).await?;
    socket.flush().await?;
    let answer = header(2, 2, 0, number);
    loop {
        let mut heard = vec![0; answer.len()];
        soon(socket.read_exact(&mut heard)).await?;
        if heard == answer {
            return Ok(true);
        }
        // Something may come on a stream.
        let length = u32::from_be_bytes(heard[8..].try_into().unwrap());
        if heard[1] == 0 {
            soon(socket.read_exact(&mut vec![0; length as usize])).await?;
        }
    }
}

#[tokio::test]
async fn who_sends_too_much_in_pieces_of_one_byte_that_nobody_reads_is_hung_up_on() {
    let ann = TestNode::founder(1).await;
    let mut socket = dial(&ann).await;
    // Nobody looks at the last ones: all places of those are taken who have not said what they are about.
    let streams = u32::try_from(NEGOTIATING_STREAMS).unwrap() + 8;
    let opened: Vec<u8> = (0..streams)
        .flat_map(|number| header(0, 1, 2 * number + 1, 0))
        .collect();
    socket.write_all(&opened).await.unwrap();
    let all = FRAMES_KEPT / (FRAME_ALLOCATION + FRAME_SLOT);
    let frames = |from: usize, to: usize| -> Vec<u8> {
        // In turn on four of them: it is for the connection that they are counted.
        let last = |number: usize| 2 * (streams - 1 - (number % 4) as u32) + 1;
        (from..to)
            .flat_map(|number| [header(0, 0, last(number), 1), vec![7]].concat())
            .collect()
    };
    socket.write_all(&frames(0, all)).await.unwrap();
    assert!(is_there(&mut socket, 1).await.unwrap(), "it may have so many");
    let sent = async {
        socket.write_all(&frames(all, all + 1000)).await?;
        is_there(&mut socket, 2).await
    };
    assert!(sent.await.is_err(), "it goes on");
    // Others do not notice.
    let bob = ann.invite(2).await;
    soon(bob.handle.connect(ann.key())).await.unwrap();
}
