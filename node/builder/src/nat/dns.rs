//! Names for builds: the questions that programs ask their name server, answered by what the node's machine
//! knows.
//!
//! Addresses of IPv4 are given, and those of IPv6 (RFC 3596) where builds have that; else a question for them has no
//! answer, which is no error. Only those are given that builds may reach: what names of the node's own network mean is
//! nobody's business. RFC 1035.

use std::net::IpAddr;

use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::limits::{CONNECT_TIME, NAT_ADDRESSES, NAT_ADDRESSES_V6};
use crate::proxy::address::{AddressRange, hidden};

/// Bytes before the question.
const HEAD: usize = 12;

/// Longest name, and longest part of one.
const NAME: usize = 253;
const LABEL: usize = 63;

/// Kinds of records, and the class.
const A: u16 = 1;
const AAAA: u16 = 28;
const INTERNET: u16 = 1;

/// Seconds that an answer may be kept: builds ask again soon.
const KEEP: u32 = 60;

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Fine = 0,
    Malformed = 1,
    Failed = 2,
    NoSuchName = 3,
    Unknown = 4,
    Refused = 5,
}

/// A question that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    name: String,
    kind: u16,
    class: u16,
    /// Where the question ends in the message.
    end: usize,
}

/// The answer to a message; empty where it is none that has one. `ipv6`: whether the build has that.
pub(super) async fn answer<F: Future<Output = ()>>(
    message: &[u8],
    ipv6: bool,
    allowed: &[AddressRange],
    tell: impl Fn(String) -> F,
) -> Vec<u8> {
    // Answers are not answered.
    if message.len() < HEAD || message[2] & 0x80 != 0 {
        return Vec::new();
    }
    let asked = match read(message) {
        Ok(asked) => asked,
        Err(code) => return write(message, HEAD, code, &[]),
    };
    let (end, none) = (asked.end, &[][..]);
    match (asked.class, asked.kind) {
        (INTERNET, A) => {}
        (INTERNET, AAAA) if ipv6 => {}
        (INTERNET, AAAA) => return write(message, end, Code::Fine, none),
        _ => return write(message, end, Code::Unknown, none),
    }
    let found = match timeout(CONNECT_TIME, lookup_host((asked.name.as_str(), 0))).await {
        Ok(Ok(found)) => found,
        Ok(Err(_)) => return write(message, end, Code::NoSuchName, none),
        Err(_) => return write(message, end, Code::Failed, none),
    };
    match choose(found.map(|found| found.ip()), asked.kind, ipv6, allowed) {
        Ok(addresses) => write(message, end, Code::Fine, &addresses),
        Err((address, class)) => {
            let name = &asked.name;
            tell(format!(
                "{name} ({address}) is denied to builds: the address is {class}"
            ))
            .await;
            write(message, end, Code::Refused, none)
        }
    }
}

/// What is answered of the addresses that a name has. Where builds may reach none of them, of whatever kind, one of
/// the kind that was asked for, and what it is.
fn choose(
    found: impl Iterator<Item = IpAddr>,
    kind: u16,
    ipv6: bool,
    allowed: &[AddressRange],
) -> Result<Vec<IpAddr>, (IpAddr, &'static str)> {
    let (mut addresses, mut others, mut refusal) = (Vec::new(), false, None);
    for address in found {
        let wanted = address.is_ipv4() == (kind == A);
        match hidden(address, allowed) {
            Some(class) if wanted => refusal = Some((address, class)),
            None if wanted => addresses.push(address),
            // What the build cannot use is of no use to it.
            None => others |= ipv6 || address.is_ipv4(),
            Some(_) => {}
        }
    }
    if let (Some(refusal), true, false) = (refusal, addresses.is_empty(), others) {
        return Err(refusal);
    }
    addresses.truncate(if kind == A {
        NAT_ADDRESSES
    } else {
        NAT_ADDRESSES_V6
    });
    Ok(addresses)
}

fn read(message: &[u8]) -> Result<Asked, Code> {
    let operation = message[2] >> 3 & 0xf;
    let questions = u16::from_be_bytes([message[4], message[5]]);
    if operation != 0 {
        return Err(Code::Unknown);
    }
    if questions != 1 {
        return Err(Code::Malformed);
    }
    let mut name = String::new();
    let mut at = HEAD;
    loop {
        let length = usize::from(*message.get(at).ok_or(Code::Malformed)?);
        at += 1;
        if length == 0 {
            break;
        }
        // What is longer is a reference to elsewhere, which no question has.
        if length > LABEL {
            return Err(Code::Malformed);
        }
        let label = message.get(at..at + length).ok_or(Code::Malformed)?;
        at += length;
        let usual = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if !label.iter().all(usual) {
            return Err(Code::NoSuchName);
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(&String::from_utf8_lossy(label));
        if name.len() > NAME {
            return Err(Code::Malformed);
        }
    }
    let number = |at: usize| {
        let bytes = message.get(at..at + 2).ok_or(Code::Malformed)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    let (kind, class) = (number(at)?, number(at + 2)?);
    if name.is_empty() {
        return Err(Code::NoSuchName);
    }
    let end = at + 4;
    Ok(Asked {
        name,
        kind,
        class,
        end,
    })
}

/// An answer to the question at the beginning of a message, which ends at `end`.
fn write(message: &[u8], end: usize, code: Code, addresses: &[IpAddr]) -> Vec<u8> {
    let mut answer = message[..end].to_vec();
    // An answer, of somebody who asks others for you, recursion as wanted.
    answer[2] = 0x80 | message[2] & 0x79;
    answer[3] = 0x80 | code as u8;
    let questions = u16::from(end > HEAD);
    let count = u16::try_from(addresses.len()).unwrap_or(0);
    for (at, number) in [(4, questions), (6, count), (8, 0), (10, 0)] {
        answer[at..at + 2].copy_from_slice(&number.to_be_bytes());
    }
    for address in addresses {
        // The name is the one that stands at the beginning.
        answer.extend([0xc0, HEAD as u8]);
        let (kind, octets) = match address {
            IpAddr::V4(address) => (A, address.octets().to_vec()),
            IpAddr::V6(address) => (AAAA, address.octets().to_vec()),
        };
        answer.extend(kind.to_be_bytes());
        answer.extend(INTERNET.to_be_bytes());
        answer.extend(KEEP.to_be_bytes());
        answer.extend([0, if kind == A { 4 } else { 16 }]);
        answer.extend(octets);
    }
    answer
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn question(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend(label.as_bytes());
        }
        message.push(0);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1]);
        message
    }

    async fn ask(message: &[u8], allowed: &[&str]) -> (Vec<u8>, Vec<String>) {
        let allowed: Vec<AddressRange> = allowed.iter().map(|range| range.parse().unwrap()).collect();
        let told = std::sync::Mutex::new(Vec::new());
        let answer = answer(message, false, &allowed, |text| {
            told.lock().unwrap().push(text);
            std::future::ready(())
        })
        .await;
        (answer, told.into_inner().unwrap())
    }

    #[tokio::test]
    async fn a_name_is_answered_with_its_addresses() {
        let message = question("localhost", A);
        let (answer, _) = ask(&message, &["127.0.0.0/8"]).await;
        assert_eq!(answer[..4], [0x12, 0x34, 0x81, 0x80]);
        assert_eq!(answer[4..8], [0, 1, 0, 1]);
        assert!(answer.ends_with(&[0, 4, 127, 0, 0, 1]), "{answer:?}");
        // There is none of the other kind, which is no error.
        let (answer, _) = ask(&question("localhost", AAAA), &["127.0.0.0/8"]).await;
        assert_eq!((answer[3] & 0xf, answer[7]), (0, 0));
    }

    #[test]
    fn a_build_is_told_of_what_it_may_reach_and_can_use() {
        let chosen = |kind, ipv6, allowed: &[&str], found: &[&str]| {
            let allowed: Vec<AddressRange> = allowed.iter().map(|range| range.parse().unwrap()).collect();
            let found = found.iter().map(|address| address.parse::<IpAddr>().unwrap());
            let texts = |chosen: Vec<IpAddr>| chosen.iter().map(IpAddr::to_string).collect::<Vec<_>>();
            let chosen = choose(found, kind, ipv6, &allowed);
            chosen
                .map(texts)
                .map_err(|(address, class)| format!("{address} is {class}"))
        };
        let public = ["1.1.1.1", "2606:4700::1", "fd00::1", "10.0.0.1"];
        assert_eq!(chosen(A, true, &[], &public).unwrap(), ["1.1.1.1"]);
        assert_eq!(chosen(AAAA, true, &[], &public).unwrap(), ["2606:4700::1"]);
        let more = chosen(AAAA, true, &["fd00::/8"], &public).unwrap();
        assert_eq!(more, ["2606:4700::1", "fd00::1"]);
        // All that there is is denied.
        for found in [&["fd00::1"][..], &["10.0.0.1", "fd00::1"]] {
            assert_eq!(chosen(AAAA, true, &[], found).unwrap_err(), "fd00::1 is private");
        }
        // What it has of the other kind is reachable, so there is nothing to say; unless the build has not that kind.
        assert!(
            chosen(AAAA, true, &[], &["fd00::1", "1.1.1.1"])
                .unwrap()
                .is_empty()
        );
        assert!(
            chosen(A, true, &[], &["10.0.0.1", "2606:4700::1"])
                .unwrap()
                .is_empty()
        );
        let denied = chosen(A, false, &[], &["10.0.0.1", "2606:4700::1"]).unwrap_err();
        assert_eq!(denied, "10.0.0.1 is private");
        let many: Vec<String> = (1..100).map(|number| format!("2606:4700::{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let message = question(
            &[["n".repeat(61).as_str(); 4].join("."), "xy".to_owned()].join("."),
            AAAA,
        );
        let chosen = chosen(AAAA, true, &[], &many).unwrap();
        let addresses: Vec<IpAddr> = chosen.iter().map(|text| text.parse().unwrap()).collect();
        let answer = write(&message, message.len(), Code::Fine, &addresses);
        assert!(
            answer.len() <= crate::limits::NAT_QUESTION_BYTES,
            "{}",
            answer.len()
        );
        assert_eq!(usize::from(answer[7]), NAT_ADDRESSES_V6);
        let beyond: Vec<IpAddr> = (1..=NAT_ADDRESSES + 1)
            .map(|number| Ipv4Addr::new(1, 1, 1, u8::try_from(number).unwrap()).into())
            .collect();
        let chosen = choose(beyond.iter().copied(), A, true, &[]).unwrap();
        assert_eq!(chosen, beyond[..NAT_ADDRESSES]);
        let last = addresses[NAT_ADDRESSES_V6 - 1];
        assert!(
            matches!(last, IpAddr::V6(last) if answer.ends_with(&[&[0, 16][..], &last.octets()].concat()))
        );
    }

    #[test]
    fn a_part_of_a_name_has_so_many_bytes_and_no_more() {
        let asked = |bytes: usize| read(&question(&"n".repeat(bytes), A)).map(|asked| asked.name);
        assert_eq!(asked(LABEL).ok(), Some("n".repeat(LABEL)));
        assert!(matches!(asked(LABEL + 1), Err(Code::Malformed)));
    }

    #[tokio::test]
    async fn names_of_the_machine_and_its_network_are_not() {
        let (answer, told) = ask(&question("localhost", A), &[]).await;
        assert_eq!((answer[3] & 0xf, answer[7]), (Code::Refused as u8, 0));
        assert!(
            told[0].contains("localhost (127.0.0.1) is denied to builds"),
            "{told:?}"
        );
    }

    #[tokio::test]
    async fn what_cannot_be_answered_is_said_to_be_so() {
        for (message, code) in [
            (question("no such name", A), Code::NoSuchName),
            (question("localhost", 16), Code::Unknown),
            (question("localhost", A)[..20].to_vec(), Code::Malformed),
            (question("", A), Code::NoSuchName),
        ] {
            let (answer, _) = ask(&message, &[]).await;
            assert_eq!(answer[3] & 0xf, code as u8, "{message:?}");
        }
        // Neither what is no message nor what is an answer.
        assert!(ask(&[1, 2, 3], &[]).await.0.is_empty());
        let mut message = question("localhost", A);
        message[2] |= 0x80;
        assert!(ask(&message, &[]).await.0.is_empty());
    }

    #[test]
    fn no_message_is_too_odd() {
        let message = question("some.name.example", A);
        for length in HEAD..message.len() {
            let _odd = read(&message[..length]);
        }
        for at in 0..message.len() {
            for value in 0..=255 {
                let mut odd = message.clone();
                odd[at] = value;
                if let Ok(asked) = read(&odd) {
                    assert!(asked.end <= odd.len() && asked.name.len() <= NAME);
                    assert!(
                        write(&odd, asked.end, Code::Fine, &[Ipv4Addr::LOCALHOST.into()]).len() > asked.end
                    );
                }
            }
        }
    }
}
