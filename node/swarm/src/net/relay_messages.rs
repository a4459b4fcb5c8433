//! The messages by which a node asks another one to pass connections on: circuit relay version 2 of libp2p
//! (<https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md>), as far as the one that passes on needs them.
//!
//! They are Protocol Buffers, each after its length. The other side is the library's.

use std::io;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::{Multiaddr, PeerId};

use crate::limits::{RELAY_CIRCUIT_BYTES, RELAY_CIRCUIT_TIME};

/// Bytes of one message, as the library bounds them.
const MOST: usize = 4096;

/// Addresses told: as many as fit for certain.
const ADDRESSES: usize = 8;

/// What a member asks the one between for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Question {
    /// To be reached through it.
    Reserve,
    /// To reach another.
    Connect(PeerId),
}

/// How it is answered. The numbers are the specification's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// So it is done.
    Ok = 100,
    /// It lets nobody be reached through it.
    ReservationRefused = 200,
    /// It does too much of it already.
    ResourceLimitExceeded = 201,
    /// Not for this one.
    PermissionDenied = 202,
    /// The other one is not to be had.
    ConnectionFailed = 203,
    /// The other one has not asked to be reached.
    NoReservation = 204,
    /// The question cannot be understood.
    MalformedMessage = 400,
}

/// One field of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Takes a number off the front; 7 bits a byte, the lowest first.
fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return None;
        }
        number |= part << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// The fields of a message, in order; none where it is not one. What has another kind than is known here is left out.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Value<'_>)>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = take_number(&mut bytes)?;
        let skipped = match tag & 7 {
            0 => {
                found.push((tag >> 3, Value::Number(take_number(&mut bytes)?)));
                0
            }
            2 => {
                let length = usize::try_from(take_number(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                found.push((tag >> 3, Value::Bytes(value)));
                0
            }
            1 => 8,
            5 => 4,
            _ => return None,
        };
        bytes = bytes.get(skipped..)?;
    }
    Some(found)
}

/// The last number under a tag: a later one replaces an earlier one.
fn number(fields: &[(u64, Value<'_>)], wanted: u64) -> Option<u64> {
    let mut all = fields.iter().rev().filter(|(tag, _)| *tag == wanted);
    match all.next()? {
        (_, Value::Number(number)) => Some(*number),
        (_, Value::Bytes(_)) => None,
    }
}

/// The last bytes under a tag.
fn part<'a>(fields: &[(u64, Value<'a>)], wanted: u64) -> Option<&'a [u8]> {
    let mut all = fields.iter().rev().filter(|(tag, _)| *tag == wanted);
    match all.next()? {
        (_, Value::Bytes(bytes)) => Some(bytes),
        (_, Value::Number(_)) => None,
    }
}

fn put_number(message: &mut Vec<u8>, mut number: u64) {
    loop {
        let part = number.to_le_bytes()[0] & 0x7f;
        number >>= 7;
        if number == 0 {
            message.push(part);
            return;
        }
        message.push(part | 0x80);
    }
}

fn with_number(mut message: Vec<u8>, tag: u64, number: u64) -> Vec<u8> {
    put_number(&mut message, tag << 3);
    put_number(&mut message, number);
    message
}

fn with_part(mut message: Vec<u8>, tag: u64, part: &[u8]) -> Vec<u8> {
    put_number(&mut message, tag << 3 | 2);
    put_number(&mut message, part.len() as u64);
    message.extend_from_slice(part);
    message
}

/// How long a connection that is passed on may last, and how much go over it.
fn limit() -> Vec<u8> {
    with_number(
        with_number(Vec::new(), 1, RELAY_CIRCUIT_TIME.as_secs()),
        2,
        RELAY_CIRCUIT_BYTES,
    )
}

/// What a member asks for; none where it is no question.
pub(crate) fn question(message: &[u8]) -> Option<Question> {
    let fields = fields(message)?;
    match number(&fields, 1)? {
        0 => Some(Question::Reserve),
        1 => {
            let peer = self::fields(part(&fields, 2)?)?;
            Some(Question::Connect(PeerId::from_bytes(part(&peer, 1)?).ok()?))
        }
        _ => None,
    }
}

/// An answer that says no more than how it is.
pub(crate) fn answer(status: Status) -> Vec<u8> {
    with_number(with_number(Vec::new(), 1, 2), 5, status as u64)
}

/// The answer to one who is reached through this node from now on, until `expire` in seconds since 1970, at these addresses
/// of it.
pub(crate) fn reserved(expire: u64, addresses: impl IntoIterator<Item = Multiaddr>) -> Vec<u8> {
    let addresses = addresses.into_iter().take(ADDRESSES);
    let reservation = addresses.fold(with_number(Vec::new(), 1, expire), |message, address| {
        with_part(message, 2, &address.to_vec())
    });
    let message = with_part(with_number(Vec::new(), 1, 2), 3, &reservation);
    with_number(with_part(message, 4, &limit()), 5, Status::Ok as u64)
}

/// The answer to one who is connected with another from now on.
pub(crate) fn connected() -> Vec<u8> {
    let message = with_part(with_number(Vec::new(), 1, 2), 4, &limit());
    with_number(message, 5, Status::Ok as u64)
}

/// Tells one who is reached through this node that this peer wants to.
pub(crate) fn incoming(from: &PeerId) -> Vec<u8> {
    let peer = with_part(Vec::new(), 1, &from.to_bytes());
    with_part(with_part(with_number(Vec::new(), 1, 0), 2, &peer), 3, &limit())
}

/// Whether the one who was told is there for it.
pub(crate) fn is_taken(message: &[u8]) -> bool {
    fields(message)
        .is_some_and(|fields| number(&fields, 1) == Some(1) && number(&fields, 4) == Some(Status::Ok as u64))
}

/// Sends a message after its length.
pub(crate) async fn send<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> io::Result<()> {
    let mut framed = Vec::with_capacity(message.len() + 2);
    put_number(&mut framed, message.len() as u64);
    framed.extend_from_slice(message);
    stream.write_all(&framed).await?;
    stream.flush().await
}

/// Receives a message. What comes after it stays in the stream.
pub(crate) async fn receive<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Vec<u8>> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "not a message about relaying");
    let (mut length, mut shift) = (0_usize, 0);
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            break;
        }
        shift += 7;
        // Two such bytes are enough for the largest.
        if shift > 7 {
            return Err(wrong());
        }
    }
    if length > MOST {
        return Err(wrong());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use futures::io::Cursor;

    use super::*;

    #[test]
    fn questions_are_understood_whatever_else_is_in_them() {
        assert_eq!(question(&[0x08, 0]), Some(Question::Reserve));
        let peer = PeerId::random();
        let inner = with_part(with_part(Vec::new(), 1, &peer.to_bytes()), 2, b"address");
        let connect = with_part(with_number(Vec::new(), 1, 1), 2, &inner);
        assert_eq!(question(&connect), Some(Question::Connect(peer)));
        // A field of a later version, of each kind.
        let mut later = with_part(with_number(connect.clone(), 30, u64::MAX), 31, b"new");
        later.extend([0x81, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(question(&later), Some(Question::Connect(peer)));
        for wrong in [
            &b""[..],
            &[0x08],
            &[0x08, 1],
            &[0x08, 2],
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &connect[..connect.len() - 1],
        ] {
            assert_eq!(question(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn nothing_that_comes_makes_it_fall_over() {
        let mut seed = 1_u64;
        for _ in 0..20_000 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let bytes: Vec<u8> = (0..seed >> 59)
                .map(|at| (seed >> (at % 50)).to_le_bytes()[0])
                .collect();
            question(&bytes);
            is_taken(&bytes);
            receive(&mut Cursor::new(&bytes)).now_or_never().unwrap().ok();
        }
    }

    /// What is nearly right reaches further than what is anything.
    #[test]
    fn no_change_of_a_message_makes_it_fall_over_or_one_that_is_longer_than_it_may_be() {
        let peer = PeerId::random();
        let inner = with_part(Vec::new(), 1, &peer.to_bytes());
        let connect = with_part(with_number(Vec::new(), 1, 1), 2, &inner);
        let taken = with_number(with_number(Vec::new(), 1, 1), 4, Status::Ok as u64);
        for message in [connect, taken, incoming(&peer), connected(), answer(Status::Ok)] {
            for at in 0..message.len() {
                for byte in 0..=u8::MAX {
                    let mut changed = message.clone();
                    changed[at] = byte;
                    for bytes in [
                        &changed[..],
                        &changed[..at],
                        &[&changed[..], &changed[at..]].concat(),
                    ] {
                        if let Some(Question::Connect(to)) = question(bytes) {
                            assert!(to.to_bytes().len() <= bytes.len());
                        }
                        is_taken(bytes);
                    }
                    let mut framed = Vec::new();
                    send(&mut framed, &message).now_or_never().unwrap().unwrap();
                    framed[at] = byte;
                    let came = receive(&mut Cursor::new(framed)).now_or_never().unwrap();
                    assert!(came.is_ok_and(|came| came.len() <= MOST) || at == 0);
                }
            }
        }
    }

    #[test]
    fn only_a_word_that_it_is_taken_says_so() {
        assert!(is_taken(&with_number(with_number(Vec::new(), 1, 1), 4, 100)));
        assert!(!is_taken(&with_number(with_number(Vec::new(), 1, 1), 4, 204)));
        assert!(!is_taken(&with_number(with_number(Vec::new(), 1, 0), 4, 100)));
        assert!(!is_taken(&with_number(Vec::new(), 1, 1)));
    }

    #[test]
    fn messages_travel_within_their_bound() {
        let mut sent = Vec::new();
        let message = vec![7; 300];
        send(&mut sent, &message).now_or_never().unwrap().unwrap();
        sent.extend_from_slice(b"more");
        let mut stream = Cursor::new(sent);
        let came = receive(&mut stream).now_or_never().unwrap().unwrap();
        assert_eq!(came, message);
        assert_eq!(stream.position(), 302, "what follows is not taken");
        for wrong in [&[0xff, 0xff, 0x01][..], &[0x81, 0x20], &[5, 0]] {
            let mut stream = Cursor::new(wrong);
            assert!(receive(&mut stream).now_or_never().unwrap().is_err(), "{wrong:?}");
        }
    }
}
