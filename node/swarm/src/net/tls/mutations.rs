//! What strangers, and who stands between two ends, can make of TLS: nothing panics, nothing waits for ever, nobody is
//! taken for another, and no changed word is heard.
//!
//! Keys and signatures differ from run to run; what is changed, and where, does not. Some changes of each kind in every
//! run, as many as one likes with `TVIX_NODE_MUTATIONS=N`.

mod ends;
#[path = "../../../../../protocol/tests/mutation/mod.rs"]
mod mutation;
mod plain;
mod records;

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use ends::{End, met, pieces, shake};
use mutation::{Random, changed, each_change, each_round};
use records::{Sealed, change, message, record, records, sealed};
use rustls::pki_types::CertificateDer;

use super::tests::{certificate, identity, node, peer};
use super::*;
use crate::limits::{TLS_HANDSHAKE, TLS_INCOMING, TLS_OUTGOING, TLS_READ, TLS_RECORD};

/// Bytes of memory that a connection has before its handshake is done, at most: what came, and what is to be sent.
const HELD_BEFORE: usize = 2 * TLS_HANDSHAKE;

/// Bytes that it has later: what is said, records to be sent, what came, and what that says in a vector that doubles.
const HELD: usize = 2 * TLS_RECORD + 2 * TLS_OUTGOING + 3 * TLS_INCOMING + 4 * TLS_INCOMING;

/// Two nodes whose records everybody can read and change.
fn plain_nodes() -> [Tls; 2] {
    [1, 2].map(|seed| Tls::with_ciphers(&identity(seed), plain::plain(), true).unwrap())
}

/// One change of one handshake. Returns whether an end refused it.
fn change_handshake([dialler, listener]: &[Tls; 2], how: Sealed, random: &mut Random) -> bool {
    let mut ends = End::pair(dialler, listener);
    // The dialler speaks twice, the listener once.
    let (chosen, mut flight) = (random.below(3), 0);
    let (mut earlier, mut deceived) = (vec![], None);
    shake(&mut ends, random, |side, said, random| {
        flight += 1;
        if flight - 1 != chosen {
            earlier.extend(records(&said));
            return said;
        }
        let change = change(&records(&said), &earlier, how, random);
        if change.says_otherwise {
            deceived = Some(1 - side);
        }
        change.bytes
    });
    for (side, expected) in [peer(2), peer(1)].into_iter().enumerate() {
        assert!(ends[side].peer().is_none_or(|seen| seen == expected));
    }
    if let Some(side) = deceived {
        assert!(ends[side].peer().is_none(), "end {side} took what was not said");
    }
    ends.iter().any(|end| end.peer().is_none())
}

#[test]
fn a_changed_handshake_ends_and_never_with_another_peer() {
    let nodes = [node(1), node(2)];
    each_round("a handshake", 120, |random| {
        change_handshake(&nodes, Sealed::Yes, random)
    });
}

#[test]
fn a_handshake_that_says_something_else_is_refused_whatever_can_be_read() {
    let nodes = plain_nodes();
    each_round("a plain handshake", 250, |random| {
        change_handshake(&nodes, Sealed::No, random)
    });
}

#[test]
fn a_handshake_without_an_end_is_refused_and_costs_little() {
    // The longest message that TLS allows begins, in records as long as they may be, or as short.
    let mut hello = message(1, &[0; 60_000]);
    hello[1..4].copy_from_slice(&[0, 0xff, 0xff]);
    for (long, at_once) in [(16_000, 70_000), (16_000, 1), (1, 70_000), (1, 1)] {
        let records = hello.chunks(long).map(|piece| record(records::HANDSHAKE, piece));
        let bytes: Vec<u8> = records.flatten().collect();
        let [_, mut listener] = End::pair(&node(1), &node(2));
        let (taken, more) = bytes.split_at(TLS_HANDSHAKE - 1);
        taken
            .chunks(at_once)
            .for_each(|piece| listener.hears_in_handshake(piece));
        assert!(listener.met.is_none(), "that much is taken");
        more.chunks(at_once)
            .for_each(|piece| listener.hears_in_handshake(piece));
        let held = listener.stream.held();
        assert!(held <= TLS_HANDSHAKE + 2 * TLS_READ, "{held} bytes are held");
        let refusal = listener.met.unwrap().unwrap_err().to_string();
        assert!(refusal.contains("too long"), "{refusal}");
    }
}

/// Has one end say something, in some records, and close where that is said.
fn say(end: &mut End, closes: bool, random: &mut Random) -> Vec<u8> {
    let cx = &mut Context::from_waker(Waker::noop());
    let mut said = vec![];
    for _ in 0..=random.below(4) {
        let length = [3, 100, 5000, 40_000][random.below(4)];
        let words: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
        let mut rest = &words[..];
        while !rest.is_empty() {
            let Poll::Ready(count) = Pin::new(&mut end.stream).poll_write(cx, rest) else {
                panic!("the socket takes all");
            };
            rest = &rest[count.unwrap()..];
        }
        assert!(matches!(
            Pin::new(&mut end.stream).poll_flush(cx),
            Poll::Ready(Ok(()))
        ));
        if random.below(4) == 0 {
            end.stream.change_key().unwrap();
        }
        said.extend(words);
    }
    if closes {
        assert!(matches!(
            Pin::new(&mut end.stream).poll_close(cx),
            Poll::Ready(Ok(()))
        ));
    }
    said
}

#[test]
fn a_changed_record_is_not_heard_and_a_connection_that_is_cut_did_not_end() {
    let [dialler, listener] = [node(1), node(2)];
    each_round("records", 120, |random| {
        let mut ends = met(&dialler, &listener, random);
        let (speaker, closes) = (random.below(2), random.below(2) == 0);
        let [one, other] = &mut ends;
        let (speaks, hears) = if speaker == 0 { (one, other) } else { (other, one) };
        let said = say(speaks, closes, random);
        let said_records = records(&speaks.said());
        // Of what was said before, and of what this end says itself, nothing is taken again.
        say(hears, false, random);
        let earlier = [said_records.clone(), records(&hears.said())].concat();
        let change = change(&said_records, &earlier, Sealed::Yes, random);
        pieces(&change.bytes, random)
            .into_iter()
            .for_each(|piece| hears.hears_after_handshake(piece));
        hears.is_cut();
        hears.read();
        assert!(said.starts_with(&hears.heard), "it hears what nobody said");
        match hears.ended.take() {
            None => panic!("it waits for more than the end"),
            Some(Err(_)) => {
                hears.read();
                assert!(
                    matches!(hears.ended, Some(Err(_))),
                    "it goes on after what ended it"
                );
                true
            }
            Some(Ok(())) => {
                assert!(closes && hears.heard == said, "it ends where nobody ended it");
                false
            }
        }
    });
}

#[test]
fn who_finished_a_handshake_and_says_strange_things_within_it_harms_nobody() {
    let [dialler, listener] = plain_nodes();
    each_round("strange records", 200, |random| {
        let mut ends = met(&dialler, &listener, random);
        let hears = &mut ends[random.below(2)];
        let mut said = vec![];
        for _ in 0..=random.below(6) {
            let honest = [
                sealed(records::DATA, &vec![7; 1 + random.below(3000)]),
                sealed(records::HANDSHAKE, &message(24, &[random.below(2) as u8])),
                sealed(records::ALERT, &[1, 0]),
                record(records::CHANGE_CIPHER, &[1]),
            ];
            said.extend(change(&honest[..1 + random.below(4)], &honest, Sealed::No, random).bytes);
        }
        pieces(&said, random)
            .into_iter()
            .for_each(|piece| hears.hears_after_handshake(piece));
        // It may say something itself in between.
        let cx = &mut Context::from_waker(Waker::noop());
        let _ = Pin::new(&mut hears.stream).poll_write(cx, b"word");
        let _ = Pin::new(&mut hears.stream).poll_flush(cx);
        hears.read();
        hears.is_cut();
        hears.read();
        assert!(hears.heard.len() <= said.len());
        hears
            .ended
            .take()
            .expect("it waits for more than the end")
            .is_err()
    });
}

#[test]
fn a_changed_certificate_is_refused_or_shows_the_same_node() {
    let (made, _) = certificate(&identity(5), &identity(5), 4096);
    let shown = |changed: &[u8]| certificate::parse(&changed.into()).map(|read| read.peer_id());
    assert_eq!(shown(&made).unwrap(), peer(5));
    each_change("a certificate", &made, 1000, |changed| {
        let shown = shown(changed);
        assert!(shown.as_ref().is_ok_and(|shown| *shown == peer(5)) || shown.is_err());
        shown.is_err()
    });
}

/// One value of DER and what follows it; all of ours have their length in two bytes.
fn value(der: &[u8]) -> (&[u8], &[u8]) {
    der.split_at(4 + usize::from(u16::from_be_bytes([der[2], der[3]])))
}

/// One value of DER with its length in two bytes, which its readers need not take.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = match content.len() {
        short @ ..0x80 => vec![short as u8],
        middle @ ..0x100 => vec![0x81, middle as u8],
        long => [&[0x82], u16::try_from(long).unwrap().to_be_bytes().as_slice()].concat(),
    };
    [&[tag], length.as_slice(), content].concat()
}

#[test]
fn a_changed_certificate_that_its_holder_signed_shows_nobody_else() {
    let (made, key) = certificate(&identity(5), &identity(5), 4096);
    let key = aws_lc_rs::sign::any_ecdsa_type(&key).unwrap();
    let signer = key
        .choose_scheme(&[rustls::SignatureScheme::ECDSA_NISTP256_SHA256])
        .unwrap();
    let (signed, rest) = value(&made[4..]);
    let algorithm = &rest[..2 + usize::from(rest[1])];
    let made_of = |signed: &[u8]| {
        let signature = der(3, &[&[0], signer.sign(signed).unwrap().as_slice()].concat());
        CertificateDer::from(der(0x30, &[signed, algorithm, &signature].concat()))
    };
    assert_eq!(certificate::parse(&made_of(signed)).unwrap().peer_id(), peer(5));
    each_round("what a certificate says", 500, |random| {
        let content = changed(&signed[4..], random);
        if content.len() > 60_000 {
            return true;
        }
        let made = made_of(&der(0x30, &content));
        let shown = certificate::parse(&made).map(|read| read.peer_id());
        assert!(shown.as_ref().is_ok_and(|shown| *shown == peer(5)) || shown.is_err());
        // Most of it is the holder's to say: its names, its numbers, its dates.
        true
    });
}
